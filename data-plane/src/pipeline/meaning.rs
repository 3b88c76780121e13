//! Headers that make a request mean another one to some servers. They are never dropped, because
//! the upstream would then do something else than the agent asked for. They are refused by name, or
//! taken into the decision.

use http::{HeaderMap, HeaderName, Method};
use seks_service::{
    CopySource, Service, copied_object,
    request::{Target, overriding_method},
};

use super::refusal::Refusal;

/// Headers that name another path, in order. Honoured by IIS with URL Rewrite and ISAPI_Rewrite, by
/// Symfony before CVE-2018-14773 and by Laminas (`X-Original-URL`, `X-Rewrite-URL`), by Azure's
/// front ends (`X-MS-Original-URL`), by old CGI gateways (`Request-URI`), and by what sends files
/// for an application: Rack, nginx, Apache, lighttpd, LiteSpeed, Perlbal. What proxies in front of
/// a node add, such as `X-Forwarded-Path` (Kong), isn't the agent's to say and is dropped.
const TARGETS: &[&str] = &[
    "request-uri",
    "request-url",
    "x-accel-mapping",
    "x-accel-redirect",
    "x-http-destinationurl",
    "x-lighttpd-send-file",
    "x-lighttpd-send-tempfile",
    "x-litespeed-location",
    "x-ms-original-url",
    "x-original-path",
    "x-original-uri",
    "x-original-url",
    "x-override-uri",
    "x-override-url",
    "x-reproxy-file",
    "x-reproxy-url",
    "x-request-uri",
    "x-request-url",
    "x-rewrite-path",
    "x-rewrite-uri",
    "x-rewrite-url",
    "x-sendfile",
    "x-sendfile-type",
    "x-waws-unencoded-url",
];

/// Headers that name another method, in order. Honoured by Google's front end, OData, SharePoint,
/// Rack, Symfony, ASP.NET and Express (`method-override`), and by gateways that tunnel methods
/// (`X-Tunnel-Method`, `X-REST-Method`, `X-HTTP-Verb`).
const METHODS: &[&str] = &[
    "http-method-override",
    "method-override",
    "x-http-method",
    "x-http-method-override",
    "x-http-override",
    "x-http-verb",
    "x-http-verb-override",
    "x-httpmethod",
    "x-httpmethod-override",
    "x-method",
    "x-method-override",
    "x-method-tunnel",
    "x-original-method",
    "x-override-http-method",
    "x-override-method",
    "x-rest-method",
    "x-tunnel-method",
    "x-tunneled-method",
    "x-verb",
];

/// The effect of a header on its request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Method,
    Target,
    Copy(CopySource),
}

/// What a request asks for beside its own method and path.
#[derive(Default)]
pub(crate) struct Meaning {
    /// The method that it asks for instead of its own, in a header or in the query.
    pub(crate) method: Option<Method>,
    /// Path and query of the object that it copies from.
    pub(crate) copied: Option<String>,
}

/// What a request asks for beside its own method and path, when its service accepts that.
pub(crate) fn meaning(
    method: &Method,
    headers: &HeaderMap,
    target: &Target<'_>,
    service: &Service,
) -> Result<Meaning, Refusal> {
    let mut found = target.method_override().cloned();
    let mut copied = None;
    for (name, value) in headers {
        match effect(name) {
            None => {}
            Some(Effect::Target) => return Err(Refusal::invalid(refused_target(name))),
            Some(Effect::Method) if !service.allow_method_override || name.as_str().contains('_') => {
                return Err(Refusal::invalid(refused_method(name)));
            }
            Some(Effect::Method) => {
                let asked = value.to_str().ok().and_then(|text| overriding_method(text.trim()));
                let asked =
                    asked.ok_or_else(|| Refusal::invalid("the overriding method is not the name of a method"))?;
                if found.replace(asked).is_some() {
                    return Err(Refusal::invalid("the method is overridden more than once"));
                }
            }
            Some(Effect::Copy(_)) if service.passed.headers.contains(name) => {}
            Some(Effect::Copy(CopySource::Undecided)) => return Err(Refusal::invalid(refused_source(name))),
            Some(Effect::Copy(CopySource::Object)) => {
                let text = value.to_str().map_err(|_| Refusal::invalid("the copy source must be percent-encoded"))?;
                if copied.replace(copied_object(service, text).map_err(Refusal::invalid)?).is_some() {
                    return Err(Refusal::invalid("the request names more than one copy source"));
                }
            }
        }
    }
    match &found {
        Some(_) if *method != Method::POST => Err(Refusal::invalid("only the method POST can be overridden")),
        _ => Ok(Meaning { method: found, copied }),
    }
}

/// Whether the header overrides the method. It is forwarded only after [`meaning`] has accepted it.
pub(crate) fn overrides_method(name: &HeaderName) -> bool {
    METHODS.binary_search(&name.as_str()).is_ok()
}

/// Of a name as sent, or as servers read it that take `_` for `-`.
fn effect(name: &HeaderName) -> Option<Effect> {
    let text = name.as_str();
    if !matches!(text.as_bytes().first(), Some(b'x' | b'h' | b'm' | b'r')) {
        return None; // most
    }
    if memchr::memchr(b'_', text.as_bytes()).is_some() {
        return listed(&text.replace('_', "-"));
    }
    listed(text)
}

fn listed(name: &str) -> Option<Effect> {
    match name.len() {
        6..=22 if METHODS.binary_search(&name).is_ok() => Some(Effect::Method),
        10..=24 if TARGETS.binary_search(&name).is_ok() => Some(Effect::Target),
        11..=24 => CopySource::of_header(name).map(Effect::Copy),
        _ => None,
    }
}

/// A fixed text for each header: a refusal holds no bytes of a request.
fn refused_method(name: &HeaderName) -> &'static str {
    match name.as_str() {
        "x-http-method-override" => {
            "the header X-HTTP-Method-Override overrides the method, which needs the service's `allow_method_override`"
        }
        "x-http-method" => {
            "the header X-HTTP-Method overrides the method, which needs the service's `allow_method_override`"
        }
        "x-method-override" => {
            "the header X-Method-Override overrides the method, which needs the service's `allow_method_override`"
        }
        "x-original-method" => {
            "the header X-Original-Method overrides the method, which needs the service's `allow_method_override`"
        }
        "x-override-method" => {
            "the header X-Override-Method overrides the method, which needs the service's `allow_method_override`"
        }
        "http-method-override" => {
            "the header HTTP-Method-Override overrides the method, which needs the service's `allow_method_override`"
        }
        "x-http-verb" | "x-http-verb-override" | "x-verb" => {
            "the header X-HTTP-Verb overrides the method, which needs the service's `allow_method_override`"
        }
        "x-method" => "the header X-Method overrides the method, which needs the service's `allow_method_override`",
        "x-rest-method" => {
            "the header X-REST-Method overrides the method, which needs the service's `allow_method_override`"
        }
        "x-tunnel-method" => {
            "the header X-Tunnel-Method overrides the method, which needs the service's `allow_method_override`"
        }
        name if !name.contains('_') => {
            "a header such as X-HTTP-Method-Override overrides the method, which needs the service's \
             `allow_method_override`"
        }
        _ => "a header with `_` in its name overrides the method, as X-HTTP-Method-Override does",
    }
}

fn refused_target(name: &HeaderName) -> &'static str {
    match name.as_str() {
        "x-original-url" => "the header X-Original-URL asks for another path: ask for that path instead",
        "x-rewrite-url" => "the header X-Rewrite-URL asks for another path: ask for that path instead",
        "x-original-uri" => "the header X-Original-URI asks for another path: ask for that path instead",
        "x-override-url" => "the header X-Override-URL asks for another path: ask for that path instead",
        "x-ms-original-url" => "the header X-MS-Original-URL asks for another path: ask for that path instead",
        "request-uri" | "x-request-uri" => "the header X-Request-URI asks for another path: ask for that path instead",
        "x-accel-mapping" | "x-accel-redirect" | "x-sendfile" | "x-sendfile-type" => {
            "the headers X-Accel-Mapping, X-Accel-Redirect, X-Sendfile and X-Sendfile-Type ask for files of the upstream: \
             leave them out"
        }
        _ => "a header such as X-Original-URL asks for another path: ask for that path instead",
    }
}

/// Of the vendor's own form.
fn refused_source(name: &HeaderName) -> &'static str {
    match name.as_str() {
        "x-ms-copy-source" => {
            "the header x-ms-copy-source reads another path, on which policies are not decided: it needs the service's \
             `pass_headers`"
        }
        "x-copy-from" => {
            "the header X-Copy-From reads another path, on which policies are not decided: it needs the service's \
             `pass_headers`"
        }
        _ => {
            "a header such as x-ms-copy-source reads another path, on which policies are not decided: it needs the \
             service's `pass_headers`"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_has_its_effect_in_either_spelling() {
        for (names, wanted) in [(METHODS, Effect::Method), (TARGETS, Effect::Target)] {
            assert!(names.is_sorted());
            for name in names {
                for name in [(*name).to_owned(), name.replace('-', "_")] {
                    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                    assert!(effect(&name) == Some(wanted), "{name}");
                }
            }
        }
        for name in
            ["x-http-methods", "x-request-id", "host", "x-forwarded-path", "x_id", "referer", "x-amz-copy-source-range"]
        {
            assert!(effect(&HeaderName::from_static(name)).is_none(), "{name}");
        }
    }
}
