//! Which header fields cross the node, in either direction.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Version, header, request::Parts};
use seks_service::{InjectionSite, Service, TokenSlot};

use super::{meaning::overrides_method, range, token};
use crate::{
    http::{HeaderList, fields},
    telemetry::DROPPED_KINDS,
};

/// Never passed on to an upstream, beside [`token::CREDENTIAL_HEADERS`]: the connection's own,
/// those that claim to say who asks, those that make one request another, and what is the node's to
/// say. [`kind_of_never_sent`] has the same names.
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
    "proxy",         // CGI makes `HTTP_PROXY` of it (CVE-2016-5385)
    "request-range", // some servers read it as `Range`
    "te",
    "trailer",
    "transfer-encoding",
    "true-client-ip",
    "upgrade",
    "via",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-original-path",
    "x-host",
    "x-real-ip",
];

/// The same by prefix.
const NEVER_SENT_PREFIXES: &[&str] =
    &["x-forwarded-", "x-original-", "x-rewrite-", "x-seks-", "proxy-", "sec-websocket-"];

/// Fields that the node adds itself: `Host`, `Accept-Encoding`, `traceparent`, and a few of rare
/// kinds.
const OURS: usize = 4;

/// Never passed back to an agent: the connection's own, and offers to leave the node out. In order.
const NEVER_RETURNED: &[&str] = &[
    "alt-svc",
    "clear-site-data",
    "connection",
    "expect-ct",
    "keep-alive",
    "nel",
    "proxy-authenticate",
    "proxy-connection",
    "public-key-pins",
    "public-key-pins-report-only",
    "report-to",
    "reporting-endpoints",
    "strict-transport-security",
    "transfer-encoding",
    "upgrade",
    "x-seks-request-id",
];

/// The agent's headers that the upstream gets: all except [`NEVER_SENT`], the fields that
/// `Connection` names, names that some servers fold into others (`_`), every place for a token or
/// another credential, and any value that contains a token. A service may list headers with `_` and
/// cookies that it accepts nevertheless.
pub(crate) fn request(headers: HeaderMap, service: &Service, has_other_tokens: bool) -> (HeaderList, DroppedHeaders) {
    // `keep-alive` is dropped anyway, and is what nearly all of them say.
    let named = fields::connection_names(&headers).filter(|n| !n.eq_ignore_ascii_case("keep-alive"));
    let named: Vec<HeaderName> = named.filter_map(|n| HeaderName::from_bytes(n.as_bytes()).ok()).collect();
    let mut dropped = DroppedHeaders::default();
    let cookie = match service.passed.cookies.as_slice() {
        [] => None,
        names => passed_cookies(&headers, names, &mut dropped),
    };
    let more = OURS + service.headers.len() + service.injection.len();
    let mut kept = HeaderList::kept_of(headers, more, |name, value| {
        let why = match is_dropped(name, service) {
            None if named.contains(name) => Some(Dropped::Connection),
            None if is_range(name) && !range::is_single(value) => Some(Dropped::Range),
            None if has_other_tokens && token::has_token(value.as_bytes()) => Some(Dropped::Token),
            why => why,
        };
        if let Some(why) = why {
            dropped.add(why);
        }
        why.is_none()
    });
    if let Some(cookie) = cookie {
        kept.set(header::COOKIE, cookie);
    }
    (kept, dropped)
}

/// The cookies that a service takes, without those that hold a token.
fn passed_cookies(headers: &HeaderMap, names: &[String], dropped: &mut DroppedHeaders) -> Option<HeaderValue> {
    let mut passed = Vec::new();
    // HTTP/2 clients send a field for each cookie (RFC 9113, 8.2.3).
    let pairs = headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b';'));
    for pair in pairs.map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty()) {
        let name = pair.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii();
        if token::has_token(pair) || !names.iter().any(|known| known.as_bytes() == name) {
            dropped.add(Dropped::Cookie);
            continue;
        }
        if !passed.is_empty() {
            passed.extend_from_slice(b"; ");
        }
        passed.extend_from_slice(pair);
    }
    if passed.is_empty() { None } else { HeaderValue::from_maybe_shared(Bytes::from(passed)).ok() }
}

/// Why a header of an agent is not forwarded. Behind `Replaced` they are in the order of
/// [`DROPPED_KINDS`], which are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The connection's own, or the credential's place: nobody misses it, and it isn't counted.
    Replaced,
    /// A header in which SDKs put keys, and which isn't a slot of the service.
    Credential,
    /// A cookie that the service doesn't list.
    Cookie,
    /// `Range` or `If-Range`.
    Range,
    /// `traceparent`, `tracestate` or `baggage`.
    Trace,
    /// A claim of a proxy, such as `X-Forwarded-For`.
    Forwarded,
    /// A name with `_` that the service doesn't list.
    Underscore,
    /// Named by `Connection`.
    Connection,
    /// It holds a second token.
    Token,
}

/// How many headers of a request were dropped, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DroppedHeaders([u16; DROPPED_KINDS.len()]);

impl DroppedHeaders {
    fn add(&mut self, why: Dropped) {
        let at = (why as usize).checked_sub(1);
        if let Some(count) = at.and_then(|at| self.0.get_mut(at)) {
            *count = count.saturating_add(1);
        }
    }

    /// In the order of [`DROPPED_KINDS`]. `None` when there are none.
    pub(crate) fn counts(&self) -> Option<[u16; DROPPED_KINDS.len()]> {
        (self.0 != [0; DROPPED_KINDS.len()]).then_some(self.0)
    }
}

/// `TE: trailers`, which is the connection's own, but says something of the agent: the node passes
/// trailers on. In HTTP/1.1, it counts only where `Connection` names it (RFC 9110, 10.1.4).
pub(crate) fn wants_trailers(parts: &Parts, upstream_is_h2: bool) -> bool {
    let headers = &parts.headers;
    let codings = headers.get_all(header::TE).iter().flat_map(|te| te.as_bytes().split(|b| *b == b','));
    codings.map(<[u8]>::trim_ascii).any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
        && (upstream_is_h2
            || parts.version == Version::HTTP_2
            || fields::connection_names(headers).any(|name| name.eq_ignore_ascii_case("te")))
}

/// Never passed on behind a body (RFC 9110, 6.5.1), beside [`NEVER_RETURNED`]: what frames or
/// routes a message, says how its body is to be read, authenticates, or sets a cookie. A client may
/// add trailers to the head.
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

/// Lengths and first letters of listed names: most names that are sent have none of these, and
/// aren't looked up.
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

/// Why a header is dropped, whatever its value. `None`: it is kept.
fn is_dropped(name: &HeaderName, service: &Service) -> Option<Dropped> {
    const LETTERS: Letters = Letters::of([NEVER_SENT, token::CREDENTIAL_HEADERS]);
    let text = name.as_str();
    if LETTERS.may_have(text) {
        if *name == header::AUTHORIZATION {
            return Some(Dropped::Replaced);
        }
        if let Some(kind) = kind_of_never_sent(text) {
            return Some(kind);
        }
        if token::CREDENTIAL_HEADERS.binary_search(&text).is_ok() {
            return Some(kind_of_credential(name, service));
        }
    }
    if matches!(text.as_bytes().first(), Some(b'p' | b's' | b'x')) {
        if NEVER_SENT_PREFIXES.iter().any(|p| text.starts_with(p)) {
            return Some(if text.starts_with("x-") { Dropped::Forwarded } else { Dropped::Replaced });
        }
        // Those that were accepted (`meaning`), and no others, get here.
        if !service.allow_method_override && overrides_method(name) {
            return Some(Dropped::Replaced);
        }
    }
    if memchr::memchr(b'_', text.as_bytes()).is_some() && !service.passed.headers.contains(name) {
        let replaced = is_secret_place(name, service);
        return Some(if replaced { Dropped::Replaced } else { Dropped::Underscore });
    }
    let shadows = !service.passed.shadowing.is_empty() && service.passed.shadowing.contains(name);
    if shadows || service.slots.iter().any(|s| matches!(s, TokenSlot::Header(n) if n == name)) {
        return Some(Dropped::Replaced);
    }
    match *name {
        _ if is_range(name) && !service.allow_range => Some(Dropped::Range),
        header::IF_RANGE if !service.allow_range => Some(Dropped::Range),
        _ if !service.forward_trace_context && matches!(text, "traceparent" | "tracestate") => Some(Dropped::Trace),
        _ => None,
    }
}

/// `Range`, and Azure's own that counts before it.
fn is_range(name: &HeaderName) -> bool {
    *name == header::RANGE || name.as_str() == "x-ms-range"
}

/// Of a name in [`NEVER_SENT`]; `None`: it isn't. Compiled to comparisons of lengths first, which
/// is less than a search by halves.
fn kind_of_never_sent(name: &str) -> Option<Dropped> {
    match name {
        "baggage" => Some(Dropped::Trace),
        "proxy" => Some(Dropped::Forwarded),
        "request-range" => Some(Dropped::Range),
        "accept-encoding" | "connection" | "content-length" | "expect" | "host" | "http2-settings" | "keep-alive"
        | "te" | "trailer" | "transfer-encoding" | "upgrade" => Some(Dropped::Replaced),
        "cf-connecting-ip"
        | "forwarded"
        | "true-client-ip"
        | "via"
        | "x-client-ip"
        | "x-cluster-client-ip"
        | "x-envoy-original-path"
        | "x-host"
        | "x-real-ip" => Some(Dropped::Forwarded),
        _ => None,
    }
}

fn kind_of_credential(name: &HeaderName, service: &Service) -> Dropped {
    match *name {
        header::COOKIE if service.passed.cookies.is_empty() => Dropped::Cookie,
        header::COOKIE | header::AUTHORIZATION | header::PROXY_AUTHORIZATION => Dropped::Replaced,
        _ if is_secret_place(name, service) => Dropped::Replaced,
        _ => Dropped::Credential,
    }
}

/// Whether the field may hold the agent's token, or is a place for the credential.
fn is_secret_place(name: &HeaderName, service: &Service) -> bool {
    service.slots.iter().any(|s| matches!(s, TokenSlot::Header(n) if n == name))
        || service.injection.iter().any(|s| matches!(s, InjectionSite::Header(n, _) if n == name))
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
        assert!(NEVER_SENT.iter().all(|name| kind_of_never_sent(name).is_some()), "in both lists");
    }
}
