//! The file format of services: catalogue entries, `service apply -f`, `seks apply`, `seks export`.
//!
//! ```toml
//! name = "acme"
//! upstream = "https://api.acme.test"
//! inject = { header = "X-Acme-Key" }
//! ```
//!
//! All other keys have a default. Some defaults follow from `inject`: the credential's fields are
//! the `{names}` in it, and an agent's token may be where the key is injected.

mod inject;
mod slot;

use std::{collections::BTreeMap, time::Duration};

use seks_proto::wire;
use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};

pub use self::inject::Inject;
use super::{Service, ServiceError};

/// A service as written in a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceSpec {
    /// The `SERVICE` in `/api/SERVICE/…`.
    pub name: String,
    /// A name for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// `https://host[:port]`.
    pub upstream: String,
    /// A prefix for paths that do not start with it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub base_path: String,
    /// How the real key is injected.
    pub inject: Inject,
    /// Where an agent's token may be: `bearer`, `raw`, `scheme:NAME`, `header:NAME`, `query:NAME`,
    /// `basic:user|password|either`, `path:/…{token}…`, `subprotocol:PREFIX`, `aws_sigv4`.
    /// Default: where the key is injected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<String>,
    /// The credential's fields. Default: the `{names}` in `inject`, in the order in which they
    /// appear.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    /// Of `fields`: no secrets, such as a user name or an account id. They are not masked in
    /// answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub public: Vec<String>,
    /// Headers that are added when the agent sends none of that name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Endpoints that return keys, refused whatever the policies say: `METHOD /path`. `*` matches a
    /// segment, a last `**` any rest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_paths: Vec<String>,
    /// The same by action, for signed services: `AssumeRole*`. Requests whose action cannot be
    /// determined are then refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_actions: Vec<String>,
    /// For `seks env`: the variable, and a template over `{base}`, `{token}`, `{host}`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// A call without side effects that shows whether a key works, for `seks service test`: `GET
    /// /v1/models`. Statuses after it mean a rejected key, besides 401 and 403. A JSON object after
    /// it is the body.
    #[serde(deserialize_with = "text_or_null", skip_serializing_if = "String::is_empty")]
    pub test: String,
    /// Longest wait for the upstream's first byte, such as `10m`. Default: the node's.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub first_byte_timeout: Option<Duration>,
    /// Longest pause within the upstream's answer, such as `10m`. Default: the node's.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Accepts `%2F` in paths.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_encoded_slash: bool,
    /// What paths may hold beyond what every server reads alike: `utf8`, `percent` (`%25`),
    /// `semicolon`, `empty_segment` (`//`), `backslash` (`%5C`), `control` (`%01` to `%1F`, `%7F`),
    /// or `any`, with which `%2F` is accepted too. Default: none; for S3 `any`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_in_paths: Vec<String>,
    /// Methods that are accepted beside `GET`, `HEAD`, `OPTIONS`, `POST`, `PUT`, `PATCH` and
    /// `DELETE`. One that the policy schema doesn't know may name its group: `FETCH:read`,
    /// `STORE:write`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Headers with `_` in their names that are forwarded. All others are dropped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pass_headers: Vec<String>,
    /// Names of cookies that are forwarded. All others are dropped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pass_cookies: Vec<String>,
    /// Accepts `X-HTTP-Method-Override` and its kind on a `POST`. Both methods must be permitted.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_method_override: bool,
    /// Forwards `Range`.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_range: bool,
    /// Permits requests to switch to WebSocket.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_websocket: bool,
    /// The upstream uses only HTTP/2, with prior knowledge over plain `http`, such as gRPC servers.
    #[serde(skip_serializing_if = "is_false")]
    pub http2: bool,
    /// Permits private, loopback and plain-`http` upstreams.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_private: bool,
    /// Forwards `traceparent` and `tracestate`.
    #[serde(skip_serializing_if = "is_false")]
    pub forward_trace_context: bool,
    /// The agent's `traceparent` becomes the parent of the request's span. Without it, the span has
    /// a trace of its own and a link.
    #[serde(skip_serializing_if = "is_false")]
    pub trust_trace_context: bool,
    /// Reads what answers of a model say about tokens: the provider's name, one of
    /// [`PROVIDERS`](crate::PROVIDERS).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub usage: String,
    /// Rewrites URLs of the upstream in JSON and event-stream bodies to URLs of the node.
    #[serde(skip_serializing_if = "is_false")]
    pub rewrite_urls: bool,
    /// Response headers whose URL clients use without a key, such as `x-goog-upload-url`. The node
    /// adds a signature that identifies the token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keyless_urls: Vec<String>,
    /// The upstream is an MCP server: policies see `context.mcp`.
    #[serde(skip_serializing_if = "is_false")]
    pub mcp: bool,
    /// Takes `context.mcp` from the body alone where a request has no `Mcp-Method`, as of clients
    /// before MCP 2026-07-28.
    #[serde(skip_serializing_if = "is_false")]
    pub mcp_without_headers: bool,
    /// Fields of JSON and form bodies that policies may use as `context.body.NAME`, with their
    /// types `Long`, `String`, `Bool` or `decimal`: `amount = "Long"`. A field of an object is
    /// written `"card.number"`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub body_fields: BTreeMap<String, String>,
    /// Only for `seks-interception`: HTTPS_PROXY mode passes connections to hosts of no service
    /// through.
    #[serde(skip_serializing_if = "is_false")]
    pub tunnel_other_hosts: bool,
    /// PEM roots that replace the system's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub upstream_ca_pem: String,
    /// The catalogue entry that it was copied from.
    #[serde(deserialize_with = "text_or_null", skip_serializing_if = "String::is_empty")]
    pub catalogue: String,
    /// Printed by `service show` and ignored here, like the next three keys. So its output can be
    /// applied.
    #[serde(skip_serializing)]
    pub id: IgnoredAny,
    /// Ignored. The command names the tenant.
    #[serde(skip_serializing)]
    pub tenant: IgnoredAny,
    /// Ignored.
    #[serde(skip_serializing)]
    pub created_at: IgnoredAny,
    /// Ignored. It describes `inject` in words.
    #[serde(skip_serializing)]
    pub injection: IgnoredAny,
}

/// `service show` prints `null` for an absent text.
fn text_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::<String>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

impl ServiceSpec {
    /// The wire form with all defaults. Only [`ServiceSpec::to_service`] checks what needs a
    /// definite upstream.
    ///
    /// # Errors
    /// [`ServiceError`], naming the key.
    pub fn to_wire(&self, tenant: &str) -> Result<wire::Service, ServiceError> {
        let injection = self.inject.to_wire();
        if injection.sites.is_empty() && injection.aws_sigv4.is_none() {
            return Err(super::invalid(
                "inject",
                "expected \"bearer\", or a table of header, headers, basic, query, path, aws_sigv4",
            ));
        }
        let fields = if self.fields.is_empty() { inject::field_names(&injection) } else { self.fields.clone() };
        if fields.is_empty() {
            return Err(super::invalid("inject", "it contains no field of the credential, such as {key}"));
        }
        let slots = match self.slots.as_slice() {
            [] => slot::infer_slots(&injection),
            slots => slots.iter().map(|s| slot::parse_slot(s)).collect::<Result<_, _>>()?,
        };
        let millis = |key, time: Option<Duration>| {
            let millis = time.map(|time| u32::try_from(time.as_millis())).transpose();
            millis.map(Option::unwrap_or_default).map_err(|_| super::invalid(key, "at most 49 days"))
        };
        Ok(wire::Service {
            tenant: tenant.into(),
            name: self.name.clone(),
            title: if self.title.is_empty() { self.name.clone() } else { self.title.clone() },
            upstream: self.upstream.clone(),
            base_path: self.base_path.clone(),
            fields,
            injection: Some(injection),
            slots,
            allow_private: self.allow_private,
            private_networks: Vec::new(), // only a fleet owner sets them
            client_ca_pem: String::new(), // the control plane makes it
            upstream_ca_pem: self.upstream_ca_pem.clone(),
            allow_encoded_slash: self.allow_encoded_slash,
            allow_in_paths: self.allow_in_paths.clone(),
            methods: self.methods.clone(),
            pass_headers: self.pass_headers.clone(),
            pass_cookies: self.pass_cookies.clone(),
            allow_method_override: self.allow_method_override,
            allow_range: self.allow_range,
            allow_websocket: self.allow_websocket,
            http2: self.http2,
            forward_trace_context: self.forward_trace_context,
            trust_trace_context: self.trust_trace_context,
            tunnel_other_hosts: self.tunnel_other_hosts,
            usage: self.usage.clone(),
            rewrite_urls: self.rewrite_urls,
            public: self.public.clone(),
            mcp: self.mcp,
            mcp_without_headers: self.mcp_without_headers,
            keyless_urls: self.keyless_urls.clone(),
            body_fields: self.body_fields.clone(),
            first_byte_timeout_ms: millis("first_byte_timeout", self.first_byte_timeout)?,
            idle_timeout_ms: millis("idle_timeout", self.idle_timeout)?,
            denied_paths: self.denied_paths.clone(),
            denied_actions: self.denied_actions.clone(),
            env: self.env.clone(),
            headers: self.headers.clone(),
            created_at: 0,
            deleting: false,
            catalogue: self.catalogue.clone(),
            test: self.test.clone(),
        })
    }

    /// The file with the same effect in which no default is left out.
    #[must_use]
    pub fn with_defaults_written_out(service: &wire::Service) -> Self {
        Self {
            title: service.title.clone(),
            slots: service.slots.iter().map(slot::format_slot).collect(),
            fields: service.fields.clone(),
            ..Self::from(service)
        }
    }

    /// The checked form.
    ///
    /// # Errors
    /// [`ServiceError`], naming the key.
    pub fn to_service(&self, tenant: &str) -> Result<Service, ServiceError> {
        Service::try_from(&self.to_wire(tenant)?)
    }
}

impl From<&wire::Service> for ServiceSpec {
    /// The shortest file with the same effect, for `export` and `show`. Defaults are left out.
    fn from(service: &wire::Service) -> Self {
        let injection = service.injection.clone().unwrap_or_default();
        let (inferred, fields) = (slot::infer_slots(&injection), inject::field_names(&injection));
        Self {
            name: service.name.clone(),
            title: if service.title == service.name { String::new() } else { service.title.clone() },
            upstream: service.upstream.clone(),
            base_path: service.base_path.clone(),
            slots: if service.slots == inferred {
                Vec::new()
            } else {
                service.slots.iter().map(slot::format_slot).collect()
            },
            fields: if service.fields == fields { Vec::new() } else { service.fields.clone() },
            inject: Inject::from_wire(&injection),
            headers: service.headers.clone(),
            denied_paths: service.denied_paths.clone(),
            denied_actions: service.denied_actions.clone(),
            env: service.env.clone(),
            test: service.test.clone(),
            first_byte_timeout: (service.first_byte_timeout_ms > 0)
                .then(|| Duration::from_millis(service.first_byte_timeout_ms.into())),
            idle_timeout: (service.idle_timeout_ms > 0).then(|| Duration::from_millis(service.idle_timeout_ms.into())),
            allow_encoded_slash: service.allow_encoded_slash,
            allow_in_paths: service.allow_in_paths.clone(),
            methods: service.methods.clone(),
            pass_headers: service.pass_headers.clone(),
            pass_cookies: service.pass_cookies.clone(),
            allow_method_override: service.allow_method_override,
            allow_range: service.allow_range,
            allow_websocket: service.allow_websocket,
            http2: service.http2,
            allow_private: service.allow_private,
            forward_trace_context: service.forward_trace_context,
            trust_trace_context: service.trust_trace_context,
            tunnel_other_hosts: service.tunnel_other_hosts,
            usage: service.usage.clone(),
            rewrite_urls: service.rewrite_urls,
            public: service.public.clone(),
            mcp: service.mcp,
            mcp_without_headers: service.mcp_without_headers,
            keyless_urls: service.keyless_urls.clone(),
            body_fields: service.body_fields.clone(),
            upstream_ca_pem: service.upstream_ca_pem.clone(),
            catalogue: service.catalogue.clone(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests;
