//! `control-plane.toml`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use seks_network::address::{Networks, OwnAddresses};
use seks_runtime::telemetry::TelemetryConfig;
use serde::Deserialize;

pub use crate::{
    approval_webhook::ApprovalsConfig,
    authority::{AuthorityConfig, MeshConfig},
    mint::SourcesConfig,
    registry::QuotaConfig,
    trail::TrailConfig,
};
use crate::{distribution::DistributionOptions, seal::SealConfig, store::StoreConfig};

/// The whole file. Unknown keys are errors.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the records are.
    pub store: StoreConfig,
    /// Where the key-encryption key is.
    pub seal: SealConfig,
    /// The CA that signs operators and nodes, and whose certificates count.
    pub authority: AuthorityConfig,
    /// The operators' listener.
    pub admin: AdminConfig,
    /// The nodes' listener, and their leases.
    pub distribution: DistributionConfig,
    /// What operators look at in a browser.
    pub page: PageConfig,
    /// The audit trail of this replica.
    pub audit: TrailConfig,
    /// How token endpoints of minted credentials are reached.
    pub upstream: UpstreamConfig,
    /// Who is told of requests that wait for approval.
    pub approvals: ApprovalsConfig,
    /// What references to secrets may read on this machine.
    pub sources: SourcesConfig,
    /// The private networks of each new tenant, and of those that have none at the start:
    /// `seks dev` alone says any.
    #[serde(skip)]
    pub tenant_networks: Networks,
    /// Addresses of this process that no tenant's upstream may be: beside its own listeners, what
    /// `seks dev` runs.
    #[serde(skip)]
    pub own: OwnAddresses,
    /// How much a tenant may have and do, where nothing else is set for it.
    pub quota: QuotaConfig,
    /// Spans and metrics. `/metrics`, `/healthz` and `/readyz` are served on `metrics_listen`;
    /// default: not at all.
    pub telemetry: TelemetryConfig,
}

impl Config {
    /// `[audit]` with the directory that is the default for the store; `None`: no trail is kept.
    #[must_use]
    pub fn trail(&self) -> Option<TrailConfig> {
        let mut trail = self.audit.clone();
        if trail.dir.as_os_str().is_empty() {
            trail.dir = self.store.trail_dir()?;
        }
        Some(trail)
    }
}

impl Config {
    /// The directories that this process writes to, and what for.
    #[must_use]
    pub fn disks(&self) -> Vec<(&'static str, PathBuf)> {
        let store = self.store.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let store = store.map(|dir| ("store", dir.to_owned()));
        store.into_iter().chain(self.trail().map(|trail| ("audit trail", trail.dir))).collect()
    }
}

/// `[upstream]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamConfig {
    /// Private networks that this process may dial for a tenant that was given them as well.
    /// Default: none.
    pub private_networks: Networks,
}

/// `[admin]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Default: `127.0.0.1:8301`. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// DNS names and addresses by which operators and nodes reach this replica, for its
    /// certificates. The listen addresses, `localhost` and `seks-control-plane` are always in them.
    /// Default: none.
    pub names: Vec<String>,
    /// Where agents reach the proxy, for the answer to `token issue`. Default: not said.
    pub proxy_url: String,
    /// A certificate from elsewhere. Default: one of our own CA, renewed while running.
    pub tls: ListenerTlsConfig,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8301)),
            names: Vec::new(),
            proxy_url: String::new(),
            tls: ListenerTlsConfig::default(),
        }
    }
}

/// `[page]`: a read-only page for operators' browsers. They open it with a one-time link of
/// `seks page`, or show an operator's certificate.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PageConfig {
    /// Default: none, and there is no page. Port 0 picks a free one.
    pub listen: Option<SocketAddr>,
    /// The origin at which browsers reach it, such as `https://seks.example:8304`. Default: the
    /// first of `admin.names`, or the address, with the port.
    pub url: String,
    /// A certificate from elsewhere, that browsers know. Default: one of our own CA, renewed while
    /// running.
    pub tls: ListenerTlsConfig,
    /// Without TLS, on a loopback address: `seks dev` alone says so.
    #[serde(skip)]
    pub is_plain: bool,
}

/// `[admin.tls]`, `[distribution.tls]` and `[page.tls]`: PEM files. Read again within 5 s when they
/// change, and on `SIGHUP`, so that a renewed certificate is taken up without a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerTlsConfig {
    /// The certificate and what is needed to chain it to a root.
    pub cert_file: PathBuf,
    /// Its key. Must not be readable by others.
    pub key_file: PathBuf,
}

impl ListenerTlsConfig {
    /// Whether nothing is said, and so our own CA signs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cert_file.as_os_str().is_empty() && self.key_file.as_os_str().is_empty()
    }
}

/// `[distribution]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistributionConfig {
    /// Default: `127.0.0.1:8303`. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// A certificate from elsewhere. Default: one of our own CA, renewed while running.
    pub tls: ListenerTlsConfig,
    /// How long a node serves without hearing from a control plane. Default: 10 s; 2 s to 60 s.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// Nodes that load a snapshot at the same time; more wait. Default: 32.
    pub max_snapshots: usize,
    /// How often the replica's table is compared with the store. Default: 60 s; a large store is
    /// listed less often.
    #[serde(with = "humantime_serde")]
    pub verify_every: Duration,
}

impl Default for DistributionConfig {
    fn default() -> Self {
        let DistributionOptions { lease, max_snapshots, verify_every, .. } = DistributionOptions::default();
        let listen = SocketAddr::from(([127, 0, 0, 1], 8303));
        Self { listen, tls: ListenerTlsConfig::default(), lease, max_snapshots, verify_every }
    }
}
