//! Store, nodes, replicas and tenants.

use maud::{Markup, html};
use seks_proto::wire::{self, Operator, StatusResponse};
use tonic::Status;

use super::{Context, Shown, nodes};
use crate::page::html::{State, ago, card, panel, path, pill, table};

pub(super) async fn show(context: &Context<'_>, status: &StatusResponse, operator: &Operator) -> Result<Shown, Status> {
    let tenants = context.reader.list_tenants(wire::ListTenantsRequest {}).await?.tenants;
    // The fleet is told only to those who have a role in all tenants.
    let sees_fleet = operator.roles.iter().any(|role| role.tenant == "*");
    let content = html! {
        (cards(status, sees_fleet))
        @if sees_fleet { (panel("Nodes", &nodes::table_of(context, &status.nodes))) }
        (panel("Tenants", &tenants_table(context, &tenants)))
        @if sees_fleet { (panel("Replicas", &replicas(status))) }
    };
    let live = Some(format!("{}/", context.base));
    Ok(Shown { title: "Overview".into(), above: Vec::new(), content, live })
}

fn cards(status: &StatusResponse, sees_fleet: bool) -> Markup {
    let (health, state) = match (status.store_healthy, status.store_problem.as_str()) {
        (true, _) => ("healthy", State::Good),
        (false, "") => ("not healthy", State::Bad),
        (false, problem) => (problem, State::Bad),
    };
    let connected = status.nodes.iter().filter(|node| node.connected).count();
    let all = status.nodes.len();
    let lag = status.nodes.iter().filter(|node| node.connected).map(|node| node.lag).max().unwrap_or_default();
    let nodes = if connected == all { State::Good } else { State::Bad };
    let lag_note = if lag == 0 { "all have the newest revision".into() } else { format!("{lag} revisions behind") };
    let (version, build) = status.version.split_once(' ').unwrap_or((&status.version, ""));
    html! {
        div.cards {
            (card("Store", health, &status.store, state))
            (card("Revision", &status.revision.to_string(), &format!("epoch {}", shortened(&status.epoch)), State::Plain))
            @if sees_fleet {
                (card("Nodes", &format!("{connected} of {all}"), &lag_note, if all == 0 { State::Warning } else { nodes }))
                (card("Tokens", &status.tokens.to_string(), "in the table", State::Plain))
                (card("Audit records", &status.audit_backlog.to_string(), "wait at the nodes", State::Plain))
            }
            (card("Version", version, build.trim_matches(['(', ')']), State::Plain))
        }
    }
}

/// The first digits of a random name, enough to tell two apart.
fn shortened(name: &str) -> &str {
    name.get(..12).unwrap_or(name)
}

fn tenants_table(context: &Context<'_>, tenants: &[wire::Tenant]) -> Markup {
    let rows: Vec<Markup> = tenants
        .iter()
        .map(|tenant| {
            let link = |part: &str| path(context.base, &["t", &tenant.name, part]);
            html! {
                td { a href=(path(context.base, &["t", &tenant.name])) { (tenant.name) } }
                td { a href=(link("agents")) { "agents" } " · " a href=(link("tokens")) { "tokens" } " · " a href=(link("requests")) { "requests" } }
                td { @if tenant.strict { (pill("strict", State::Plain)) } @if tenant.deleting { (pill("being deleted", State::Warning)) } }
                td { (ago(tenant.created_at)) }
            }
        })
        .collect();
    table(&["tenant", "", "", "created"], &rows, "You have a role in no tenant.")
}

fn replicas(status: &StatusResponse) -> Markup {
    let rows: Vec<Markup> = status
        .replicas
        .iter()
        .map(|replica| {
            let (word, state) = if replica.retired { ("retired", State::Plain) } else { ("serving", State::Good) };
            html! {
                td { (replica.name) @if replica.name == status.replica { span.dim { " this one" } } }
                td { (pill(word, state)) }
                td.number { (replica.watermark) }
                td { (ago(replica.registered_at)) }
            }
        })
        .collect();
    table(&["replica", "state", "#enforced up to", "started"], &rows, "No replica has registered.")
}
