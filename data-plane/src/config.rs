//! What a node can be told: `data-plane.toml`, `SEKS_…` variables and flags, merged by
//! [`seks_runtime::config`].
//!
//! Every value has a default that is safe to serve with; a key that doesn't exist is an error.
//! Sizes are in bytes, times are written as `10s` or `500ms`.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use seks_network::address::{Networks, OwnAddresses};
use seks_runtime::telemetry::TelemetryConfig;
use seks_usage::Prices;
use serde::Deserialize;

pub use crate::http::server::TlsConfig;
use crate::http::server::{self, HeadLimits};

/// The whole configuration of a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who this node is.
    pub node: NodeConfig,
    /// Where its tables come from.
    pub control: ControlConfig,
    /// What agents connect to.
    pub proxy: ProxyConfig,
    /// HTTPS_PROXY mode; absent: not offered.
    pub forward_proxy: Option<ForwardProxyConfig>,
    /// How upstreams are reached.
    pub upstream: UpstreamConfig,
    /// Whether a request may go unrecorded.
    pub audit: AuditConfig,
    /// What models cost.
    pub usage: UsageConfig,
    /// Where spans and metrics go.
    pub telemetry: TelemetryConfig,
    /// Addresses of this process that no upstream may be: beside its own listeners and control
    /// planes, what `seks dev` runs.
    #[serde(skip)]
    pub own: OwnAddresses,
}

/// `[usage]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UsageConfig {
    /// A file of prices (`deploy/examples/prices.toml`), read at the start. Default: none, and
    /// requests that a limit of money is about are refused.
    pub prices: Option<PathBuf>,
    /// What the file says.
    #[serde(skip)]
    pub(crate) loaded: Option<Arc<Prices>>,
}

impl UsageConfig {
    /// Reads the file of prices.
    ///
    /// # Errors
    /// It cannot be read, or is no file of prices.
    pub(crate) fn load(&mut self) -> Result<(), ConfigError> {
        let Some(path) = &self.prices else { return Ok(()) };
        let named =
            |error: &dyn std::fmt::Display| ConfigError::new("usage.prices", format!("{}: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| named(&error))?;
        self.loaded = Some(Arc::new(Prices::parse(&text).map_err(|error| named(&error))?));
        Ok(())
    }
}

/// `[node]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// The node's name; empty: the control plane picks one when it joins.
    pub name: String,
    /// The region it reports. Default: `local`.
    pub region: String,
    /// Holds the node's identity (key and certificate), the highest revision that it has seen
    /// (`mark.json`), and the audit spool (`audit/`, up to `[audit] spool_bytes`).
    pub data_dir: PathBuf,
    /// A mesh's certificate for this node (`seks node enroll --spiffe-id ID --name NAME`), instead
    /// of enrolling.
    pub svid: Option<SvidConfig>,
}

/// `[node.svid]`: PEM files that the mesh replaces; read again every 5 s.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SvidConfig {
    /// The certificate, and what is needed to chain it to the mesh's CA.
    pub cert_file: PathBuf,
    /// Its key. Must not be readable by others.
    pub key_file: PathBuf,
}

/// `[control]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// Control planes (`https://host:port`), nearest first; the node fails over between them.
    pub endpoints: Vec<String>,
    /// A one-time join token (`seks node enroll`), read when `data_dir` holds no identity.
    pub join_token_file: Option<PathBuf>,
    /// PEM roots that a control plane's certificate must chain to before the node has its own copy.
    pub ca_file: Option<PathBuf>,
}

/// `[proxy]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// Where agents connect. Default: `127.0.0.1:8300`.
    pub listen: SocketAddr,
    /// Serve TLS instead of plain HTTP.
    pub tls: Option<TlsConfig>,
    /// Host names that agents may use. Beside these `localhost` and the address it listens on are
    /// always accepted.
    pub hosts: Vec<String>,
    /// Balancers (`ADDRESS/PREFIX`) that pass agents' connections on with a PROXY protocol header,
    /// version 1 or 2. Each of their connections must begin with one, in front of TLS. Its source
    /// counts as the agent's address. Holds for `[forward_proxy]`, too. Default: none.
    pub proxy_protocol_from: Networks,
    /// Host mode: `SERVICE.SUFFIX` is the service `SERVICE`, for SDKs whose base URL can't have a
    /// path. TLS takes a certificate for `*.SUFFIX`.
    pub host_suffix: Option<String>,
    /// Bounds on what an agent can take.
    pub limits: Limits,
}

/// `[forward_proxy]`: a listener of its own, with the limits of `[proxy]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardProxyConfig {
    /// Where agents' `HTTPS_PROXY` points.
    pub listen: SocketAddr,
    /// The tenant of a CONNECT without `Proxy-Authorization`. The requests inside the tunnel must
    /// then contain a token. Default: none, and such a CONNECT is refused.
    #[serde(default)]
    pub tenant: Option<String>,
}

/// `[proxy.limits]`: limits that apply before and after a request is identified.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest request head. Default: 32 KiB.
    pub header_bytes: usize,
    /// Most fields in a head. Default: 100.
    pub header_fields: usize,
    /// Longest request target. Default: 8 KiB.
    pub uri_bytes: usize,
    /// Largest request body. Default: 1 GiB: bodies stream, so this costs no memory.
    pub body_bytes: u64,
    /// Largest body that a policy looks into; a larger one is denied. Default: 1 MiB.
    pub inspect_bytes: usize,
    /// Largest body that is read whole to verify an AWS signature. Default: 16 MiB. A body whose
    /// hash is in the head, or that is not signed, is streamed.
    pub signed_bytes: usize,
    /// Bytes of bodies that the node holds at once, for policies that look into them and signatures
    /// that cover them. Default: 256 MiB.
    pub buffered_bytes: usize,
    /// The most of `buffered_bytes` that one tenant's requests take. Default: 64 MiB.
    pub tenant_buffered_bytes: usize,
    /// How long a body waits for room in these; then it is refused with 503. Default: 2 s.
    #[serde(with = "humantime_serde")]
    pub buffer_wait: Duration,
    /// A head must be complete this long after its connection or its first byte. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// A TLS handshake must be done in this time. Default: 5 s.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// An agent that is to send or to read must move at least 256 bytes in this time. Default: 30
    /// s.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// A connection without a request is closed after this. Default: 60 s.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// Most connections at once, of each listener. Beyond that the oldest gives way that has shown
    /// no valid token yet, then the oldest idle one; while all are busy, new ones wait in the
    /// kernel's queue. Of one source address at most an eighth of these, and 64 at least, may be
    /// without a valid token. Each needs two file descriptors: what the limit of open files doesn't
    /// allow is not served, and a warning says so at start. Default: 50,000.
    pub max_connections: usize,
    /// Most streams of one HTTP/2 connection. Default: 100.
    pub max_streams: u32,
    /// Most requests of one token in flight. Default: 256. A tenant may have three times as many
    /// requests, tunnels and WebSockets in flight as are free of `max_connections`, and always 64,
    /// unless the node serves that tenant alone.
    pub max_in_flight: u32,
    /// Requests a second without a known token that one source (IPv4 address, IPv6 /64) is answered
    /// with `401`; ten times that at once. The rest get `429`. Default: 50.
    pub wrong_tokens_per_second: u32,
    /// How long the node serves on after SIGTERM while `/readyz` already fails, so that load
    /// balancers have removed it before the listener closes. Default: 0 s; at most 5 min.
    #[serde(with = "humantime_serde")]
    pub drain_delay: Duration,
    /// How long requests in flight may take to finish after SIGTERM and `drain_delay`. Default: 30
    /// s.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
}

/// `[upstream]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamConfig {
    /// Resolving, connecting and the TLS handshake together. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// From the last byte of a request's head to the first byte of the answer, where the service
    /// doesn't say. Default: 60 s.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Longest silence within an answer's body. Default: 5 min: models think long between two
    /// events.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How long an unused connection is kept. Default: 60 s.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// How long a request may go on whose credential was replaced after it began; it is cut then.
    /// Default: until it ends, and the replaced credential is in the node's memory as long.
    #[serde(with = "humantime_serde")]
    pub replaced_credential_grace: Option<Duration>,
    /// Most unused connections kept for one credential of one service. Default: 128.
    pub max_idle: usize,
    /// Most unused connections kept for all services of one tenant; beyond that they are closed
    /// instead. Default: 512.
    pub tenant_max_idle: usize,
    /// PEM roots trusted beside the machine's, for every service without its own.
    pub ca_file: Option<PathBuf>,
    /// Private networks (`ADDRESS/PREFIX`) that upstreams may be in, where the service's tenant was
    /// given them as well. This machine's own addresses take loopback (`127.0.0.0/8` or `::1/128`)
    /// too. Default: none.
    pub private_networks: Networks,
    /// Name servers (`192.0.2.53:53`) to ask instead of those in `/etc/resolv.conf`. Default: none.
    /// `/etc/hosts` counts either way.
    pub name_servers: Vec<SocketAddr>,
    /// How long looking up a name may take. Default: 5 s.
    #[serde(with = "humantime_serde")]
    pub resolve_timeout: Duration,
}

/// `[audit]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// What happens when a request can't be recorded.
    pub mode: AuditMode,
    /// Most bytes of records in `data_dir` that no control plane has taken. Default: 1 GiB, about 3
    /// million requests; 16 MiB to 1 TiB.
    pub spool_bytes: u64,
    /// Records that no control plane has taken for this long are removed. Default: 30 days; 1 hour
    /// to 1 year.
    #[serde(with = "humantime_serde")]
    pub spool_age: Duration,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { mode: AuditMode::default(), spool_bytes: 1 << 30, spool_age: Duration::from_secs(30 * 24 * 3600) }
    }
}

/// What happens when a request can't be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditMode {
    /// It is served and counted in `seks_audit_dropped_total`.
    #[default]
    BestEffort,
    /// It is refused with `audit_unavailable`.
    Required,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { name: String::new(), region: "local".into(), data_dir: "seks-node".into(), svid: None }
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8300)),
            tls: None,
            proxy_protocol_from: Networks::default(),
            hosts: Vec::new(),
            host_suffix: None,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 32 << 10,
            header_fields: 100,
            uri_bytes: 8 << 10,
            body_bytes: 1 << 30,
            inspect_bytes: 1 << 20,
            signed_bytes: 16 << 20,
            buffered_bytes: 256 << 20,
            tenant_buffered_bytes: 64 << 20,
            buffer_wait: Duration::from_secs(2),
            header_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(60),
            max_connections: 50_000,
            max_streams: 100,
            max_in_flight: 256,
            wrong_tokens_per_second: 50,
            drain_delay: Duration::ZERO,
            drain: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// Those that a listener enforces.
    #[must_use]
    pub fn of_listener(&self) -> server::Limits {
        server::Limits {
            balancers: server::Balancers::default(),
            head: HeadLimits { bytes: self.header_bytes, fields: self.header_fields, uri: self.uri_bytes },
            header_timeout: self.header_timeout,
            handshake_timeout: self.handshake_timeout,
            idle_timeout: self.idle_timeout,
            keep_alive: self.keep_alive,
            max_connections: self.max_connections,
            max_streams: self.max_streams,
            drain: self.drain,
        }
    }
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(300),
            keep_alive: Duration::from_secs(60),
            replaced_credential_grace: None,
            max_idle: 128,
            tenant_max_idle: 512,
            ca_file: None,
            private_networks: Networks::default(),
            name_servers: Vec::new(),
            resolve_timeout: Duration::from_secs(5),
        }
    }
}

/// Why a configuration is not one. The message names the key.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct ConfigError {
    key: &'static str,
    reason: String,
}

impl ConfigError {
    pub(crate) fn new(key: &'static str, reason: impl Into<String>) -> Self {
        Self { key, reason: reason.into() }
    }
}

fn fail(key: &'static str, reason: &str) -> Result<(), ConfigError> {
    Err(ConfigError::new(key, reason))
}

impl Config {
    /// Checks what the types can't: names, ranges and files that must be there.
    ///
    /// # Errors
    /// The first key that is wrong, and why.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_names()?;
        self.check_limits()?;
        self.check_times()
    }

    fn check_names(&self) -> Result<(), ConfigError> {
        if !self.node.name.is_empty() && !seks_types::id::is_name(&self.node.name) {
            return fail("node.name", "1 to 63 of a-z, 0-9 and `-`");
        }
        if !seks_types::id::is_name(&self.node.region) {
            return fail("node.region", "1 to 63 of a-z, 0-9 and `-`");
        }
        if let Some(bad) = self.proxy.hosts.iter().find(|h| !is_host(h)) {
            return fail("proxy.hosts", &format!("`{bad}` is no host name: lower case, without scheme, port or path"));
        }
        let suffix = self.proxy.host_suffix.as_deref();
        if suffix.is_some_and(|s| !is_host(s) || s.parse::<std::net::IpAddr>().is_ok() || s.starts_with('[')) {
            return fail("proxy.host_suffix", "a domain in lower case, such as `broker.example`");
        }
        let tenant = self.forward_proxy.as_ref().and_then(|f| f.tenant.as_deref());
        if tenant.is_some_and(|t| !seks_types::id::is_name(t)) {
            return fail("forward_proxy.tenant", "1 to 63 of a-z, 0-9 and `-`");
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        let limits = &self.proxy.limits;
        if !(1024..=1 << 20).contains(&limits.header_bytes) {
            return fail("proxy.limits.header_bytes", "1,024 to 1,048,576");
        }
        if !(1..=1000).contains(&limits.header_fields) {
            return fail("proxy.limits.header_fields", "1 to 1,000");
        }
        if limits.uri_bytes == 0 || limits.uri_bytes > limits.header_bytes {
            return fail("proxy.limits.uri_bytes", "1 to header_bytes");
        }
        if limits.max_connections == 0 || limits.max_streams == 0 || limits.max_in_flight == 0 {
            return fail("proxy.limits", "max_connections, max_streams and max_in_flight are at least 1");
        }
        if !(1..=1_000_000).contains(&limits.wrong_tokens_per_second) {
            return fail("proxy.limits.wrong_tokens_per_second", "1 to 1,000,000");
        }
        if !(16 << 20..=1 << 40).contains(&self.audit.spool_bytes) {
            return fail("audit.spool_bytes", "16 MiB to 1 TiB, in bytes");
        }
        let largest = limits.inspect_bytes.max(limits.signed_bytes);
        if limits.tenant_buffered_bytes < largest || limits.buffered_bytes < limits.tenant_buffered_bytes {
            return fail(
                "proxy.limits.tenant_buffered_bytes",
                "at least inspect_bytes and signed_bytes, and at most buffered_bytes",
            );
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let limits = &self.proxy.limits;
        if limits.drain_delay > Duration::from_secs(300) {
            return fail("proxy.limits.drain_delay", "at most 5min");
        }
        if !(Duration::from_secs(3600)..=Duration::from_secs(366 * 24 * 3600)).contains(&self.audit.spool_age) {
            return fail("audit.spool_age", "1 hour to 1 year");
        }
        for (key, time) in [
            ("proxy.limits.header_timeout", limits.header_timeout),
            ("proxy.limits.handshake_timeout", limits.handshake_timeout),
            ("proxy.limits.idle_timeout", limits.idle_timeout),
            ("proxy.limits.keep_alive", limits.keep_alive),
            ("upstream.connect_timeout", self.upstream.connect_timeout),
            ("upstream.request_timeout", self.upstream.request_timeout),
            ("upstream.resolve_timeout", self.upstream.resolve_timeout),
            ("proxy.limits.buffer_wait", limits.buffer_wait),
            ("upstream.idle_timeout", self.upstream.idle_timeout),
            ("upstream.keep_alive", self.upstream.keep_alive),
        ] {
            if time.is_zero() || time > Duration::from_secs(24 * 3600) {
                return fail(key, "more than 0 and at most 24 hours");
            }
        }
        Ok(())
    }

    /// [`Config::check`], and that there is a control plane to connect to.
    ///
    /// # Errors
    /// [`ConfigError`] names the key.
    pub fn check_for_node(&self) -> Result<(), ConfigError> {
        self.check()?;
        match self.control.endpoints.is_empty() {
            true => Err(ConfigError::new("control.endpoints", "at least one `https://host:port`")),
            false => Ok(()),
        }
    }
}

/// A host name or address as in `Host`, without the port.
fn is_host(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok();
    address || (host.len() <= 253 && host.split('.').all(seks_types::id::is_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_example_is_read() {
        let config: Config = toml::from_str(
            r#"
            [node]
            name = "edge-1"
            region = "eu"
            data_dir = "/var/lib/seks"
            [control]
            endpoints = ["https://cp.example:8303"]
            join_token_file = "/etc/seks/join"
            [proxy]
            listen = "0.0.0.0:8300"
            hosts = ["broker.example"]
            tls = { cert_file = "c.pem", key_file = "k.pem" }
            proxy_protocol_from = ["10.1.0.0/24"]
            limits = { header_bytes = 16384, idle_timeout = "10s" }
            [upstream]
            connect_timeout = "3s"
            private_networks = ["10.0.0.0/8"]
            [audit]
            mode = "required"
            [telemetry]
            otlp_endpoint = "http://collector:4317"
            "#,
        )
        .unwrap();
        config.check().unwrap();
        assert_eq!(config.audit.mode, AuditMode::Required);
        assert_eq!(config.proxy.limits.idle_timeout, Duration::from_secs(10));
        assert_eq!(config.proxy.limits.max_connections, 50_000);
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused_by_name() {
        assert!(UpstreamConfig::default().private_networks.is_empty());
        for text in [
            "[upstream]\nprivate_networks = ['10.0.0.1/8']",
            "[node]\nnmae = 'x'",
            "[proxy]\nlisten = 8300",
            "[audit]\nmode = 'maybe'",
            "[prxy]",
        ] {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
        for (text, key) in [
            ("[node]\nname = 'A B'", "node.name"),
            ("[proxy]\nhosts = ['https://x']", "proxy.hosts"),
            ("[proxy]\nhost_suffix = '*.x'", "proxy.host_suffix"),
            ("[proxy]\nhost_suffix = '10.0.0.1'", "proxy.host_suffix"),
            ("[proxy.limits]\nheader_bytes = 1", "proxy.limits.header_bytes"),
            ("[upstream]\nconnect_timeout = '0s'", "upstream.connect_timeout"),
        ] {
            let error = toml::from_str::<Config>(text).unwrap().check().unwrap_err();
            assert!(error.to_string().starts_with(key), "{error}");
        }
    }
}
