//! `seks policy simulate -f` and `seks policy suggest`: policies against what agents have done.

use std::path::PathBuf;

use clap::Args;
use seks_proto::wire::{SimulateTrailRequest, SuggestPoliciesRequest, TrailDifference};
use serde::Serialize;

use crate::{
    error::Result,
    files::read_text,
    global::Global,
    moment::{Moment, moment, period},
    output::{View, notice},
};

/// Which requests of the trail, and which policies.
#[derive(Debug, Default, Args)]
pub(super) struct TrailArgs {
    /// A file of policies; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// From when on: so long ago, or a date or time in UTC
    #[arg(long, value_name = "AGO|TIME", default_value = "24h", value_parser = moment, requires = "file")]
    since: Moment,
    /// Until when, in the same forms [default: now]
    #[arg(long, value_name = "AGO|TIME", value_parser = moment, requires = "file")]
    until: Option<Moment>,
    /// Without the tenant's other policies
    #[arg(long, requires = "file")]
    alone: bool,
}

impl TrailArgs {
    /// Whether the trail is to be looked at.
    pub(super) fn is_asked(&self) -> bool {
        self.file.is_some()
    }
}

/// The agent to learn from.
#[derive(Debug, Args)]
pub struct SuggestArgs {
    /// The agent
    #[arg(long)]
    agent: String,
    /// From when on: so long ago, or a date or time in UTC
    #[arg(long, value_name = "AGO|TIME", default_value = "7d", value_parser = moment)]
    since: Moment,
}

#[derive(Serialize)]
struct SimulationView {
    requests: u64,
    unchanged: u64,
    unknown: u64,
    skipped: u64,
    truncated: bool,
    replica: String,
    other_replicas: Vec<String>,
    differences: Vec<DifferenceView>,
}

#[derive(Serialize)]
struct DifferenceView {
    agent: String,
    change: &'static str,
    service: String,
    method: String,
    path: String,
    requests: u64,
    policies: Vec<String>,
}

impl From<TrailDifference> for DifferenceView {
    fn from(difference: TrailDifference) -> Self {
        let TrailDifference { agent, service, method, path, now_allowed, requests, policies } = difference;
        let change = if now_allowed { "newly_permitted" } else { "newly_denied" };
        Self { agent, change, service, method, path, requests, policies }
    }
}

impl View for DifferenceView {
    const COLUMNS: &'static [&'static str] = &["agent", "change", "service", "method", "path", "requests", "policies"];
    fn row(&self) -> Vec<String> {
        vec![
            self.agent.clone(),
            self.change.replace('_', " "),
            self.service.clone(),
            self.method.clone(),
            self.path.clone(),
            self.requests.to_string(),
            self.policies.join(","),
        ]
    }
}

#[derive(Serialize)]
struct SuggestionView {
    policies: String,
    requests: u64,
    skipped: u64,
    truncated: bool,
    replica: String,
    other_replicas: Vec<String>,
}

/// What would change of what agents have done.
pub(super) async fn simulate(global: &Global, agent: Option<String>, args: TrailArgs) -> Result<()> {
    let text = args.file.as_deref().map(read_text).transpose()?.unwrap_or_default();
    let client = global.connect().await?;
    let (since_us, until_us) = period(args.since, args.until)?;
    let request = SimulateTrailRequest {
        tenant: client.tenant(),
        text,
        alone: args.alone,
        agent: agent.unwrap_or_default(),
        since_us,
        until_us,
    };
    let answer = client.call("policy simulate", client.rpc().simulate_trail(request)).await?;
    let view = SimulationView {
        requests: answer.requests,
        unchanged: answer.unchanged,
        unknown: answer.unknown,
        skipped: answer.skipped,
        truncated: answer.truncated,
        replica: answer.replica,
        other_replicas: answer.other_replicas,
        differences: answer.differences.into_iter().map(DifferenceView::from).collect(),
    };
    if !global.output().is_table() {
        return global.output().data(&view);
    }
    let SimulationView { requests, unchanged, unknown, .. } = &view;
    if view.differences.is_empty() {
        global.output().text(&format!("no change: {unchanged} of {requests} requests are decided as before"))?;
    } else {
        global.output().list("differences", &view.differences)?;
    }
    if *unknown > 0 {
        notice(&format!(
            "{unknown} requests cannot be decided again: the policies look at the body or the query, or agent or service are gone"
        ));
    }
    leave_out(view.truncated, &view.replica, &view.other_replicas);
    Ok(())
}

/// The narrowest policies that permit what an agent did.
pub(super) async fn suggest(global: &Global, args: SuggestArgs) -> Result<()> {
    let client = global.connect().await?;
    let request =
        SuggestPoliciesRequest { tenant: client.tenant(), agent: args.agent.clone(), since_us: args.since.unix_us() };
    let answer = client.call(&format!("agent `{}`", args.agent), client.rpc().suggest_policies(request)).await?;
    let view = SuggestionView {
        policies: answer.text,
        requests: answer.requests,
        skipped: answer.skipped,
        truncated: answer.truncated,
        replica: answer.replica,
        other_replicas: answer.other_replicas,
    };
    if !global.output().is_table() {
        return global.output().data(&view);
    }
    global.output().text(&view.policies)?;
    leave_out(view.truncated, &view.replica, &view.other_replicas);
    Ok(())
}

/// Says what an answer leaves out.
fn leave_out(truncated: bool, replica: &str, others: &[String]) {
    if truncated {
        notice("there are more requests than were looked at: choose a shorter --since, or an --agent");
    }
    if !others.is_empty() {
        notice(&format!("these are the requests of replica {replica}; others hold theirs: {}", others.join(", ")));
    }
}
