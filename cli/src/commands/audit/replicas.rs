//! Searches over all replicas that the context's endpoints lead to. Each replica holds the records
//! of its own nodes.

use std::collections::{BTreeSet, VecDeque};

use seks_proto::wire::{AuditEntry, SearchAuditRequest, SearchAuditResponse};

use super::is_about_fleet;
use crate::{
    client::Client,
    context::Context,
    error::{CliError, Exit, Result},
    global::Global,
    output::notice,
};

/// One replica, and what it has found so far.
pub(super) struct Source {
    pub(super) client: Client,
    pub(super) is_fleet: bool,
    endpoint: String,
    pub(super) replica: String,
    trail: String,
    /// Found and not printed yet, the newest first.
    waiting: VecDeque<AuditEntry>,
    /// Of the next page; `None`: there is none.
    next: Option<String>,
    /// Behind its newest record when the search began.
    pub(super) end: String,
}

/// The replicas that answer.
pub(super) struct Replicas {
    pub(super) sources: Vec<Source>,
    request: SearchAuditRequest,
    /// A replica did not answer: something is missing.
    pub(super) is_incomplete: bool,
}

impl Replicas {
    /// Connects to every endpoint, and begins the search at each replica.
    ///
    /// # Errors
    /// When none of them can be reached; any other refusal.
    pub(super) async fn search(global: &Global, request: SearchAuditRequest) -> Result<Self> {
        let context = global.load_context()?;
        let endpoints: Vec<String> = context.all_endpoints().map(str::to_owned).collect();
        let mut found = Self { sources: Vec::new(), request, is_incomplete: false };
        let (mut unreachable, mut others) = (None, BTreeSet::new());
        for endpoint in endpoints {
            match found.begin(global, &context, endpoint.clone()).await {
                Ok(answer) => others.extend(answer),
                Err(error) if error.exit == Exit::Unreachable => {
                    found.missing(&endpoint, &error);
                    unreachable.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        if let (true, Some(error)) = (found.sources.is_empty(), unreachable) {
            return Err(error);
        }
        for source in &found.sources {
            others.remove(&source.replica);
        }
        if !others.is_empty() {
            let names: Vec<String> = others.into_iter().collect();
            let have: Vec<&str> = found.sources.iter().map(|source| source.replica.as_str()).collect();
            notice(&format!(
                "these are the records of replica {}; others hold theirs: {}; name their addresses in `endpoints` of the context",
                have.join(", "),
                names.join(", ")
            ));
        }
        Ok(found)
    }

    /// The first page of one replica, unless another endpoint has led to it. Returns the other
    /// replicas that it knows.
    async fn begin(&mut self, global: &Global, context: &Context, endpoint: String) -> Result<Vec<String>> {
        let one = Context { endpoint: endpoint.clone(), endpoints: Vec::new(), ..context.clone() };
        let client = Client::connect(&one, global.tenant.as_deref(), global.timeout).await?;
        let is_fleet = is_about_fleet(global, &client).await?;
        let mut source = Source {
            client,
            is_fleet,
            endpoint,
            replica: String::new(),
            trail: String::new(),
            waiting: VecDeque::new(),
            next: Some(String::new()),
            end: String::new(),
        };
        let answer = source.page(&self.request).await?;
        if self.sources.iter().any(|known| known.trail == answer.trail) {
            return Ok(Vec::new());
        }
        if !answer.unreadable_blocks.is_empty() {
            let count = answer.unreadable_blocks.len();
            notice(&format!(
                "{count} blocks of the trail of replica {} cannot be read: see `seks audit verify`",
                answer.replica
            ));
        }
        let others = answer.other_replicas.clone();
        source.replica.clone_from(&answer.replica);
        source.trail.clone_from(&answer.trail);
        source.end.clone_from(&answer.end_token);
        source.take(answer);
        self.sources.push(source);
        Ok(others)
    }

    fn missing(&mut self, endpoint: &str, error: &CliError) {
        self.is_incomplete = true;
        notice(&format!("the replica at {endpoint} did not answer, and its records are missing: {}", error.why));
    }

    /// The newest record that was not returned yet.
    ///
    /// # Errors
    /// Of a replica, but that it cannot be reached any more.
    pub(super) async fn next(&mut self) -> Result<Option<AuditEntry>> {
        for at in 0..self.sources.len() {
            let Some(source) = self.sources.get_mut(at) else { continue };
            while source.waiting.is_empty() && source.next.is_some() {
                match source.page(&self.request).await {
                    Ok(answer) => source.take(answer),
                    Err(error) if error.exit == Exit::Unreachable => {
                        source.next = None;
                        let endpoint = source.endpoint.clone();
                        self.missing(&endpoint, &error);
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        let waiting = self.sources.iter_mut().map(|source| &mut source.waiting);
        Ok(newest(waiting).and_then(VecDeque::pop_front))
    }
}

/// The list whose first record is the newest.
fn newest<'a>(lists: impl Iterator<Item = &'a mut VecDeque<AuditEntry>>) -> Option<&'a mut VecDeque<AuditEntry>> {
    let began = |list: &VecDeque<AuditEntry>| list.front().map(|entry| entry.record.as_ref().map_or(0, |r| r.began_us));
    lists.filter(|list| !list.is_empty()).max_by_key(|list| began(list))
}

impl Source {
    async fn page(&mut self, request: &SearchAuditRequest) -> Result<SearchAuditResponse> {
        let page_token = self.next.take().unwrap_or_default();
        let request = SearchAuditRequest { tenant: self.client.tenant(), page_token, ..request.clone() };
        let mut rpc = self.client.rpc();
        if self.is_fleet {
            self.client.call("audit", rpc.search_fleet_audit(request)).await
        } else {
            self.client.call("audit", rpc.search_audit(request)).await
        }
    }

    fn take(&mut self, answer: SearchAuditResponse) {
        self.next = Some(answer.next_page_token).filter(|token| !token.is_empty());
        self.waiting.extend(answer.entries);
    }
}

#[cfg(test)]
mod tests {
    use seks_proto::wire::AuditRecord;

    use super::*;

    #[test]
    fn records_of_several_replicas_come_newest_first() {
        let entry = |began_us| AuditEntry {
            record: Some(AuditRecord { began_us, ..AuditRecord::default() }),
            ..AuditEntry::default()
        };
        let mut lists = [[9, 4, 1].map(entry).into(), VecDeque::new(), [8, 7, 2].map(entry).into()];
        let mut merged = Vec::new();
        while let Some(entry) = newest(lists.iter_mut()).and_then(VecDeque::pop_front) {
            merged.push(entry.record.unwrap().began_us);
        }
        assert_eq!(merged, [9, 8, 7, 4, 2, 1]);
    }
}
