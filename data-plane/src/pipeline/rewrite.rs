//! Rewrites URLs of the upstream in its answers to URLs of the node.
//!
//! An upstream names itself: in `Location`, in `Link`, in the `next` field of a page, in the URL of
//! an upload. A client that follows such a URL would leave the node, with the fake token in its
//! headers. [`Urls`] knows how the upstream's origin is written and what the agent has to use
//! instead. URLs of other hosts stay as they are.
//!
//! | where | file | when |
//! |---|---|---|
//! | header fields | `headers` | always |
//! | `Set-Cookie`: path, domain | `cookies` | always |
//! | JSON and event streams | `text`, with `pattern` | services with `rewrite_urls`; the URLs below `base_path` |
//! | MCP's `endpoint` event | `endpoint` | services with `mcp` |
//!
//! Answers are scrubbed first and rewritten then. So the scrubber reads what the upstream wrote: a
//! credential that holds the upstream's origin is found whole. What is rewritten afterwards adds
//! nothing but the node's own address and path.
//!
//! A body that may be rewritten loses its `Content-Length` and its digests ([`integrity`]), and
//! keeps its `ETag`. Parts (206), attachments, stored objects and bodies in a content coding stay
//! as they are.

mod agent_address;
mod body;
mod cookies;
mod endpoint;
#[cfg(test)]
mod fuzz;
mod headers;
mod integrity;
mod pattern;
mod text;
mod urls;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, response::Parts};
use seks_service::Service;

pub(crate) use self::{agent_address::AgentAddress, body::Body};
use self::{cookies::CookieRules, endpoint::EndpointEvent, headers::SignedHeaders, text::UrlRewriter, urls::Urls};
use super::signed_url::UrlSigner;

/// What the URLs in the answer to one request are rewritten to.
pub(crate) struct Rewriting {
    pub(crate) agent: AgentAddress,
    /// Signs URLs that are used without a key. Absent: the service has none.
    pub(crate) signer: Option<Box<UrlSigner>>,
}

/// Rewrites the headers of a service's answer, and its body as it streams. Most answers hold no
/// URL, and are passed on.
pub(crate) fn response<B: http_body::Body<Data = Bytes>>(
    response: Response<B>,
    service: &Service,
    rewriting: &Rewriting,
) -> Response<Body<B>> {
    let kind = TextKind::of_answer(&response, service);
    let cookies = response
        .headers()
        .contains_key(header::SET_COOKIE)
        .then_some(CookieRules { base_path: &service.base_path, passed: &service.passed.cookies });
    if kind.is_none() && cookies.is_none() && !headers::may_hold_urls(response.headers()) {
        return response.map(Body::unchanged);
    }
    let Some(urls) = rewriting.agent.urls(service) else { return response.map(Body::unchanged) };
    let (mut parts, body) = response.into_parts();
    let signed = rewriting.signer.as_deref().map(|signer| SignedHeaders { service, signer });
    headers::rewrite_headers(&mut parts.headers, &urls, cookies, signed);
    match kind {
        Some(kind) => rewrite_text(parts, body, kind, service, urls),
        None => Response::from_parts(parts, Body::unchanged(body)),
    }
}

fn rewrite_text<B: http_body::Body<Data = Bytes>>(
    mut parts: Parts,
    body: B,
    kind: TextKind,
    service: &Service,
    urls: Urls,
) -> Response<Body<B>> {
    integrity::remove_from_head(&mut parts.headers);
    if body.is_end_stream() {
        return Response::from_parts(parts, Body::unchanged(body)); // HEAD, 204, 304
    }
    let events = kind == TextKind::Events;
    let rewriter = service.rewrite_urls.then(|| UrlRewriter::new(urls.pattern(&service.base_path), events));
    let endpoint = (events && service.mcp.is_some()).then(|| EndpointEvent::new(urls));
    Response::from_parts(parts, Body::rewritten(body, endpoint, rewriter))
}

/// A kind of text in which URLs are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextKind {
    Json,
    Events,
}

impl TextKind {
    /// The kind of an answer's body; `None` for one that stays as it is.
    fn of_answer<B>(response: &Response<B>, service: &Service) -> Option<Self> {
        if !service.rewrite_urls && service.mcp.is_none() {
            return None;
        }
        let kind = Self::of_type(response.headers().get(header::CONTENT_TYPE)?)?;
        let changes = service.rewrite_urls || kind == Self::Events;
        (changes && response.status() != StatusCode::PARTIAL_CONTENT && !is_content(response.headers())).then_some(kind)
    }

    fn of_type(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?;
        let essence = text.split_once(';').map_or(text, |(essence, _)| essence).trim().to_ascii_lowercase();
        match essence.as_str() {
            "text/event-stream" => Some(Self::Events),
            "application/json"
            | "text/json"
            | "application/json-seq"
            | "application/ndjson"
            | "application/x-ndjson" => Some(Self::Json),
            "application/jsonl" | "application/x-jsonlines" | "application/x-json-stream" => Some(Self::Json),
            // pip's index: URLs are attributes, in quotes as in JSON.
            "application/vnd.pypi.simple.v1+html" => Some(Self::Json),
            // GitHub's raw media types are a file's own bytes.
            other => (other.ends_with("+json") && !other.ends_with(".raw+json")).then_some(Self::Json),
        }
    }
}

/// Whether the headers are those of a file or a stored object, or of a body with a content coding.
fn is_content(headers: &HeaderMap) -> bool {
    const CODINGS: [&str; 5] = ["gzip", "br", "deflate", "zstd", "compress"];
    let is_coding = |value: &HeaderValue| {
        value.to_str().is_ok_and(|text| text.split(',').any(|name| CODINGS.iter().any(|c| name.trim().ends_with(c))))
    };
    let attachment =
        |value: &HeaderValue| value.as_bytes().trim_ascii_start().to_ascii_lowercase().starts_with(b"attachment");
    headers.contains_key("x-goog-generation")
        || headers.get(header::CONTENT_DISPOSITION).is_some_and(attachment)
        || headers.get_all(header::CONTENT_ENCODING).iter().any(is_coding)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pipeline::{
        audit::Counters,
        scrub::{Messages, Needles},
    };

    #[test]
    fn a_credential_that_holds_the_origin_is_masked_and_not_rewritten() {
        let needles = Needles::new([&b"https://up.test/hooks/s3cr3t"[..]]);
        let text = r#"["https://up.test/hooks/s3cr3t","https://up.test/x"]"#;
        let clean = Messages::new(needles.clone(), Arc::<Counters>::default()).alone(text.as_bytes()).unwrap();
        let urls = Urls::new(true, "up.test", 443, "http://node".into(), "/api/s".into());
        let mut rewriter = UrlRewriter::new(urls.pattern(""), false);
        let seen = [rewriter.push(clean.into()), rewriter.finish()].concat();
        assert_eq!(seen, [br#"[""#, "*".repeat(28).as_bytes(), br#"","http://node/api/s/x"]"#].concat());
        assert_eq!(Messages::new(needles, Arc::<Counters>::default()).alone(&seen), None);
    }

    #[test]
    fn json_and_event_streams_are_rewritten_and_files_are_not() {
        for (value, kind) in [
            ("application/json", Some(TextKind::Json)),
            ("Application/JSON; charset=utf-8", Some(TextKind::Json)),
            ("application/vnd.github.v3+json", Some(TextKind::Json)),
            ("application/problem+json", Some(TextKind::Json)),
            ("application/x-ndjson", Some(TextKind::Json)),
            ("application/json-seq", Some(TextKind::Json)),
            ("text/json", Some(TextKind::Json)),
            ("text/event-stream;charset=utf-8", Some(TextKind::Events)),
            ("application/vnd.pypi.simple.v1+html", Some(TextKind::Json)),
            ("application/vnd.git-lfs+json", Some(TextKind::Json)),
            ("application/vnd.github.raw+json", None),
            ("application/octet-stream", None),
            ("text/plain", None),
            ("text/html", None),
            ("", None),
        ] {
            assert_eq!(TextKind::of_type(&HeaderValue::from_static(value)), kind, "{value}");
        }
        for (name, value, content) in [
            ("content-disposition", "Attachment; filename=x.json", true),
            ("content-disposition", "inline", false),
            ("x-goog-generation", "1", true),
            ("content-encoding", "gzip", true),
            ("content-encoding", "identity", false),
        ] {
            let headers =
                HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_static(value))]);
            assert_eq!(is_content(&headers), content, "{name}: {value}");
        }
    }
}
