//! Agents: all of a tenant, and one with what it did.

use maud::{Markup, html};
use seks_proto::wire::{self, Agent};
use tonic::Status;

use super::{Context, Shown, changes, nodes::COUNTED, requests, tenant::services, tokens};
use crate::page::{
    html::{State, ago, card, chart, facts, next_page, panel, path, pill, table, text, with_query},
    reader::Whose,
    stats::{Stats, WINDOW_US},
};

/// Agents on a page, and requests in the table of one.
const PAGE: u32 = 100;
const REQUESTS: usize = 25;

/// All agents.
pub(super) async fn list(context: &Context<'_>, tenant: &str) -> Result<Shown, Status> {
    let message = wire::ListRequest { tenant: tenant.into(), ..context.page(PAGE) };
    let answer = context.reader.list_agents(message).await?;
    let rows: Vec<Markup> = answer.agents.iter().map(|agent| row(context, tenant, agent)).collect();
    let columns = ["agent", "state", "attributes", "created"];
    let address = path(context.base, &["t", tenant, "agents"]);
    let content = panel(
        "Agents",
        &html! {
            (table(&columns, &rows, "There are no agents. seks agent create adds one."))
            (next_page(&address, &answer.next_page_token))
        },
    );
    Ok(Shown { title: "Agents".into(), above: vec![context.overview(), context.tenant(tenant)], content, live: None })
}

fn row(context: &Context<'_>, tenant: &str, agent: &Agent) -> Markup {
    html! {
        td { (context.agent(tenant, &agent.name)) }
        td { (state(agent)) }
        td { (attributes(agent)) }
        td.whole { (ago(agent.created_at)) }
    }
}

fn state(agent: &Agent) -> Markup {
    match (agent.deleting, agent.disabled) {
        (true, _) => pill("being deleted", State::Warning),
        (false, true) => pill("disabled", State::Bad),
        (false, false) => pill("enabled", State::Good),
    }
}

fn attributes(agent: &Agent) -> Markup {
    html! { @for (name, value) in &agent.attributes { span.pill { (name) "=" (value) } " " } }
}

/// One agent.
pub(super) async fn show(context: &Context<'_>, tenant: &str, name: &str) -> Result<Shown, Status> {
    let agent = context.reader.get_agent(wire::NameRequest { tenant: tenant.into(), name: name.into() }).await?;
    let (tokens, is_complete) = context.reader.tokens_of(tenant, &agent.name).await?;
    let search = wire::SearchAuditRequest {
        tenant: tenant.into(),
        agent: agent.name.clone(),
        since_us: context.now_us.saturating_sub(WINDOW_US),
        ..Default::default()
    };
    let found = context.reader.records(Whose::Tenant, search, COUNTED).await?;
    let stats = Stats::of(&found.entries, context.now_us, !found.next.is_empty());
    // Requests of the last hour for the figures, and the last ones at any time for the table.
    let last = wire::SearchAuditRequest { tenant: tenant.into(), agent: agent.name.clone(), ..Default::default() };
    let last = context.reader.records(Whose::Tenant, last, REQUESTS).await?;
    let history = wire::AdminChangesRequest {
        tenant: tenant.into(),
        object: agent.name.clone(),
        page_size: 20,
        ..Default::default()
    };
    let history = context.reader.list_admin_changes(history).await?;
    let all = with_query(&path(context.base, &["t", tenant, "requests"]), &[("agent", &agent.name)]);
    let (word, word_state) = if agent.disabled { ("disabled", State::Bad) } else { ("enabled", State::Good) };
    let content = html! {
        div.cards {
            (card("Agent", word, "", word_state))
            (card("Tokens", &tokens.len().to_string(), if is_complete { "" } else { "there may be more" }, State::Plain))
            (card("Requests", &stats.all.count.to_string(), "in the last hour", State::Plain))
            (card("Refused", &stats.all.refused.to_string(), "in the last hour", if stats.all.refused > 0 { State::Warning } else { State::Good }))
            (card("p99", &format!("{:.1} ms", stats.all.quantile_ms(0.99)), "whole request", State::Plain))
        }
        (panel("Last hour", &chart(&stats)))
        div.columns {
            (panel("Agent", &facts(&[("name", text(&agent.name)), ("attributes", attributes(&agent)), ("created", ago(agent.created_at))])))
            (panel("Services", &services(context, tenant, &stats)))
        }
        (panel("Tokens", &tokens::table_of(context, tenant, &tokens)))
        (panel("Last requests", &html! {
            (requests::table_of(context, last.entries.iter(), last.problem.as_deref()))
            p.next { a href=(all) { "All requests of this agent" } }
        }))
        (panel("Changes by operators", &changes(&history)))
    };
    let above = vec![context.overview(), context.tenant(tenant), context.part(tenant, "Agents", "agents")];
    let live = Some(path(context.base, &["t", tenant, "agents", &agent.name]));
    Ok(Shown { title: agent.name, above, content, live })
}
