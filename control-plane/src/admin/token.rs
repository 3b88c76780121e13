//! Tokens. A digest never leaves.

use std::time::Duration;

use seks_proto::wire::{
    AwsKeyPairRequest, AwsKeys, ChangeResponse, DeleteRequest, Grant, IssueTokenRequest, IssuedToken, ListRequest,
    ListTokensResponse, LookupTokenRequest, NameRequest, RotateTokenRequest, Token, TokenResponse, UpdateTokenRequest,
    Wait,
};
use seks_types::{
    id::{CredentialName, OperatorName, ServiceName},
    token::{aws, shape_prefix},
};

use super::{Admin, Answer, auth::Caller, parse::name, problem::Problem};
use crate::registry::{Issue, Issued};

pub(super) async fn issue(admin: &Admin, caller: &Caller, message: IssueTokenRequest) -> Answer<IssuedToken> {
    let issue = Issue {
        agent: name("agent", &message.agent)?,
        grants: grants(&message.grants)?,
        ttl: (message.ttl_seconds > 0).then(|| Duration::from_secs(message.ttl_seconds)),
        cidrs: message.cidrs,
        shape: message.shape,
        request_id: message.request_id,
        certificate: thumbprint(&message.certificate_sha256)?,
        is_canary: message.canary,
        by: operator(caller)?,
    };
    let issued = admin.registry().issue_token(&name("tenant", &message.tenant)?, issue).await?;
    show(admin, issued, message.wait).await
}

/// What a token is to reach: services, each with a credential or its only one.
pub(super) fn grants(wanted: &[Grant]) -> Answer<Vec<(ServiceName, Option<CredentialName>)>> {
    let mut grants = Vec::with_capacity(wanted.len().min(crate::registry::limits::GRANTS));
    for grant in wanted.iter().take(crate::registry::limits::GRANTS + 1) {
        let credential = match grant.credential.as_str() {
            "" => None,
            credential => Some(name("grants.credential", credential)?),
        };
        grants.push((name("grants.service", &grant.service)?, credential));
    }
    Ok(grants)
}

pub(super) async fn list(admin: &Admin, _: &Caller, message: ListRequest) -> Answer<ListTokensResponse> {
    let (tokens, next_page_token) = super::page(admin, "token", message).await?;
    let tokens: Vec<Token> = tokens;
    let tokens = tokens.into_iter().filter(|token| token.trust.is_none());
    Ok(ListTokensResponse { tokens: tokens.map(|token| shown(admin, token)).collect(), next_page_token })
}

pub(super) async fn get(admin: &Admin, _: &Caller, message: NameRequest) -> Answer<Token> {
    let token = admin.registry().token(&name("tenant", &message.tenant)?, &name("name", &message.name)?).await?;
    Ok(shown(admin, token))
}

pub(super) async fn lookup(admin: &Admin, _: &Caller, message: LookupTokenRequest) -> Answer<Token> {
    let token = admin.registry().token_by_digest(&name("tenant", &message.tenant)?, &message.digest).await?;
    Ok(shown(admin, token))
}

pub(super) async fn revoke(admin: &Admin, _: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let (tenant, id) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let revision = admin.registry().revoke_token(&tenant, &id).await?;
    Ok(ChangeResponse { name: message.name, enforcement: admin.enforced(revision, message.wait).await })
}

pub(super) async fn rotate(admin: &Admin, caller: &Caller, message: RotateTokenRequest) -> Answer<IssuedToken> {
    let (tenant, id) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let grace = Duration::from_secs(message.grace_seconds);
    let issued = admin.registry().rotate_token(&tenant, &id, &operator(caller)?, grace).await?;
    show(admin, issued, message.wait).await
}

pub(super) async fn update(admin: &Admin, _: &Caller, message: UpdateTokenRequest) -> Answer<TokenResponse> {
    let (tenant, id) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let (token, revision) = admin.registry().shorten_token(&tenant, &id, message.expires_at).await?;
    let enforcement = admin.enforced(revision, message.wait).await;
    Ok(TokenResponse { token: Some(without_digest(token)), enforcement })
}

/// The other form of a token. The caller has the token, and the response does not say whether the
/// token is valid.
pub(super) async fn aws_keys(admin: &Admin, _: &Caller, message: AwsKeyPairRequest) -> Answer<AwsKeys> {
    let pair = admin.registry().aws_keys_of(&name("tenant", &message.tenant)?, &message.token).await?;
    Ok(to_wire(&pair))
}

fn to_wire(pair: &aws::AwsKeys) -> AwsKeys {
    AwsKeys { access_key_id: pair.access_key_id.clone(), secret_access_key: pair.secret_access_key.to_string() }
}

/// The only answer with a token in it.
async fn show(admin: &Admin, issued: Issued, wait: Option<Wait>) -> Answer<IssuedToken> {
    let shape = shape_prefix(&issued.token.shape).unwrap_or_default();
    let secret = format!("{shape}{}", issued.secret.as_str());
    let aws = admin.registry().aws_keys(&issued.token).await?;
    Ok(IssuedToken {
        aws: aws.as_ref().map(to_wire),
        token: Some(without_digest(issued.token)),
        secret,
        enforcement: admin.enforced(issued.revision, wait).await,
        base_url: admin.0.proxy_url.clone(),
    })
}

fn thumbprint(bytes: &[u8]) -> Answer<Option<[u8; 32]>> {
    match bytes {
        [] => Ok(None),
        bytes => {
            bytes.try_into().map(Some).map_err(|_| Problem::invalid("certificate_sha256", "a SHA-256 has 32 bytes"))
        }
    }
}

pub(super) fn operator(caller: &Caller) -> Answer<OperatorName> {
    name("operator", &caller.operator().name)
}

/// A token with the time of its last use, as far as this replica knows.
fn shown(admin: &Admin, token: Token) -> Token {
    let last_used_at = admin.0.distribution.trail().map_or(0, |trail| trail.last_used().of(&token.id));
    // The minute of its first use began before it was issued.
    let last_used_at = if last_used_at == 0 { 0 } else { last_used_at.max(token.issued_at) };
    Token { last_used_at, ..without_digest(token) }
}

pub(super) fn without_digest(token: Token) -> Token {
    Token { digest: Vec::new(), ..token }
}
