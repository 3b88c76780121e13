//! One tenant: the last hour, and where to look further.

use maud::{Markup, html};
use seks_proto::wire::{self, Approval, approval::State as ApprovalState, audit_record::Decision};
use tonic::Status;

use super::{Context, Shown, changes, nodes::COUNTED, requests};
use crate::page::{
    html::{State, card, chart, panel, path, table, until, with_query},
    reader::Whose,
    reason::explained,
    stats::{Stats, WINDOW_US},
};

/// Refusals in the table.
const REFUSALS: usize = 15;

pub(super) async fn show(context: &Context<'_>, tenant: &str) -> Result<Shown, Status> {
    let name = wire::NameRequest { tenant: String::new(), name: tenant.into() };
    let record = context.reader.get_tenant(name).await?;
    let usage = record.usage.unwrap_or_default();
    let search = wire::SearchAuditRequest {
        tenant: tenant.into(),
        since_us: context.now_us.saturating_sub(WINDOW_US),
        ..Default::default()
    };
    let found = context.reader.records(Whose::Tenant, search.clone(), COUNTED).await?;
    let stats = Stats::of(&found.entries, context.now_us, !found.next.is_empty());
    let denied = |entry: &&wire::AuditEntry| entry.record.as_ref().is_some_and(|r| r.decision() == Decision::Deny);
    let refusals = found.entries.iter().filter(denied).take(REFUSALS);
    let history = wire::AdminChangesRequest { tenant: tenant.into(), page_size: 10, ..Default::default() };
    let history = context.reader.list_admin_changes(history).await?;
    let list = wire::ListRequest { tenant: tenant.into(), ..Default::default() };
    let mut approvals = context.reader.list_approvals(list).await?.approvals;
    approvals.retain(|approval| matches!(approval.state(), ApprovalState::Waiting | ApprovalState::Approved));
    let link = |part: &str| path(context.base, &["t", tenant, part]);
    let content = html! {
        div.cards {
            a href=(link("agents")) { (card("Agents", &usage.agents.to_string(), "", State::Plain)) }
            a href=(link("tokens")) { (card("Tokens", &usage.tokens.to_string(), "expired ones included", State::Plain)) }
            (card("Services", &usage.services.to_string(), &format!("credentials: {}", usage.credentials), State::Plain))
            (card("Policies", &usage.policies.to_string(), if record.strict { "strict" } else { "" }, State::Plain))
            a href=(link("requests")) { (card("Requests", &stats.all.count.to_string(), "in the last hour", State::Plain)) }
            a href=(with_query(&link("requests"), &[("decision", "deny")])) { (card("Refused", &stats.all.refused.to_string(), "in the last hour", if stats.all.refused > 0 { State::Warning } else { State::Good })) }
        }
        @if !approvals.is_empty() { (panel("Approvals", &approvals_table(&approvals))) }
        (panel("Last hour", &chart(&stats)))
        div.columns {
            (panel("Services", &services(context, tenant, &stats)))
            (panel("Why requests were refused", &reasons(context, tenant, &stats)))
        }
        (panel("Last refusals", &requests::table_of(context, refusals, found.problem.as_deref())))
        (panel("Changes by operators", &changes(&history)))
    };
    let live = Some(path(context.base, &["t", tenant]));
    Ok(Shown { title: record.name, above: vec![context.overview()], content, live })
}

/// What waits and what holds. It is decided by `seks approval`: the page changes nothing.
fn approvals_table(approvals: &[Approval]) -> Markup {
    let rows: Vec<Markup> = approvals
        .iter()
        .map(|approval| {
            let names = approval.query_names.iter().map(|name| format!("{name}=…")).collect::<Vec<_>>().join("&");
            let query = if names.is_empty() { names } else { format!("?{names}") };
            let (method, path) = (&approval.method, &approval.path);
            let request = format!("{method} {path}{query} {} {}", approval.mcp_method, approval.mcp_name);
            let is_waiting = approval.state() == ApprovalState::Waiting;
            html! {
                td { code { (approval.id) } }
                td { @if is_waiting { "waiting" } @else { "approved by " (approval.decided_by) } }
                td { (approval.agent) }
                td { (approval.service) }
                td { code { (request.trim_end()) } }
                td { (approval.scope) }
                td { (until(approval.expires_at)) }
            }
        })
        .collect();
    table(&["approval", "state", "agent", "service", "request", "label", "until"], &rows, "")
}

/// Rates and durations by service.
pub(super) fn services(context: &Context<'_>, tenant: &str, stats: &Stats) -> Markup {
    let requests = path(context.base, &["t", tenant, "requests"]);
    let rows: Vec<Markup> = stats
        .services
        .iter()
        .map(|(service, of)| {
            html! {
                td {
                    @if service.is_empty() { span.dim { "none" } }
                    @else { a href=(with_query(&requests, &[("service", service)])) { (service) } }
                }
                td.number { (of.count) }
                td.number { (of.refused) }
                td.number { (of.failed) }
                td.number { (format!("{:.1}", of.quantile_ms(0.5))) }
                td.number { (format!("{:.1}", of.quantile_ms(0.99))) }
            }
        })
        .collect();
    table(
        &["service", "#requests", "#refused", "#failed", "#p50 ms", "#p99 ms"],
        &rows,
        "No requests in the last hour.",
    )
}

fn reasons(context: &Context<'_>, tenant: &str, stats: &Stats) -> Markup {
    let requests = path(context.base, &["t", tenant, "requests"]);
    let rows: Vec<Markup> = stats
        .reasons
        .iter()
        .map(|(reason, count)| {
            let cause = explained(reason).map_or("", |(cause, _)| cause);
            html! {
                td { a.code href=(with_query(&requests, &[("reason", reason)])) { (reason) } }
                td { (cause) }
                td.number { (count) }
            }
        })
        .collect();
    table(&["code", "", "#requests"], &rows, "No request was refused in the last hour.")
}
