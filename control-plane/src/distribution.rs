//! Distribution: brings every change to every node, and knows when it has arrived. Starts, connects
//! and stops the three parts.
//!
//! `changefeed` turns the store's watch into changes of the nodes' table. `node_api` sends them to
//! each node and receives its acknowledgements. `fleet` keeps what each node has applied and until
//! when it may serve; from that follows whether a change is enforced.
//!
//! Any number of replicas serve from one store; none leads. Each knows its own nodes, and publishes
//! in one small record how far all of them are.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use seks_proto::wire;
use seks_types::id::{CredentialName, TenantName};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    authority::Identities,
    changefeed::{
        ChangeFeed,
        log::ChangeLog,
        recipient::takes_credentials,
        replay,
        scope::NodeScope,
        snapshot::Snapshots,
        verify,
        watcher::{StoreListing, StoreWatcher},
    },
    epoch::{Epoch, HighWaterMarkFile, WentBack},
    fleet::{
        self, Fleet, enforcement,
        high_water_mark::HighWaterMarkWriter,
        leases::Leases,
        membership::Members,
        read_barrier::ReadBarriers,
        registration::{self, Registrar, ReplicaRegistration},
        replicas::Replicas,
    },
    lifecycle::Lifecycle,
    node_api::{
        NodeServer, Sessions,
        limit_shares::LimitShares,
        session::{Limits, Shared},
    },
    registry::{Registry, UsageSource},
    seal::{SealError, Sealer},
    store::{Revision, Store, StoreError},
    trail::Trail,
};

/// How long a replica that stops may take to deregister, after its nodes had their time to move.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(2);

/// How the replica serves nodes: `[distribution]` without its listener.
#[derive(Clone)]
pub struct DistributionOptions {
    /// This replica's name, for nodes' logs.
    pub replica: String,
    /// How long a node serves without hearing from a control plane. Default: 10 s; 2 s to 60 s.
    pub lease: Duration,
    /// Nodes that load a snapshot at the same time; more wait. Default: 32.
    pub max_snapshots: usize,
    /// How often the replica's table is compared with the store, if the comparison takes at most 2
    /// % of the time. Default: 60 s.
    pub verify_every: Duration,
    /// How nodes' certificates are read. Default: the trust domain `seks`, and no mesh.
    pub identities: Identities,
    /// Where the highest revision that was seen is kept. Default: nowhere.
    pub marks: Option<HighWaterMarkFile>,
    /// Where nodes' audit records go. Default: nowhere.
    pub trail: Option<Trail>,
}

impl Default for DistributionOptions {
    fn default() -> Self {
        Self {
            replica: String::new(),
            lease: Duration::from_secs(10),
            max_snapshots: 32,
            verify_every: Duration::from_secs(60),
            identities: Identities::default(),
            marks: None,
            trail: None,
        }
    }
}

impl DistributionOptions {
    /// Whether the values are within bounds, before anything is opened.
    ///
    /// # Errors
    /// [`DistributionError::Config`] names the key.
    pub fn check(&self) -> Result<(), DistributionError> {
        if !(Duration::from_secs(2)..=Duration::from_secs(60)).contains(&self.lease) {
            return Err(DistributionError::Config { key: "lease", reason: "2s to 60s" });
        }
        if self.max_snapshots == 0 {
            return Err(DistributionError::Config { key: "max_snapshots", reason: "at least 1" });
        }
        Ok(())
    }
}

/// Why distribution can't start.
#[derive(Debug, thiserror::Error)]
pub enum DistributionError {
    /// A value of the configuration.
    #[error("distribution.{key}: {reason}")]
    Config {
        /// Which.
        key: &'static str,
        /// What is the matter.
        reason: &'static str,
    },
    /// The store's epoch.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The first listing.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The replica's side of distribution. Cheap to clone; runs until [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct Distribution(Arc<Parts>);

struct Parts {
    changes: ChangeFeed,
    fleet: Fleet,
    sessions: Sessions,
    trail: Option<Trail>,
    marks: Option<Arc<HighWaterMarkWriter>>,
    lease: Duration,
    lifecycle: Lifecycle,
    /// This replica has deregistered.
    deregistered: CancellationToken,
}

impl Distribution {
    /// Lists the store as it was up to 10,000 revisions ago, replays the changes since then, and
    /// follows it from there ([`replay`]).
    ///
    /// # Errors
    /// A lease out of bounds, or a store that can't be listed.
    pub async fn start(
        store: Arc<dyn Store>,
        sealer: Arc<Sealer>,
        config: DistributionOptions,
    ) -> Result<Self, DistributionError> {
        config.check()?;
        let epoch = Epoch::read(&*store, &sealer).await?;
        let (listing, log) = replay::bootstrap(&*store, &sealer).await?;
        let (fleet, changes) = state_from(listing, log, config.lease, store.is_exclusive());
        let (lifecycle, deregistered) = (Lifecycle::default(), CancellationToken::new());
        let registrar = Registrar {
            registry: Registry::new(store.clone(), sealer.clone()),
            log: changes.log.clone(),
            fleet: fleet.clone(),
            replica: config.replica.clone(),
            lease: config.lease,
            leaving: lifecycle.leaving.clone(),
            deregistered: deregistered.clone(),
        };
        // A full store can still be served from, but no lease is granted before this replica is
        // registered in it.
        let registration = ReplicaRegistration::register(&registrar).await;
        lifecycle.spawn(registration::run_registration(registrar, registration.ok()));
        spawn_store_tasks(&lifecycle, &store, &changes, &fleet, &config);
        let marks = config.marks.map(|file| {
            Arc::new(HighWaterMarkWriter {
                file,
                store: store.clone(),
                epoch: epoch.clone(),
                barriers: fleet.barriers.clone(),
                log: changes.log.clone(),
            })
        });
        if let Some(marks) = marks.clone() {
            lifecycle.spawn(marks.write_forever());
        }
        let sessions = Sessions::new(Shared {
            registry: Registry::new(store.clone(), sealer.clone()),
            store,
            epoch,
            sealer,
            changes: changes.clone(),
            fleet: fleet.clone(),
            identities: config.identities,
            replica: config.replica,
            lease: config.lease,
            limits: Limits::new(config.max_snapshots),
            limit_shares: LimitShares::default(),
            lifecycle: lifecycle.clone(),
            trail: config.trail.clone(),
            streams: AtomicU64::new(1),
        });
        Ok(Self(Arc::new(Parts {
            changes,
            fleet,
            sessions,
            trail: config.trail,
            marks,
            lease: config.lease,
            lifecycle,
            deregistered,
        })))
    }

    /// The registry that nodes' reports arrive at.
    #[must_use]
    pub fn node_registry(&self) -> &Registry {
        self.0.sessions.registry()
    }

    /// What serves nodes' connections.
    #[must_use]
    pub fn node_api(&self) -> NodeServer {
        let server = NodeServer::new(self.0.sessions.clone());
        match &self.0.trail {
            Some(trail) => server.with_trail(trail.clone()),
            None => server,
        }
    }

    /// Waits until `revision` is enforced: no node serves anything that it took away, whatever is
    /// cut off, crashed or slow. After `timeout` the answer says which nodes have not applied it.
    pub async fn await_enforced(&self, revision: Revision, timeout: Duration) -> wire::Enforcement {
        enforcement::wait_until_enforced(&self.0.changes.log, &self.0.fleet, revision, timeout).await
    }

    /// As [`await_enforced`](Self::await_enforced), without waiting.
    #[must_use]
    pub fn enforcement(&self, revision: Revision) -> wire::Enforcement {
        enforcement::enforcement_status(&self.0.changes.log, &self.0.fleet, revision)
    }

    /// Every node of the fleet, also one that was never seen.
    #[must_use]
    pub fn nodes(&self) -> Vec<wire::Node> {
        let head = self.0.changes.log.head();
        let elsewhere =
            |replica: &str| self.0.fleet.replicas.summary(replica).filter(|h| h.serving).map(|h| h.watermark);
        let mut nodes = self.0.fleet.leases.list(head, self.0.changes.log.effective(head), elsewhere);
        self.0.fleet.members.merge_into(&mut nodes);
        nodes
    }

    /// The nodes that hold a credential and may use it: within their scope, with every feature that
    /// it takes, connected or with a lease.
    #[must_use]
    pub fn holders(&self, tenant: &TenantName, credential: &CredentialName) -> Vec<wire::Node> {
        let mut nodes = self.nodes();
        let Some(pools) = self.0.changes.snapshots.assigned(tenant, credential) else { return Vec::new() };
        nodes.retain(|node| {
            let serves = node.connected || node.lease_remaining_ms > 0;
            let scope = NodeScope::of_record(node);
            serves && scope.includes_tenant(tenant) && scope.includes_pools(&pools) && takes_credentials(&node.features)
        });
        nodes
    }

    /// Audit spans that wait for a collector at the nodes of every replica that serves. Of other
    /// replicas' nodes as of the last record of each.
    #[must_use]
    pub fn audit_backlog(&self) -> u64 {
        let me = self.0.fleet.leases.own_id().map(|id| id.to_string()).unwrap_or_default();
        let others = self.replicas().into_iter().filter(|replica| !replica.retired && replica.id != me);
        others.fold(self.0.fleet.leases.audit_queue(), |sum, replica| sum.saturating_add(replica.audit_queue))
    }

    /// Where nodes' audit records go; `None`: nowhere.
    #[must_use]
    pub fn trail(&self) -> Option<&Trail> {
        self.0.trail.as_ref()
    }

    /// Every replica that may grant leases, or whose leases may not be over.
    #[must_use]
    pub fn replicas(&self) -> Vec<wire::Replica> {
        self.0.fleet.replicas.list()
    }

    /// Names of the replicas that may be alive and don't read the store's records in the form
    /// `format`.
    #[must_use]
    pub fn replicas_older_than(&self, format: u32) -> Vec<String> {
        self.0.fleet.replicas.older_than(format)
    }

    /// Tokens that nodes honour.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.0.changes.snapshots.tokens() as u64
    }

    /// The newest revision that this replica has taken in.
    #[must_use]
    pub fn applied(&self) -> Revision {
        self.0.changes.log.head()
    }

    /// Streams that are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.0.fleet.leases.streams()
    }

    /// What to register with the process's metrics: streams, push times, watch lag.
    #[must_use]
    pub fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        let mut all = self.0.changes.metrics.collectors();
        all.extend(fleet::metrics::collectors(&self.0.fleet));
        all
    }

    /// Waits until the store is found to have gone back. From then on no lease is granted.
    pub async fn failed(&self) -> WentBack {
        let now = self.0.fleet.barriers.gone_back().await;
        WentBack::Revision { now, seen: self.0.changes.log.head() }
    }

    /// Asks every node to move to another replica, waits for that for at most half a lease, ends
    /// every stream and stops following the store. Nodes go on until their leases end, or another
    /// replica takes them.
    pub async fn shutdown(&self) {
        self.0.lifecycle.leaving.cancel();
        // If the store is unreachable, the record cannot be deleted.
        let patience = registration::handover_time(self.0.lease) + DEREGISTER_TIMEOUT;
        let _ = tokio::time::timeout(patience, self.0.deregistered.cancelled()).await;
        self.0.lifecycle.stop().await;
        if let Some(marks) = &self.0.marks {
            marks.write_last().await;
        }
    }
}

/// The fleet and the change feed as the first listing of the store has them.
fn state_from(listing: StoreListing, log: ChangeLog, lease: Duration, exclusive: bool) -> (Fleet, ChangeFeed) {
    let StoreListing { table, nodes, replicas: records, revision, complete_since } = listing;
    let replicas = Replicas::new(lease, exclusive);
    replicas.reset(records);
    replicas.mark_ended(complete_since);
    let members = Members::default();
    members.reset(&nodes);
    let fleet = Fleet {
        leases: Arc::new(Leases::new(nodes, replicas.longest_ttl())),
        members: Arc::new(members),
        replicas: Arc::new(replicas),
        barriers: ReadBarriers::default(),
    };
    let changes = ChangeFeed {
        snapshots: Arc::new(Snapshots::new(table, revision)),
        log: Arc::new(log),
        started_at: revision,
        metrics: Arc::default(),
    };
    (fleet, changes)
}

/// Starts what reads the store for as long as the replica runs: watch, read barriers, periodic
/// verification.
fn spawn_store_tasks(
    lifecycle: &Lifecycle,
    store: &Arc<dyn Store>,
    changes: &ChangeFeed,
    fleet: &Fleet,
    config: &DistributionOptions,
) {
    let (restart, relist) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let watcher = StoreWatcher {
        store: store.clone(),
        changes: changes.clone(),
        fleet: Box::new(fleet.clone()),
        restart: restart.clone(),
        relist_requested: relist.clone(),
    };
    lifecycle.spawn(watcher.watch_forever());
    let (log, lease) = (changes.log.clone(), config.lease);
    lifecycle.spawn(fleet.barriers.clone().raise_forever(store.clone(), log, lease, restart));
    lifecycle.spawn(verify::verify_periodically(store.clone(), changes.clone(), config.verify_every, relist));
}

impl UsageSource for Distribution {
    fn usage(&self, tenant: &TenantName) -> Option<(wire::Usage, wire::Quota)> {
        self.0.changes.snapshots.usage(tenant)
    }
}

impl Distribution {
    /// Waits until this replica has taken in `revision`, for at most `timeout`.
    pub async fn await_applied(&self, revision: Revision, timeout: Duration) {
        let mut head = self.0.changes.log.subscribe_head();
        let _ = tokio::time::timeout(timeout, head.wait_for(|head| *head >= revision)).await; // the caller goes on anyway
    }

    /// Stops at once. For a start that has failed, before any node was served.
    pub async fn abandon(&self) {
        self.0.lifecycle.stop().await;
    }
}
