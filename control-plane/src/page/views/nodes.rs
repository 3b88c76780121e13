//! Nodes: all in a table, and one with what it did.

use maud::{Markup, html};
use seks_proto::wire::{self, Node};
use tonic::Status;

use super::{Context, Shown, changes, requests};
use crate::page::{
    html::{State, ago, card, chart, facts, panel, path, pill, table, text},
    reader::Whose,
    stats::{Stats, WINDOW_US},
};

/// Requests that a chart counts at most.
pub(super) const COUNTED: usize = 1000;
/// Requests in the table of a node.
const SHOWN: usize = 25;
/// Lag in revisions above which a node is marked.
const MUCH_LAG: u64 = 100;

/// All nodes.
pub(super) fn table_of(context: &Context<'_>, nodes: &[Node]) -> Markup {
    let mut nodes: Vec<&Node> = nodes.iter().collect();
    nodes.sort_by(|a, b| (a.connected, &a.region, &a.id).cmp(&(b.connected, &b.region, &b.id)));
    let row = |node: &&Node| {
        html! {
            td { (context.node(&node.id)) }
            td { (node.region) }
            td { (state(node)) }
            td { (lease(node)) }
            td.number { (node.lag) }
            td.number { (node.applied_revision) }
            td.number { (node.tokens) }
            td { (node.version) }
            td.whole { (ago(node.last_seen_at)) }
        }
    };
    let rows: Vec<Markup> = nodes.iter().map(row).collect();
    let columns = ["node", "region", "state", "lease", "#lag", "#applied", "#tokens", "version", "seen"];
    table(&columns, &rows, "No node has joined. seks node enroll prints a join token.")
}

fn state(node: &Node) -> Markup {
    match (node.connected, node.first_seen_at) {
        (true, _) if node.lag > MUCH_LAG => pill("behind", State::Warning),
        (true, _) => pill("connected", State::Good),
        (false, 0) => pill("enrolled", State::Plain),
        (false, _) => pill("gone", State::Bad),
    }
}

/// What is left of a node's lease.
fn lease(node: &Node) -> Markup {
    let seconds = node.lease_remaining_ms as f64 / 1000.0;
    html! {
        @if node.lease_remaining_ms == 0 { (pill("none", State::Bad)) }
        @else {
            meter min="0" max=(node.lease_ttl_ms.max(node.lease_remaining_ms)) low=(node.lease_ttl_ms / 4) value=(node.lease_remaining_ms) {}
            span.whole { (format!("{seconds:.1} s")) }
        }
    }
}

/// One node.
pub(super) async fn show(context: &Context<'_>, name: &str) -> Result<Shown, Status> {
    let node = context.reader.get_node(wire::NameRequest { tenant: String::new(), name: name.into() }).await?;
    let search = wire::SearchAuditRequest {
        node: node.id.clone(),
        since_us: context.now_us.saturating_sub(WINDOW_US),
        ..Default::default()
    };
    let found = context.reader.records(Whose::Fleet, search, COUNTED).await?;
    let stats = Stats::of(&found.entries, context.now_us, !found.next.is_empty());
    let history = wire::AdminChangesRequest { object: node.id.clone(), page_size: 20, ..Default::default() };
    let history = context.reader.list_fleet_admin_changes(history).await?;
    let lag = if node.lag > MUCH_LAG { State::Warning } else { State::Good };
    let (connection, connected) =
        if node.connected { ("connected", State::Good) } else { ("not connected", State::Bad) };
    let lease_state = if node.lease_remaining_ms == 0 { State::Bad } else { State::Good };
    let lease_left = format!("{:.1} s", node.lease_remaining_ms as f64 / 1000.0);
    let content = html! {
        div.cards {
            (card("Connection", connection, &node.region, connected))
            (card("Lease", &lease_left, &format!("of {} s; without one it refuses", node.lease_ttl_ms / 1000), lease_state))
            (card("Lag", &node.lag.to_string(), "revisions behind the replica", lag))
            (card("Requests", &stats.all.count.to_string(), "in the last hour", State::Plain))
            (card("Refused", &stats.all.refused.to_string(), "in the last hour", State::Plain))
        }
        (panel("Last hour", &chart(&stats)))
        div.columns {
            (panel("Node", &of_record(&node)))
            (panel("Changes by operators", &changes(&history)))
        }
        (panel("Last requests", &requests::table_of(context, found.entries.iter().take(SHOWN), found.problem.as_deref())))
    };
    let live = Some(path(context.base, &["nodes", &node.id]));
    Ok(Shown { title: node.id, above: vec![context.overview()], content, live })
}

fn of_record(node: &Node) -> Markup {
    let list = |names: &[String], none: &str| text(&if names.is_empty() { none.to_owned() } else { names.join(", ") });
    facts(&[
        ("applied revision", text(&node.applied_revision.to_string())),
        ("tokens", text(&node.tokens.to_string())),
        ("tenants", list(&node.tenants, "all")),
        ("pools", list(&node.pools, "none")),
        ("version", text(&node.version)),
        ("features", list(&node.features, "")),
        ("lease owner", text(&node.replica)),
        ("enrolled", ago(node.enrolled_at)),
        ("first seen", ago(node.first_seen_at)),
        ("last seen", ago(node.last_seen_at)),
    ])
}
