//! A service: the address of an upstream, the places where its SDKs put their key, and how the real
//! key is injected.
//!
//! [`Service`] is the checked form of [`wire::Service`]. It is checked when an operator applies it,
//! and again when a node loads it. Nothing parses it again on the request path.

pub mod catalogue;
mod challenge;
mod copy_source;
mod credential;
mod denied_path;
pub mod destination;
pub mod environment;
#[cfg(test)]
#[path = "../../../tests/fuzz/run.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "shared by the tests of several crates"
)]
mod fuzz;
pub mod methods;
mod options;
mod passed;
pub mod request;
pub mod sigv4;
pub mod spec;
pub mod template;
pub mod test_call;
pub mod upstream;

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderName, HeaderValue};
use seks_network::address::Networks;
use seks_proto::wire;
use seks_types::id::{NameError, ServiceName, TenantName};

pub use self::{
    copy_source::{CopySource, copied_object},
    denied_path::{DeniedPath, is_denied},
    destination::record_destination,
    methods::FurtherMethod,
    options::{McpSource, PROVIDERS},
    passed::Passed,
    sigv4::SigV4,
    template::{Template, TemplateError},
    upstream::{Upstream, UpstreamError},
};
use crate::request::{BodyFields, PathRules};

/// The service whose credential is a tenant's interception CA. A token that grants it may use
/// HTTPS_PROXY mode, and its nodes receive the CA. It is no upstream: nodes send nothing to it. Its
/// `allow_private` applies to `tunnel_other_hosts`.
pub const INTERCEPTION: &str = "seks-interception";
/// The credential field with the CA's certificate: DER in base64.
pub const INTERCEPTION_CERTIFICATE: &str = "certificate";
/// The credential field with the CA's key, in PEM.
pub const INTERCEPTION_KEY: &str = "key";

/// Names that no new service may have, sorted for binary search. In path mode the node, its metrics
/// listener or a reverse proxy serves paths with these names. In host mode operators use them as
/// host labels of SEKS itself.
const RESERVED: &[&str] = &[
    "admin",
    "api",
    "auth",
    "broker",
    "ca",
    "control",
    "control-plane",
    "data-plane",
    "debug",
    "default",
    "discovery",
    "distribution",
    "health",
    "healthz",
    "internal",
    "livez",
    "localhost",
    "login",
    "metadata",
    "metrics",
    "node",
    "proxy",
    "ready",
    "readyz",
    "root",
    "seks",
    "self",
    "status",
    "system",
    "version",
    "well-known",
    "www",
];

/// The service that a tenant's exchange key is the credential of. No token reaches it, and nothing
/// is sent there.
pub const EXCHANGE: &str = "seks-exchange";

/// Whether a service is not an upstream, but carries a key that the product uses itself. Commands
/// that list what agents may reach leave it out.
#[must_use]
pub fn is_internal(name: &str) -> bool {
    name == INTERCEPTION || name == EXCHANGE
}

/// Whether a new service must not have this name. Names with `seks-` are reserved, except
/// [`INTERCEPTION`].
#[must_use]
pub fn is_reserved_name(name: &str) -> bool {
    RESERVED.binary_search(&name).is_ok() || (name.starts_with("seks-") && name != INTERCEPTION)
}

/// The CA that clients of HTTPS_PROXY mode must trust, in PEM: the one constrained to the hosts of
/// the tenant's services, if there is one.
#[must_use]
pub fn client_ca_pem(interception: &wire::Service) -> &str {
    let constrained = interception.client_ca_pem.as_str();
    if constrained.is_empty() { &interception.upstream_ca_pem } else { constrained }
}

/// A checked service definition.
#[derive(Clone, Debug)]
pub struct Service {
    /// The tenant that it belongs to.
    pub tenant: TenantName,
    /// The `SERVICE` in `/api/SERVICE/…`.
    pub name: ServiceName,
    /// A name for people.
    pub title: String,
    /// Scheme, host and port of every request, whatever the agent sends.
    pub upstream: Upstream,
    /// `""`, or a prefix such as `"/v1"` for paths that do not start with it.
    pub base_path: String,
    /// The credential's field names. A name that ends in `?` is optional.
    pub fields: Vec<String>,
    /// Where the real key is injected. Empty when requests are signed.
    pub injection: Vec<InjectionSite>,
    /// How requests are signed, if they are.
    pub sigv4: Option<SigV4>,
    /// Where an agent's token may be. Never empty.
    pub slots: Vec<TokenSlot>,
    /// Permits plain `http` and internal names. `private_networks` decides which private addresses
    /// are permitted.
    pub allow_private: bool,
    /// The tenant's private networks, if the service uses them. A node must also permit them.
    pub private_networks: Networks,
    /// PEM roots that replace the system's, unless empty.
    pub upstream_ca_pem: String,
    /// What paths may hold beyond what every server reads alike. Policies see the bytes that are
    /// sent.
    pub path_rules: PathRules,
    /// Methods that are accepted beside [`methods::STANDARD`].
    pub methods: Vec<FurtherMethod>,
    /// Headers and cookies that are forwarded only because the service says so.
    pub passed: Passed,
    /// Accepts `X-HTTP-Method-Override` and its kind on a `POST`. Both methods must be permitted.
    pub allow_method_override: bool,
    /// Forwards `Range`.
    pub allow_range: bool,
    /// Permits requests to switch to WebSocket.
    pub allow_websocket: bool,
    /// Uses only HTTP/2: with prior knowledge over plain `http`, by ALPN over `https`.
    pub http2: bool,
    /// Forwards `traceparent` and `tracestate`.
    pub forward_trace_context: bool,
    /// The agent's `traceparent` is the parent of the request's span. Otherwise it is a link.
    pub trust_trace_context: bool,
    /// Only for [`INTERCEPTION`]: HTTPS_PROXY mode passes connections to hosts of no service
    /// through, uninspected and without a credential.
    pub tunnel_other_hosts: bool,
    /// Whose answers report tokens, of [`PROVIDERS`]; `None`: they are not read.
    pub usage: Option<&'static str>,
    /// In JSON and event-stream bodies, URLs of the upstream become URLs of the node.
    pub rewrite_urls: bool,
    /// Of `fields`: injected, but no secret. Answers may contain them.
    pub public: Vec<String>,
    /// Where policies get `context.mcp` from, if the upstream is an MCP server.
    pub mcp: Option<McpSource>,
    /// Response headers whose URL clients use without a key. The node adds a signature that
    /// identifies the token.
    pub keyless_urls: Vec<HeaderName>,
    /// Fields of request bodies that policies may use. Nodes read those that the policies name.
    pub body_fields: BodyFields,
    /// Longest wait for the upstream's first byte. `None`: the node's default.
    pub first_byte_timeout: Option<Duration>,
    /// Longest pause within the upstream's answer. `None`: the node's default.
    pub idle_timeout: Option<Duration>,
    /// Endpoints that return fresh keys. They are refused whatever the policies say.
    pub denied_paths: Vec<DeniedPath>,
    /// Variables for `seks env`: the name, and a template over `{base}`, `{token}`, `{host}`.
    pub env: BTreeMap<String, String>,
    /// Headers that are added when the agent does not send them.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The catalogue entry that it was copied from. Empty when applied from a file.
    pub catalogue: String,
}

/// A place in an upstream request that holds the credential or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InjectionSite {
    /// A header with a rendered value.
    Header(HeaderName, Template),
    /// A query parameter; the value is percent-encoded after rendering.
    Query(String, Template),
    /// `Authorization: Basic base64(rendered)`.
    Basic(Template),
    /// First segment or segments of the path, before the agent's path.
    Path(Template),
}

/// A place in an agent's request that may hold its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSlot {
    /// `Authorization: SCHEME TOKEN`. The scheme is case-insensitive; empty for the raw value.
    Scheme(String),
    /// A header whose value is the token.
    Header(HeaderName),
    /// A query parameter.
    Query(String),
    /// `Authorization: Basic`, with the token as user, password or either.
    Basic(BasicPart),
    /// A segment at the beginning of the path, as the text before and after the token (`bot` and
    /// `""` for `/bot{token}`, `file/bot` and `""` for `/file/bot{token}`). The credential is
    /// written in its place, behind the segments before it.
    Path(String, String),
    /// `Sec-WebSocket-Protocol`: one value is this prefix followed by the token.
    Subprotocol(String),
    /// The access key id of a SigV4 signature identifies the token, in `Authorization` or in the
    /// query.
    AwsSigV4,
}

/// The part of Basic credentials that holds the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BasicPart {
    /// Before the colon.
    User,
    /// After it.
    Password,
    /// Either part, but not both.
    Either,
}

/// Why a service definition is invalid.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The name of the service or of its tenant.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The upstream.
    #[error("upstream: {0}")]
    Upstream(#[from] UpstreamError),
    /// An injection template.
    #[error("injection: {0}")]
    Template(#[from] TemplateError),
    /// Any other key.
    #[error("{key}: {reason}")]
    Invalid {
        /// The key as written in a file.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

fn invalid(key: &'static str, reason: impl Into<String>) -> ServiceError {
    ServiceError::Invalid { key, reason: reason.into() }
}

impl TryFrom<&wire::Service> for Service {
    type Error = ServiceError;

    fn try_from(wire: &wire::Service) -> Result<Self, ServiceError> {
        let (tenant, name) = (TenantName::try_from(wire.tenant.as_str())?, ServiceName::try_from(wire.name.as_str())?);
        let private_networks =
            Networks::parse(&wire.private_networks).map_err(|e| invalid("private_networks", e.to_string()))?;
        // A control plane sends the networks in place of the flag. An older node knows only the
        // flag and refuses.
        let allow_private = wire.allow_private || !private_networks.is_empty();
        let upstream = Upstream::parse(&wire.upstream, allow_private)?;
        let Injection { fields, sites: injection, sigv4 } = Injection::from_wire(wire, &upstream)?;
        let public = options::public_fields(&wire.public, &fields, sigv4.is_some())?;
        let slots = parse_slots(wire, sigv4.is_some())?;
        if wire.allow_websocket && wire.http2 {
            return Err(invalid("allow_websocket", "WebSocket needs HTTP/1.1, which `http2` excludes"));
        }
        if wire.tunnel_other_hosts && name.as_str() != INTERCEPTION {
            return Err(invalid("tunnel_other_hosts", "only `seks-interception` can have it"));
        }
        test_call::TestCall::parse(&wire.test)?; // for operators; nodes do not keep it
        let headers = wire.headers.iter().map(|(n, v)| fixed_header(n, v)).collect::<Result<_, _>>()?;
        let path_rules = PathRules::parse(&wire.allow_in_paths)?
            .and(if wire.allow_encoded_slash { PathRules::ENCODED_SLASH } else { PathRules::NONE })
            .and(if sigv4.as_ref().is_some_and(SigV4::has_object_keys) { PathRules::ANY } else { PathRules::NONE });
        let passed = Passed::parse(&wire.pass_headers, &wire.pass_cookies, &injection, &slots)?;
        Ok(Self {
            tenant,
            name,
            title: wire.title.clone(),
            upstream,
            base_path: check_base_path(&wire.base_path)?,
            fields,
            injection,
            sigv4,
            slots,
            allow_private,
            private_networks,
            upstream_ca_pem: wire.upstream_ca_pem.clone(),
            path_rules,
            methods: methods::parse(&wire.methods)?,
            passed,
            allow_method_override: wire.allow_method_override,
            allow_range: wire.allow_range,
            allow_websocket: wire.allow_websocket,
            http2: wire.http2,
            forward_trace_context: wire.forward_trace_context,
            trust_trace_context: wire.trust_trace_context,
            tunnel_other_hosts: wire.tunnel_other_hosts,
            usage: options::usage(&wire.usage)?,
            rewrite_urls: wire.rewrite_urls,
            public,
            mcp: McpSource::from_wire(wire)?,
            keyless_urls: options::keyless_urls(&wire.keyless_urls)?,
            body_fields: BodyFields::parse(wire.body_fields.iter().map(|(path, kind)| (path.as_str(), kind.as_str())))
                .map_err(|error| invalid("body_fields", error.to_string()))?,
            first_byte_timeout: (wire.first_byte_timeout_ms > 0)
                .then(|| Duration::from_millis(wire.first_byte_timeout_ms.into())),
            idle_timeout: (wire.idle_timeout_ms > 0).then(|| Duration::from_millis(wire.idle_timeout_ms.into())),
            denied_paths: wire.denied_paths.iter().map(|p| DeniedPath::parse(p)).collect::<Result<_, _>>()?,
            env: wire.env.clone(),
            headers,
            catalogue: wire.catalogue.clone(),
        })
    }
}

/// How a service's requests get the credential: by sites or by a signature, never both.
struct Injection {
    fields: Vec<String>,
    sites: Vec<InjectionSite>,
    sigv4: Option<SigV4>,
}

impl Injection {
    fn from_wire(wire: &wire::Service, upstream: &Upstream) -> Result<Self, ServiceError> {
        let (sites, signed) = wire.injection.as_ref().map_or((&[][..], None), |i| (&i.sites, i.aws_sigv4.as_ref()));
        let sigv4 = signed.map(|s| SigV4::from_wire(s, upstream, &wire.denied_actions)).transpose()?;
        let fields = check_fields(&wire.fields, sigv4.is_some())?;
        let sites = sites.iter().map(|s| InjectionSite::from_wire(s, &fields)).collect::<Result<Vec<_>, _>>()?;
        match &sigv4 {
            None if !wire.denied_actions.is_empty() => {
                Err(invalid("denied_actions", "only a service whose requests are signed can have denied actions"))
            }
            None => check_injection_sites(&sites, &fields),
            Some(_) if sites.is_empty() => Ok(()),
            Some(_) => Err(invalid("inject", "aws_sigv4 excludes every other injection")),
        }?;
        Ok(Self { fields, sites, sigv4 })
    }
}

/// The places for the agent's token: at least one, and for signed requests `aws_sigv4` alone.
fn parse_slots(wire: &wire::Service, signed: bool) -> Result<Vec<TokenSlot>, ServiceError> {
    let slots = wire.slots.iter().map(TokenSlot::try_from).collect::<Result<Vec<_>, _>>()?;
    let behind_segments = |slot: &TokenSlot| matches!(slot, TokenSlot::Path(before, _) if before.contains('/'));
    if slots.is_empty() {
        Err(invalid("slots", "at least one place for the agent's token"))
    } else if !wire.base_path.is_empty() && slots.iter().any(behind_segments) {
        Err(invalid("slots", "a path slot of several segments excludes `base_path`"))
    } else if signed != slots.contains(&TokenSlot::AwsSigV4) || (signed && slots.len() > 1) {
        Err(invalid("slots", "a service whose requests are signed has exactly the slot aws_sigv4"))
    } else {
        Ok(slots)
    }
}

fn check_fields(fields: &[String], signed: bool) -> Result<Vec<String>, ServiceError> {
    if signed {
        let have = fields.iter().map(String::as_str);
        return if have.eq(sigv4::FIELDS) {
            Ok(fields.to_vec())
        } else {
            Err(invalid("fields", "the fields of a service whose requests are signed are fixed; leave them out"))
        };
    }
    let word = |f: &String| {
        !f.is_empty() && f.len() <= 63 && f.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    if fields.is_empty() || fields.len() > 16 || !fields.iter().all(word) {
        return Err(invalid("fields", "1 to 16 names of a-z, 0-9 and `_`"));
    }
    if fields.iter().enumerate().any(|(i, f)| fields.iter().skip(i + 1).any(|g| g == f)) {
        return Err(invalid("fields", "a name is listed twice"));
    }
    Ok(fields.to_vec())
}

/// `""`, or segments of unreserved characters. The node checks the agent's path by the same rules.
fn check_base_path(path: &str) -> Result<String, ServiceError> {
    let segment = |s: &str| {
        !s.is_empty() && s != "." && s != ".." && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:@".contains(&b))
    };
    match path.strip_prefix('/') {
        None if path.is_empty() => Ok(String::new()),
        Some(rest) if path.len() <= 512 && rest.split('/').all(segment) => Ok(path.into()),
        _ => Err(invalid("base_path", "empty, or `/` and plain segments without a final `/`")),
    }
}

/// Headers that frame or route a message. A service must not set or inject them.
const FORBIDDEN_HEADERS: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "accept-encoding",
    "range",
    "content-encoding",
];

fn header_name(key: &'static str, name: &str) -> Result<HeaderName, ServiceError> {
    let parsed = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| invalid(key, format!("`{name}` is not a valid header name")))?;
    // Some servers read `_` as `-`, so such a name must not reach a forbidden one either.
    if FORBIDDEN_HEADERS.contains(&parsed.as_str().replace('_', "-").as_str()) {
        return Err(invalid(key, format!("a service must not set `{name}`")));
    }
    Ok(parsed)
}

fn fixed_header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), ServiceError> {
    let value = HeaderValue::from_str(value)
        .map_err(|_| invalid("headers", format!("the value of `{name}` is not a valid header value")))?;
    Ok((header_name("headers", name)?, value))
}

fn query_name(name: &str) -> Result<String, ServiceError> {
    let ok =
        !name.is_empty() && name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if ok { Ok(name.into()) } else { Err(invalid("query", format!("`{name}` is not a valid parameter name"))) }
}

/// Checks that every field is used, no place is used twice, and at most one site is the path.
fn check_injection_sites(sites: &[InjectionSite], fields: &[String]) -> Result<(), ServiceError> {
    if sites.is_empty() {
        return Err(invalid("injection", "at least one site"));
    }
    let location = |s: &InjectionSite| match s {
        InjectionSite::Header(name, _) => format!("header {name}"),
        InjectionSite::Query(name, _) => format!("query {}", name.to_ascii_lowercase()),
        InjectionSite::Basic(_) => "header authorization".into(),
        InjectionSite::Path(_) => "path".into(),
    };
    let mut taken: Vec<String> = sites.iter().map(location).collect();
    taken.sort_unstable();
    if let Some([twice, _]) = taken.array_windows().find(|[a, b]| a == b) {
        return Err(invalid("injection", format!("{twice} is listed twice")));
    }
    let unused = fields.iter().find(|f| !sites.iter().any(|s| s.template().contains_field(f)));
    unused.map_or(Ok(()), |f| Err(invalid("fields", format!("no site uses `{f}`"))))
}

impl InjectionSite {
    fn from_wire(site: &wire::injection::Site, fields: &[String]) -> Result<Self, ServiceError> {
        use wire::injection::site::At;
        Ok(
            match site
                .at
                .as_ref()
                .ok_or_else(|| invalid("injection", "a site must name a header, query parameter, basic or path"))?
            {
                At::Header(h) => Self::Header(header_name("injection", &h.name)?, Template::parse(&h.value, fields)?),
                At::Query(q) => Self::Query(query_name(&q.name)?, Template::parse(&q.value, fields)?),
                At::Basic(t) if t.contains(':') => Self::Basic(Template::parse(t, fields)?),
                At::Basic(_) => return Err(invalid("injection", "basic is `user:password`")),
                At::Path(t) if t.starts_with('/') && t.len() > 1 => Self::Path(Template::parse(t, fields)?),
                At::Path(_) => return Err(invalid("injection", "a path begins with `/`")),
            },
        )
    }

    /// The template of its value.
    #[must_use]
    pub fn template(&self) -> &Template {
        match self {
            Self::Header(_, t) | Self::Query(_, t) | Self::Basic(t) | Self::Path(t) => t,
        }
    }
}

impl TryFrom<&wire::TokenSlot> for TokenSlot {
    type Error = ServiceError;

    fn try_from(slot: &wire::TokenSlot) -> Result<Self, ServiceError> {
        use wire::token_slot::{At, BasicPart as Wire};
        Ok(match slot.at.as_ref().ok_or_else(|| invalid("slots", "a slot must name a place"))? {
            At::Scheme(s) if s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') => Self::Scheme(s.clone()),
            At::Scheme(s) => return Err(invalid("slots", format!("`{s}` is not a valid authorization scheme"))),
            At::Header(name) => match header_name("slots", name)? {
                http::header::AUTHORIZATION => Self::Scheme(String::new()),
                name => Self::Header(name),
            },
            At::Query(name) => Self::Query(query_name(name)?),
            At::Basic(part) => Self::Basic(match Wire::try_from(*part) {
                Ok(Wire::User) => BasicPart::User,
                Ok(Wire::Password) => BasicPart::Password,
                Ok(Wire::Either) => BasicPart::Either,
                _ => return Err(invalid("slots", "basic: user, password or either")),
            }),
            At::Path(t) => {
                let split = t.strip_prefix('/').and_then(|t| t.split_once("{token}"));
                let (before, after) = split.ok_or_else(|| invalid("slots", "a path slot is `/…{token}…`"))?;
                let plain = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:".contains(&b));
                let (directories, own) = before.rsplit_once('/').unwrap_or(("", before));
                let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && plain(s);
                let directories_ok = !before.contains('/') || directories.split('/').all(segment);
                if !plain(own) || !plain(after) || !directories_ok {
                    return Err(invalid("slots", "a path slot is a plain segment, after plain segments or none"));
                }
                Self::Path(before.into(), after.into())
            }
            At::Subprotocol(p) if p.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) => {
                Self::Subprotocol(p.clone())
            }
            At::Subprotocol(p) => return Err(invalid("slots", format!("`{p}` is not a valid subprotocol prefix"))),
            At::AwsSigv4(true) => Self::AwsSigV4,
            At::AwsSigv4(false) => return Err(invalid("slots", "a slot must name a place")),
        })
    }
}

#[cfg(test)]
mod tests;
