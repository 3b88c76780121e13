//! Which header fields cross the node, in either direction.

use http::{HeaderMap, HeaderName, HeaderValue, Version, header, request::Parts};
use seks_service::{Service, TokenSlot};

use super::token;
use crate::http::{HeaderList, fields};

/// Never passed on to an upstream, beside [`token::CREDENTIAL_HEADERS`]: the connection's own, those that claim to say who
/// asks, those that make one request another, and what is the node's to say. In order: it is searched by halves.
const NEVER_SENT: &[&str] = &[
    "accept-encoding",
    "baggage",
    "cf-connecting-ip",
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "true-client-ip",
    "upgrade",
    "via",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-host",
    "x-method-override",
    "x-real-ip",
    "x-rewrite-url",
];

/// The same by prefix.
const NEVER_SENT_PREFIXES: &[&str] =
    &["x-forwarded-", "x-original-", "x-rewrite-", "x-http-method", "x-seks-", "proxy-", "sec-websocket-"];

/// Fields that the node adds itself: `Host`, `Accept-Encoding`, `traceparent`, and a few of rare kinds.
const OURS: usize = 4;

/// Never passed back to an agent: the connection's own, and offers to leave the node out. In order.
const NEVER_RETURNED: &[&str] = &[
    "alt-svc",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "x-seks-request-id",
];

/// What an upstream may get of an agent's headers: all but [`NEVER_SENT`], what `Connection` names, names that some servers fold
/// into others (`_`), every place where a token or another credential may stand, and any value with a token in it.
pub(crate) fn request(headers: HeaderMap, service: &Service, has_other_tokens: bool) -> HeaderList {
    // `keep-alive` is dropped anyway, and is what nearly all of them say.
    let named = fields::connection_names(&headers).filter(|n| !n.eq_ignore_ascii_case("keep-alive"));
    let named: Vec<HeaderName> = named.filter_map(|n| HeaderName::from_bytes(n.as_bytes()).ok()).collect();
    HeaderList::kept_of(headers, OURS + service.headers.len() + service.injection.len(), |name, value| {
        let dropped = is_dropped(name, service) || named.contains(name);
        !(dropped || (has_other_tokens && token::has_token(value.as_bytes())))
    })
}

/// `TE: trailers`, which is the connection's own, but says something of the agent: the node passes trailers on. In HTTP/1.1, it counts
/// only where `Connection` names it (RFC 9110, 10.1.4).
pub(crate) fn wants_trailers(parts: &Parts, upstream_is_h2: bool) -> bool {
    let headers = &parts.headers;
    let codings = headers.get_all(header::TE).iter().flat_map(|te| te.as_bytes().split(|b| *b == b','));
    codings.map(<[u8]>::trim_ascii).any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
        && (upstream_is_h2
            || parts.version == Version::HTTP_2
            || fields::connection_names(headers).any(|name| name.eq_ignore_ascii_case("te")))
}

/// Never passed on behind a body (RFC 9110, 6.5.1), beside [`NEVER_RETURNED`]: what frames or routes a message, says how its body is to be
/// read, authenticates, or sets a cookie. A client may add trailers to the head.
const NEVER_TRAILERS: &[&str] = &[
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "host",
    "location",
    "proxy-authorization",
    "set-cookie",
    "te",
    "trailer",
    "www-authenticate",
];

/// Removes from an upstream's trailers what does not belong behind a body.
pub(crate) fn trailers(trailers: &mut HeaderMap) {
    let listed = |name: &&HeaderName| {
        NEVER_RETURNED.binary_search(&name.as_str()).is_ok() || NEVER_TRAILERS.binary_search(&name.as_str()).is_ok()
    };
    let dropped: Vec<HeaderName> = trailers.keys().filter(listed).cloned().collect();
    for name in &dropped {
        trailers.remove(name);
    }
}

/// Lengths and first letters of listed names: most names that are sent have none of these, and aren't looked up.
struct Letters([u32; 64]);

impl Letters {
    /// By length: the first letters, a bit each.
    const fn of<const N: usize>(lists: [&[&str]; N]) -> Self {
        let mut letters = [0; 64];
        let mut list = 0;
        #[allow(clippy::indexing_slicing, reason = "in bounds, at compile time")]
        while list < N {
            let mut at = 0;
            while at < lists[list].len() {
                let name = lists[list][at].as_bytes();
                letters[name.len()] |= 1 << (name[0] & 31);
                at += 1;
            }
            list += 1;
        }
        Self(letters)
    }

    fn may_have(&self, name: &str) -> bool {
        let first = name.as_bytes().first().map_or(0, |b| 1 << (b & 31));
        self.0.get(name.len()).is_some_and(|letters| letters & first != 0)
    }
}

fn is_dropped(name: &HeaderName, service: &Service) -> bool {
    const LETTERS: Letters = Letters::of([NEVER_SENT, token::CREDENTIAL_HEADERS]);
    let text = name.as_str();
    let listed = |names: &[&str]| names.binary_search(&text).is_ok();
    (LETTERS.may_have(text) && (listed(NEVER_SENT) || listed(token::CREDENTIAL_HEADERS)))
        || (text.starts_with(['p', 's', 'x']) && NEVER_SENT_PREFIXES.iter().any(|p| text.starts_with(p)))
        || memchr::memchr(b'_', text.as_bytes()).is_some()
        || service.slots.iter().any(|s| matches!(s, TokenSlot::Header(n) if n == name))
        || (!service.allow_range && matches!(*name, header::RANGE | header::IF_RANGE))
        || (!service.forward_trace_context && matches!(text, "traceparent" | "tracestate"))
}

/// Adds what is the node's or the service's to say.
pub(crate) fn add_ours(headers: &mut HeaderList, service: &Service) {
    for (name, value) in &service.headers {
        if headers.get(name).is_none() {
            headers.set(name.clone(), value.clone());
        }
    }
    headers.set(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

/// Removes from an upstream's headers what an agent must not get.
pub(crate) fn response(headers: &mut HeaderMap) {
    const LETTERS: Letters = Letters::of([NEVER_RETURNED]);
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> =
            fields::connection_names(headers).filter_map(|n| HeaderName::from_bytes(n.as_bytes()).ok()).collect();
        for name in named.iter().filter(|n| **n != header::CONTENT_LENGTH) {
            headers.remove(name);
        }
    }
    let listed =
        |name: &&HeaderName| LETTERS.may_have(name.as_str()) && NEVER_RETURNED.binary_search(&name.as_str()).is_ok();
    let dropped: Vec<HeaderName> = headers.keys().filter(listed).cloned().collect();
    for name in &dropped {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_are_searched_by_halves_are_in_order() {
        let letters = Letters::of([NEVER_SENT, token::CREDENTIAL_HEADERS, NEVER_RETURNED]);
        assert!(NEVER_TRAILERS.is_sorted());
        for list in [NEVER_SENT, token::CREDENTIAL_HEADERS, NEVER_RETURNED] {
            assert!(list.is_sorted() && list.iter().all(|name| letters.may_have(name)));
        }
        assert!(["user-agent", "", &"x".repeat(64)].iter().all(|name| !letters.may_have(name)));
        assert!(NEVER_SENT_PREFIXES.iter().all(|p| p.starts_with(['p', 's', 'x'])));
    }
}
