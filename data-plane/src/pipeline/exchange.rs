//! Identity exchange (RFC 8693): `POST /token` gives a short token for a token of a trusted issuer.
//!
//! Such a token of an issuer is also honoured itself, where a service takes `Authorization`: its
//! signature is verified when it is first seen, and it is known by its SHA-256 from then on.
//! Neither makes the node ask anybody.

mod form;
mod replay;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use seks_trust::{ExchangeKey, ExchangedToken, Identity, Jwt, Rejected};
use seks_types::token::Digest;

use self::form::ExchangeForm;
pub(crate) use self::replay::SeenTokens;
use super::{
    admit::Admitted,
    audit::Record,
    caller::Caller,
    identity::{code_of, exchange_fields, verified},
    refusal::Refusal,
    relay::OutgoingBody,
    token,
    wrong_tokens::WrongTokens,
};
use crate::{
    code::Code,
    http::server::RequestBody,
    table::{Exchanged, Table, TokenEntry},
};

/// Why nothing was exchanged: the code of RFC 6749, 5.2, and of the audit record.
struct Failure {
    error: &'static str,
    code: Code,
    detail: String,
}

impl Failure {
    fn request(detail: &'static str) -> Self {
        Self { error: "invalid_request", code: Code::RequestInvalid, detail: detail.into() }
    }
}

impl From<Rejected> for Failure {
    fn from(rejected: Rejected) -> Self {
        Self { error: "invalid_grant", code: code_of(rejected), detail: rejected.to_string() }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self { error: "invalid_grant", code: refusal.code, detail: refusal.text().to_owned() }
    }
}

/// What a node exchanges by.
#[derive(Clone, Copy)]
pub(crate) struct Exchange<'a> {
    pub(crate) table: &'a Table,
    pub(crate) seen: &'a SeenTokens,
    pub(crate) wrong: &'a WrongTokens,
}

/// Answers `POST /token`. A failure is an answer too: clients of OAuth read its `error`.
///
/// # Errors
/// [`Code::NodeStale`]; a body that is too large or too slow.
pub(crate) async fn call(
    admitted: Admitted,
    body: RequestBody,
    caller: &Caller,
    with: Exchange<'_>,
    record: &mut Record,
) -> Result<Response<OutgoingBody>, Refusal> {
    record.table(with.table.revision());
    if !with.table.lease().valid() {
        return Err(Code::NodeStale.into());
    }
    let form = ExchangeForm::read(&admitted.parts.headers, body).await?;
    match form.and_then(|form| exchange(&form, caller, with, record)) {
        Ok(made) => {
            record.decided(true, &[]);
            Ok(answer(StatusCode::OK, &made))
        }
        Err(failure) => {
            // Whoever guesses is limited as with any other token.
            let refusal = with.wrong.bound(Refusal::from(failure.code), caller.source);
            if refusal.code != failure.code {
                return Err(refusal);
            }
            record.refused(failure.code);
            Ok(failed(&failure))
        }
    }
}

fn failed(failure: &Failure) -> Response<OutgoingBody> {
    let body = serde_json::json!({ "error": failure.error, "error_description": failure.detail });
    answer(StatusCode::BAD_REQUEST, &body)
}

fn answer(status: StatusCode, body: &serde_json::Value) -> Response<OutgoingBody> {
    let mut response = Response::new(OutgoingBody::fixed(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

fn exchange(
    form: &ExchangeForm,
    caller: &Caller,
    with: Exchange<'_>,
    record: &mut Record,
) -> Result<serde_json::Value, Failure> {
    let jwt = Jwt::parse(form.subject_token.as_bytes())?;
    let (parent, identity) = verified(with.table, &jwt, form.trust.as_deref(), caller.now)?;
    let agent = parent.trust().ok_or(Rejected::Untrusted)?.rule.admit(&identity)?;
    record.identified(parent.tenant(), &agent, parent.id());
    let services = form.services(&parent)?;
    let life = parent.trust().map_or(0, |trust| trust.rule.ttl_seconds);
    let expires_at = identity.expires_at.min(caller.now.saturating_add(life));
    if expires_at <= caller.now {
        return Err(Rejected::Expired.into());
    }
    let once = match jwt.id()? {
        Some(id) => Digest::of(format!("{}\0{id}", jwt.issuer()?).as_bytes()),
        None => Digest::of(jwt.signed().as_bytes()),
    };
    let sealed = ExchangedToken {
        trust: parent.trust().map(|trust| trust.digest).ok_or(Rejected::Untrusted)?,
        identity: Identity { expires_at, ..identity.clone() },
        issued_at: caller.now,
        expires_at,
        services: services.iter().map(ToString::to_string).collect(),
    };
    let text = seal(&parent, &sealed)?;
    // The same checks as for each request of the new token.
    let exchanged = Exchanged { identity: sealed.identity, services, issued_at: caller.now, expires_at };
    let entry = with.table.admit_exchanged(Digest::of(text.as_bytes()), &parent, exchanged)?;
    token::check(&entry, caller)?;
    with.seen.see(parent.tenant(), once, identity.expires_at, caller.now)?;
    Ok(serde_json::json!({
        "access_token": text,
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "token_type": "Bearer",
        "expires_in": expires_at - caller.now,
        "scope": sealed.services.join(" "),
    }))
}

/// The token's text, under the tenant's exchange key.
fn seal(parent: &TokenEntry, token: &ExchangedToken) -> Result<String, Failure> {
    let unavailable =
        |detail: &str| Failure { error: "invalid_request", code: Code::ServiceNotGranted, detail: detail.into() };
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(|_| unavailable("the node has no randomness"))?;
    let fields =
        exchange_fields(parent).ok_or_else(|| unavailable("this node does not hold the tenant's exchange key"))?;
    let key = ExchangeKey::of(&fields).ok_or_else(|| unavailable("the tenant's exchange key cannot be used"))?;
    key.seal(token, u64::from_ne_bytes(nonce))
        .ok_or_else(|| unavailable("the claims that the trust lists are too long"))
}
