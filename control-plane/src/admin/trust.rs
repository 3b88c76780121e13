//! Trusts.

use seks_proto::wire::{
    ChangeResponse, CreateTrustRequest, DeleteRequest, ListRequest, ListTrustsResponse, NameRequest, Token, Trust,
    TrustResponse, UpdateTrustRequest,
};
use seks_trust::{KeySet, MAX_EXCHANGED_SECONDS, check_issuer};

use super::{
    Admin, Answer,
    auth::Caller,
    parse::name,
    problem::Problem,
    token::{grants, operator, without_digest},
};
use crate::{
    registry::{NewTrust, TrustChange},
    trust_refresher::fetch,
};

/// The keys are fetched before anything is stored: a mistyped issuer is found here.
pub(super) async fn create(admin: &Admin, caller: &Caller, message: CreateTrustRequest) -> Answer<TrustResponse> {
    let tenant = name("tenant", &message.tenant)?;
    let given = message.trust.ok_or_else(|| Problem::invalid("trust", "is missing"))?;
    check_issuer(&given.issuer).map_err(|error| Problem::invalid(error.field, error.reason))?;
    let mut trust = Trust {
        name: given.name,
        issuer: given.issuer,
        audiences: given.audiences,
        matches: given.matches,
        agent: given.agent,
        ttl_seconds: given.ttl_seconds,
        claims: given.claims,
        jwks_uri: given.jwks_uri,
        static_keys: !given.jwks.is_empty(),
        issuer_ca_pem: given.issuer_ca_pem,
        ..Trust::default()
    };
    if trust.ttl_seconds == 0 {
        trust.ttl_seconds = u32::try_from(MAX_EXCHANGED_SECONDS).unwrap_or_default();
    }
    trust.jwks = match trust.static_keys {
        true => canonical(&given.jwks)?,
        false => fetch(admin.registry(), &admin.0.reach.guard, &tenant, &trust).await?,
    };
    let new = NewTrust { trust, grants: grants(&message.grants)?, cidrs: message.cidrs, by: operator(caller)? };
    let (trust, revision) = admin.registry().create_trust(&tenant, new).await?;
    Ok(TrustResponse { trust: Some(without_digest(trust)), enforcement: admin.enforced(revision, message.wait).await })
}

pub(super) async fn list(admin: &Admin, _: &Caller, message: ListRequest) -> Answer<ListTrustsResponse> {
    let trusts = admin.registry().trusts(&name("tenant", &message.tenant)?).await?;
    Ok(ListTrustsResponse { trusts: trusts.into_iter().map(without_digest).collect(), next_page_token: String::new() })
}

pub(super) async fn get(admin: &Admin, _: &Caller, message: NameRequest) -> Answer<Token> {
    let trust = admin.registry().trust(&name("tenant", &message.tenant)?, &message.name).await?;
    Ok(without_digest(trust))
}

pub(super) async fn update(admin: &Admin, _: &Caller, message: UpdateTrustRequest) -> Answer<TrustResponse> {
    let tenant = name("tenant", &message.tenant)?;
    let known = admin.registry().trust(&tenant, &message.name).await?.trust.unwrap_or_default();
    let jwks = match (message.jwks.as_str(), known.static_keys) {
        ("", true) if message.refresh_keys => {
            return Err(Problem::invalid("refresh_keys", "the trust's keys are given by --jwks-file, and not fetched"));
        }
        ("", _) if message.refresh_keys => fetch(admin.registry(), &admin.0.reach.guard, &tenant, &known).await?,
        ("", _) => String::new(),
        (_, false) => return Err(Problem::invalid("jwks", "the trust's keys are fetched from its issuer")),
        (jwks, true) => canonical(jwks)?,
    };
    let change = TrustChange {
        matches: message.matches,
        agent: message.agent,
        ttl_seconds: message.ttl_seconds,
        claims: message.claims,
        deny: message.deny_subjects,
        allow: message.allow_subjects,
        jwks,
        grants: grants(&message.grants)?,
    };
    let (trust, revision) = admin.registry().update_trust(&tenant, &message.name, &change).await?;
    Ok(TrustResponse { trust: Some(without_digest(trust)), enforcement: admin.enforced(revision, message.wait).await })
}

pub(super) async fn delete(admin: &Admin, _: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let revision = admin.registry().delete_trust(&name("tenant", &message.tenant)?, &message.name).await?;
    Ok(ChangeResponse { name: message.name, enforcement: admin.enforced(revision, message.wait).await })
}

fn canonical(jwks: &str) -> Answer<String> {
    KeySet::canonical(jwks.as_bytes()).map_err(|error| Problem::invalid("jwks", error.to_string()))
}
