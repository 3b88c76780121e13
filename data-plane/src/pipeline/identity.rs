//! Who a token of a trusted issuer, or one that was exchanged for it, stands for.

use std::sync::Arc;

use seks_service::EXCHANGE;
use seks_trust::{ExchangeKey, ExchangedToken, Identity, Jwt, Rejected};
use seks_types::{id::ServiceName, secret::Fields, token::Digest};

use super::refusal::Refusal;
use crate::{
    code::Code,
    table::{Exchanged, Found, Table, TokenEntry},
};

/// The code of a refusal for a token of an issuer.
pub(super) fn code_of(rejected: Rejected) -> Code {
    match rejected {
        Rejected::Malformed(_) | Rejected::Algorithm => Code::TokenMalformed,
        Rejected::Expired => Code::TokenExpired,
        Rejected::SubjectRevoked => Code::TokenRevoked,
        _ => Code::TokenUnknown,
    }
}

/// The tenant's exchange key, as fields.
pub(super) fn exchange_fields(parent: &TokenEntry) -> Option<Fields> {
    let grant = parent.grant(EXCHANGE)?;
    grant.credential()?.open_for(&*grant.service()?).ok()
}

/// The trust that a token of an issuer is accepted by, and what it says. `name`: the trust that the
/// client asks for.
///
/// A token that trusts of two tenants accept is refused: its request would be made with one
/// tenant's credentials, and it does not say with whose. So is one that several trusts of a tenant
/// accept, unless the client names one.
pub(super) fn verified(
    table: &Table,
    jwt: &Jwt<'_>,
    name: Option<&str>,
    now: i64,
) -> Result<(Arc<TokenEntry>, Identity), Rejected> {
    let mut best = Rejected::Untrusted;
    let mut accepted: Option<(Arc<TokenEntry>, Identity)> = None;
    for parent in table.trusts(jwt.issuer()?) {
        let Some(trust) = parent.trust() else { continue };
        match trust.rule.verify(jwt, &trust.keys(), now) {
            Ok(_) if name.is_some_and(|name| name != &*trust.rule.name) => {}
            Ok(identity) => {
                if accepted.replace((parent, identity)).is_some() {
                    return Err(Rejected::Malformed("several trusts accept it: ask for one by `scope=trust:NAME`"));
                }
            }
            Err(Rejected::Untrusted) => {}
            Err(rejected) => {
                if rejected == Rejected::UnknownKey {
                    table.unknown_keys().report((parent.tenant(), parent.id()), trust, now);
                }
                best = rejected;
            }
        }
    }
    accepted.ok_or(best)
}

/// The entry for a token of an issuer that stands in `Authorization`. `None`: it is no token of an
/// issuer that anybody trusts.
pub(super) fn issuers_token(
    table: &Table,
    text: &[u8],
    digest: Digest,
    now: i64,
) -> Option<Result<Arc<TokenEntry>, Refusal>> {
    if let Found::Token(token) = table.find(&digest) {
        return Some(Ok(token));
    }
    let jwt = Jwt::parse(text).ok()?;
    if table.trusts(jwt.issuer().ok()?).is_empty() {
        return None;
    }
    let admitted = verified(table, &jwt, None, now).and_then(|(parent, identity)| {
        let services = granted_services(&parent);
        let expires_at = identity.expires_at;
        let exchanged = Exchanged { identity, services, issued_at: now, expires_at };
        table.admit_exchanged(digest, &parent, exchanged)
    });
    Some(admitted.map_err(refusal))
}

/// The entry for an exchanged token. `None`: nobody here made it.
pub(super) fn exchanged_token(
    table: &Table,
    text: &[u8],
    digest: Digest,
    now: i64,
) -> Option<Result<Arc<TokenEntry>, Refusal>> {
    let parent = match table.find(&ExchangedToken::named_trust(text).ok()?) {
        Found::Token(parent) => parent,
        Found::Revoked(_) => return Some(Err(Code::TokenRevoked.into())),
        Found::Unknown => return None,
    };
    let token = ExchangedToken::open(text, &ExchangeKey::of(&exchange_fields(&parent)?)?)?;
    if now >= token.expires_at {
        return Some(Err(Code::TokenExpired.into()));
    }
    let services = token.services.iter().filter_map(|name| ServiceName::try_from(name.as_str()).ok()).collect();
    let (issued_at, expires_at) = (token.issued_at, token.expires_at);
    let exchanged = Exchanged { identity: token.identity, services, issued_at, expires_at };
    // It was honoured once: what does not hold any more was taken away.
    Some(table.admit_exchanged(digest, &parent, exchanged).map_err(|_| Code::TokenRevoked.into()))
}

fn refusal(rejected: Rejected) -> Refusal {
    Refusal::from(code_of(rejected)).with_detail(rejected.to_string())
}

/// What a trust grants, without the service that only carries its key.
pub(super) fn granted_services(parent: &TokenEntry) -> Vec<ServiceName> {
    parent.services().iter().filter(|name| name.as_str() != EXCHANGE).cloned().collect()
}
