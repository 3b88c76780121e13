//! Requests of a tenant, newest first, and one with the reason why it was refused.

use std::net::IpAddr;

use data_encoding::HEXLOWER;
use maud::{Markup, html};
use seks_proto::wire::{self, AuditEntry, AuditRecord, audit_record::Decision};
use tonic::Status;

use super::{Context, Shown};
use crate::page::{
    html::{State, date_and_time, facts, panel, path, pill, table, text, time_of_day, with_query},
    reader::Whose,
    reason::explained,
};

/// Requests on a page.
const PAGE: usize = 100;

/// Requests as a table. `problem`: why there can be none.
pub(super) fn table_of<'a>(
    context: &Context<'_>,
    entries: impl Iterator<Item = &'a AuditEntry>,
    problem: Option<&str>,
) -> Markup {
    let known = entries.filter_map(|entry| entry.record.as_ref().map(|record| (entry, record)));
    let rows: Vec<Markup> = known.map(|(entry, record)| row(context, entry, record)).collect();
    let columns = ["time (UTC)", "status", "agent", "service", "request", "why", "#ms", "node"];
    table(&columns, &rows, problem.unwrap_or("No requests."))
}

fn row(context: &Context<'_>, entry: &AuditEntry, record: &AuditRecord) -> Markup {
    let id = HEXLOWER.encode(&record.request_id);
    let began = record.began_us.to_string();
    let address = path(context.base, &["t", &record.tenant, "requests", &began, &id]);
    html! {
        td.whole {
            // Requests without a known token belong to no tenant.
            @if record.tenant.is_empty() { (time_of_day(record.began_us)) }
            @else { a href=(address) title=(date_and_time(record.began_us)) { (time_of_day(record.began_us)) } }
        }
        td { (status(record)) }
        td { @if record.tenant.is_empty() { span.dim { "unknown" } } @else { (context.agent(&record.tenant, &record.agent)) } }
        td { (record.service) }
        td.code { (record.method) " " (record.path) @if record.path_cut { "…" } }
        td { (why(record)) }
        td.number { (format!("{:.1}", record.whole_us as f64 / 1000.0)) }
        td { (entry.node) }
    }
}

fn status(record: &AuditRecord) -> Markup {
    let state = match (record.decision(), record.status) {
        (Decision::Deny, _) => State::Bad,
        (_, 500..) => State::Warning,
        (_, 400..) => State::Plain,
        _ => State::Good,
    };
    pill(&record.status.to_string(), state)
}

/// The code, and the policies that denied.
fn why(record: &AuditRecord) -> Markup {
    html! {
        @if !record.reason.is_empty() { span.code { (record.reason) } }
        @if record.decision() == Decision::Deny && !record.policies.is_empty() { " by " span.code { (record.policies.join(", ")) } }
        @if !record.upstream_error.is_empty() && record.upstream_error != record.reason { " " span.code { (record.upstream_error) } }
    }
}

/// All requests, with a form to select some.
pub(super) async fn list(context: &Context<'_>, tenant: &str) -> Result<Shown, Status> {
    let query = context.query;
    let search = wire::SearchAuditRequest {
        tenant: tenant.into(),
        agent: query.get("agent").into(),
        service: query.get("service").into(),
        decision: query.get("decision").into(),
        reason: query.get("reason").into(),
        page_token: query.get("page").into(),
        ..Default::default()
    };
    let found = context.reader.records(Whose::Tenant, search, PAGE).await?;
    let address = path(context.base, &["t", tenant, "requests"]);
    let kept = ["agent", "service", "decision", "reason"].map(|name| (name, query.get(name)));
    let [agent, service, decision, reason] = kept;
    let next = with_query(&address, &[agent, service, decision, reason, ("page", &found.next)]);
    let content = panel(
        "Requests",
        &html! {
            (form(context, &address))
            (table_of(context, found.entries.iter(), found.problem.as_deref()))
            @if !found.next.is_empty() { p.next { a href=(next) { "Next page" } } }
        },
    );
    let live = query.get("page").is_empty().then(|| with_query(&address, &kept));
    let live = live.filter(|address| !address.contains('?')); // the link adds its own query
    Ok(Shown { title: "Requests".into(), above: vec![context.overview(), context.tenant(tenant)], content, live })
}

fn form(context: &Context<'_>, address: &str) -> Markup {
    let chosen = context.query.get("decision");
    let option = |value: &str, word: &str| {
        html! { option value=(value) selected[value == chosen] { (word) } }
    };
    html! {
        form method="get" action=(address) {
            label { "decision" select name="decision" { (option("", "all")) (option("allow", "allowed")) (option("deny", "refused")) } }
            @for name in ["agent", "service", "reason"] {
                label { (name) input name=(name) value=(context.query.get(name)) autocomplete="off" spellcheck="false"; }
            }
            button type="submit" { "Show" }
        }
    }
}

/// One request.
pub(super) async fn show(context: &Context<'_>, tenant: &str, began_us: u64, id: &str) -> Result<Shown, Status> {
    let search = wire::SearchAuditRequest {
        tenant: tenant.into(),
        since_us: began_us,
        until_us: began_us.saturating_add(1),
        ..Default::default()
    };
    let found = context.reader.records(Whose::Tenant, search, PAGE).await?;
    let is_it =
        |entry: &&AuditEntry| entry.record.as_ref().is_some_and(|record| HEXLOWER.encode(&record.request_id) == id);
    let missing = || Status::not_found("no such request in this replica's audit trail");
    let entry = found.entries.iter().find(is_it).ok_or_else(missing)?;
    let record = entry.record.as_ref().ok_or_else(missing)?;
    let content = html! {
        @if record.decision() == Decision::Deny || !record.reason.is_empty() {
            section.why { h2 { "Why" } (cause(context, tenant, record).await) }
        }
        div.columns {
            (panel("Request", &request(context, entry, record)))
            (panel("Answer", &answer(record)))
        }
    };
    let above = vec![context.overview(), context.tenant(tenant), context.part(tenant, "Requests", "requests")];
    Ok(Shown { title: format!("Request {id}"), above, content, live: None })
}

fn request(context: &Context<'_>, entry: &AuditEntry, record: &AuditRecord) -> Markup {
    facts(&[
        ("time", text(&format!("{} UTC", date_and_time(record.began_us)))),
        ("agent", context.agent(&record.tenant, &record.agent)),
        ("token", context.token(&record.tenant, &record.token_id)),
        ("service", text(&record.service)),
        ("request", html! { code { (record.method) " " (record.path) @if record.path_cut { "…" } } }),
        ("from", text(&address(&record.source))),
        ("body", text(&format!("{} bytes", record.request_bytes))),
        ("node", html! { (entry.node) @if !record.region.is_empty() { " in " (record.region) } }),
        ("request id", text(&HEXLOWER.encode(&record.request_id))),
        ("trace id", text(&HEXLOWER.encode(&record.trace_id))),
    ])
}

fn answer(record: &AuditRecord) -> Markup {
    let ms = |us: u64| text(&if us == 0 { String::new() } else { format!("{:.1} ms", us as f64 / 1000.0) });
    let number = |number: u32| text(&if number == 0 { String::new() } else { number.to_string() });
    let credential = match (record.credential.as_str(), record.credential_version) {
        ("", _) => String::new(),
        (name, version) => format!("{name}, version {version}"),
    };
    facts(&[
        ("status", status(record)),
        ("decision", text(if record.decision() == Decision::Deny { "refused" } else { "allowed" })),
        ("policies", text(&record.policies.join(", "))),
        ("policies in audit mode", text(&record.audited_policies.join(", "))),
        ("upstream", text(&record.upstream)),
        ("upstream status", number(record.upstream_status)),
        ("upstream error", text(&record.upstream_error)),
        ("credential", text(&credential)),
        ("body", text(&format!("{} bytes", record.response_bytes))),
        ("scrubbed", number(record.scrubbed)),
        ("broken off", text(if record.aborted { "yes" } else { "" })),
        ("until the upstream call", ms(record.connect_us)),
        ("until its first byte", ms(record.first_byte_us)),
        ("whole request", ms(record.whole_us)),
        ("attempts", number(record.attempts)),
        ("table revision", text(&record.table_revision.to_string())),
    ])
}

/// The code in words, and for a denial by policy what today's policies say.
async fn cause(context: &Context<'_>, tenant: &str, record: &AuditRecord) -> Markup {
    let (cause, advice) = explained(&record.reason).unwrap_or(("", ""));
    let trace = if record.reason == "policy_denied" { explain(context, tenant, record).await } else { None };
    html! {
        p { span.code { (record.reason) } " " (cause) }
        @if !record.policies.is_empty() { p { "Decided by " span.code { (record.policies.join(", ")) } } }
        @if !advice.is_empty() { p.advice { (advice) } }
        @if let Some(trace) = trace { (trace) }
    }
}

/// What the policies of now say about a request of then. Its body and its query are not known.
async fn explain(context: &Context<'_>, tenant: &str, record: &AuditRecord) -> Option<Markup> {
    let prefix = format!("/api/{}", record.service);
    let message = wire::SimulateRequest {
        tenant: tenant.into(),
        agent: record.agent.clone(),
        service: record.service.clone(),
        method: record.method.clone(),
        path: record.path.strip_prefix(&prefix).unwrap_or(&record.path).to_owned(),
        source: address(&record.source),
        unknown_body: record.request_bytes > 0,
        ..Default::default()
    };
    let explained = context.reader.explain_policies(message).await.ok()?;
    let is_allowed = explained.decision.as_ref().is_some_and(|decision| decision.allowed);
    let row = |policy: &wire::PolicyTrace| {
        let effect = match (policy.forbids, policy.applies) {
            (true, true) => pill("forbids this", State::Bad),
            (true, false) => pill("forbid, does not apply", State::Plain),
            (false, true) => pill("permits this", State::Good),
            (false, false) => pill("permit, does not apply", State::Warning),
        };
        html! {
            td.code { (policy.id) @if policy.audit { " " (pill("audit mode", State::Plain)) } }
            td { (effect) }
            td { @if policy.unmet.len() == 1 { @for unmet in &policy.unmet { code { (unmet) } } } @else { ul { @for unmet in &policy.unmet { li { code { (unmet) } } } } } }
        }
    };
    let rows: Vec<Markup> = explained.policies.iter().map(row).collect();
    Some(html! {
        p.advice { "The policies of now " @if is_allowed { "permit" } @else { "deny" } " this request, without its body and query:" }
        (table(&["policy", "effect", "not met"], &rows, "There are no policies: nothing is permitted."))
    })
}

fn address(bytes: &[u8]) -> String {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    let address = v4().or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from));
    address.map(|address| address.to_string()).unwrap_or_default()
}
