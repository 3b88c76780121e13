//! How the agent addressed the node, which is how URLs in its answers must begin.

use http::{HeaderMap, HeaderValue, header, request::Parts, uri::Authority};
use seks_service::Service;

use super::urls::Urls;
use crate::pipeline::route::Naming;

/// Scheme, authority and naming of one request.
pub(crate) struct AgentAddress {
    naming: Naming,
    tls: bool,
    /// Of an HTTP/2 request, or of a target in absolute form.
    authority: Option<Authority>,
    host: Option<HeaderValue>,
}

impl AgentAddress {
    /// Both clones share the request's bytes.
    ///
    /// Where a load balancer ends TLS, the agent's URLs are `https` although the node's connection
    /// is not. The balancer says so in `X-Forwarded-Proto` or `Forwarded`. An agent that claims it
    /// falsely changes only the URLs in its own answers.
    pub(crate) fn new(naming: Naming, tls: bool, parts: &Parts) -> Self {
        Self {
            naming,
            tls: tls || is_forwarded_from_tls(&parts.headers),
            authority: parts.uri.authority().cloned(),
            host: parts.headers.get(header::HOST).cloned(),
        }
    }

    /// What the URLs of `service` are rewritten to. `None` where the agent uses the upstream's own
    /// name: its URLs are right.
    pub(super) fn urls(&self, service: &Service) -> Option<Urls> {
        let prefix = match self.naming {
            Naming::Path => format!("/api/{}", service.name),
            Naming::Host => String::new(),
            Naming::Forward => return None,
        };
        let authority = match &self.authority {
            Some(authority) => authority.as_str(),
            None => self.host.as_ref()?.to_str().ok()?,
        };
        let scheme = if self.tls { "https" } else { "http" };
        let upstream = &service.upstream;
        let origin = format!("{scheme}://{authority}");
        Some(Urls::new(upstream.tls(), upstream.authority().host(), upstream.port(), origin, prefix))
    }
}

/// Whether the proxy that is next to the agent speaks TLS with it: each proxy behind that one may
/// have added a value of its own (RFC 7239, 4).
fn is_forwarded_from_tls(headers: &HeaderMap) -> bool {
    let first = |name: &str| headers.get(name)?.to_str().ok()?.split(',').next();
    let is_https = |proto: &str| proto.trim().trim_matches('"').eq_ignore_ascii_case("https");
    if let Some(proto) = first("x-forwarded-proto") {
        return is_https(proto);
    }
    first("forwarded").is_some_and(|element| {
        let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
        pairs.any(|(name, proto)| name.trim().eq_ignore_ascii_case("proto") && is_https(proto))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_proxy_says_whether_the_agent_speaks_tls() {
        for (name, value, tls) in [
            ("x-forwarded-proto", "https", true),
            ("x-forwarded-proto", "HTTPS, http", true),
            ("x-forwarded-proto", "http, https", false),
            ("x-forwarded-proto", "", false),
            ("forwarded", "for=192.0.2.1;proto=https;by=203.0.113.4, proto=http", true),
            ("forwarded", "for=\"[2001:db8::1]\"; Proto=\"https\"", true),
            ("forwarded", "for=192.0.2.1, proto=https", false),
            ("x-forwarded-for", "proto=https", false),
        ] {
            let headers =
                HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_static(value))]);
            assert_eq!(is_forwarded_from_tls(&headers), tls, "{name}: {value}");
        }
    }
}
