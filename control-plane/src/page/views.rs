//! What the page shows: one file each.

mod agents;
mod nodes;
mod overview;
mod requests;
mod tenant;
mod tokens;

use std::time::UNIX_EPOCH;

use maud::{Markup, html};
use prost::Message as _;
use seks_proto::wire::{self, AdminChange};
use tonic::Status;

use super::{
    html::{self as parts, Frame, path},
    query::Query,
    reader::Reader,
};

/// What is shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum View {
    /// Store, nodes, replicas, tenants.
    Overview,
    /// One node.
    Node(String),
    /// One tenant, and a part of it.
    Tenant(String, Part),
}

/// A part of a tenant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Figures and the last refusals.
    Overview,
    /// All agents.
    Agents,
    /// One agent.
    Agent(String),
    /// All tokens.
    Tokens,
    /// One token.
    Token(String),
    /// Requests, newest first.
    Requests,
    /// One request: when it began in Unix microseconds, and its id.
    Request { began_us: u64, id: String },
}

impl View {
    /// The view at these segments; `None`: there is none.
    pub(super) fn of(segments: &[&str]) -> Option<Self> {
        let name = |text: &&str| (*text).to_owned();
        Some(match segments {
            [] | [""] => Self::Overview,
            _ if segments.iter().any(|segment| segment.is_empty()) => return None,
            ["nodes", node] => Self::Node(name(node)),
            ["t", tenant] => Self::Tenant(name(tenant), Part::Overview),
            ["t", tenant, "agents"] => Self::Tenant(name(tenant), Part::Agents),
            ["t", tenant, "agents", agent] => Self::Tenant(name(tenant), Part::Agent(name(agent))),
            ["t", tenant, "tokens"] => Self::Tenant(name(tenant), Part::Tokens),
            ["t", tenant, "tokens", token] => Self::Tenant(name(tenant), Part::Token(name(token))),
            ["t", tenant, "requests"] => Self::Tenant(name(tenant), Part::Requests),
            ["t", tenant, "requests", began, id] => {
                Self::Tenant(name(tenant), Part::Request { began_us: began.parse().ok()?, id: name(id) })
            }
            _ => return None,
        })
    }
}

/// What every view is made from.
pub(super) struct Context<'a> {
    pub(super) reader: &'a Reader,
    pub(super) base: &'a str,
    pub(super) query: &'a Query,
    pub(super) now_us: u64,
}

/// A view's title, the pages above it, and what it shows.
pub(super) struct Shown {
    pub(super) title: String,
    pub(super) above: Vec<(String, String)>,
    pub(super) content: Markup,
    /// The address, if the page may load itself again.
    pub(super) live: Option<String>,
}

/// The whole page of a view.
///
/// # Errors
/// Of the admin API: not found, not permitted.
pub(super) async fn show(reader: &Reader, base: &str, view: &View, query: &Query) -> Result<Markup, Status> {
    let operator = reader.who_am_i(wire::WhoAmIRequest {}).await?;
    let status = reader.status(wire::StatusRequest {}).await?;
    let now_us = u64::try_from(UNIX_EPOCH.elapsed().unwrap_or_default().as_micros()).unwrap_or(u64::MAX);
    let context = Context { reader, base, query, now_us };
    let shown = match view {
        View::Overview => overview::show(&context, &status, &operator).await?,
        View::Node(node) => nodes::show(&context, node).await?,
        View::Tenant(tenant, part) => match part {
            Part::Overview => tenant::show(&context, tenant).await?,
            Part::Agents => agents::list(&context, tenant).await?,
            Part::Agent(agent) => agents::show(&context, tenant, agent).await?,
            Part::Tokens => tokens::list(&context, tenant).await?,
            Part::Token(token) => tokens::show(&context, tenant, token).await?,
            Part::Requests => requests::list(&context, tenant).await?,
            Part::Request { began_us, id } => requests::show(&context, tenant, *began_us, id).await?,
        },
    };
    let is_live = query.get("live") == "1";
    let frame = Frame {
        base,
        replica: &status.replica,
        operator: &operator.name,
        title: &shown.title,
        above: shown.above,
        live: shown.live.map(|address| (address, is_live)),
    };
    Ok(parts::page(&frame, &shown.content))
}

impl Context<'_> {
    fn overview(&self) -> (String, String) {
        ("Overview".into(), format!("{}/", self.base))
    }

    fn tenant(&self, tenant: &str) -> (String, String) {
        (tenant.to_owned(), path(self.base, &["t", tenant]))
    }

    fn part(&self, tenant: &str, title: &str, part: &str) -> (String, String) {
        (title.to_owned(), path(self.base, &["t", tenant, part]))
    }

    fn agent(&self, tenant: &str, agent: &str) -> Markup {
        match agent {
            "" => html! { span.dim { "unknown" } },
            agent => html! { a href=(path(self.base, &["t", tenant, "agents", agent])) { (agent) } },
        }
    }

    fn token(&self, tenant: &str, token: &str) -> Markup {
        html! { @if !token.is_empty() { a.code href=(path(self.base, &["t", tenant, "tokens", token])) { (token) } } }
    }

    fn node(&self, node: &str) -> Markup {
        html! { a href=(path(self.base, &["nodes", node])) { (node) } }
    }

    fn page(&self, size: u32) -> wire::ListRequest {
        let page_token = self.query.get("page").to_owned();
        wire::ListRequest { tenant: String::new(), page_size: size, page_token }
    }
}

/// Operators' changes, newest first.
fn changes(answer: &wire::AdminChangesResponse) -> Markup {
    let decoded = answer.entries.iter().filter_map(|entry| AdminChange::decode(entry.change.as_slice()).ok());
    let rows: Vec<Markup> = decoded
        .map(|change| {
            let seconds = i64::try_from(change.at_us / 1_000_000).unwrap_or_default();
            let objects: Vec<String> =
                change.objects.iter().map(|object| format!("{} {}", object.kind, object.name)).collect();
            html! {
                td.whole { (parts::ago(seconds)) }
                td { @if change.operator.is_empty() { span.dim { "SEKS" } } @else { (change.operator) } }
                td { (change.verb) @if change.outcome != "ok" { " " (parts::pill(&change.outcome, parts::State::Bad)) } }
                td { (objects.join(", ")) }
            }
        })
        .collect();
    parts::table(&["when", "operator", "change", "objects"], &rows, "No changes are recorded.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_lead_to_views() {
        assert_eq!(View::of(&[]), Some(View::Overview));
        assert_eq!(View::of(&[""]), Some(View::Overview));
        assert_eq!(View::of(&["t", "a"]), Some(View::Tenant("a".into(), Part::Overview)));
        let request = Part::Request { began_us: 7, id: "ab".into() };
        assert_eq!(View::of(&["t", "a", "requests", "7", "ab"]), Some(View::Tenant("a".into(), request)));
        for none in [&["t"][..], &["t", ""], &["t", "a", "requests", "x", "ab"], &["x"], &["nodes", "a", "b"]] {
            assert_eq!(View::of(none), None, "{none:?}");
        }
    }
}
