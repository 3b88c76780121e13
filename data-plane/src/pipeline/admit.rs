//! Stage 1, `admit`: checks whether a node accepts the request at all, and which service it names.
//!
//! The meaning of a head is checked here for HTTP/1 and HTTP/2. `http/server/h1/head.rs` has
//! already checked that an HTTP/1 head has only one reading. Nothing here reveals whether a service
//! exists.

use std::net::IpAddr;

use http::{HeaderValue, Method, StatusCode, Uri, Version, header, request::Parts};
use http_body::Body as _;
use seks_service::methods;
use seks_types::token::Digest;

use super::{
    origin::Origin,
    refusal::Refusal,
    route::{Naming, ProxyMode, Route},
    token, websocket,
};
use crate::{
    code::Code,
    config::Limits,
    http::{
        fields::{connection_names, host_of},
        server::RequestBody,
    },
};

/// The names that agents may call this node by.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    names: Vec<Box<str>>,
    /// With the dot in front.
    suffix: Option<Box<str>>,
}

impl Hosts {
    /// `localhost`, the address that is listened on and, where that is a loopback or unspecified
    /// one, any loopback address; beside them what is configured. `suffix`: that of host mode.
    pub(crate) fn new(configured: &[String], suffix: Option<&str>, listen: IpAddr) -> Self {
        let mut names: Vec<Box<str>> = configured.iter().map(|h| h.as_str().into()).collect();
        names.push("localhost".into());
        names.push(listen.to_string().into());
        if listen.is_loopback() || listen.is_unspecified() {
            names.extend(["127.0.0.1".into(), "::1".into()]);
        }
        Self { names, suffix: suffix.map(|s| format!(".{s}").into()) }
    }

    fn accepts(&self, host: &str) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        self.names.iter().any(|h| h.eq_ignore_ascii_case(host))
    }

    /// The one label in front of the suffix of host mode.
    fn service<'a>(&self, host: &'a str) -> Option<&'a str> {
        let suffix = self.suffix.as_deref()?;
        let (label, rest) = host.split_at_checked(host.len().checked_sub(suffix.len())?)?;
        (rest.eq_ignore_ascii_case(suffix) && seks_types::id::is_name(label)).then_some(label)
    }
}

/// A request for a service, or for the list of services.
pub(crate) struct Admitted {
    pub(crate) parts: Parts,
    pub(crate) route: Route,
    /// The agent wants to switch to WebSocket.
    pub(crate) websocket: bool,
    /// The token that it showed the proxy, apart from the request.
    pub(crate) proxy_token: Option<Digest>,
    /// Only this file makes one.
    _proof: (),
}

impl Admitted {
    /// Path and query as the agent wrote them.
    pub(crate) fn target(&self) -> &str {
        self.parts.uri.path_and_query().map_or("", |t| t.as_str())
    }

    /// The name in the place of a service's name. It is not looked up yet.
    pub(crate) fn service(&self) -> &str {
        match &self.route {
            Route::Service { name, .. } => self.target().get(name.clone()).unwrap_or_default(),
            Route::Host { name } => name,
            Route::Discovery | Route::Exchange | Route::Forward(_) => "",
        }
    }

    /// What is the service's of the target: empty, or from `/` or `?` on.
    pub(crate) fn rest(&self) -> &str {
        match &self.route {
            Route::Service { rest, .. } => self.target().get(*rest..).unwrap_or_default(),
            Route::Host { .. } | Route::Forward(_) => self.target(),
            Route::Discovery | Route::Exchange => "",
        }
    }

    /// How the agent names the service.
    pub(crate) fn form(&self) -> Naming {
        match self.route {
            Route::Host { .. } => Naming::Host,
            Route::Forward(_) => Naming::Forward,
            Route::Service { .. } | Route::Discovery | Route::Exchange => Naming::Path,
        }
    }
}

/// Admits a request, or says why not.
pub(crate) fn call(
    parts: Parts,
    body: &RequestBody,
    mode: &ProxyMode,
    hosts: &Hosts,
    limits: &Limits,
) -> Result<Admitted, Refusal> {
    check_sizes(&parts, body, limits)?;
    check_method(&parts.method)?;
    let name = check_host(&parts)?;
    check_headers(&parts)?;
    let mut proxy_token = None;
    let route = match mode {
        ProxyMode::Direct => direct(&parts, name, hosts)?,
        ProxyMode::Forward => {
            proxy_token = token::proxy_token(&parts.headers)?;
            // A request to a proxy in plain text cannot be an `https` request. That needs a tunnel
            // with TLS.
            if parts.uri.scheme_str() == Some("https") {
                return Err(Refusal::invalid("a proxy takes CONNECT for a target with https"));
            }
            let origin = Origin::of_target(&parts.uri);
            Route::Forward(
                origin.ok_or_else(|| Refusal::invalid("a proxy takes CONNECT, or a target with scheme and host"))?,
            )
        }
        ProxyMode::Within(tunnel)
            if tunnel.origin.is_named(name) && parts.uri.scheme_str().is_none_or(|s| s == "https") =>
        {
            proxy_token = tunnel.digest;
            Route::Forward(tunnel.origin.clone())
        }
        ProxyMode::Within(_) => return Err(misdirected()),
    };
    let websocket = websocket::is_asked(&parts, !body.is_end_stream())?;
    Ok(Admitted { parts, route, websocket, proxy_token, _proof: () })
}

fn check_sizes(parts: &Parts, body: &RequestBody, limits: &Limits) -> Result<(), Refusal> {
    let too_large = |detail, status| Err(Refusal::from(Code::RequestTooLarge).with_detail(detail).with_status(status));
    if parts.uri.path_and_query().is_some_and(|t| t.as_str().len() > limits.uri_bytes) {
        return too_large("the request target is too long", StatusCode::URI_TOO_LONG);
    }
    if parts.headers.len() > limits.header_fields {
        return too_large("the request's head has too many fields", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    if body.size_hint().lower() > limits.body_bytes {
        return Err(Code::RequestTooLarge.into());
    }
    Ok(())
}

/// A method that some service may take. Whether the named one does is known when the token is
/// ([`authorize`](super::authorize)).
fn check_method(method: &Method) -> Result<(), Refusal> {
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS | Method::POST | Method::PUT | Method::PATCH | Method::DELETE => {
            Ok(())
        }
        _ if methods::is_action(method.as_str()) => Ok(()),
        _ => Err(Refusal::invalid("the method is not one that a service can be called with")
            .with_status(StatusCode::METHOD_NOT_ALLOWED)),
    }
}

/// Exactly one well-formed name, the same in every place. Returns the name with its port.
fn check_host(parts: &Parts) -> Result<&str, Refusal> {
    let invalid = Refusal::invalid;
    if parts.uri.scheme_str().is_some_and(|s| s != "http" && s != "https") {
        return Err(invalid("the scheme is neither http nor https"));
    }
    let mut named = parts.headers.get_all(header::HOST).iter();
    let (host, second) = (named.next(), named.next());
    if second.is_some() {
        return Err(invalid("there must be exactly one Host"));
    }
    let host = host.map(|h| h.to_str()).transpose().map_err(|_| invalid("Host is malformed"))?;
    let authority = parts.uri.authority().map(|a| a.as_str());
    let name = match (host, authority) {
        (Some(host), Some(authority)) if !is_same_host(host, authority, parts.uri.scheme_str()) => {
            return Err(invalid("Host and the request target name different hosts"));
        }
        (Some(name), _) | (None, Some(name)) => name,
        (None, None) => return Err(invalid("there must be exactly one Host")),
    };
    host_of(name).map(|_| name).ok_or_else(|| invalid("Host is malformed"))
}

/// Whether two names are the same, the scheme's own port written out or not.
fn is_same_host(a: &str, b: &str, scheme: Option<&str>) -> bool {
    let port = if scheme == Some("https") { ":443" } else { ":80" };
    let [a, b] = [a, b].map(|name| name.strip_suffix(port).unwrap_or(name));
    a.eq_ignore_ascii_case(b)
}

/// One of our own names: a browser that was led here by another site's DNS (rebinding) names that
/// site. Or a service's, in host mode.
fn direct(parts: &Parts, name: &str, hosts: &Hosts) -> Result<Route, Refusal> {
    let name = host_of(name).unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name); // the same name, written in full (RFC 1034, 3.1)
    if hosts.accepts(name) {
        return route(parts);
    }
    hosts.service(name).map(|name| Route::Host { name: name.into() }).ok_or_else(misdirected)
}

fn misdirected() -> Refusal {
    Refusal::invalid(
        "this node doesn't answer to that Host, which needs to be in `[proxy] hosts` of its configuration, or in `--host` of `seks dev`",
    )
    .with_status(StatusCode::MISDIRECTED_REQUEST)
}

/// Fields that a `Connection` header may not make hop-by-hop: who drops them changes what the
/// message is.
const NOT_A_CONNECTIONS: &[&str] =
    &["host", "content-length", "transfer-encoding", "content-type", "content-encoding", "authorization"];

fn check_headers(parts: &Parts) -> Result<(), Refusal> {
    if connection_names(&parts.headers).any(|name| NOT_A_CONNECTIONS.iter().any(|n| name.eq_ignore_ascii_case(n))) {
        return Err(Refusal::invalid("Connection names a field that is not the connection's"));
    }
    // Over HTTP/1 they belong to the line, and not to the value (RFC 9113, 8.2.1).
    let is_blank = |b: Option<&u8>| b.is_some_and(|b| matches!(b, b' ' | b'\t'));
    let is_padded = |value: &HeaderValue| is_blank(value.as_bytes().first()) || is_blank(value.as_bytes().last());
    if parts.version == Version::HTTP_2 && parts.headers.values().any(is_padded) {
        return Err(Refusal::invalid("a field's value begins or ends with a blank"));
    }
    // Over HTTP/1 a doubled Authorization is two credentials (`token_ambiguous`). Over HTTP/2,
    // where no intermediary of the agent's has had a reason to split the field, it is a malformed
    // request.
    let doubled = parts.headers.get_all(header::AUTHORIZATION).iter().nth(1).is_some();
    if doubled && parts.version == Version::HTTP_2 {
        return Err(Refusal::invalid("Authorization stands twice"));
    }
    // What else is expected, nobody knows (RFC 9110, 10.1.1).
    let is_continue = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if !parts.headers.get_all(header::EXPECT).iter().all(is_continue) {
        let refusal = Refusal::invalid("the header Expect can only be `100-continue`");
        return Err(refusal.with_status(StatusCode::EXPECTATION_FAILED));
    }
    Ok(())
}

fn route(parts: &Parts) -> Result<Route, Refusal> {
    let path = parts.uri.path();
    let Some(after) = path.strip_prefix("/api/") else {
        if path == "/token" {
            return match parts.method {
                Method::POST => Ok(Route::Exchange),
                _ => Err(Refusal::method_not_allowed("a token is exchanged by POST", "POST")),
            };
        }
        let code = if is_origin(&parts.uri) { Code::ServiceUnknown } else { Code::RequestInvalid };
        return Err(Refusal::from(code).with_detail("paths begin with /api/SERVICE"));
    };
    if after.is_empty() {
        return match parts.method {
            Method::GET | Method::HEAD => Ok(Route::Discovery),
            _ => Err(Refusal::method_not_allowed("the list of services can only be read", "GET, HEAD")),
        };
    }
    let start = path.len() - after.len();
    let end = start + after.find('/').unwrap_or(after.len());
    Ok(Route::Service { name: start..end, rest: end })
}

fn is_origin(uri: &Uri) -> bool {
    uri.path().starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_and_a_port() {
        for (text, host) in [
            ("broker", "broker"),
            ("broker:8300", "broker"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:8300", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(host_of(text), Some(host), "{text}");
        }
        for bad in [
            "broker@evil.test",
            "broker, evil.test",
            "broker/../evil",
            "bro ker",
            "broker:99999",
            "broker:",
            "broker:+1",
            "[::1",
            "[x]",
            "[::1]x",
            "",
            "::1",
            "br%6fker",
            "broker:80:80",
        ] {
            assert_eq!(host_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_host_may_have_the_schemes_own_port() {
        for (host, target, scheme, same) in [
            ("broker", "Broker:80", Some("http"), true),
            ("broker:443", "broker", Some("https"), true),
            ("broker:443", "broker", Some("http"), false),
            ("broker:8300", "broker", None, false),
            ("[::1]:80", "[::1]", Some("http"), true),
            ("broker", "brokers", Some("http"), false),
        ] {
            assert_eq!(is_same_host(host, target, scheme), same, "{host} {target}");
        }
    }

    #[test]
    fn a_node_answers_to_its_own_names_only() {
        let hosts = Hosts::new(&["broker".into()], None, IpAddr::from([0, 0, 0, 0]));
        for yes in ["broker", "BROKER", "localhost", "127.0.0.1", "::1", "0.0.0.0"] {
            assert!(hosts.accepts(yes), "{yes}");
        }
        for no in ["evil.test", "broker.evil.test", "10.0.0.1", ""] {
            assert!(!hosts.accepts(no), "{no}");
        }
        assert!(!Hosts::new(&[], None, IpAddr::from([10, 0, 0, 1])).accepts("127.0.0.1"));
    }

    #[test]
    fn in_host_mode_one_label_is_a_service() {
        let hosts = Hosts::new(&[], Some("broker.example"), IpAddr::from([127, 0, 0, 1]));
        for (host, service) in [
            ("openai.broker.example", Some("openai")),
            ("openai.Broker.EXAMPLE", Some("openai")),
            ("OpenAI.broker.example", None),
            ("a.b.broker.example", None),
            (".broker.example", None),
            ("broker.example", None),
            ("openaixbroker.example", None),
            ("openai.broker.example.evil.test", None),
        ] {
            assert_eq!(hosts.service(host), service, "{host}");
        }
        assert_eq!(Hosts::new(&[], None, IpAddr::from([127, 0, 0, 1])).service("openai.broker.example"), None);
    }
}
