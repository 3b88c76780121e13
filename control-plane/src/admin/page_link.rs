//! Links to this replica's page.

use seks_proto::wire::{CreatePageLinkRequest, PageLink};

use super::{Admin, Answer, auth::Caller, parse::name, problem::Problem};

/// A link that opens the page once, for the caller.
pub(super) async fn create(admin: &Admin, caller: &Caller, _: CreatePageLinkRequest) -> Answer<PageLink> {
    let Some(page) = &admin.0.page else {
        return Err(
            Problem::precondition("NO_PAGE", "this replica has no page").hint("set page.listen in control-plane.toml")
        );
    };
    let operator = caller.operator();
    let link = page.link(name("operator", &operator.name)?, operator.enrolment.clone());
    let link = link.map_err(|_| Problem::internal("no random bytes"))?;
    Ok(PageLink { url: link.url.to_string(), expires_at: link.expires_at })
}
