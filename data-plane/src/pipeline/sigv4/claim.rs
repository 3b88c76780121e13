//! What a request says about its signature: in `Authorization`, or in the query of a presigned URL.

use std::borrow::Cow;

use http::{HeaderMap, header, request::Parts};
use seks_service::SigV4;

use super::{MAX_EXPIRES_SECONDS, MAX_SKEW_SECONDS, Payload, Refusal, encoding::decode, mismatch};
use crate::code::Code;

/// The scheme of `Authorization`.
pub(crate) const HEADER_SCHEME: &str = "AWS4-HMAC-SHA256";

const CREDENTIAL: &str = "X-Amz-Credential";
const ALGORITHM: &str = "X-Amz-Algorithm";
const DATE: &str = "X-Amz-Date";
const EXPIRES: &str = "X-Amz-Expires";
const SIGNED_HEADERS: &str = "X-Amz-SignedHeaders";
pub(super) const SIGNATURE: &str = "X-Amz-Signature";
const SECURITY_TOKEN: &str = "X-Amz-Security-Token";
const CONTENT_SHA256: &str = "X-Amz-Content-Sha256";

/// Where a signature stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// `Authorization`.
    Head,
    /// A presigned URL.
    Query,
}

/// A signature and what belongs to it, well-formed.
pub(super) struct Claim<'a> {
    pub(super) form: Placement,
    /// `20260102T030405Z`.
    pub(super) time: Cow<'a, str>,
    /// The same in unix seconds.
    at: i64,
    /// Seconds that a presigned URL is good for.
    expires: i64,
    /// `20260102/us-east-1/s3/aws4_request`.
    pub(super) scope: Cow<'a, str>,
    pub(super) region: String,
    service: String,
    /// Names, in order.
    pub(super) signed_headers: Cow<'a, str>,
    pub(super) signature: [u8; 32],
    /// `X-Amz-Content-Sha256` of a presigned URL.
    content_sha256: Option<Cow<'a, str>>,
}

/// The access key id that `Authorization`'s value names behind the scheme.
pub(crate) fn header_access_key_id(value: &[u8]) -> Option<&[u8]> {
    let credential = value.split(|b| *b == b',').find_map(|p| p.trim_ascii().strip_prefix(b"Credential="))?;
    credential.split(|b| *b == b'/').next()
}

/// The access key id that a presigned URL names.
pub(crate) fn query_access_key_id(query: &str) -> Option<&str> {
    let credential = parameter(query, CREDENTIAL)?;
    Some(credential.split(['/', '%']).next().unwrap_or_default())
}

/// Whether a query parameter belongs to a signature: those are the node's to write.
pub(crate) fn is_parameter(name: &str) -> bool {
    [CREDENTIAL, ALGORITHM, DATE, EXPIRES, SIGNED_HEADERS, SIGNATURE, SECURITY_TOKEN, CONTENT_SHA256]
        .iter()
        .any(|p| p.eq_ignore_ascii_case(name))
}

/// The first parameter of this name, raw.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn malformed() -> Refusal {
    mismatch("the request's signature is malformed")
}

impl<'a> Claim<'a> {
    pub(super) fn read(parts: &'a Parts, target: &'a str) -> Result<Self, Refusal> {
        match parts.headers.get(header::AUTHORIZATION) {
            Some(value) => Self::in_head(value.to_str().map_err(|_| malformed())?, &parts.headers),
            None => Self::in_query(target.split_once('?').map_or("", |(_, query)| query)),
        }
    }

    fn in_head(value: &'a str, headers: &'a HeaderMap) -> Result<Self, Refusal> {
        let rest = value.strip_prefix(HEADER_SCHEME).ok_or_else(malformed)?;
        let mut parts = [None; 3];
        for part in rest.split(',') {
            let (name, value) = part.trim().split_once('=').ok_or_else(malformed)?;
            let at = ["Credential", "SignedHeaders", "Signature"].iter().position(|n| *n == name);
            let place = at.and_then(|at| parts.get_mut(at)).ok_or_else(malformed)?;
            if place.replace(value).is_some() {
                return Err(malformed());
            }
        }
        let [Some(credential), Some(signed_headers), Some(signature)] = parts else { return Err(malformed()) };
        let time = headers.get("x-amz-date").and_then(|v| v.to_str().ok()).ok_or_else(malformed)?;
        let (credential, signed_headers) = (Cow::Borrowed(credential), Cow::Borrowed(signed_headers));
        Self::new(Placement::Head, credential, Cow::Borrowed(time), signed_headers, signature)
    }

    fn in_query(query: &'a str) -> Result<Self, Refusal> {
        let once = |name| {
            let mut found = query.split('&').filter(|pair| pair.split('=').next() == Some(name));
            let (first, second) = (found.next(), found.next());
            let value = first.and_then(|pair| pair.split_once('=')).filter(|_| second.is_none());
            value.and_then(|(_, raw)| decode(raw)).ok_or_else(malformed)
        };
        if once(ALGORITHM)? != HEADER_SCHEME {
            return Err(malformed());
        }
        let signature = once(SIGNATURE)?;
        let mut claim = Self::new(Placement::Query, once(CREDENTIAL)?, once(DATE)?, once(SIGNED_HEADERS)?, &signature)?;
        claim.expires =
            once(EXPIRES)?.parse().ok().filter(|s| (1..=MAX_EXPIRES_SECONDS).contains(s)).ok_or_else(malformed)?;
        if parameter(query, CONTENT_SHA256).is_some() {
            claim.content_sha256 = Some(once(CONTENT_SHA256)?);
        }
        Ok(claim)
    }

    fn new(
        form: Placement,
        credential: Cow<'a, str>,
        time: Cow<'a, str>,
        signed_headers: Cow<'a, str>,
        signature: &str,
    ) -> Result<Self, Refusal> {
        let (_, scope) = credential.split_once('/').ok_or_else(malformed)?;
        let word = |s: &&str| s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && (1..=64).contains(&s.len());
        let mut parts = scope.split('/');
        let (Some(date), Some(region), Some(service), Some("aws4_request"), None) =
            (parts.next(), parts.next().filter(word), parts.next().filter(word), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        let at = unix_seconds(&time).filter(|_| time.get(..8) == Some(date)).ok_or_else(malformed)?;
        let (region, service) = (region.to_owned(), service.to_owned());
        let scope = Cow::Owned(scope.to_owned());
        let signature = hex(signature).ok_or_else(malformed)?;
        Ok(Self { form, time, at, expires: 0, scope, region, service, signed_headers, signature, content_sha256: None })
    }

    /// Another service's signature is not this one's; for another region it would be a surprise
    /// where the request ends up.
    pub(super) fn check_scope(&self, sigv4: &SigV4) -> Result<(), Refusal> {
        let invalid = |what: &str, want: &str| {
            Err(Refusal::from(Code::RequestInvalid)
                .with_detail(format!("the request is signed for another {what}: this service takes `{want}`")))
        };
        if self.service != sigv4.service {
            return invalid("AWS service", &sigv4.service);
        }
        match &sigv4.region {
            Some(region) if *region != self.region => invalid("region", region),
            _ => Ok(()),
        }
    }

    pub(super) fn check_time(&self, now: i64) -> Result<(), Refusal> {
        let too_late = match self.form {
            Placement::Head => self.at + MAX_SKEW_SECONDS,
            Placement::Query => self.at + self.expires,
        };
        if now > too_late || now < self.at - MAX_SKEW_SECONDS {
            return Err(mismatch(
                "the signature is too old or from the future: the node's clock and the agent's differ",
            ));
        }
        Ok(())
    }

    /// What of the body is signed; `None`: all of it, by a hash that isn't written down.
    pub(super) fn payload(&self, headers: &HeaderMap, sigv4: &SigV4) -> Result<Option<Payload>, Refusal> {
        let said = match (&self.content_sha256, headers.get("x-amz-content-sha256")) {
            (Some(said), None) => Some(&**said),
            (None, Some(said)) => Some(said.to_str().map_err(|_| malformed())?),
            (None, None) => None,
            (Some(_), Some(_)) => return Err(malformed()),
        };
        let unsigned = sigv4.has_unsigned_payloads();
        match said {
            None if self.form == Placement::Query && unsigned => Ok(Some(Payload::Unsigned)),
            None => Ok(None),
            Some("UNSIGNED-PAYLOAD") if unsigned => Ok(Some(Payload::Unsigned)),
            Some("STREAMING-UNSIGNED-PAYLOAD-TRAILER") if unsigned => Ok(Some(Payload::UnsignedTrailer)),
            Some(said) if said.starts_with("STREAMING-") => Err(Refusal::invalid(
                "bodies that are signed in chunks can't be signed again: sign the whole body, or send it unsigned",
            )),
            Some(said) => hex(said).map(|hash| Some(Payload::Hash(hash))).ok_or_else(malformed),
        }
    }
}

/// 64 lower-case hexadecimal digits.
fn hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0_u8; 32];
    if text.len() != 64 || text.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    for (place, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *place = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16)
            .ok()
            .filter(|_| pair.iter().all(u8::is_ascii_hexdigit))?;
    }
    Some(bytes)
}

/// `20260102T030405Z` in unix seconds.
fn unix_seconds(time: &str) -> Option<i64> {
    let digits = |range: std::ops::Range<usize>| -> Option<i64> {
        let text = time.get(range)?;
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
    };
    if time.len() != 16 || time.get(8..9) != Some("T") || time.get(15..) != Some("Z") {
        return None;
    }
    let (year, month, day) = (digits(0..4)?, digits(4..6)?, digits(6..8)?);
    let (hour, minute, second) = (digits(9..11)?, digits(11..13)?, digits(13..15)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 in the proleptic Gregorian calendar, years counted from March (Howard
    // Hinnant, days_from_civil).
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_one_form() {
        for (text, want) in [
            ("19700101T000000Z", Some(0)),
            ("20000229T235959Z", Some(951_868_799)),
            ("20261125T222051Z", Some(1_795_645_251)),
            ("20150830T123600Z", Some(1_440_938_160)),
            ("20261325T222051Z", None),
            ("2026-11-25T22:20Z", None),
            ("20261125T222051", None),
            ("+0261125T222051Z", None),
        ] {
            assert_eq!(unix_seconds(text), want, "{text}");
        }
    }

    #[test]
    fn hashes_are_read_in_one_form() {
        let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex(hash).map(|h| (h[0], h[31])), Some((0xe3, 0x55)));
        for bad in [&hash[1..], &hash.to_uppercase(), &hash.replace('e', "+")] {
            assert_eq!(hex(bad), None, "{bad}");
        }
    }
}
