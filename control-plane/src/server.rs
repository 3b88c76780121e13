//! The control plane as a whole: what starts in which order, and how it stops.

mod archiver;
pub mod listener;
mod page;
mod runtimes;
mod start;
pub mod tls;
mod trail;
mod tripwires;
mod upgrade;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls_pki_types::CertificateDer;
use seks_network::address::DialGuard;
use seks_proto::wire::{DESCRIPTORS, admin_server::AdminServer};
use seks_runtime::{memory_release::release_after_deletes, probes, telemetry::Telemetry};
use seks_types::id::OperatorName;
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::{
    sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned},
    task::TaskTracker,
};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

pub use self::start::{Components, IdentityError, OperatorIdentity, StartError, Storage};
use self::{
    listener::Listener,
    page::BoundPage,
    runtimes::{Runtimes, run_on},
    tls::{ClientCertificate, Source},
    trail::AuditKeySource,
    upgrade::Upgrade,
};
use crate::{
    admin::{self, Admin, Edge},
    approval_webhook::ApprovalWebhook,
    authenticated::Authenticated,
    authority::Authority,
    config::{Config, ListenerTlsConfig},
    distribution::{Distribution, DistributionOptions},
    http2_limits::{
        CONCURRENT_STREAMS, CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
        STREAM_WINDOW_BYTES,
    },
    mint::Reach,
    mint_refresher::Refresher,
    node_api::enrolment::Enrolment,
    page_sessions::PageSessions,
    policy_workers::PolicyWorkers,
    registry::{Admission, JoinToken, Registry, RegistryError, fresh_enrolment},
    seal::KeyWatch,
    store::Store,
    telemetry::{Metrics, Readiness},
    trust_refresher::TrustRefresher,
};

/// How long running calls may take to finish after the stop signal.
const DRAIN: Duration = Duration::from_secs(10);
/// How often what has had its time is forgotten.
const JANITOR: Duration = Duration::from_secs(300);

/// A running control plane.
pub struct ControlPlane {
    admin: SocketAddr,
    nodes: SocketAddr,
    metrics_addr: Option<SocketAddr>,
    page: Option<Arc<PageSessions>>,
    metrics: Metrics,
    authority: Arc<Authority>,
    registry: Arc<Registry>,
    distribution: Distribution,
    /// Where a key service wraps the KEK.
    key_watch: Option<KeyWatch>,
    stop: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    tasks: TaskTracker,
    /// A start that fails half-way leaves nothing running either.
    _stop_when_dropped: DropGuard,
    /// Last, because the tasks on them are stopped first.
    runtimes: Runtimes,
}

impl ControlPlane {
    /// Opens the store, checks the KEK, and serves. Everything listens when this returns.
    ///
    /// # Errors
    /// [`StartError`]; nothing listens then, and with a wrong KEK nothing was written.
    pub async fn start(config: Config, telemetry: Telemetry) -> Result<Self, StartError> {
        let options = distribution_options(&config);
        options.check()?; // before anything is written
        page::check(&config.page)?;
        config.sources.check().map_err(StartError::Sources)?;
        let runtimes = Runtimes::start().map_err(StartError::Threads)?;
        let served = run_on(runtimes.distribution(), {
            let (config, admin) = (config.clone(), runtimes.admin());
            async move {
                let foundation = Components::open(&config).await?;
                let (marks, identities) = (foundation.marks.clone(), foundation.authority.identities().clone());
                let trail = trail::open(&config, &foundation, options.replica.clone(), admin).await?;
                let options = DistributionOptions { marks, identities, trail, ..options };
                let (store, sealer) = (Arc::clone(&foundation.store), Arc::clone(&foundation.sealer));
                let replica = options.replica.clone();
                Ok::<_, StartError>((foundation, Distribution::start(store, sealer, options).await?, replica))
            }
        });
        let (foundation, distribution, replica) = served.await??;
        foundation.registry.set_usage(Box::new(distribution.clone()), config.quota);
        let plane = Self::listen(&config, telemetry, &foundation, distribution.clone(), replica, runtimes).await;
        if plane.is_err() {
            distribution.abandon().await; // what it does has nothing to say about that
        }
        plane
    }

    /// Checks a configuration without opening anything and without reading a secret.
    ///
    /// # Errors
    /// [`StartError`] names the key.
    pub fn check(config: &Config) -> Result<(), StartError> {
        distribution_options(config).check()?;
        page::check(&config.page)?;
        config.seal.check().map_err(StartError::Seal)?;
        config.sources.check().map_err(StartError::Sources)?;
        crate::store::check(&config.store).map_err(StartError::Store)?;
        if let Some(trail) = config.trail() {
            trail.check()?;
        }
        Ok(())
    }

    async fn listen(
        config: &Config,
        telemetry: Telemetry,
        Components { store, sealer, records, authority, registry, .. }: &Components,
        distribution: Distribution,
        replica: String,
        runtimes: Runtimes,
    ) -> Result<Self, StartError> {
        let metrics = metrics_of(&distribution, records)?;
        let key_watch = watch_key(config, &metrics)?;
        let guard = dial_guard(config).await;
        let sources = Arc::new(config.sources.clone());
        let reach = || Reach { guard: Arc::clone(&guard), sources: Arc::clone(&sources) };
        let refresher = Arc::new(Refresher::new(Arc::clone(registry), telemetry.clone(), replica.clone(), reach())?);
        metrics.add(refresher.collectors())?;
        metrics.certificate("ca", authority.certificate());
        let reports = NodeReports::new(config, (registry, &distribution), &guard, &metrics)?;
        let operators = run_on(runtimes.admin(), bind("admin.listen", config.admin.listen)).await??;
        let nodes = run_on(runtimes.distribution(), bind("distribution.listen", config.distribution.listen)).await??;
        let page = page::bind(config, &runtimes.admin()).await?;
        guard.own.add(operators.address());
        guard.own.add(nodes.address());
        let stop = CancellationToken::new();
        let mut plane = Self {
            admin: operators.address(),
            nodes: nodes.address(),
            metrics_addr: None,
            page: page.as_ref().map(BoundPage::sessions),
            metrics: metrics.clone(),
            authority: Arc::clone(authority),
            registry: Arc::clone(registry),
            distribution: distribution.clone(),
            key_watch,
            servers: Vec::new(),
            tasks: TaskTracker::new(),
            _stop_when_dropped: stop.clone().drop_guard(),
            stop,
            runtimes,
        };
        if let Some(address) = config.telemetry.metrics_listen {
            plane.serve_metrics(address, metrics.clone(), Arc::clone(store))?;
            plane.metrics_addr.into_iter().for_each(|address| guard.own.add(address));
        }
        let names = names(config);
        plane.serve_nodes(nodes, &config.distribution.tls, &names)?;
        let here = replica.clone();
        plane.page_addr().into_iter().for_each(|address| guard.own.add(address));
        let admin = Admin::new(admin::Parts {
            registry: Arc::clone(registry),
            authority: Arc::clone(authority),
            distribution,
            telemetry,
            metrics,
            policy_workers: PolicyWorkers::start().map_err(StartError::Threads)?,
            proxy_url: config.admin.proxy_url.clone(),
            replica,
            page: plane.page.clone(),
            reach: reach(),
            disks: config.disks(),
        });
        plane.serve_operators(operators, &config.admin.tls, &names, admin.clone()).await?;
        plane.serve_page(page, config, &names, admin)?;
        trail::log_state(plane.distribution.trail());
        plane.keep_trail(config, here, AuditKeySource { store: Arc::clone(store), sealer: Arc::clone(sealer) });
        plane.start_tasks(refresher, reports, records);
        let metrics = plane.metrics_addr.map(tracing::field::display);
        tracing::info!(admin = %plane.admin, distribution = %plane.nodes, metrics, store = store.kind(), "serving");
        Ok(plane)
    }

    /// Starts what an operator's calls do not wait for.
    fn start_tasks(
        &self,
        refresher: Arc<Refresher>,
        NodeReports { trust_refresher, webhook }: NodeReports,
        records: &Arc<Authenticated>,
    ) {
        let admin = self.runtimes.admin();
        let releases = release_after_deletes(vec![admin.clone(), self.runtimes.distribution()]);
        self.tasks.spawn_on(self.stop.clone().run_until_cancelled_owned(releases), &admin);
        self.tasks.spawn_on(refresher.run(self.stop.clone()), &admin);
        self.tasks.spawn_on(trust_refresher.run(self.stop.clone()), &admin);
        if let Some(webhook) = webhook {
            self.tasks.spawn_on(webhook.run(self.stop.clone()), &admin);
        }
        self.tasks.spawn_on(janitor(Arc::clone(&self.registry), self.stop.clone()), &admin);
        let upgrade = Upgrade { registry: Arc::clone(&self.registry), records: Arc::clone(records) };
        self.tasks.spawn_on(upgrade.run(self.distribution.clone(), self.stop.clone()), &admin);
    }

    async fn serve_operators(
        &mut self,
        listener: Listener,
        tls: &ListenerTlsConfig,
        names: &[String],
        admin: Admin,
    ) -> Result<(), StartError> {
        let runtime = self.runtimes.admin();
        let incoming = self.secure("admin", listener, tls, names, ClientCertificate::Required, &runtime)?;
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<AdminServer<Admin>>().await;
        let router = grpc_server()
            .layer(Edge::new(self.authority.identities().clone()))
            .add_service(admin.service())
            .add_service(health_service)
            .add_service(reflection()?);
        self.serve(&runtime, |stop| router.serve_with_incoming_shutdown(incoming, stop));
        Ok(())
    }

    /// A certificate is optional here, for the one method by which a node gets its first.
    fn serve_nodes(&mut self, listener: Listener, tls: &ListenerTlsConfig, names: &[String]) -> Result<(), StartError> {
        let runtime = self.runtimes.distribution();
        let incoming = self.secure("distribution", listener, tls, names, ClientCertificate::Optional, &runtime)?;
        let enrolment = Enrolment::service(Arc::clone(&self.authority), Arc::clone(&self.registry));
        let nodes = self.distribution.node_api().with_enrolment(enrolment);
        self.servers.push(runtime.spawn(nodes.serve(incoming, self.stop.clone())));
        Ok(())
    }

    fn serve_metrics(
        &mut self,
        address: SocketAddr,
        metrics: Metrics,
        store: Arc<dyn Store>,
    ) -> Result<(), StartError> {
        let listen = |source| StartError::Listen { key: "telemetry.metrics_listen", address, source };
        let stop = self.stop.clone().cancelled_owned();
        let readiness = Readiness::new(metrics, store, self.runtimes.admin());
        self.metrics_addr = Some(probes::serve_probes(address, readiness, stop).map_err(listen)?);
        Ok(())
    }

    fn secure(
        &self,
        section: &'static str,
        listener: Listener,
        files: &ListenerTlsConfig,
        names: &[String],
        clients: ClientCertificate,
        runtime: &Handle,
    ) -> Result<listener::Incoming, StartError> {
        let mut names = names.to_vec();
        let ip = listener.address().ip();
        if !ip.is_unspecified() {
            names.push(ip.to_string());
        }
        names.sort_unstable();
        names.dedup();
        let source = Source::new(Arc::clone(&self.authority), files.clone(), names);
        let (config, presented) =
            source.server_config(clients).map_err(|source| StartError::Tls { section, source })?;
        let metrics = self.metrics.clone();
        let renewed = move |certificate: &CertificateDer<'static>| metrics.certificate(section, certificate);
        self.tasks.spawn_on(source.keep_fresh(presented, self.stop.clone(), renewed), runtime);
        let _spawns_there = runtime.enter();
        Ok(listener.accept(config, self.stop.clone()))
    }

    fn serve<F>(&mut self, runtime: &Handle, serve: impl FnOnce(WaitForCancellationFutureOwned) -> F)
    where
        F: Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
    {
        let serving = serve(self.stop.clone().cancelled_owned());
        self.servers.push(runtime.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "a listener has failed");
            }
        }));
    }

    /// Where operators reach it.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// Where nodes reach it.
    #[must_use]
    pub fn distribution_addr(&self) -> SocketAddr {
        self.nodes
    }

    /// Where `/metrics`, `/healthz` and `/readyz` are, when they are served.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// Its metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The CA that operators and nodes must trust.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        self.authority.ca_pem()
    }

    /// What it writes with.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// What feeds the nodes.
    #[must_use]
    pub fn distribution(&self) -> &Distribution {
        &self.distribution
    }

    /// Why it can't go on: waits until it can't. It serves nothing more from then on, and should be
    /// shut down.
    pub async fn failed(&self) -> StartError {
        let refused = async {
            match &self.key_watch {
                Some(watch) => watch.refused().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            why = self.distribution.failed() => why.into(),
            why = refused => StartError::Seal(why),
        }
    }

    /// Makes the first operator, an owner of everything; `None` when there is an operator already.
    ///
    /// # Errors
    /// Of the store.
    pub async fn bootstrap_operator(&self, name: &OperatorName) -> Result<Option<OperatorIdentity>, IdentityError> {
        let enrolment = fresh_enrolment()?;
        let identity = start::identity(&self.authority, name, &enrolment)?;
        Ok(self.registry.create_first_operator(name, &enrolment).await?.map(|_| identity))
    }

    /// A new certificate and key for an operator that exists: for the one machine that has them
    /// both, as in development.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; of the store;
    /// [`AuthorityError::Sign`](crate::authority::AuthorityError::Sign).
    pub async fn renew_operator(&self, name: &OperatorName) -> Result<OperatorIdentity, IdentityError> {
        match self.registry.operator(name).await? {
            Some(operator) => Ok(start::identity(&self.authority, name, &operator.enrolment)?),
            None => {
                Err(RegistryError::NotFound { kind: "operator", name: name.to_string(), similar: String::new() }.into())
            }
        }
    }

    /// A join token for a node in `region`, good for the default time.
    ///
    /// # Errors
    /// Of the store.
    pub async fn join_token(&self, region: &str) -> Result<JoinToken, RegistryError> {
        let admission = Admission { region: region.into(), ..Admission::default() };
        self.registry.create_join_token(admission, self.authority.pin()).await
    }

    /// Makes room for a node that enrols again under its old name, which it may not have had.
    ///
    /// # Errors
    /// Of the store; a name that isn't one.
    pub async fn forget_node(&self, name: &str) -> Result<(), RegistryError> {
        let id = name.parse().map_err(|e: seks_types::id::NameError| RegistryError::invalid("name", e.to_string()))?;
        match self.registry.revoke_node(&id).await {
            Ok(_) | Err(RegistryError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Accepts nothing more, lets running calls finish for at most 10 s, and stops.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.distribution.shutdown().await; // its streams never end by themselves
        for mut server in self.servers {
            if tokio::time::timeout(DRAIN, &mut server).await.is_err() {
                tracing::warn!("drain deadline passed, closing connections");
                server.abort();
            }
        }
        self.tasks.wait().await;
    }
}

/// The metrics of what is open before anything listens.
fn metrics_of(distribution: &Distribution, records: &Authenticated) -> Result<Metrics, StartError> {
    let metrics = Metrics::new()?;
    metrics.add(distribution.collectors())?;
    metrics.add(records.collectors())?;
    metrics.add(distribution.trail().map(crate::trail::metrics::collectors).unwrap_or_default())?;
    Ok(metrics)
}

/// Asks the key service, if there is one, whether the KEK may still be used.
fn watch_key(config: &Config, metrics: &Metrics) -> Result<Option<KeyWatch>, StartError> {
    let watch = KeyWatch::new(&config.seal).map_err(StartError::Seal)?;
    metrics.add(watch.as_ref().map(KeyWatch::collectors).unwrap_or_default())?;
    Ok(watch)
}

/// What may be dialled for tenants: never the store.
async fn dial_guard(config: &Config) -> Arc<DialGuard> {
    let guard = DialGuard { allowed: config.upstream.private_networks.clone(), own: config.own.clone() };
    for endpoint in &config.store.endpoints {
        guard.own.add_endpoint(endpoint).await;
    }
    Arc::new(guard)
}

fn distribution_options(config: &Config) -> DistributionOptions {
    DistributionOptions {
        replica: config.telemetry.service_instance.clone().unwrap_or_else(|| "control-plane".into()),
        lease: config.distribution.lease,
        max_snapshots: config.distribution.max_snapshots,
        verify_every: config.distribution.verify_every,
        ..DistributionOptions::default()
    }
}

/// What gRPC tools ask a server about itself.
fn reflection() -> Result<ServerReflectionServer<impl ServerReflection>, StartError> {
    let builder = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    Ok(builder.register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET).build_v1()?)
}

/// Limits of a connection, for every peer.
fn grpc_server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(CONCURRENT_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_LIST_BYTES)
}

/// What acts on reports of nodes.
struct NodeReports {
    trust_refresher: Arc<TrustRefresher>,
    webhook: Option<Arc<ApprovalWebhook>>,
}

impl NodeReports {
    fn new(
        config: &Config,
        (registry, distribution): (&Arc<Registry>, &Distribution),
        guard: &Arc<DialGuard>,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let of_nodes = distribution.node_registry();
        let unknown_keys = Arc::clone(of_nodes.unknown_keys());
        let trust_refresher = TrustRefresher::new(Arc::clone(registry), unknown_keys, Arc::clone(guard))?;
        metrics.add(trust_refresher.collectors())?;
        let news = (registry, Arc::clone(of_nodes.new_approvals()));
        let webhook = ApprovalWebhook::new(&config.approvals, guard, news, &config.page.url)?;
        if let Some(webhook) = &webhook {
            metrics.add(webhook.collectors())?;
        }
        Ok(Self { trust_refresher: Arc::new(trust_refresher), webhook: webhook.map(Arc::new) })
    }
}

async fn bind(key: &'static str, address: SocketAddr) -> Result<Listener, StartError> {
    Listener::bind(address).await.map_err(|source| StartError::Listen { key, address, source })
}

/// What our certificates are good for, beside the address that each listens on.
fn names(config: &Config) -> Vec<String> {
    let mut names = config.admin.names.clone();
    names.extend(["localhost", "127.0.0.1", "::1"].map(String::from));
    names
}

async fn janitor(registry: Arc<Registry>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(JANITOR)).await.is_some() {
        if let Err(error) = registry.purge_expired().await {
            tracing::warn!(%error, "cannot forget the past; trying again later");
        }
        if let Err(error) = registry.refresh_tenant_cas().await {
            tracing::warn!(%error, "cannot make tenants' CA certificates again; trying again later");
        }
    }
}
