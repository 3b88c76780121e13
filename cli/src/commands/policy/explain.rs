//! `seks policy explain`: why a request was or would be denied.

use clap::Args;
use seks_proto::wire;
use serde::Serialize;

use super::SimulateArgs;
use crate::{
    client::Client,
    error::{CliError, Exit, Result},
    global::Global,
    output::Output,
};

/// Records on a page of the trail.
const PAGE: u32 = 1000;
/// Most pages that are looked through for a request id.
const PAGES: usize = 200;
/// Most permits that are printed for people.
const SHOWN: usize = 3;

/// The request to explain: one of the trail, or one that is described.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The id of a request of the audit trail: `x-seks-request-id` of its answer
    #[arg(value_name = "REQUEST_ID", required_unless_present_all = ["agent", "service", "method", "path"], conflicts_with_all = ["agent", "service", "method", "path", "source"])]
    request_id: Option<String>,
    /// The agent that sends the request
    #[arg(long)]
    agent: Option<String>,
    /// The service
    #[arg(long)]
    service: Option<String>,
    /// HTTP method
    #[arg(long)]
    method: Option<String>,
    /// Path and query as the agent writes them after /api/SERVICE
    #[arg(long)]
    path: Option<String>,
    /// A file with the request's body; `-` is standard input
    #[arg(long, value_name = "FILE")]
    body: Option<std::path::PathBuf>,
    /// The body's Content-Type [default: application/json]
    #[arg(long, value_name = "TYPE", requires = "body")]
    content_type: Option<String>,
    /// The source address [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    source: Option<std::net::IpAddr>,
}

#[derive(Serialize)]
struct ExplainView {
    decision: &'static str,
    reason: Option<String>,
    /// The policies that determined the decision.
    policies: Vec<String>,
    path: String,
    errors: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recorded: Option<RecordedView>,
    explanation: Vec<TraceView>,
}

/// What the trail says about the request.
#[derive(Serialize)]
struct RecordedView {
    decision: &'static str,
    reason: Option<String>,
    policies: Vec<String>,
    table_revision: u64,
}

#[derive(Serialize)]
struct TraceView {
    policy: String,
    effect: &'static str,
    audit: bool,
    applies: bool,
    undecided: bool,
    unmet: Vec<String>,
}

pub(super) async fn run(global: &Global, args: ExplainArgs) -> Result<()> {
    let body = args.body.as_deref().map(crate::files::read_bytes).transpose()?;
    let client = global.connect().await?;
    let (mut request, recorded) = match &args.request_id {
        Some(id) => {
            let record = find(&client, id).await?;
            let recorded = recorded(&record);
            if record.agent.is_empty() || record.service.is_empty() {
                return print_refused_early(global.output(), id, recorded);
            }
            (from_record(&client, record, body.is_some()), Some(recorded))
        }
        None => (args.described(&client), None),
    };
    request.has_body = body.is_some();
    request.body = body.unwrap_or_default();
    request.content_type = args.content_type.unwrap_or_default();
    let agent = request.agent.clone();
    let answer = client.call("policy explain", client.rpc().explain_policies(request)).await?;
    let decision = answer.decision.unwrap_or_default();
    let view = ExplainView {
        decision: if decision.allowed { "allow" } else { "deny" },
        reason: Some(decision.reason).filter(|r| !r.is_empty()),
        policies: decision.policy_ids,
        path: decision.upstream_path,
        errors: decision.errors,
        recorded,
        explanation: answer.policies.into_iter().map(TraceView::from).collect(),
    };
    let output = global.output();
    if output.is_table() { output.text(&view.for_people(&agent)) } else { output.data(&view) }
}

impl ExplainArgs {
    fn described(&self, client: &Client) -> wire::SimulateRequest {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (agent, service, method, path) =
            (text(&self.agent), text(&self.service), text(&self.method), text(&self.path));
        let trail = super::trail::TrailArgs::default();
        let (agent, service, method, path) = (Some(agent), Some(service), Some(method), Some(path));
        SimulateArgs { agent, service, method, path, body: None, content_type: None, source: self.source, trail }
            .request(client)
    }
}

/// The record of a request.
async fn find(client: &Client, id: &str) -> Result<wire::AuditRecord> {
    let what = "policy explain";
    let wanted = data_encoding::HEXLOWER_PERMISSIVE
        .decode(id.replace('-', "").as_bytes())
        .ok()
        .filter(|id| id.len() == 16)
        .ok_or_else(|| {
            CliError::usage(what, "a request id has 32 hexadecimal digits: `x-seks-request-id` of an answer")
        })?;
    let mut request =
        wire::SearchAuditRequest { tenant: client.tenant(), page_size: PAGE, ..wire::SearchAuditRequest::default() };
    for _ in 0..PAGES {
        let page = client.call(what, client.rpc().search_audit(request.clone())).await?;
        let records = page.entries.into_iter().filter_map(|entry| entry.record);
        // The newest comes first: an outcome before its intent.
        if let Some(found) = records.into_iter().find(|record| record.request_id == wanted) {
            return Ok(found);
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    Err(CliError::new(Exit::NotFound, what, "no such request in this tenant's trail").hint(
        "records arrive within seconds; a request without a valid token belongs to no tenant: \
         `seks audit search` shows it to operators of the fleet",
    ))
}

fn recorded(record: &wire::AuditRecord) -> RecordedView {
    RecordedView {
        decision: if record.decision() == wire::audit_record::Decision::Allow { "allow" } else { "deny" },
        reason: Some(record.reason.clone()).filter(|reason| !reason.is_empty()),
        policies: record.policies.clone(),
        table_revision: record.table_revision,
    }
}

/// The request of a record. Its query is not in the record, and neither is its body.
fn from_record(client: &Client, record: wire::AuditRecord, has_body: bool) -> wire::SimulateRequest {
    let in_path = format!("/api/{}", record.service);
    let rest = record.path.strip_prefix(&in_path).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let path = rest.unwrap_or(&record.path);
    let source = match *record.source.as_slice() {
        [a, b, c, d] => std::net::IpAddr::from([a, b, c, d]).to_string(),
        ref bytes => {
            <[u8; 16]>::try_from(bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string()).unwrap_or_default()
        }
    };
    let is_bodyless = matches!(record.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "DELETE");
    wire::SimulateRequest {
        tenant: client.tenant(),
        path: if path.is_empty() { "/".into() } else { path.into() },
        agent: record.agent,
        service: record.service,
        method: record.method,
        source,
        unknown_body: !has_body && (record.request_bytes > 0 || !is_bodyless),
        ..wire::SimulateRequest::default()
    }
}

/// A request that was refused before an agent or a service was known.
fn print_refused_early(output: Output, id: &str, recorded: RecordedView) -> Result<()> {
    if !output.is_table() {
        return output.data(&serde_json::json!({ "request_id": id, "recorded": recorded, "explanation": [] }));
    }
    let reason = recorded.reason.unwrap_or_else(|| "unknown".into());
    output.text(&format!("{}: {reason}, before any policy was asked", recorded.decision))
}

impl From<wire::PolicyTrace> for TraceView {
    fn from(trace: wire::PolicyTrace) -> Self {
        Self {
            policy: trace.id,
            effect: if trace.forbids { "forbid" } else { "permit" },
            audit: trace.audit,
            applies: trace.applies,
            undecided: trace.undecided,
            unmet: trace.unmet,
        }
    }
}

impl ExplainView {
    fn for_people(&self, agent: &str) -> String {
        let mut text = format!("decision  {}", self.decision);
        if let Some(reason) = &self.reason {
            text.push_str(&format!(" ({reason})"));
        }
        text.push('\n');
        if !self.path.is_empty() {
            text.push_str(&format!("path      {}\n", self.path));
        }
        self.errors.iter().for_each(|error| text.push_str(&format!("because   {error}\n")));
        text.push_str(&self.determined(agent));
        if let Some(recorded) = self.recorded.as_ref().filter(|recorded| recorded.decision != self.decision) {
            let reason = recorded.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let policies = if recorded.policies.is_empty() {
                String::new()
            } else {
                format!(" by {}", recorded.policies.join(", "))
            };
            text.push_str(&format!(
                "\nThe request itself was decided otherwise, at revision {}: {}{reason}{policies}.\n",
                recorded.table_revision, recorded.decision
            ));
        }
        text
    }

    /// What determined the decision. A permit that does not apply has denied nothing: it is only
    /// what came closest.
    fn determined(&self, agent: &str) -> String {
        let mut text = String::new();
        let in_force = || self.explanation.iter().filter(|trace| !trace.audit);
        for trace in in_force().filter(|trace| self.policies.contains(&trace.policy)) {
            text.push_str(&match (trace.effect, trace.applies) {
                ("forbid", true) => format!("\nForbidden by `{}`: all of it applies.\n", trace.policy),
                (_, true) => format!("\nPermitted by `{}`.\n", trace.policy),
                (_, false) => {
                    let unmet = lines(&trace.unmet);
                    format!("\nNot decidable for `{}`, and therefore denied:\n{unmet}", trace.policy)
                }
            });
        }
        if self.decision == "allow" || self.explanation.is_empty() && !self.policies.is_empty() {
            return text;
        }
        if self.policies.is_empty() && self.reason.as_deref() == Some("policy_denied") && self.errors.is_empty() {
            text.push_str("\nNo policy permits the request, and what nothing permits is denied.\n");
        }
        let permits: Vec<_> = in_force().filter(|t| t.effect == "permit" && !t.applies).collect();
        if !in_force().any(|trace| trace.effect == "permit" && trace.applies) {
            for (nth, trace) in permits.iter().take(SHOWN).enumerate() {
                let rank = if nth == 0 { "The permit that came closest" } else { "Then" };
                text.push_str(&format!("\n{rank} is `{}`. It does not apply, because of:\n", trace.policy));
                text.push_str(&lines(&trace.unmet));
            }
            match permits.len().saturating_sub(SHOWN) {
                0 => {}
                more => text.push_str(&format!("\n{more} more permits are further away: -o json lists them.\n")),
            }
            if permits.is_empty() && self.errors.is_empty() {
                text.push_str(&format!(
                    "\nThe tenant has no permit at all. `seks policy apply` adds one for `{agent}`.\n"
                ));
            }
        }
        text
    }
}

fn lines(unmet: &[String]) -> String {
    unmet.iter().map(|part| format!("  {part}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(policy: &str, effect: &'static str, applies: bool) -> TraceView {
        let unmet = if applies { Vec::new() } else { vec![format!("when {{ {policy} }}")] };
        TraceView { policy: policy.into(), effect, audit: false, applies, undecided: false, unmet }
    }

    fn view(policies: &[&str], explanation: Vec<TraceView>) -> ExplainView {
        ExplainView {
            decision: "deny",
            reason: Some("policy_denied".into()),
            policies: policies.iter().map(|p| (*p).to_owned()).collect(),
            path: "/x".into(),
            errors: Vec::new(),
            recorded: None,
            explanation,
        }
    }

    #[test]
    fn a_permit_is_never_said_to_have_denied() {
        let text = view(&[], vec![trace("near", "permit", false), trace("far", "permit", false)]).for_people("a");
        assert!(text.contains("closest is `near`. It does not apply") && text.contains("Then is `far`"), "{text}");
        assert!(!text.contains("Forbidden"), "{text}");
        let text = view(&["no"], vec![trace("no", "forbid", true), trace("all", "permit", true)]).for_people("a");
        assert!(text.contains("Forbidden by `no`") && !text.contains("all`"), "{text}");
    }
}
