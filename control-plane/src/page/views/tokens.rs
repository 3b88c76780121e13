//! Tokens: all of a tenant, and one with what it was used for. A token itself is never known here.

use maud::{Markup, html};
use seks_proto::wire::{self, Token};
use tonic::Status;

use super::{Context, Shown, changes, requests};
use crate::page::{
    html::{ago, facts, next_page, panel, path, rfc3339, table, text, until},
    reader::Whose,
};

/// Tokens on a page, and requests in the table of one.
const PAGE: u32 = 100;
const REQUESTS: usize = 25;

/// All tokens.
pub(super) async fn list(context: &Context<'_>, tenant: &str) -> Result<Shown, Status> {
    let message = wire::ListRequest { tenant: tenant.into(), ..context.page(PAGE) };
    let answer = context.reader.list_tokens(message).await?;
    let address = path(context.base, &["t", tenant, "tokens"]);
    let content = panel(
        "Tokens",
        &html! {
            (table_of(context, tenant, &answer.tokens))
            p.dim { "Last used: the newest request in this replica's audit trail, to the minute." }
            (next_page(&address, &answer.next_page_token))
        },
    );
    Ok(Shown { title: "Tokens".into(), above: vec![context.overview(), context.tenant(tenant)], content, live: None })
}

/// Tokens as a table.
pub(super) fn table_of(context: &Context<'_>, tenant: &str, tokens: &[Token]) -> Markup {
    let row = |token: &Token| {
        html! {
            td.whole { (context.token(tenant, &token.id)) }
            td { (context.agent(tenant, &token.agent)) }
            td { (grants(token)) }
            td { (token.issued_by) }
            td.whole { (ago(token.issued_at)) }
            td.whole { @if token.last_used_at == 0 { span.dim { "not seen" } } @else { (ago(token.last_used_at)) } }
            td.whole { (until(token.expires_at)) }
        }
    };
    let rows: Vec<Markup> = tokens.iter().map(row).collect();
    let columns = ["id", "agent", "services", "issued by", "issued", "last used", "expires"];
    table(&columns, &rows, "There are no tokens. seks token issue makes one.")
}

fn grants(token: &Token) -> Markup {
    html! {
        @for grant in &token.grants {
            span.pill { (grant.service) @if !grant.credential.is_empty() { "=" (grant.credential) } } " "
        }
    }
}

/// One token.
pub(super) async fn show(context: &Context<'_>, tenant: &str, id: &str) -> Result<Shown, Status> {
    let token = context.reader.get_token(wire::NameRequest { tenant: tenant.into(), name: id.into() }).await?;
    let search = wire::SearchAuditRequest { tenant: tenant.into(), token: token.id.clone(), ..Default::default() };
    let found = context.reader.records(Whose::Tenant, search, REQUESTS).await?;
    let history = wire::AdminChangesRequest {
        tenant: tenant.into(),
        object: token.id.clone(),
        page_size: 20,
        ..Default::default()
    };
    let history = context.reader.list_admin_changes(history).await?;
    let about = facts(&[
        ("agent", context.agent(tenant, &token.agent)),
        ("services", grants(&token)),
        ("issued", html! { (rfc3339(token.issued_at)) " by " (token.issued_by) }),
        ("expires", until(token.expires_at)),
        ("last used", ago(token.last_used_at)),
        ("networks", text(&if token.cidrs.is_empty() { "any".into() } else { token.cidrs.join(", ") })),
        ("shape", text(&token.shape)),
        ("replaced by", context.token(tenant, &token.replaced_by)),
    ]);
    let content = html! {
        (panel("Token", &about))
        (panel("Last requests", &requests::table_of(context, found.entries.iter(), found.problem.as_deref())))
        (panel("Changes by operators", &changes(&history)))
    };
    let above = vec![context.overview(), context.tenant(tenant), context.part(tenant, "Tokens", "tokens")];
    Ok(Shown { title: token.id, above, content, live: None })
}
