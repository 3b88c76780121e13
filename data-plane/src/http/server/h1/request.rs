//! A request out of its head.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};

use super::head::{Parts, Violation};

/// What a request says about its connection and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResponseTerms {
    /// It is `HEAD`: the answer has no body.
    pub(super) head: bool,
    /// It is `CONNECT`: behind a positive answer there is no HTTP.
    pub(super) connect: bool,
    /// It is of HTTP/1.0: the answer has no chunks.
    pub(super) http10: bool,
    /// Nothing follows its answer.
    pub(super) last: bool,
    /// The agent waits to be asked for the body.
    pub(super) invited: bool,
}

/// What a request that can't be understood is taken for.
pub(super) const REFUSED: ResponseTerms =
    ResponseTerms { head: false, connect: false, http10: false, last: true, invited: false };

/// `head` is whole, and was read as `parts`. Values are not copied.
pub(super) fn parse(head: &Bytes, parts: &Parts) -> Result<(Request<()>, ResponseTerms), Violation> {
    let text = |range: &Range<usize>| head.get(range.clone()).unwrap_or_default();
    let method = Method::from_bytes(text(&(0..parts.method))).map_err(|_| Violation::RequestLine)?;
    let target = head.slice(parts.target.clone());
    let target = if parts.unescaped_target { escaped(&target)? } else { target };
    let uri = Uri::from_maybe_shared(target).map_err(|_| Violation::Target)?;
    let (mut close, mut keep, mut invited) = (false, false, false);
    let mut headers = HeaderMap::with_capacity(parts.fields.len());
    for (name, value) in &parts.fields {
        let name = HeaderName::from_bytes(text(name)).map_err(|_| Violation::Field)?;
        if name == header::CONNECTION {
            for option in text(value).split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                close |= option.eq_ignore_ascii_case(b"close");
                keep |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if name == header::EXPECT {
            invited |= text(value).eq_ignore_ascii_case(b"100-continue");
        }
        let value = HeaderValue::from_maybe_shared(head.slice(value.clone())).map_err(|_| Violation::Control)?;
        headers.append(name, value);
    }
    let terms = ResponseTerms {
        head: method == Method::HEAD,
        connect: method == Method::CONNECT,
        http10: parts.http10,
        last: close || (parts.http10 && !keep),
        invited: invited && !parts.http10,
    };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = if parts.http10 { Version::HTTP_10 } else { Version::HTTP_11 };
    *request.headers_mut() = headers;
    Ok((request, terms))
}

/// A target with the characters escaped that [`Uri`] doesn't take. In the path a `\` is none of
/// them: some servers read it as `/`.
fn escaped(target: &[u8]) -> Result<Bytes, Violation> {
    let target = std::str::from_utf8(target).map_err(|_| Violation::Target)?;
    let is_unescaped = |b: u8| matches!(b, b'"' | b'<' | b'>' | b'\\' | b'`' | 0x80..);
    let path = target.split('?').next().unwrap_or_default();
    let authority = match path.split_once("://") {
        Some((_, rest)) if !path.starts_with('/') => rest.split('/').next().unwrap_or_default(),
        _ => "",
    };
    let is_request_target = target.starts_with('/') || target.starts_with("http");
    if !is_request_target || !authority.is_ascii() || path.contains('\\') {
        return Err(Violation::Target);
    }
    let mut out = Vec::with_capacity(target.len() + 32);
    for byte in target.bytes() {
        if is_unescaped(byte) {
            let digit = |n: u8| b"0123456789ABCDEF".get(usize::from(n)).copied().unwrap_or(b'0');
            out.extend([b'%', digit(byte >> 4), digit(byte & 15)]);
        } else {
            out.push(byte);
        }
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::server::h1::head::{self, Head};
    use crate::http::server::settings::HeadLimits;

    fn parsed(wire: &'static str) -> Result<(Request<()>, ResponseTerms), Violation> {
        let limits = HeadLimits { bytes: 4096, fields: 20, uri: 1024 };
        let mut parts = Parts::default();
        let Head::Whole { len, .. } = head::read(wire.as_bytes(), 0, &limits, &mut parts)? else { panic!("{wire}") };
        parse(&Bytes::from_static(wire.as_bytes()).slice(..len), &parts)
    }

    #[test]
    fn a_request_is_what_its_head_says() {
        let wire = "POST /v1/x?a=b%20c HTTP/1.1\r\nhOsT: \t broker \r\nX-Two: 1\r\nx-two:2\r\nX-Empty:\r\n\r\nGET";
        let (request, terms) = parsed(wire).unwrap();
        assert_eq!((request.method(), request.version()), (&Method::POST, Version::HTTP_11));
        assert_eq!((request.uri().path(), request.uri().query()), ("/v1/x", Some("a=b%20c")));
        let fields: Vec<_> =
            request.headers().iter().map(|(n, v)| (n.as_str(), std::str::from_utf8(v.as_bytes()).unwrap())).collect();
        assert_eq!(fields, [("host", "broker"), ("x-two", "1"), ("x-two", "2"), ("x-empty", "")]);
        assert_eq!(terms, ResponseTerms { last: false, ..REFUSED });
        assert_eq!(parsed("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap().0.uri(), "a.test:443");
        assert_eq!(parsed("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().0.uri(), "*");
        assert_eq!(parsed("GET http://b.test/x HTTP/1.1\r\nHost: b.test\r\n\r\n").unwrap().0.uri(), "http://b.test/x");
    }

    #[test]
    fn what_no_uri_holds_is_escaped() {
        for (target, want) in [
            (r#"/x?query=up{job="a"}"#, "/x?query=up{job=%22a%22}"),
            ("/x?a=<b>&c=`d`\\e", "/x?a=%3Cb%3E&c=%60d%60%5Ce"),
            ("/T\u{e2}ches?q=\u{fc}", "/T%C3%A2ches?q=%C3%BC"),
            ("/a\"b\"/<c>`d`?e", "/a%22b%22/%3Cc%3E%60d%60?e"),
            ("http://b.test/\u{fc}?a=<b>", "http://b.test/%C3%BC?a=%3Cb%3E"),
        ] {
            let wire = format!("GET {target} HTTP/1.1\r\nHost: b.test\r\n\r\n");
            assert_eq!(parsed(wire.leak()).unwrap().0.uri(), want, "{target}");
        }
        for bad in ["/a\\b", "/\\evil.test/x", "http://b\u{fc}.test/x", "http://a<b/x", "/x?a b", "/x#y"] {
            let wire = format!("GET {bad} HTTP/1.1\r\nHost: b.test\r\n\r\n");
            assert!(parsed(wire.leak()).is_err(), "{bad}");
        }
        let parts = Parts { method: 3, target: 4..6, unescaped_target: true, ..Parts::default() };
        assert_eq!(parse(&Bytes::from_static(b"GET /\xff HTTP/1.1\r\n\r\n"), &parts).unwrap_err(), Violation::Target);
    }

    #[test]
    fn whether_more_may_follow_is_the_versions_and_connections_affair() {
        for (version, connection, last) in [
            ("1.1", "", false),
            ("1.1", "Connection: keep-alive\r\n", false),
            ("1.1", "Connection: Close\r\n", true),
            ("1.1", "Connection: x,  close\r\n", true),
            ("1.1", "Connection: x\r\nConnection: close\r\n", true),
            ("1.0", "", true),
            ("1.0", "Connection: Keep-Alive\r\n", false),
            ("1.0", "Connection: keep-alive, close\r\n", true),
        ] {
            let wire = format!("GET / HTTP/{version}\r\nHost: b\r\n{connection}\r\n");
            let (_, terms) = parsed(wire.leak()).unwrap();
            assert_eq!((terms.last, terms.http10), (last, version == "1.0"), "{version} {connection:?}");
        }
        let asks = "POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 1\r\nExpect: 100-Continue\r\n\r\n";
        assert!(parsed(asks).unwrap().1.invited);
    }
}
