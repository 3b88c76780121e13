//! Services with signed requests (AWS Signature Version 4). The agent's SDK signs with a fake key
//! pair; the upstream needs the real one.
//!
//! [`lookup`](super::lookup) finds the token by the access key id. An access key id is no secret,
//! so [`PresentedSignature::verify`] checks the signature over the whole request before policy is
//! evaluated. [`sign()`] makes the upstream's signature last. An `x-amz-…` header that the agent
//! did not sign is not signed for it.

mod action;
mod canonical;
mod claim;
mod encoding;
mod sign;

use http::request::Parts;
use seks_service::SigV4;
use seks_types::{
    secret::Fields,
    token::{self, Digest, aws},
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

pub(crate) use self::{
    action::is_form,
    claim::{HEADER_SCHEME, header_access_key_id, is_parameter, query_access_key_id},
    sign::sign,
};
use self::{
    canonical::Canonical,
    claim::{Claim, Placement},
};
use super::refusal::Refusal;
use crate::code::Code;

/// A clock may be wrong by so many seconds: AWS's own bound.
const MAX_SKEW_SECONDS: i64 = 15 * 60;
/// The longest life of a presigned URL, in seconds: 7 days, AWS's own bound.
const MAX_EXPIRES_SECONDS: i64 = 7 * 24 * 60 * 60;

/// What of a body is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// All of it, by its SHA-256.
    Hash([u8; 32]),
    /// Nothing.
    Unsigned,
    /// Nothing but that there is a trailer with a checksum, which the upstream looks at.
    UnsignedTrailer,
}

/// A request whose signature was verified: what is needed to sign it again.
pub(crate) struct Signed {
    /// In the head, or in the query of a presigned URL.
    form: Placement,
    payload: Payload,
    /// The agent said in `x-amz-content-sha256` what is signed: so does the node.
    says_payload: bool,
    region: String,
    /// Headers that it didn't sign.
    unsigned: Vec<&'static str>,
}

/// What counts of a body that was read whole.
pub(crate) struct SeenBody {
    hash: [u8; 32],
    is_empty: bool,
    /// The actions that it names as a form; `None`: it is no form, or one that may name an action
    /// that can't be seen.
    actions: Option<Vec<String>>,
}

impl SeenBody {
    /// Takes time linear in the body: not for a thread that serves requests.
    pub(crate) fn of(body: &[u8], is_form: bool) -> Self {
        let actions = is_form.then(|| action::of_form(body)).flatten();
        Self { hash: Sha256::digest(body).into(), is_empty: body.is_empty(), actions }
    }
}

/// A signature as it was presented, before the body is there.
pub(crate) struct PresentedSignature<'a> {
    claim: Claim<'a>,
    payload: Option<Payload>,
    unsigned: Vec<&'static str>,
}

impl<'a> PresentedSignature<'a> {
    /// Reads the signature of a request, and refuses what can be seen to be wrong without the body.
    pub(crate) fn read(parts: &'a Parts, target: &'a str, sigv4: &SigV4, now: i64) -> Result<Self, Refusal> {
        let claim = Claim::read(parts, target)?;
        claim.check_scope(sigv4)?;
        claim.check_time(now)?;
        let unsigned = canonical::check_signed_headers(&claim, &parts.headers)?;
        let payload = claim.payload(&parts.headers, sigv4)?;
        Ok(Self { claim, payload, unsigned })
    }

    /// The hash that the body must turn out to have, when the head says it.
    pub(crate) fn body_hash(&self) -> Option<[u8; 32]> {
        match self.payload {
            Some(Payload::Hash(hash)) => Some(hash),
            _ => None,
        }
    }

    /// Whether nothing can be said of the request before its body is read: the signature covers a
    /// hash that isn't written anywhere, or the body says what is to be done.
    pub(crate) fn needs_body(&self, sigv4: &SigV4) -> bool {
        self.payload.is_none() || !sigv4.denied_actions.is_empty()
    }

    /// Verifies the signature before the body is there. `false`: it covers a hash that only the
    /// body gives.
    pub(crate) fn verify_head(
        &self,
        parts: &Parts,
        target: &str,
        (sigv4, digest, fields): (&SigV4, &Digest, &Fields),
    ) -> Result<bool, Refusal> {
        let Some(payload) = &self.payload else { return Ok(false) };
        let canonical = Canonical { claim: &self.claim, parts, target, payload, sigv4 };
        if canonical.is_signed_with(&secret(fields, digest)?) { Ok(true) } else { Err(unsigned()) }
    }

    /// Verifies the signature, and that the request isn't for keys. `body` is there if
    /// [`needs_body`](Self::needs_body).
    pub(crate) fn verify(
        self,
        parts: &Parts,
        target: &str,
        (sigv4, digest, fields): (&SigV4, &Digest, &Fields),
        body: Option<&SeenBody>,
    ) -> Result<Signed, Refusal> {
        let says_payload = self.payload.is_some() && self.claim.form == Placement::Head;
        let hash = || Payload::Hash(body.map_or_else(|| Sha256::digest(b"").into(), |body| body.hash));
        let payload = self.payload.unwrap_or_else(hash);
        let canonical = Canonical { claim: &self.claim, parts, target, payload: &payload, sigv4 };
        if !canonical.is_signed_with(&secret(fields, digest)?) {
            return Err(unsigned());
        }
        if let (Payload::Hash(hash), Some(body)) = (&payload, body)
            && *hash != body.hash
        {
            return Err(mismatch("the body is not the one that was signed"));
        }
        action::check(sigv4, parts, target, body)?;
        let region = sigv4.region.clone().unwrap_or_else(|| self.claim.region.to_owned());
        Ok(Signed { form: self.claim.form, payload, says_payload, region, unsigned: self.unsigned })
    }
}

/// The agent's secret access key.
fn secret(fields: &Fields, digest: &Digest) -> Result<Zeroizing<String>, Refusal> {
    let key = fields.get(aws::KEY_FIELD).ok_or(Code::ServiceNotGranted)?;
    Ok(token::aws::secret_access_key(key, digest))
}

fn unsigned() -> Refusal {
    mismatch("the request's signature does not match")
}

/// What was presented is nobody's signature.
fn mismatch(detail: &'static str) -> Refusal {
    Refusal::from(Code::TokenMalformed).with_detail(detail)
}

#[cfg(test)]
mod tests;
