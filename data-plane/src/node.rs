//! A node: the proxy, its health listener and the stream that keeps its table.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use seks_network::address::OwnAddresses;
use seks_protocol::SessionError;
use seks_runtime::{
    DedicatedRuntime, Exit, descriptors,
    exit::is_machines_fault,
    memory_release::release_after_deletes,
    run_blocking,
    telemetry::{Telemetry, TelemetryError},
};
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, ConfigError, SvidConfig},
    health::Health,
    http::server::{self, Balancers, ListenError, Listener},
    pipeline::{
        audit::{Audit, AuditError},
        route::ProxyMode,
    },
    proxy::{Proxy, ProxyHandler},
    span_export::SpanExport,
    spans::SpanNode,
    spool::{OpenSpoolError, Spool},
    sync::{
        EnrolError, Identity, Runtimes, Sync, SyncConfig,
        enrol::{self, EnrolConfig},
    },
    table::{Table, WallClock},
    telemetry::{Metrics, TableState},
    upstream::{CaFileError, check_ca_file},
};

/// Where health and metrics are served unless `telemetry.metrics_listen` says otherwise.
pub const METRICS_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8302);
/// How often tombstones and unused parts of the table are thrown away.
const TABLE_SWEEP: Duration = Duration::from_secs(60);
/// How often the names of the control planes are resolved again.
const CONTROL_PLANES_EVERY: Duration = Duration::from_secs(60);
/// How often `ready` looks.
const READY_POLL: Duration = Duration::from_millis(5);

/// A running node. Dropping it stops it at once; [`Node::shutdown`] lets requests in flight finish.
pub struct Node {
    proxy_addr: SocketAddr,
    forward_addr: Option<SocketAddr>,
    metrics_addr: SocketAddr,
    table: Arc<Table>,
    health: Health,
    /// Not ready any more: load balancers send nothing new.
    lame_duck: CancellationToken,
    /// How long it serves as a lame duck.
    drain_delay: Duration,
    /// Accepts nothing more.
    stop: CancellationToken,
    end: CancellationToken,
    serving: Option<JoinHandle<()>>,
    sync: Option<Sync>,
    spool: Option<Spool>,
    export: Option<SpanExport>,
    threads: Threads,
}

/// Threads that nothing of a tenant runs on: requests, however many and however costly, delay
/// neither lease nor revocation.
struct Threads {
    /// The stream to the control plane, and applying what it brings.
    sync: DedicatedRuntime,
    /// The end of the lease.
    lease: DedicatedRuntime,
}

impl Threads {
    fn start() -> Result<Self, StartError> {
        let start = |name| DedicatedRuntime::start(name).map_err(StartError::Thread);
        Ok(Self { sync: start("seks-sync")?, lease: start("seks-lease")? })
    }
}

/// Why a node can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A value in the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The agents' listener.
    #[error("proxy.{0}")]
    Listen(#[from] ListenError),
    /// The listener of HTTPS_PROXY mode.
    #[error("forward_proxy.{0}")]
    ForwardListen(#[source] ListenError),
    /// The health listener.
    #[error("telemetry.metrics_listen: cannot listen on {address}: {source}")]
    Metrics {
        /// The address that was configured.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// The extra roots.
    #[error("upstream.ca_file: {0}")]
    CaFile(#[from] CaFileError),
    /// The audit trail.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The spool of audit records.
    #[error("node.data_dir: audit: {0}")]
    Spool(#[from] OpenSpoolError),
    /// Telemetry.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The roots of the control planes.
    #[error("control.ca_file: `{path}`: {source}")]
    ControlCa {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// There is no identity to be had.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The memory key.
    #[error("table: {0}")]
    Table(#[from] SessionError),
    /// No thread for lease or stream.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

impl StartError {
    /// The process's exit code: 2 for what the configuration has wrong, 4 for an identity that is
    /// refused, 6 for a control plane that isn't the one, 1 for a condition of the machine, such as
    /// a full disk.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            fault if is_machines_fault(fault) => Exit::Failed,
            Self::Enrol(EnrolError::Refused(_) | EnrolError::Expired { .. }) => Exit::NotPermitted,
            Self::Enrol(EnrolError::OtherCa(_) | EnrolError::Unreachable(_)) => Exit::Unreachable,
            Self::Thread(_) => Exit::Failed,
            _ => Exit::Usage,
        }
    }
}

/// A configuration with the identity that a control plane or a mesh has given the node.
pub struct Enrolled {
    config: Config,
    enrolment: EnrolConfig,
    identity: Identity,
}

impl Enrolled {
    /// Reads the node's identity, or enrols where it has none yet. Waits until a control plane
    /// answers. Dropping the future leaves nothing running.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn obtain(mut config: Config) -> Result<Self, StartError> {
        config.check_for_node()?;
        let enrolment = enrolment(&config)?;
        let identity = match &config.node.svid {
            Some(svid) => of_mesh(&config, svid, &enrolment)?,
            None => enrol::obtain(&enrolment).await?,
        };
        config.node.name = identity.node().into();
        if !identity.region().is_empty() {
            config.node.region = identity.region().into();
        }
        Ok(Self { config, enrolment, identity })
    }

    /// The name that the node is enrolled with.
    #[must_use]
    pub fn name(&self) -> &str {
        self.identity.node()
    }
}

impl Node {
    /// Checks a configuration and the files that it names, without starting anything.
    ///
    /// # Errors
    /// [`StartError`], with the key.
    pub fn check(config: &Config) -> Result<(), StartError> {
        config.check()?;
        if let Some(tls) = &config.proxy.tls {
            server::check_tls(tls).map_err(ListenError::from)?;
        }
        Ok(check_ca_file(config.upstream.ca_file.as_deref())?)
    }

    /// Starts a node: it enrols where it has no identity yet, listens, and serves as soon as a
    /// control plane has given it a table and a lease.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(config: Config, telemetry: Telemetry) -> Result<Self, StartError> {
        Self::start_enrolled(Enrolled::obtain(config).await?, telemetry).await
    }

    /// [`Node::start`] with an identity.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start_enrolled(enrolled: Enrolled, telemetry: Telemetry) -> Result<Self, StartError> {
        let Enrolled { config, enrolment, identity } = enrolled;
        let (data_dir, audit, exports) = (config.node.data_dir.clone(), config.audit, telemetry.is_enabled());
        let opened = run_blocking(move || Spool::open(&data_dir, &audit, exports)).await;
        let spool = opened.map_err(|error| StartError::Thread(io::Error::other(error)))??;
        let certificate_end = Arc::new(AtomicI64::new(identity.validity().map_or(0, |(_, until)| until)));
        let sync = SyncConfig {
            endpoints: enrolment.endpoints,
            roots_pem: enrolment.roots_pem,
            region: config.node.region.clone(),
            audit: Some(telemetry.queue().clone()),
            certificate_end: certificate_end.clone(),
            spool: Some(spool.clone()),
            ..SyncConfig::default()
        };
        let table = Arc::new(Table::new()?);
        let (own, endpoints) = (config.own.clone(), config.control.endpoints.clone());
        let own_end = Some(certificate_end);
        let mut node = Self::serving(config, telemetry, table.clone(), (Some(spool), own_end)).await?;
        tokio::spawn(node.end.clone().run_until_cancelled_owned(know_control_planes(own, endpoints)));
        let runtimes = Runtimes { stream: node.threads.sync.handle(), lease: node.threads.lease.handle() };
        node.sync = Some(Sync::start_on(sync, identity, table, runtimes));
        Ok(node)
    }

    /// Starts a node that serves from `table` and leaves filling it to the caller.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn with_table(config: Config, telemetry: Telemetry, table: Arc<Table>) -> Result<Self, StartError> {
        Self::serving(config, telemetry, table, (None, None)).await
    }

    /// The same, with a spool for audit records. The caller has given it a key.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn with_spool(
        config: Config,
        telemetry: Telemetry,
        table: Arc<Table>,
        spool: Spool,
    ) -> Result<Self, StartError> {
        Self::serving(config, telemetry, table, (Some(spool), None)).await
    }

    async fn serving(
        mut config: Config,
        telemetry: Telemetry,
        table: Arc<Table>,
        (spool, own_end): (Option<Spool>, Option<Arc<AtomicI64>>),
    ) -> Result<Self, StartError> {
        config.check()?;
        let (lame_duck, end) = (CancellationToken::new(), CancellationToken::new());
        let stop = CancellationToken::new();
        let drain_delay = config.proxy.limits.drain_delay;
        let state = table.clone();
        let metrics = Metrics::new(telemetry.queue().clone(), move || table_state(&state));
        if let Some(spool) = spool.clone() {
            metrics.count_spool(move || spool.state());
        }
        afford_connections(&mut config);
        let Listeners { proxy: listener, forward } = Listeners::bind(&config, &metrics).await?;
        let (proxy_addr, forward_addr) = (listener.address(), forward.as_ref().map(Listener::address));
        let proxy_end = listener.certificate_end();
        metrics.certificates(move || {
            let own = own_end.as_ref().map(|end| ("node", end.load(Relaxed)));
            own.into_iter().chain(proxy_end().map(|end| ("proxy", end))).collect()
        });
        config.proxy.listen = proxy_addr;
        let node = SpanNode { name: config.node.name.as_str().into(), port: proxy_addr.port() };
        let sender = telemetry.sender();
        let sink = (telemetry, spool.clone());
        config.usage.load()?;
        let audit = Audit::new(sink, metrics.clone(), config.audit.mode, node.clone(), &config.node.region)?;
        let own = config.own.clone();
        let listen = config.telemetry.metrics_listen.unwrap_or(METRICS_LISTEN);
        let proxy = Arc::new(Proxy::new(table.clone(), audit, config)?);
        let health = Health::new(table.clone(), metrics.clone(), lame_duck.clone());
        let metrics_addr = health
            .clone()
            .start(listen, end.clone())
            .map_err(|source| StartError::Metrics { address: listen, source })?;
        own.add(metrics_addr);

        let export = spool.clone().zip(sender).map(|(spool, sender)| SpanExport::start(spool, sender, node));
        let threads = Threads::start()?;
        threads.sync.handle().spawn(end.clone().run_until_cancelled_owned(sweep(table.clone(), metrics)));
        let runtimes = vec![Handle::current(), threads.sync.handle().clone(), threads.lease.handle().clone()];
        tokio::spawn(end.clone().run_until_cancelled_owned(release_after_deletes(runtimes)));
        let serving = tokio::spawn(serve(listener, forward, proxy, stop.clone()));
        Ok(Self {
            proxy_addr,
            forward_addr,
            metrics_addr,
            table,
            health,
            lame_duck,
            drain_delay,
            stop,
            end,
            serving: Some(serving),
            sync: None,
            spool,
            export,
            threads,
        })
    }

    /// Where agents connect.
    #[must_use]
    pub fn proxy_addr(&self) -> SocketAddr {
        self.proxy_addr
    }

    /// Where agents' `HTTPS_PROXY` points, where that is offered.
    #[must_use]
    pub fn forward_addr(&self) -> Option<SocketAddr> {
        self.forward_addr
    }

    /// Where `/healthz`, `/readyz` and `/metrics` are.
    #[must_use]
    pub fn metrics_addr(&self) -> SocketAddr {
        self.metrics_addr
    }

    /// The node's metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        self.health.metrics()
    }

    /// What it serves from.
    #[must_use]
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Waits until it has a table and a valid lease.
    pub async fn ready(&self) {
        while !self.health.is_ready() {
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Is not ready from now on, and serves on for `proxy.limits.drain_delay`. Then stops
    /// accepting, lets requests in flight finish for at most `proxy.limits.drain`, and stops the
    /// rest.
    pub async fn shutdown(mut self) {
        self.lame_duck.cancel();
        tokio::time::sleep(self.drain_delay).await;
        self.stop.cancel();
        if let Some(serving) = self.serving.take() {
            // A panic in there has been reported, and there is nothing left to stop.
            let _ = serving.await;
        }
        if let Some(spool) = self.spool.take() {
            spool.close().await; // before the stream: what is written last may still be uploaded
        }
        if let Some(export) = self.export.take() {
            export.finish().await;
        }
        if let Some(sync) = self.sync.take() {
            sync.shutdown().await; // last: a revocation must reach what still drains
        }
        self.end.cancel();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
        self.end.cancel();
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}

/// The listeners for agents.
struct Listeners {
    proxy: Listener,
    forward: Option<Listener>,
}

impl Listeners {
    async fn bind(config: &Config, metrics: &Metrics) -> Result<Self, StartError> {
        let balancers = Balancers::new(config.proxy.proxy_protocol_from.clone());
        metrics.edge().balancers(balancers.clone());
        let limits = server::Limits { balancers, ..config.proxy.limits.of_listener() };
        let tls = config.proxy.tls.as_ref();
        let proxy = Listener::bind("proxy.listen", config.proxy.listen, tls, limits.clone()).await?;
        let forward = match &config.forward_proxy {
            Some(forward) => {
                let bound = Listener::bind("forward_proxy.listen", forward.listen, None, limits).await;
                Some(bound.map_err(StartError::ForwardListen)?)
            }
            None => None,
        };
        let mut connections = vec![("proxy", proxy.connections().clone())];
        connections.extend(forward.as_ref().map(|forward| ("forward_proxy", forward.connections().clone())));
        metrics.edge().listeners(connections);
        [Some(&proxy), forward.as_ref()].into_iter().flatten().for_each(|listener| config.own.add(listener.address()));
        Ok(Self { proxy, forward })
    }
}

/// The identity that a mesh gives the node.
fn of_mesh(config: &Config, svid: &SvidConfig, enrolment: &EnrolConfig) -> Result<Identity, StartError> {
    let node = config.node.name.parse();
    let node =
        node.map_err(|_| ConfigError::new("node.name", "is needed beside node.svid: the name it was admitted with"))?;
    if enrolment.roots_pem.is_empty() {
        return Err(ConfigError::new("control.ca_file", "is needed beside node.svid").into());
    }
    let files = (svid.cert_file.as_path(), svid.key_file.as_path());
    let identity = Identity::of_files(&node, files, enrolment.roots_pem.clone(), &config.node.data_dir);
    Ok(identity.map_err(EnrolError::from)?)
}

fn enrolment(config: &Config) -> Result<EnrolConfig, StartError> {
    let roots_pem = match &config.control.ca_file {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|source| StartError::ControlCa { path: path.clone(), source })?
        }
        None => String::new(),
    };
    Ok(EnrolConfig {
        endpoints: config.control.endpoints.clone(),
        roots_pem,
        node: config.node.name.clone(),
        data_dir: config.node.data_dir.clone(),
        join_token_file: config.control.join_token_file.clone(),
    })
}

/// Clamps the connections that are configured to those for which there are file descriptors: each
/// takes one, and another for its upstream.
fn afford_connections(config: &mut Config) {
    let listeners = 1 + usize::from(config.forward_proxy.is_some());
    let limit = descriptors::limit();
    let affordable = descriptors::affordable(limit, 2 * listeners);
    let configured = config.proxy.limits.max_connections;
    if configured > affordable {
        tracing::warn!(
            key = "proxy.limits.max_connections",
            configured,
            served = affordable,
            open_files = limit,
            "fewer connections are served than proxy.limits.max_connections says: raise the limit of open files"
        );
        config.proxy.limits.max_connections = affordable;
    }
}

async fn serve(listener: Listener, forward: Option<Listener>, proxy: Arc<Proxy>, stop: CancellationToken) {
    let forward = async {
        if let Some(forward) = forward {
            forward.serve(ProxyHandler::new(proxy.clone(), ProxyMode::Forward), stop.clone()).await;
        }
    };
    tokio::join!(listener.serve(ProxyHandler::new(proxy.clone(), ProxyMode::Direct), stop.clone()), forward);
    proxy.close();
}

/// Keeps what the control planes' names lead to among the addresses that no upstream may be.
async fn know_control_planes(own: OwnAddresses, endpoints: Vec<String>) {
    loop {
        for endpoint in &endpoints {
            own.add_endpoint(endpoint).await;
        }
        tokio::time::sleep(CONTROL_PLANES_EVERY).await;
    }
}

async fn sweep(table: Arc<Table>, metrics: Metrics) {
    loop {
        tokio::time::sleep(TABLE_SWEEP).await;
        table.sweep(WallClock::machine_now());
        let services = table.service_names();
        metrics.retain_services(|name| services.contains(name));
    }
}

fn table_state(table: &Table) -> TableState {
    TableState {
        revision: table.revision(),
        tokens: table.len() as u64,
        lag: table.lease().lag(),
        lease: table.lease().remaining(),
        lowest_lease: table.lease().lowest(),
        clock_skew_seconds: table.wall().skew_seconds(),
    }
}

#[cfg(test)]
mod tests {
    use seks_lease::BootInstant;

    use super::*;

    #[test]
    fn a_full_disk_is_not_taken_for_bad_configuration() {
        let file = |code| crate::sync::IdentityError::File {
            path: "identity.json".into(),
            source: io::Error::from_raw_os_error(code),
        };
        let exit = |code| StartError::from(EnrolError::from(file(code))).exit();
        assert_eq!((exit(28), exit(13)), (Exit::Failed, Exit::Usage), "ENOSPC, EACCES");
    }

    #[test]
    fn the_lag_grows_until_the_table_is_known_to_be_complete_again() {
        let table = Table::new().unwrap();
        let lag = || table_state(&table).lag;
        assert!(!lag().is_zero(), "it was never complete");
        table.lease().current_at(BootInstant::now().minus(Duration::from_secs(7)));
        assert!(lag() >= Duration::from_secs(7));
        let before = lag();
        while lag() == before {}
        assert!(lag() > before, "time passes");
        table.lease().current_at(BootInstant::now());
        assert!(lag() < Duration::from_secs(7), "a grant says that it is complete");
    }
}
