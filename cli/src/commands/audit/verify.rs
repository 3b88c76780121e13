//! `seks audit verify`: recomputes the chains of all records, at every replica of the context, and
//! names what is wrong.

mod merge;

use std::{collections::BTreeSet, process::ExitCode};

use seks_proto::wire::{AuditFinding, VerifyAuditRequest, VerifyAuditResponse};
use serde::Serialize;

use crate::{
    client::Client,
    context::Context,
    error::{CliError, Exit, Result},
    global::Global,
    output::{View, notice, rfc3339},
};

#[derive(Serialize)]
struct VerificationView {
    ok: bool,
    /// The first that was asked.
    replica: String,
    /// All that have answered.
    replicas: Vec<String>,
    /// Endpoints that have not.
    unreachable: Vec<String>,
    records: u64,
    chains: u64,
    /// Changes of operators.
    admin_changes: u64,
    blocks: u64,
    /// Requests whose outcome is unknown.
    open_intents: u64,
    other_replicas: Vec<String>,
    findings: Vec<FindingView>,
}

/// What is wrong, and where.
#[derive(Clone, Default, Serialize)]
pub(super) struct FindingView {
    pub(super) node: Option<String>,
    pub(super) chain: Option<String>,
    pub(super) kind: String,
    /// Sequences, inclusive.
    pub(super) from: Option<u64>,
    pub(super) to: Option<u64>,
    pub(super) block: Option<u64>,
    /// Of an export.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
    pub(super) since: Option<String>,
    pub(super) detail: Option<String>,
}

impl From<AuditFinding> for FindingView {
    fn from(finding: AuditFinding) -> Self {
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        let is_block = finding.kind.starts_with("block_");
        let sequence = |sequence: u64| Some(sequence).filter(|sequence| *sequence > 0);
        Self {
            node: text(finding.node),
            chain: text(finding.chain),
            from: sequence(finding.from),
            to: sequence(finding.to),
            block: is_block.then_some(finding.block),
            since: text(rfc3339(i64::try_from(finding.since_us / 1_000_000).unwrap_or(0))),
            detail: text(finding.detail),
            file: None,
            kind: finding.kind,
        }
    }
}

impl FindingView {
    fn meaning(&self) -> &'static str {
        match self.kind.as_str() {
            "gap" => "records are missing",
            "changed" => "a record was changed",
            "cut_tail" => "the newest records are missing",
            "silent" => "the node has records and does not hand them in",
            "cloned" => "the node's disk was copied: two chains have one predecessor",
            "clock_set_back" => "the node's clock was set back",
            "block_missing" => "a block's file is gone",
            "block_damaged" => "a block's file was changed or is damaged",
            "file_unknown" => "a file is not one of the export",
            "file_is_link" => "a file is a symbolic link",
            "file_missing" => "a file is not there",
            "file_changed" => "a file was changed",
            "file_swapped" => "a file has another's contents",
            _ => "",
        }
    }
}

impl View for FindingView {
    const COLUMNS: &'static [&'static str] = &["node", "what", "sequences", "chain", "detail"];
    fn row(&self) -> Vec<String> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let sequences = match (self.from, self.to) {
            (Some(from), Some(to)) if from != to => format!("{from}-{to}"),
            (Some(from), _) => from.to_string(),
            _ => String::new(),
        };
        let block = self.block.map(|block| format!("block {block}"));
        let since = self.since.as_ref().map(|since| format!("since {since}"));
        let detail: Vec<String> =
            [self.file.clone(), block, since, self.detail.clone()].into_iter().flatten().collect();
        let chain = text(&self.chain);
        let chain = if chain.starts_with("admin/") { chain } else { chain.chars().take(8).collect() };
        vec![text(&self.node), self.meaning().into(), sequences, chain, detail.join("; ")]
    }
}

/// What the replicas of the context say.
struct Answers {
    answers: Vec<VerifyAuditResponse>,
    unreachable: Vec<String>,
    /// Replicas that hold records and that no endpoint of the context leads to.
    others: Vec<String>,
}

impl Answers {
    /// Asks each replica once, whichever of its names the context has.
    async fn of(global: &Global) -> Result<Self> {
        let context = global.load_context()?;
        let endpoints: Vec<String> = context.all_endpoints().map(str::to_owned).collect();
        let (mut answers, mut away): (Vec<VerifyAuditResponse>, Vec<(String, CliError)>) = (Vec::new(), Vec::new());
        for endpoint in &endpoints {
            match Self::ask(global, &context, endpoint, endpoints.len() > 1).await {
                Ok(answer) if answers.iter().any(|known| is_same(known, &answer)) => {}
                Ok(answer) => answers.push(answer),
                Err(error) if error.exit == Exit::Unreachable => away.push((endpoint.clone(), error)),
                Err(error) => return Err(error),
            }
        }
        if answers.is_empty()
            && let Some((_, error)) = away.pop()
        {
            return Err(error);
        }
        for (endpoint, error) in &away {
            notice(&format!(
                "the replica at {endpoint} did not answer, and its records are not verified: {}",
                error.why
            ));
        }
        let have: BTreeSet<&str> = answers.iter().map(|answer| answer.replica.as_str()).collect();
        let others: BTreeSet<&String> = answers.iter().flat_map(|answer| &answer.other_replicas).collect();
        let others = others.into_iter().filter(|other| !have.contains(other.as_str())).cloned().collect();
        Ok(Self { answers, unreachable: away.into_iter().map(|(endpoint, _)| endpoint).collect(), others })
    }

    async fn ask(global: &Global, context: &Context, endpoint: &str, with_parts: bool) -> Result<VerifyAuditResponse> {
        let one = Context { endpoint: endpoint.to_owned(), endpoints: Vec::new(), ..context.clone() };
        let client = Client::connect(&one, global.tenant.as_deref(), global.timeout).await?;
        client.call("audit", client.rpc().verify_audit(VerifyAuditRequest { with_parts })).await
    }
}

/// Whether two answers are one replica's, asked by two of its names.
fn is_same(known: &VerifyAuditResponse, answer: &VerifyAuditResponse) -> bool {
    known.trail == answer.trail && (!known.trail.is_empty() || known.replica == answer.replica)
}

/// Verifies, and says so. Exit code 1 when something is wrong, 6 when a replica did not answer.
pub(super) async fn run(global: &Global) -> Result<ExitCode> {
    let Answers { answers, unreachable, others } = Answers::of(global).await?;
    let findings: Vec<FindingView> = merge::findings(&answers).into_iter().map(FindingView::from).collect();
    let sum = |of: fn(&VerifyAuditResponse) -> u64| answers.iter().map(of).sum();
    let replicas: Vec<String> = answers.iter().map(|answer| answer.replica.clone()).collect();
    let view = VerificationView {
        ok: findings.is_empty(),
        replica: replicas.first().cloned().unwrap_or_default(),
        records: sum(|answer| answer.records),
        chains: sum(|answer| answer.chains),
        // The store's chains are the same at each.
        admin_changes: answers.iter().map(|answer| answer.admin_changes).max().unwrap_or(0),
        blocks: sum(|answer| answer.blocks),
        open_intents: sum(|answer| answer.open_intents),
        other_replicas: others,
        replicas,
        unreachable,
        findings,
    };
    for answer in answers.iter().filter(|answer| answer.no_trail) {
        notice(&format!(
            "replica {} keeps no trail of requests (`audit.dir` in control-plane.toml): only admin changes were verified",
            answer.replica
        ));
    }
    print(global, &view)?;
    Ok(match view.ok {
        false => ExitCode::FAILURE,
        true if !view.unreachable.is_empty() => ExitCode::from(Exit::Unreachable as u8),
        true => ExitCode::SUCCESS,
    })
}

fn print(global: &Global, view: &VerificationView) -> Result<()> {
    if !global.output().is_table() {
        return global.output().data(view);
    }
    let VerificationView { records, chains, admin_changes, open_intents, .. } = view;
    if view.ok {
        let whole =
            format!("{records} records of {chains} chains and {admin_changes} admin changes are whole and unchanged");
        global.output().text(&whole)?;
    } else {
        global.output().list("findings", &view.findings)?;
    }
    if *open_intents > 0 {
        notice(&format!("{open_intents} requests have no outcome: in progress, or their node died"));
    }
    if !view.other_replicas.is_empty() {
        let (replicas, others) = (view.replicas.join(", "), view.other_replicas.join(", "));
        notice(&format!(
            "these are the trails of {replicas}; a gap may be records that {others} took: name their addresses in `endpoints` of the context"
        ));
    }
    Ok(())
}
