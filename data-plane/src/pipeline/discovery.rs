//! `GET /api/`: the services that a token grants, and nothing else.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use seks_service::INTERCEPTION;

use super::{caller::Caller, lookup::Identified, relay::OutgoingBody};

/// Names and base URLs, with the host that the request named.
pub(crate) fn call(identified: &Identified, caller: &Caller) -> Response<OutgoingBody> {
    let parts = &identified.admitted.parts;
    let host = parts.headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let host = host.or(parts.uri.authority().map(|a| a.as_str())).unwrap_or_default();
    let scheme = if caller.tls { "https" } else { "http" };
    let granted = identified.token.grants().iter().filter(|g| g.service().is_some());
    let granted = granted.filter(|g| g.service_name().as_str() != INTERCEPTION);
    let services: Vec<_> = granted
        .map(|g| g.service_name())
        .map(|name| serde_json::json!({ "name": name.as_str(), "base_url": format!("{scheme}://{host}/api/{name}") }))
        .collect();
    let body = serde_json::json!({ "services": services }).to_string();
    let mut response = Response::new(OutgoingBody::fixed(Bytes::from(body)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
