//! Admin changes of all replicas that the context's endpoints lead to. The store's changes are the
//! same at each of them; older ones are in the archives of the replicas that ran at the time.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, VecDeque},
};

use prost::Message as _;
use seks_proto::wire::{AdminChange, AdminChangeEntry, AdminChangesRequest};

use super::page;
use crate::{
    client::Client,
    commands::audit::is_about_fleet,
    context::Context,
    error::{CliError, Exit, Result},
    global::Global,
    output::notice,
};

/// The order of a list: the newest first, then by chain and sequence.
type Place = Reverse<(u64, String, u64)>;

/// One replica, and the changes of it that were not printed yet.
struct Source {
    client: Client,
    is_fleet: bool,
    endpoint: String,
    replica: String,
    waiting: VecDeque<(Place, AdminChangeEntry)>,
    /// Of the next page; `None`: there is none.
    next: Option<String>,
}

/// The replicas that answer.
pub(super) struct Archives {
    sources: Vec<Source>,
    request: AdminChangesRequest,
    /// Replicas that are known to have more than the others.
    longer: BTreeSet<String>,
    /// The change that was returned last: each replica has most of them.
    last: Option<(String, Vec<u8>)>,
}

impl Archives {
    /// Connects to every endpoint, and reads the first page of each replica.
    ///
    /// # Errors
    /// When none of them can be reached; any other refusal.
    pub(super) async fn open(global: &Global, request: AdminChangesRequest) -> Result<Self> {
        let context = global.load_context()?;
        let endpoints: Vec<String> = context.all_endpoints().map(str::to_owned).collect();
        let mut found = Self { sources: Vec::new(), request, longer: BTreeSet::new(), last: None };
        let mut unreachable = None;
        for endpoint in endpoints {
            match found.begin(global, &context, endpoint.clone()).await {
                Ok(()) => {}
                Err(error) if error.exit == Exit::Unreachable => {
                    missing(&endpoint, &error);
                    unreachable.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        match unreachable {
            Some(error) if found.sources.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    async fn begin(&mut self, global: &Global, context: &Context, endpoint: String) -> Result<()> {
        let one = Context { endpoint: endpoint.clone(), endpoints: Vec::new(), ..context.clone() };
        let client = Client::connect(&one, global.tenant.as_deref(), global.timeout).await?;
        let is_fleet = is_about_fleet(global, &client).await?;
        let (replica, waiting, next) = (String::new(), VecDeque::new(), Some(String::new()));
        let mut source = Source { client, is_fleet, endpoint, replica, waiting, next };
        let longer = source.read_page(&self.request).await?;
        let is_known = |known: &Source| !source.replica.is_empty() && known.replica == source.replica;
        if !self.sources.iter().any(is_known) {
            self.longer.extend(longer);
            self.sources.push(source);
        }
        Ok(())
    }

    /// The newest change that was not returned yet.
    ///
    /// # Errors
    /// Of a replica, but that it cannot be reached any more.
    pub(super) async fn next(&mut self) -> Result<Option<AdminChangeEntry>> {
        loop {
            for source in &mut self.sources {
                while source.waiting.is_empty() && source.next.is_some() {
                    match source.read_page(&self.request).await {
                        Ok(longer) => self.longer.extend(longer),
                        Err(error) if error.exit == Exit::Unreachable => {
                            missing(&source.endpoint, &error);
                            self.longer.insert(std::mem::take(&mut source.replica));
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            let Some((_, entry)) = newest(self.sources.iter_mut().map(|source| &mut source.waiting)) else {
                return Ok(None);
            };
            let is_again =
                self.last.as_ref().is_some_and(|(chain, change)| *chain == entry.chain && *change == entry.change);
            if !is_again {
                self.last = Some((entry.chain.clone(), entry.change.clone()));
                return Ok(Some(entry));
            }
        }
    }

    /// Whether a replica has changes and did not answer. Names it.
    pub(super) fn is_incomplete(&self) -> bool {
        let have = |name: &String| self.sources.iter().any(|source| source.replica == *name);
        let missing: Vec<&str> = self.longer.iter().filter(|name| !have(name)).map(String::as_str).collect();
        if !missing.is_empty() {
            notice(&format!(
                "older changes are in the archives of other replicas: {}; name their addresses in `endpoints` of the context",
                missing.join(", ")
            ));
        }
        !missing.is_empty()
    }
}

fn missing(endpoint: &str, error: &CliError) {
    notice(&format!("the replica at {endpoint} did not answer, and its archive is not read: {}", error.why));
}

/// Takes the newest change of several lists.
fn newest<'a>(
    lists: impl Iterator<Item = &'a mut VecDeque<(Place, AdminChangeEntry)>>,
) -> Option<(Place, AdminChangeEntry)> {
    let first = lists.filter(|list| !list.is_empty()).min_by_key(|list| list.front().map(|(place, _)| place.clone()));
    first.and_then(VecDeque::pop_front)
}

fn place(entry: &AdminChangeEntry) -> Place {
    // One that does not decode is refused when it is printed.
    let change = AdminChange::decode(entry.change.as_slice()).unwrap_or_default();
    Reverse((change.at_us, entry.chain.clone(), change.sequence))
}

impl Source {
    /// Reads the next page. Returns the replicas that have older changes.
    async fn read_page(&mut self, request: &AdminChangesRequest) -> Result<Vec<String>> {
        let page_token = self.next.take().unwrap_or_default();
        let request = AdminChangesRequest { tenant: self.client.tenant(), page_token, ..request.clone() };
        let answer = page(&self.client, self.is_fleet, request).await?;
        self.next = Some(answer.next_page_token).filter(|token| !token.is_empty());
        self.waiting.extend(answer.entries.into_iter().map(|entry| (place(&entry), entry)));
        self.replica = answer.replica;
        Ok(answer.longer_archives)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(changes: &[(u64, &str, u64)]) -> VecDeque<(Place, AdminChangeEntry)> {
        let entry = |(at_us, chain, sequence): &(u64, &str, u64)| {
            let change = AdminChange { at_us: *at_us, sequence: *sequence, ..AdminChange::default() };
            let entry = AdminChangeEntry { chain: (*chain).into(), change: change.encode_to_vec(), revision: 1 };
            (place(&entry), entry)
        };
        changes.iter().map(entry).collect()
    }

    #[test]
    fn changes_that_several_replicas_have_are_printed_once_and_the_newest_first() {
        let mut lists = [
            list(&[(9, "*", 3), (7, "a", 2), (7, "a", 1)]),
            list(&[(9, "*", 3), (8, "b", 1), (7, "a", 1), (1, "*", 1)]),
        ];
        let mut merged = Vec::new();
        while let Some((Reverse(place), _)) = newest(lists.iter_mut()) {
            merged.push(place);
        }
        merged.dedup();
        let expected = [(9, "*", 3), (8, "b", 1), (7, "a", 2), (7, "a", 1), (1, "*", 1)];
        assert_eq!(merged, expected.map(|(at_us, chain, sequence)| (at_us, chain.to_owned(), sequence)));
    }
}
