//! The resource that a COPY or MOVE writes: WebDAV's header `Destination` (RFC 4918, 10.3) names
//! it, beside the request's own target.
//!
//! It is read and decided on as a target is. The upstream gets its own URL of it.

use http::{HeaderMap, HeaderValue, Method, header, request::Parts};
use seks_service::{
    InjectionSite, Service, TokenSlot,
    request::{Target, without_base_slash},
};

use super::{lookup::Identified, refusal::Refusal, route::Naming, token, upstream_target::UpstreamTarget};

pub(super) const DESTINATION: &str = "destination";

const FOREIGN: &str = "the header Destination names another host or service: it must be a URL of the same service, as the agent reaches it";
const OVERRIDDEN: &str =
    "the header Destination needs the method COPY or MOVE itself: an overridden method cannot have one";
const MALFORMED: &str = "the header Destination must hold one absolute URL or absolute path";
const NOT_FORWARDED: &str = "the header Destination names a second path, which a service cannot take whose requests are signed or have the key in the URL";

/// What the header `Destination` of a request names.
pub(super) struct SecondTarget {
    pub(super) line: UpstreamTarget,
    /// What the upstream gets in the header.
    pub(super) url: HeaderValue,
}

/// Reads the header of a COPY or MOVE. `None`: the request names no second resource.
pub(super) fn read(identified: &Identified, service: &Service) -> Result<Option<SecondTarget>, Refusal> {
    let parts = &identified.admitted.parts;
    if !matches!(parts.method.as_str(), "COPY" | "MOVE") {
        return Ok(None);
    }
    let mut values = parts.headers.get_all(DESTINATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let in_url = |site: &InjectionSite| !matches!(site, InjectionSite::Header(..));
    let token_in_path = service.slots.iter().any(|slot| matches!(slot, TokenSlot::Path(..)));
    if service.sigv4.is_some() || service.injection.iter().any(in_url) || token_in_path {
        return Err(Refusal::invalid(NOT_FORWARDED));
    }
    let text = value.to_str().ok().filter(|_| values.next().is_none()).map(str::trim);
    let text = text.ok_or_else(|| Refusal::invalid(MALFORMED))?;
    let rest = rest_of(text, parts, identified.admitted.form(), service)?;
    let rest = match identified.admitted.form() {
        Naming::Path | Naming::Host => without_base_slash(service, rest),
        Naming::Forward => rest.into(),
    };
    let target = Target::parse(service, &rest).map_err(|error| Refusal::invalid(error.text()))?;
    if target.method_override().is_some() || token::has_token(rest.as_bytes()) {
        return Err(Refusal::invalid(MALFORMED));
    }
    let line = UpstreamTarget::new(&target, service, false);
    let scheme = if service.upstream.tls() { "https" } else { "http" };
    let url = HeaderValue::try_from(format!("{scheme}://{}{}", service.upstream.authority(), line.text));
    Ok(Some(SecondTarget { line, url: url.map_err(|_| Refusal::invalid(MALFORMED))? }))
}

/// Refuses a second target of a method that is only asked for by an override: a server that does
/// not honour the override takes the header for something else, and so does this node.
pub(super) fn check_override(overriding: Option<&Method>, headers: &HeaderMap) -> Result<(), Refusal> {
    let overrides = overriding.is_some_and(|method| matches!(method.as_str(), "COPY" | "MOVE"));
    if overrides && headers.contains_key(DESTINATION) {
        return Err(Refusal::invalid(OVERRIDDEN));
    }
    Ok(())
}

/// What stands behind the service's name in a URL of the node, or behind the upstream's authority
/// in one of its own.
fn rest_of<'a>(url: &'a str, parts: &Parts, form: Naming, service: &Service) -> Result<&'a str, Refusal> {
    if url.contains('#') {
        return Err(Refusal::invalid(MALFORMED));
    }
    let (scheme, authority, path) = match url.split_once("://") {
        None if url.starts_with('/') && !url.starts_with("//") => (None, None, url),
        None => return Err(Refusal::invalid(MALFORMED)),
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            (Some(scheme), Some(authority), path)
        }
    };
    let tls = match scheme.map(str::to_ascii_lowercase).as_deref() {
        None => service.upstream.tls(),
        Some("http") => false,
        Some("https") => true,
        Some(_) => return Err(Refusal::invalid(FOREIGN)),
    };
    let upstream = &service.upstream;
    if authority.is_some_and(|own| tls == upstream.tls() && is_same(own, upstream.authority().as_str(), tls)) {
        return Ok(path); // as the upstream names it in its answers
    }
    let node = match parts.uri.authority() {
        Some(authority) => authority.as_str(),
        None => parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    };
    if authority.is_some_and(|own| !is_same(own, node, tls)) {
        return Err(Refusal::invalid(FOREIGN));
    }
    match form {
        Naming::Host | Naming::Forward => Ok(path),
        Naming::Path => {
            let rest = path.strip_prefix("/api/").and_then(|rest| rest.strip_prefix(service.name.as_str()));
            rest.filter(|rest| rest.starts_with('/')).ok_or_else(|| Refusal::invalid(FOREIGN))
        }
    }
}

/// Whether two authorities are the same, the scheme's own port written out or not.
fn is_same(a: &str, b: &str, tls: bool) -> bool {
    let port = if tls { ":443" } else { ":80" };
    let bare = |text: &'_ str| text.strip_suffix(port).unwrap_or(text).to_ascii_lowercase();
    bare(a) == bare(b)
}
