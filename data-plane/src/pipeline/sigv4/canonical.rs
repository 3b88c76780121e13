//! What an agent signed: the canonical request, from what arrived.

use std::{borrow::Cow, fmt::Write as _};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, header, request::Parts};
use seks_service::SigV4;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{
    Payload, Refusal,
    claim::{Claim, HEADER_SCHEME, Placement, SIGNATURE},
    encoding::{decode, encode, write_hex},
    mismatch,
};

/// Headers of an SDK's own that it doesn't sign in presigned URLs. They aren't passed on then.
const MAY_BE_UNSIGNED: [&str; 2] = ["x-amz-user-agent", "x-amz-checksum-mode"];

/// A request and the signature that it came with.
pub(super) struct Canonical<'a> {
    pub(super) claim: &'a Claim<'a>,
    pub(super) parts: &'a Parts,
    /// Path and query as they arrived, the node's own prefix included: that is what was signed.
    pub(super) target: &'a str,
    pub(super) payload: &'a Payload,
    pub(super) sigv4: &'a SigV4,
}

/// `host` and all of `x-amz-…` must be signed: an upstream takes orders from them, and the node is
/// about to sign them. Gives those that are to be left out.
pub(super) fn check_signed_headers(claim: &Claim<'_>, headers: &HeaderMap) -> Result<Vec<&'static str>, Refusal> {
    let names: Vec<&str> = claim.signed_headers.split(';').collect();
    let ordered = names.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
    let lower = names.iter().all(|n| !n.is_empty() && !n.bytes().any(|b| b.is_ascii_uppercase()));
    if !ordered || !lower || names.binary_search(&"host").is_err() {
        return Err(mismatch("the signed headers must be in order, in lower case, and `host` among them"));
    }
    let unsigned = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with("x-amz-") && names.binary_search(&name).is_err() && !MAY_BE_UNSIGNED.contains(&name)
    };
    if headers.keys().any(unsigned) {
        return Err(mismatch("all headers that begin with `x-amz-` must be signed"));
    }
    Ok(MAY_BE_UNSIGNED.into_iter().filter(|name| names.binary_search(name).is_err()).collect())
}

impl Canonical<'_> {
    /// Whether the claim's signature is the one that `secret` makes. Takes the same time wherever
    /// they differ.
    pub(super) fn is_signed_with(&self, secret: &str) -> bool {
        let (path, query) = self.target.split_once('?').unwrap_or((self.target, ""));
        if self.is_signed(path, query, secret) {
            return true;
        }
        // Some clients sign another spelling of the path than they send, as AWS allows.
        let other = if self.sigv4.escapes_path_twice() { merged_slashes(path) } else { canonical_path(path) };
        other != path && self.is_signed(&other, query, secret)
    }

    fn is_signed(&self, path: &str, query: &str, secret: &str) -> bool {
        let Some(request) = self.request(path, query) else { return false };
        let Claim { time, scope, signature, .. } = self.claim;
        let mut text = format!("{HEADER_SCHEME}\n{time}\n{scope}\n");
        write_hex(&Sha256::digest(request), &mut text);
        let mut key = Zeroizing::new([&b"AWS4"[..], secret.as_bytes()].concat());
        for part in scope.split('/') {
            key = Zeroizing::new(mac(&key, part.as_bytes()));
        }
        let Ok(mac) = Hmac::<Sha256>::new_from_slice(&key) else { return false };
        mac.chain_update(text).verify_slice(signature).is_ok()
    }

    fn request(&self, path: &str, query: &str) -> Option<String> {
        let mut out = String::with_capacity(256 + 3 * self.target.len());
        out.push_str(self.parts.method.as_str());
        out.push('\n');
        if self.sigv4.escapes_path_twice() {
            encode(path.as_bytes(), b"/", &mut out);
        } else {
            out.push_str(path);
        }
        out.push('\n');
        self.write_query(query, &mut out)?;
        out.push('\n');
        for name in self.claim.signed_headers.split(';') {
            self.write_header(name, &mut out)?;
        }
        let _ = write!(out, "\n{}\n", self.claim.signed_headers);
        match self.payload {
            Payload::Hash(hash) => write_hex(hash, &mut out),
            Payload::Unsigned => out.push_str("UNSIGNED-PAYLOAD"),
            Payload::UnsignedTrailer => out.push_str("STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
        }
        Some(out)
    }

    /// Decoded, encoded in AWS's way, and sorted.
    fn write_query(&self, query: &str, out: &mut String) -> Option<()> {
        let mut pairs = Vec::new();
        for raw in query.split('&').filter(|raw| !raw.is_empty()) {
            let (name, value) = raw.split_once('=').unwrap_or((raw, ""));
            if self.claim.form == Placement::Query && name == SIGNATURE {
                continue;
            }
            let mut encoded = (String::with_capacity(name.len()), String::with_capacity(value.len()));
            encode(decode(name)?.as_bytes(), b"", &mut encoded.0);
            encode(decode(value)?.as_bytes(), b"", &mut encoded.1);
            pairs.push(encoded);
        }
        pairs.sort_unstable();
        for (at, (name, value)) in pairs.iter().enumerate() {
            let _ = write!(out, "{}{name}={value}", if at == 0 { "" } else { "&" });
        }
        Some(())
    }

    fn write_header(&self, name: &str, out: &mut String) -> Option<()> {
        out.push_str(name);
        let mut separator = ':';
        let mut write = |value: &str| {
            out.push(separator);
            separator = ',';
            // White space within is folded, around is dropped.
            for (at, word) in value.split_ascii_whitespace().enumerate() {
                let _ = write!(out, "{}{word}", if at == 0 { "" } else { " " });
            }
        };
        let values = self.parts.headers.get_all(name);
        if values.iter().next().is_none() {
            let authority = self.parts.uri.authority().filter(|_| name == header::HOST.as_str())?;
            write(authority.as_str());
        }
        for value in values {
            write(value.to_str().ok()?);
        }
        out.push('\n');
        Some(())
    }
}

/// A path of S3 as its servers sign it, whatever the spelling: everything escaped but unreserved
/// characters and slashes.
pub(super) fn canonical_path(path: &str) -> Cow<'_, str> {
    let Some(decoded) = decode(path) else { return Cow::Borrowed(path) };
    let mut out = String::with_capacity(path.len());
    encode(decoded.as_bytes(), b"/", &mut out);
    if out == path { Cow::Borrowed(path) } else { Cow::Owned(out) }
}

/// A path of every other service as its SDKs sign it: without empty segments.
fn merged_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    // HMAC takes keys of any length.
    Hmac::<Sha256>::new_from_slice(key)
        .map(|m| m.chain_update(text).finalize().into_bytes().to_vec())
        .unwrap_or_default()
}
