//! Headers that make a request mean another one to some servers. They are never dropped, because the upstream would then do
//! something else than the agent asked for. They are refused by name, or taken into the decision.

use http::{HeaderMap, HeaderName, Method};
use seks_service::{
    Service,
    request::{Target, overriding_method},
};

use super::refusal::Refusal;

/// Headers that name another path, in order. Honoured by IIS with URL Rewrite and ISAPI_Rewrite, by Symfony before CVE-2018-14773
/// and by Laminas (`X-Original-URL`, `X-Rewrite-URL`), and by Rack's and nginx's file sending. What proxies in front of a node add,
/// such as `X-Forwarded-Path` (Kong), isn't the agent's to say and is dropped.
const TARGETS: &[&str] = &[
    "x-accel-mapping",
    "x-original-path",
    "x-original-uri",
    "x-original-url",
    "x-override-uri",
    "x-override-url",
    "x-rewrite-path",
    "x-rewrite-uri",
    "x-rewrite-url",
    "x-sendfile-type",
];

/// Headers that name another method, in order. Honoured by Google's front end, OData, SharePoint, Rack, Symfony, ASP.NET and
/// Express (`method-override`).
const METHODS: &[&str] = &[
    "http-method-override",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-method",
    "x-override-method",
];

/// What a header does to the request that it stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Method,
    Target,
}

/// The method that the request asks for instead of its own, in a header or in the query, when its service accepts that.
pub(crate) fn method_override(
    method: &Method,
    headers: &HeaderMap,
    target: &Target<'_>,
    service: &Service,
) -> Result<Option<Method>, Refusal> {
    let mut found = target.method_override().cloned();
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
        }
    }
    match &found {
        Some(_) if *method != Method::POST => Err(Refusal::invalid("only the method POST can be overridden")),
        _ => Ok(found),
    }
}

/// Whether the header overrides the method. It is forwarded only after [`method_override`] has accepted it.
pub(crate) fn overrides_method(name: &HeaderName) -> bool {
    METHODS.binary_search(&name.as_str()).is_ok()
}

/// Of a name as sent, or as servers read it that take `_` for `-`.
fn effect(name: &HeaderName) -> Option<Effect> {
    let text = name.as_str();
    if !matches!(text.as_bytes().first(), Some(b'x' | b'h')) {
        return None; // most
    }
    if memchr::memchr(b'_', text.as_bytes()).is_some() {
        return listed(&text.replace('_', "-"));
    }
    listed(text)
}

fn listed(name: &str) -> Option<Effect> {
    match name.len() {
        13..=22 if METHODS.binary_search(&name).is_ok() => Some(Effect::Method),
        12..=15 if TARGETS.binary_search(&name).is_ok() => Some(Effect::Target),
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
        _ => "a header with `_` in its name overrides the method, as X-HTTP-Method-Override does",
    }
}

fn refused_target(name: &HeaderName) -> &'static str {
    match name.as_str() {
        "x-original-url" => "the header X-Original-URL asks for another path: ask for that path instead",
        "x-rewrite-url" => "the header X-Rewrite-URL asks for another path: ask for that path instead",
        "x-original-uri" => "the header X-Original-URI asks for another path: ask for that path instead",
        "x-override-url" => "the header X-Override-URL asks for another path: ask for that path instead",
        "x-accel-mapping" | "x-sendfile-type" => {
            "the headers X-Accel-Mapping and X-Sendfile-Type ask for files of the upstream: leave them out"
        }
        _ => "a header such as X-Original-URL asks for another path: ask for that path instead",
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
        for name in ["x-http-methods", "x-request-id", "host", "x-forwarded-path", "x_id"] {
            assert!(effect(&HeaderName::from_static(name)).is_none(), "{name}");
        }
    }
}
