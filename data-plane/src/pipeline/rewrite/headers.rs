//! Header fields that carry a URL.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use seks_service::Service;

use super::{
    Urls,
    cookies::{CookieRules, rewrite_cookie},
};
use crate::pipeline::{signed_url::UrlSigner, upstream_target};

/// Fields of which the whole value is a URL reference, beside those whose names end as
/// [`is_reference`] says.
const REFERENCES: &[&str] = &[
    "azure-asyncoperation",
    "sourcemap",
    "x-goog-upload-control-url",
    "x-goog-upload-url",
    "x-sourcemap",
    "x-terraform-get",
];

/// Fields that say something of an origin and not of a resource, a file's name, what a signature
/// covers, and opaque values that clients send back: they are as the upstream wrote them.
const NOT_URLS: &[&str] = &[
    "access-control-allow-origin",
    "content-disposition",
    "content-security-policy",
    "content-security-policy-report-only",
    "etag",
    "set-cookie",
    "signature",
    "signature-input",
    "timing-allow-origin",
];

/// Ends of names of opaque values that clients send back to get the next page.
const CURSORS: &[&str] = &["continuation", "-cursor", "-token"];

/// Beginnings of names of an object's own metadata, which somebody has stored.
const METADATA: &[&str] = &["x-amz-meta-", "x-goog-meta-", "x-ms-meta-", "x-object-meta-", "x-oss-meta-"];

/// Signs the URLs in a service's `keyless_urls`.
#[derive(Clone, Copy)]
pub(super) struct SignedHeaders<'a> {
    pub(super) service: &'a Service,
    pub(super) signer: &'a UrlSigner,
}

/// Rewrites every URL of the upstream's in `headers`. Absolute URLs are rewritten in any field,
/// absolute paths in fields that hold one reference, in `Link` and in `Refresh`. Cookies are
/// confined to the service at the node's address.
pub(super) fn rewrite_headers(
    headers: &mut HeaderMap,
    urls: &Urls,
    cookies: Option<CookieRules<'_>>,
    signed: Option<SignedHeaders<'_>>,
) {
    for (name, value) in headers.iter_mut() {
        let Ok(text) = value.to_str() else { continue };
        let signed = signed.filter(|signed| signed.service.keyless_urls.contains(name));
        let rewritten = match signed {
            None => match cookies.filter(|_| name == header::SET_COOKIE) {
                None => rewrite(name, text, urls),
                Some(rules) => rewrite_cookie(text, urls, rules),
            },
            Some(signed) => rewrite_signed(text.trim(), urls, signed),
        };
        if let Some(rewritten) = rewritten.and_then(|text| HeaderValue::try_from(text).ok()) {
            *value = rewritten;
        }
    }
}

/// Rewrites a reference that clients use without a key, and signs it. One that the node would
/// refuse as a target is only rewritten.
fn rewrite_signed(reference: &str, urls: &Urls, signed: SignedHeaders<'_>) -> Option<String> {
    let SignedHeaders { service, signer } = signed;
    let reference = urls.reference(reference).or_else(|| {
        let is_path = reference.starts_with('/') && !reference.starts_with("//");
        is_path.then(|| reference.to_owned()) // host mode: the path is the same
    })?;
    let (url, fragment) = reference.split_at(reference.find('#').unwrap_or(reference.len()));
    let parameter = urls
        .rest(url)
        .and_then(|rest| upstream_target::upstream_target(service, rest))
        .and_then(|target| signer.sign(service.name.as_str(), &target));
    let Some(parameter) = parameter else { return Some(reference) };
    let separator = if url.contains('?') { "&" } else { "?" };
    Some([url, separator, &parameter, fragment].concat())
}

/// Whether a field of `headers` may hold a URL. It is called for every response, and nearly always
/// returns false at the first byte.
pub(super) fn may_hold_urls(headers: &HeaderMap) -> bool {
    headers.iter().any(|(name, value)| {
        let value = value.as_bytes();
        memchr::memchr(b'/', value).is_some_and(|slash| {
            matches!(*name, header::LINK | header::REFRESH)
                || is_reference(name.as_str())
                || value.get(slash.saturating_sub(1)..).is_some_and(|rest| memchr::memmem::find(rest, b"://").is_some())
        })
    })
}

fn rewrite(name: &HeaderName, text: &str, urls: &Urls) -> Option<String> {
    // Most values hold no slash at all.
    memchr::memchr(b'/', text.as_bytes())?;
    match *name {
        header::LINK => link(text, urls),
        header::REFRESH => after_url(text, urls),
        _ if NOT_URLS.contains(&name.as_str()) => None,
        _ if METADATA.iter().any(|prefix| name.as_str().starts_with(prefix)) => None,
        _ if CURSORS.iter().any(|end| name.as_str().ends_with(end)) => None,
        // A prefix may say how it is fetched, as in `git::https://host/x`.
        _ if is_reference(name.as_str()) => urls.reference(text.trim()).or_else(|| anywhere(text, urls)),
        _ => anywhere(text, urls),
    }
}

/// `Location`, `Content-Location`, `Operation-Location`, `X-Goog-Upload-URL`,
/// `Azure-AsyncOperation` and the like.
fn is_reference(name: &str) -> bool {
    name.ends_with("location") || name.ends_with("-url") || name.ends_with("-uri") || REFERENCES.contains(&name)
}

/// Rewrites the references of `Link` (RFC 8288, 3): what stands between `<` and `>`, as in
/// `<https://host/?page=2>; rel="next", <…>; rel="last"`, and the `anchor`. In other parameters
/// only absolute URLs are rewritten.
fn link(text: &str, urls: &Urls) -> Option<String> {
    let (mut out, mut rest, mut changed) = (String::with_capacity(text.len() + 64), text, false);
    while let Some(at) = rest.find(['<', '"']) {
        let (before, value) = rest.split_at_checked(at + 1)?;
        let is_target = before.ends_with('<');
        let Some(end) = (if is_target { value.find('>') } else { end_of_quoted(value) }) else { break };
        let (value, after) = value.split_at_checked(end)?;
        let new = match is_target || is_anchor(before) {
            true => urls.reference(value.trim()),
            false => anywhere(value, urls),
        };
        let before_new = anywhere(before, urls);
        changed |= new.is_some() || before_new.is_some();
        out.push_str(before_new.as_deref().unwrap_or(before));
        out.push_str(new.as_deref().unwrap_or(value));
        let (close, after) = after.split_at_checked(1)?;
        out.push_str(close);
        rest = after;
    }
    let parameters = anywhere(rest, urls);
    changed |= parameters.is_some();
    out.push_str(parameters.as_deref().unwrap_or(rest));
    changed.then_some(out)
}

/// Whether `before`, which ends with a quote, ends with `anchor="`.
fn is_anchor(before: &str) -> bool {
    let name = before.strip_suffix('"').map(str::trim_end).and_then(|name| name.strip_suffix('='));
    let name = name.map_or("", |name| name.trim_end().rsplit([';', ' ', '\t']).next().unwrap_or_default());
    name.eq_ignore_ascii_case("anchor")
}

/// Where a quoted string ends (RFC 9110, 5.6.4).
fn end_of_quoted(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// Rewrites the reference of `Refresh: 5; url=https://host/x`. It may be quoted, and clients do
/// without `url=` (HTML, 4.2.5.3).
fn after_url(text: &str, urls: &Urls) -> Option<String> {
    let end_of_time = text.find([';', ','])? + 1;
    let (time, rest) = text.split_at_checked(end_of_time)?;
    let blank = rest.len() - rest.trim_start().len();
    let keyword = rest.trim_start().get(..3).filter(|word| word.eq_ignore_ascii_case("url"));
    let equals = keyword.and_then(|_| rest.find('=')).map_or(blank, |at| at + 1);
    let (before, reference) = text.split_at_checked(time.len() + equals)?;
    let reference = reference.trim();
    let (quote, inner) = match reference.chars().next() {
        Some(quote @ ('"' | '\'')) => (Some(quote), reference.trim_matches(quote)),
        _ => (None, reference),
    };
    let new = urls.reference(inner)?;
    let quote = quote.map_or(String::new(), String::from);
    Some([before, &quote, &new, &quote].concat())
}

/// Rewrites absolute URLs anywhere in a value, as in
/// `WWW-Authenticate: Bearer realm="https://host/token"`.
fn anywhere(text: &str, urls: &Urls) -> Option<String> {
    let (mut out, mut rest, mut changed) = (String::new(), text, false);
    while let Some(at) = rest.find("://") {
        let (head, _) = rest.split_at_checked(at)?;
        let begin = head.rfind(|c: char| !c.is_ascii_alphanumeric()).map_or(0, |i| i + 1);
        let url = rest.get(begin..)?;
        let length = url
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | ',' | ';'))
            .unwrap_or(url.len());
        let (url, after) = url.split_at_checked(length)?;
        let new = urls.reference(url);
        changed |= new.is_some();
        out.push_str(rest.get(..begin)?);
        out.push_str(new.as_deref().unwrap_or(url));
        rest = after;
    }
    out.push_str(rest);
    changed.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_without_a_url_are_told_at_once() {
        let headers = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
        };
        for (name, value) in [
            ("content-type", "application/json"),
            ("vary", "accept"),
            ("server", "nginx/1.2 a://b"),
            ("location", "/x"),
        ] {
            let expect = value.contains("://") || name == "location";
            assert_eq!(may_hold_urls(&headers(name, value)), expect, "{name}");
        }
    }

    fn rewritten(name: &'static str, value: &str) -> String {
        let urls = Urls::new(true, "up.test", 443, "http://node:8300".into(), "/api/s".into());
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::try_from(value).unwrap());
        rewrite_headers(&mut headers, &urls, None, None);
        headers[name].to_str().unwrap().to_owned()
    }

    #[test]
    fn urls_of_the_upstream_lead_to_the_node() {
        let node = "http://node:8300/api/s";
        for name in ["location", "content-location", "operation-location", "azure-asyncoperation", "x-goog-upload-url"]
        {
            assert_eq!(rewritten(name, "https://up.test/ops/7?a=b"), format!("{node}/ops/7?a=b"), "{name}");
            assert_eq!(rewritten(name, "/ops/7"), "/api/s/ops/7", "{name}");
            assert_eq!(rewritten(name, "https://other.test/ops/7"), "https://other.test/ops/7", "{name}");
        }
        assert_eq!(
            rewritten("link", "<https://up.test/r?page=2>; rel=\"next\", <https://up.test/r?page=9>; rel=\"last\""),
            format!("<{node}/r?page=2>; rel=\"next\", <{node}/r?page=9>; rel=\"last\"")
        );
        assert_eq!(
            rewritten("link", "</v2/_catalog?last=b&n=2>; rel=\"next\""),
            "</api/s/v2/_catalog?last=b&n=2>; rel=\"next\""
        );
        assert_eq!(rewritten("refresh", "5; url=https://up.test/x"), format!("5; url={node}/x"));
        assert_eq!(rewritten("refresh", "0;URL='/x'"), "0;URL='/api/s/x'");
        assert_eq!(rewritten("refresh", "0;https://up.test/x?url=1"), format!("0;{node}/x?url=1"));
        assert_eq!(rewritten("refresh", "3, url = https://up.test/x"), format!("3, url ={node}/x"));
        assert_eq!(
            rewritten(
                "link",
                "</a>; rel=\"next\"; anchor=\"https://up.test/x\", <https://other.test/>; anchor=\"https://up.test/y\""
            ),
            format!("</api/s/a>; rel=\"next\"; anchor=\"{node}/x\", <https://other.test/>; anchor=\"{node}/y\"")
        );
        assert_eq!(
            rewritten("www-authenticate", "Bearer realm=\"https://up.test/token\",service=\"up.test\""),
            format!("Bearer realm=\"{node}/token\",service=\"up.test\"")
        );
        assert_eq!(rewritten("x-next-page", "https://up.test/p2"), format!("{node}/p2"));
        assert_eq!(rewritten("x-terraform-get", "/v1/x.tgz?archive=tgz"), "/api/s/v1/x.tgz?archive=tgz");
        assert_eq!(rewritten("x-terraform-get", "git::https://up.test/x"), format!("git::{node}/x"));
        assert_eq!(rewritten("refresh", "0,/x"), "0,/api/s/x");
        assert_eq!(rewritten("refresh", "0; Url = \"/a\""), "0; Url =\"/api/s/a\"");
        assert_eq!(
            rewritten("link", "<https://up.test/a>; rel=up; Anchor = \"/x\";title=\"a \\\" </b>\", </c>;rel=next"),
            format!("<{node}/a>; rel=up; Anchor = \"/api/s/x\";title=\"a \\\" </b>\", </api/s/c>;rel=next")
        );
        assert_eq!(rewritten("link", "<#a>; anchor=\"#b\", </c>"), "<#a>; anchor=\"#b\", </api/s/c>");
        let pages = r#"{"next":"https://up.test/p?x=1","prev":null}"#;
        assert_eq!(rewritten("x-pagination", pages), pages.replace("https://up.test", node));
    }

    #[test]
    fn values_that_hold_no_url_of_the_upstream_stay() {
        for (name, value) in [
            ("content-type", "application/json"),
            ("date", "Mon, 30 Nov 2026 00:00:00 GMT"),
            ("access-control-allow-origin", "https://up.test"),
            ("link", "<https://other.test/?u=https://up.test/>; rel=\"next\""),
            ("link", "<broken"),
            ("server", "up/1.0 (+https://up.test.evil/)"),
            ("etag", "\"/abc\""),
            ("etag", "\"https://up.test/a\""),
            ("set-cookie", "next=https://up.test/a; Path=/"),
            ("x-amz-meta-source", "https://up.test/a"),
            ("x-ms-continuation", "https://up.test/a"),
            ("x-continuation-token", "https://up.test/a"),
            ("timing-allow-origin", "https://up.test"),
            ("signature-input", "a=();keyid=\"https://up.test/keys/1\""),
            ("x-terraform-get", "./x?archive=tgz"),
            ("location", "https://other.test/?u=https://up.test/"),
            ("link", "<#a>; title=\"</b>\""),
            ("link", "</broken; title=\"/x\""),
        ] {
            assert_eq!(rewritten(name, value), value, "{name}");
        }
    }
}
