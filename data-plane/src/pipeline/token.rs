//! Where tokens are in a request, and whether one may be used.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, header};
use memchr::memmem::Finder;
use seks_types::token::{self, Digest};

use super::{caller::Caller, refusal::Refusal};
use crate::{code::Code, table::TokenEntry};

/// Headers in which SDKs put keys, for telling "nothing was presented" from "what was presented is
/// no token", and for stripping credentials that aren't the node's. In order: it is searched by
/// halves.
pub(crate) const CREDENTIAL_HEADERS: &[&str] = &[
    "api-key",
    "apikey",
    "authorization",
    "cookie",
    "dd-api-key",
    "dd-application-key",
    "deploy-token",
    "job-token",
    "ocp-apim-subscription-key",
    "private-token",
    "proxy-authorization",
    "x-access-token",
    "x-amz-security-token",
    "x-api-key",
    "x-apikey",
    "x-auth-key",
    "x-auth-token",
    "x-figma-token",
    "x-goog-api-key",
    "x-rapidapi-key",
    "x-shopify-access-token",
    "x-subscription-token",
    "x-token",
    "x-vault-token",
    "xi-api-key",
];

/// Whether the token may be used now, from there, by its agent.
pub(crate) fn check(token: &TokenEntry, caller: &Caller) -> Result<(), Refusal> {
    if token.is_expired(caller.now) {
        return Err(Code::TokenExpired.into());
    }
    if !token.admits(caller.source) || !token.admits_certificate(caller.certificate.as_ref()) {
        return Err(Code::TokenBinding.into());
    }
    if token.trust().is_some() {
        return Err(Code::TokenUnknown.into()); // nobody's token
    }
    if token.agent().is_none_or(|agent| agent.disabled) {
        return Err(Code::AgentDisabled.into());
    }
    Ok(())
}

/// Whether `value` holds the beginning of a token anywhere.
pub(crate) fn has_token(value: &[u8]) -> bool {
    static PREFIX: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(token::PREFIX));
    value.len() >= token::PREFIX.len() && PREFIX.find(value).is_some()
}

/// How often a part of a URL is unescaped to find a token in it: proxies behind the node may do so
/// more than once.
const UNESCAPED: usize = 3;

/// Whether part of a URL holds the beginning of a token that only its escapes hide.
pub(crate) fn hides_token(part: &[u8]) -> bool {
    holds_when_unescaped(part, has_token)
}

/// Whether part of a URL holds `value`, escaped or not.
pub(crate) fn holds_escaped(part: &[u8], value: &[u8]) -> bool {
    let holds = |part: &[u8]| memchr::memmem::find(part, value).is_some();
    holds(part) || holds_when_unescaped(part, holds)
}

fn holds_when_unescaped(part: &[u8], holds: impl Fn(&[u8]) -> bool) -> bool {
    if memchr::memchr(b'%', part).is_none() {
        return false;
    }
    let mut plain = part.to_vec();
    for _ in 0..UNESCAPED {
        let unescaped: Vec<u8> = percent_encoding::percent_decode(&plain).collect();
        if unescaped.len() == plain.len() {
            return false;
        }
        if holds(&unescaped) {
            return true;
        }
        plain = unescaped;
    }
    false
}

/// The token in `Proxy-Authorization`: Bearer, or one half of Basic.
pub(crate) fn proxy_token(headers: &HeaderMap) -> Result<Option<Digest>, Refusal> {
    let mut values = headers.get_all(header::PROXY_AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return if headers.contains_key(header::PROXY_AUTHORIZATION) {
            Err(Code::TokenAmbiguous.into())
        } else {
            Ok(None)
        };
    };
    let value = value.as_bytes();
    let malformed = Refusal::from(Code::TokenMalformed);
    let (scheme, rest) =
        value.iter().position(|b| *b == b' ').and_then(|at| value.split_at_checked(at)).unwrap_or_default();
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return token::parse(rest).map(Some).map_err(|_| malformed);
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Err(malformed);
    }
    let Ok(pair) = STANDARD.decode(rest) else { return Err(malformed) };
    let mut halves = pair.splitn(2, |b| *b == b':');
    let (user, password) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    match (token::parse(user), token::parse(password)) {
        (Ok(_), Ok(_)) => Err(Code::TokenAmbiguous.into()),
        (Ok(digest), Err(_)) | (Err(_), Ok(digest)) => Ok(Some(digest)),
        (Err(_), Err(_)) => Err(malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_do_not_hide_a_token() {
        for part in ["/a/seks%5Ftoken%5Fx", "/%73eks_token_x", "a=1&b=seks%255Ftoken_x", "/seks%25255ftoken_x"] {
            assert!(hides_token(part.as_bytes()), "{part}");
        }
        for part in ["/a/seks_token_x", "/seks%5Ftokens", "/100%", "/%zz", "", "/a%20b"] {
            assert!(!hides_token(part.as_bytes()), "{part}");
        }
        assert!(holds_escaped(b"x=ey%4Aa.b.c", b"eyJa.b.c") && holds_escaped(b"eyJa.b.c", b"eyJa.b.c"));
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::PROXY_AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_token_may_be_a_bearer_or_one_half_of_basic() {
        let token = token::FreshToken::generate().unwrap();
        let basic = |pair: String| format!("Basic {}", STANDARD.encode(pair));
        let text = token.as_str();
        for value in
            [format!("Bearer {text}"), basic(format!("{text}:")), basic(format!("agent:{text}")), basic(text.into())]
        {
            assert_eq!(proxy_token(&headers(&value)).unwrap(), Some(token.digest()), "{value}");
        }
        assert_eq!(proxy_token(&HeaderMap::new()).unwrap(), None);
        for (value, code) in [
            (basic(format!("{text}:{text}")), Code::TokenAmbiguous),
            (basic("user:password".into()), Code::TokenMalformed),
            ("Basic !".into(), Code::TokenMalformed),
            (format!("Digest {text}"), Code::TokenMalformed),
            (text.into(), Code::TokenMalformed),
        ] {
            assert_eq!(proxy_token(&headers(&value)).unwrap_err().code, code, "{value}");
        }
    }
}
