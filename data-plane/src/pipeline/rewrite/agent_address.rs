//! How the agent addressed the node, which is how URLs in its answers must begin.

use http::{HeaderValue, header, request::Parts, uri::Authority};
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
    /// is not. The balancer says so in `X-Forwarded-Proto`. An agent that claims it falsely changes
    /// only the URLs in its own answers.
    pub(crate) fn new(naming: Naming, tls: bool, parts: &Parts) -> Self {
        let forwarded = parts.headers.get("x-forwarded-proto").map(HeaderValue::as_bytes);
        Self {
            naming,
            tls: tls || forwarded.is_some_and(|proto| proto.eq_ignore_ascii_case(b"https")),
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
        Some(Urls::new(
            upstream.tls(),
            upstream.authority().host(),
            upstream.port(),
            format!("{scheme}://{authority}"),
            prefix,
        ))
    }
}
