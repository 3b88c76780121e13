//! The configurations of both planes, derived from the options of `seks dev`.

use std::net::{Ipv4Addr, SocketAddr};

use seks_control_plane::{Config as ControlConfig, config as control};
use seks_data_plane::{Config as NodeConfig, Node, config as node};
use seks_network::address::{Networks, OwnAddresses};
use seks_runtime::{config::Loader, telemetry::TelemetryConfig};
use serde::Deserialize;

use super::data_dir::DataDir;
use crate::{
    commands::dev::args::DevArgs,
    error::{CliError, Result},
};

/// The port of the page, unless it is taken.
const PAGE_PORT: u16 = 8304;

/// `--config FILE`: the supported sections of `data-plane.toml`. `seks dev` sets all others itself.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DevConfig {
    proxy: node::ProxyConfig,
    forward_proxy: Option<node::ForwardProxyConfig>,
    upstream: node::UpstreamConfig,
    audit: node::AuditConfig,
    usage: node::UsageConfig,
    telemetry: TelemetryConfig,
    /// The listeners of both planes, which neither dials.
    #[serde(skip)]
    own: OwnAddresses,
}

impl DevConfig {
    /// Reads file, environment and flags.
    ///
    /// # Errors
    /// Exit code 2: the file, the key and the reason.
    pub(crate) fn load(args: &DevArgs) -> Result<Self> {
        let text = |address: &SocketAddr| address.to_string();
        let mut config: Self = Loader::new()
            .file(args.config.as_deref())
            .process_environment()
            .flag("proxy.listen", args.proxy_listen.as_ref().map(text))
            .flag("forward_proxy.listen", args.forward_proxy_listen.as_ref().map(text))
            .flag("telemetry.metrics_listen", args.metrics_listen.as_ref().map(text))
            .load()
            .map_err(|e| {
                let at = if e.key.is_empty() { e.origin.to_string() } else { format!("{}: {}", e.origin, e.key) };
                CliError::usage(at, e.reason)
            })?;
        config.proxy.hosts.extend(args.host.iter().cloned());
        if config.upstream.private_networks.is_empty() {
            config.upstream.private_networks = Networks::loopback_and_lan();
        }
        config.check(args)?;
        Ok(config)
    }

    /// What the types cannot check: before anything listens, and before a data directory is made.
    fn check(&self, args: &DevArgs) -> Result<()> {
        let node = NodeConfig {
            proxy: self.proxy.clone(),
            forward_proxy: self.forward_proxy.clone(),
            upstream: self.upstream.clone(),
            audit: self.audit,
            usage: self.usage.clone(),
            telemetry: self.telemetry.clone(),
            ..Default::default()
        };
        Node::check(&node).map_err(|error| {
            let text = error.to_string();
            let (key, reason) = text.split_once(": ").unwrap_or(("configuration", &text));
            match &args.config {
                Some(file) => CliError::usage(format!("{}: {key}", file.display()), reason),
                None => CliError::usage(key, reason),
            }
        })
    }

    /// Whether agents speak TLS to the proxy.
    pub(crate) fn proxy_scheme(&self) -> &'static str {
        if self.proxy.tls.is_some() { "https" } else { "http" }
    }

    /// The telemetry of both planes.
    pub(crate) fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    /// The control plane's configuration: the embedded store, and a distribution listener on any
    /// loopback port.
    pub(crate) fn control(&self, args: &DevArgs, dir: &DataDir) -> ControlConfig {
        ControlConfig {
            store: seks_control_plane::store::StoreConfig::embedded(dir.store()),
            seal: seks_control_plane::seal::SealConfig::file(dir.kek()),
            admin: control::AdminConfig { listen: args.admin_listen, ..Default::default() },
            page: control::PageConfig { listen: Some(page_address(args)), is_plain: true, ..Default::default() },
            distribution: control::DistributionConfig {
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                ..Default::default()
            },
            upstream: control::UpstreamConfig { private_networks: self.upstream.private_networks.clone() },
            tenant_networks: self.upstream.private_networks.clone(),
            own: self.own.clone(),
            ..Default::default()
        }
    }

    /// The node's configuration. It joins that control plane like any node.
    pub(crate) fn node(self, name: String, distribution: SocketAddr, dir: &DataDir) -> NodeConfig {
        NodeConfig {
            node: node::NodeConfig { name, data_dir: dir.node(), ..Default::default() },
            control: node::ControlConfig {
                endpoints: vec![format!("https://{distribution}")],
                join_token_file: Some(dir.join_token()),
                ..Default::default()
            },
            proxy: self.proxy,
            forward_proxy: self.forward_proxy,
            upstream: self.upstream,
            audit: self.audit,
            usage: self.usage,
            telemetry: self.telemetry,
            own: self.own,
        }
    }
}

/// The page's address: the requested one, the usual one, or any free one where that is taken.
fn page_address(args: &DevArgs) -> SocketAddr {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, PAGE_PORT));
    let is_free = || std::net::TcpListener::bind(usual).is_ok();
    match args.page_listen {
        Some(address) => address,
        None if args.admin_listen.port() != 0 && is_free() => usual,
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}
