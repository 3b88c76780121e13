//! `seks audit verify`: recomputes the chains of all records, and names what is wrong.

use std::process::ExitCode;

use seks_proto::wire::{AuditFinding, VerifyAuditRequest};
use serde::Serialize;

use crate::{
    client::Client,
    error::Result,
    global::Global,
    output::{View, notice, rfc3339},
};

#[derive(Serialize)]
struct VerificationView {
    ok: bool,
    replica: String,
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

/// Verifies, and says so. Exit code 1 when something is wrong.
pub(super) async fn run(global: &Global, client: &Client) -> Result<ExitCode> {
    let answer = client.call("audit", client.rpc().verify_audit(VerifyAuditRequest {})).await?;
    let findings: Vec<FindingView> = answer.findings.into_iter().map(FindingView::from).collect();
    let view = VerificationView {
        ok: findings.is_empty(),
        replica: answer.replica,
        records: answer.records,
        chains: answer.chains,
        admin_changes: answer.admin_changes,
        blocks: answer.blocks,
        open_intents: answer.open_intents,
        other_replicas: answer.other_replicas,
        findings,
    };
    if answer.no_trail {
        notice(
            "this replica keeps no trail of requests (`audit.dir` in control-plane.toml): only admin changes were verified",
        );
    }
    if global.output().is_table() {
        let VerificationView { records, chains, admin_changes, open_intents, .. } = &view;
        if view.ok {
            let whole = format!(
                "{records} records of {chains} chains and {admin_changes} admin changes are whole and unchanged"
            );
            global.output().text(&whole)?;
        } else {
            global.output().list("findings", &view.findings)?;
        }
        if *open_intents > 0 {
            notice(&format!("{open_intents} requests have no outcome: in progress, or their node died"));
        }
        if !view.other_replicas.is_empty() {
            let (replica, others) = (&view.replica, view.other_replicas.join(", "));
            notice(&format!(
                "this is the trail of replica {replica}; a gap may be records that {others} took: verify there, too"
            ));
        }
    } else {
        global.output().data(&view)?;
    }
    Ok(if view.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
