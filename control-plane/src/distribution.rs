//! Distribution: every change to every node, and the knowledge that it is there.
//!
//! The store's watch (`watcher`) is compiled (`compile`) into changes of the nodes' tables and appended to the `log`;
//! each node's `session` sends it what it lacks; `leases` knows what each has acknowledged and until when it may hold a
//! lease; from both follows whether a change is enforced (`enforcement`).
//!
//! Any number of replicas serve from one store, and none leads: each knows of its own nodes, and tells the others by one small
//! record how far all of them are (`registration`, `replicas`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::Extensions;
use seks_proto::{
    id::{CredentialName, NodeId, TenantName},
    wire,
};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    authority::{Identities, Identity, Peer},
    changefeed::{
        log::Feed,
        metrics::{self, Metrics},
        replay,
        scope::Scope,
        snapshot::Snapshots,
        verify,
        watcher::{Follow, Listing},
    },
    fleet::{
        enforcement, high_water_mark,
        leases::{self, Fleet},
        membership::Members,
        read_barrier::{self, Barrier},
        registration::{self, Life},
        replicas::Replicas,
    },
    lifetime::{Lifetime, MarkFile, WentBack},
    node_api::{handshake_limiter::Doors, session},
    rate::{RateLimits, Repeated},
    registry::{Registry, UsageSource},
    seal::{SealError, Sealer},
    store::{Revision, Store, StoreError},
};

/// How much longer than its nodes a replica that leaves may take with its last word.
const GOODBYE: Duration = Duration::from_secs(2);

/// How often a warning that a node can cause is repeated.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// How the replica serves nodes: `[distribution]` without its listener.
#[derive(Clone, Debug)]
pub struct DistributionOptions {
    /// This replica's name, for nodes' logs.
    pub replica: String,
    /// How long a node serves without hearing from a control plane. Default: 10 s; 2 s to 60 s.
    pub lease: Duration,
    /// Nodes that load a snapshot at the same time; more wait. Default: 32.
    pub max_snapshots: usize,
    /// How often the replica's table is compared with the store, if that takes no more than a fiftieth of the time. Default: 60 s.
    pub verify_every: Duration,
    /// How nodes' certificates are read. Default: the trust domain `seks`, and no mesh.
    pub identities: Identities,
    /// Where the highest revision that was seen is kept. Default: nowhere.
    pub marks: Option<MarkFile>,
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
    /// The store's lifetime.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The first listing.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The replica's side of distribution. Cheap to clone; runs until [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct Distribution(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) lifetime: Lifetime,
    /// The store went back while we followed it.
    pub(crate) went_back: watch::Sender<Option<Revision>>,
    pub(crate) registry: Registry,
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) config: DistributionOptions,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) feed: Arc<Feed>,
    /// Where this replica began: what is at or before it in the feed happened before.
    pub(crate) present: Revision,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) members: Arc<Members>,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) barrier: watch::Sender<Option<Barrier>>,
    /// Asks for a barrier now.
    pub(crate) hurry: Arc<Notify>,
    pub(crate) loading: Arc<Semaphore>,
    pub(crate) doors: Doors,
    /// Reports of refused credentials, by node.
    pub(crate) refusals: RateLimits<NodeId>,
    /// Reports that name what the node was not sent.
    pub(crate) strangers: Repeated,
    /// Nodes that come with another table than they should hold.
    pub(crate) differing: Repeated,
    /// Streams that begin, by whose they are.
    pub(crate) beginnings: RateLimits<Identity>,
    pub(crate) streams: AtomicU64,
    pub(crate) metrics: Metrics,
    /// This replica is about to stop: its nodes are to move.
    pub(crate) leaving: CancellationToken,
    /// Its last word among the others has been said.
    pub(crate) parted: CancellationToken,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Distribution {
    /// Lists the store as it was a while ago, and follows it from there (`replay`).
    ///
    /// # Errors
    /// A lease out of bounds, or a store that can't be listed.
    pub async fn start(
        store: Arc<dyn Store>,
        sealer: Arc<Sealer>,
        config: DistributionOptions,
    ) -> Result<Self, DistributionError> {
        config.check()?;
        let lifetime = Lifetime::read(&*store, &sealer).await?;
        let (listing, feed) = replay::begin(&*store, &sealer).await?;
        let Listing { table, nodes, replicas: records, revision, complete_since } = listing;
        let replicas = Replicas::new(config.lease, store.kind() == "embedded");
        replicas.reset(records);
        replicas.ended(complete_since);
        let members = Arc::new(Members::default());
        members.reset(&nodes);
        let inner = Arc::new(Inner {
            fleet: Arc::new(Fleet::new(nodes, replicas.longest_ttl())),
            replicas: Arc::new(replicas),
            members,
            snapshots: Arc::new(Snapshots::new(table, revision)),
            feed: Arc::new(feed),
            present: revision,
            barrier: watch::Sender::new(None),
            hurry: Arc::new(Notify::new()),
            loading: Arc::new(Semaphore::new(config.max_snapshots)),
            doors: Doors::default(),
            refusals: RateLimits::default(),
            strangers: Repeated::new(WARN_EVERY),
            differing: Repeated::new(WARN_EVERY),
            beginnings: RateLimits::default(),
            streams: AtomicU64::new(1),
            metrics: Metrics::default(),
            leaving: CancellationToken::new(),
            parted: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            registry: Registry::new(store.clone(), sealer.clone()),
            store,
            lifetime,
            went_back: watch::Sender::new(None),
            sealer,
            config,
        });
        // A store that is full can still be served from, though no lease is granted before this replica is in it.
        let life = Life::register(&inner).await;
        inner.run(life.ok());
        Ok(Self(inner))
    }

    /// Who is at the other end of a connection.
    pub(crate) fn peer(&self, connection: &Extensions) -> Option<Peer> {
        self.0.peer(connection)
    }

    /// Waits until `revision` is enforced: no node serves anything that it took away, whatever is cut off, crashed or slow.
    /// After `timeout` it says how things stand.
    pub async fn await_enforced(&self, revision: Revision, timeout: Duration) -> wire::Enforcement {
        enforcement::wait(&self.0, revision, timeout).await
    }

    /// How things stand with `revision`, without waiting.
    #[must_use]
    pub fn enforcement(&self, revision: Revision) -> wire::Enforcement {
        enforcement::now(&self.0, revision)
    }

    /// Every node of the fleet, also one that was never seen.
    #[must_use]
    pub fn nodes(&self) -> Vec<wire::Node> {
        let head = self.0.feed.head();
        let elsewhere = |replica: &str| self.0.replicas.host(replica).filter(|h| h.serving).map(|h| h.watermark);
        let mut nodes = self.0.fleet.list(head, self.0.feed.effective(head), elsewhere);
        self.0.members.complete(&mut nodes);
        nodes
    }

    /// The nodes that hold a credential and may use it: within their scope, with every feature that it takes, connected or with a lease.
    #[must_use]
    pub fn holders(&self, tenant: &TenantName, credential: &CredentialName) -> Vec<wire::Node> {
        let mut nodes = self.nodes();
        let Some(pools) = self.0.snapshots.assigned(tenant, credential) else { return Vec::new() };
        nodes.retain(|node| {
            let serves = node.connected || node.lease_remaining_ms > 0;
            let scope = Scope::of(node);
            serves && scope.holds(tenant) && scope.is_assigned(&pools) && session::is_whole(&node.features)
        });
        nodes
    }

    /// Audit spans that wait for a collector at the nodes of every replica that serves. Of other replicas' nodes as of the last
    /// record of each.
    #[must_use]
    pub fn audit_backlog(&self) -> u64 {
        let me = self.0.fleet.me().map(|id| id.to_string()).unwrap_or_default();
        let others = self.replicas().into_iter().filter(|replica| !replica.retired && replica.id != me);
        others.fold(self.0.fleet.audit_queue(), |sum, replica| sum.saturating_add(replica.audit_queue))
    }

    /// Every replica that may grant leases, or whose leases may not be over.
    #[must_use]
    pub fn replicas(&self) -> Vec<wire::Replica> {
        self.0.replicas.list()
    }

    /// Names of the replicas that may be alive and don't read the store's records in the form `format`.
    #[must_use]
    pub fn replicas_older_than(&self, format: u32) -> Vec<String> {
        self.0.replicas.older_than(format)
    }

    /// Tokens that nodes honour.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.0.snapshots.tokens() as u64
    }

    /// The newest revision that this replica has taken in.
    #[must_use]
    pub fn applied(&self) -> Revision {
        self.0.feed.head()
    }

    /// Streams that are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.0.fleet.streams()
    }

    /// How long ago this replica had certainly seen everything that was committed; `None`: never.
    #[must_use]
    pub fn watch_lag(&self) -> Option<Duration> {
        let barrier = (*self.0.barrier.borrow())?;
        Some(seks_proto::table::BootInstant::now().since(barrier.at))
    }

    /// What to register with the process's metrics: streams, push times, watch lag.
    #[must_use]
    pub fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        metrics::collectors(&self.0)
    }

    /// Waits until the store is found to have gone back. From then on no lease is granted.
    pub async fn failed(&self) -> WentBack {
        let mut went_back = self.0.went_back.subscribe();
        let now = went_back.wait_for(Option::is_some).await.ok().and_then(|now| *now).unwrap_or_default();
        WentBack::Revision { now, seen: self.0.feed.head() }
    }

    /// Asks every node to move to another replica, waits for that for at most half a lease, ends every stream and stops following
    /// the store. Nodes go on until their leases end, or another replica takes them.
    pub async fn shutdown(&self) {
        self.0.leaving.cancel();
        // With a store that is gone there is nobody to say it to.
        let patience = registration::handover(self.0.config.lease) + GOODBYE;
        let _ = tokio::time::timeout(patience, self.0.parted.cancelled()).await;
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        high_water_mark::last(&self.0).await;
    }
}

impl UsageSource for Distribution {
    fn usage(&self, tenant: &TenantName) -> Option<(wire::Usage, wire::Quota)> {
        self.0.snapshots.usage(tenant)
    }
}

impl Distribution {
    /// Waits until this replica has taken in `revision`, for at most `timeout`.
    pub async fn await_applied(&self, revision: Revision, timeout: Duration) {
        let mut head = self.0.feed.subscribe();
        let _ = tokio::time::timeout(timeout, head.wait_for(|head| *head >= revision)).await; // the caller goes on anyway
    }

    /// Stops at once what goes on behind it: nobody was served yet.
    pub async fn abandon(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Inner {
    fn run(self: &Arc<Self>, life: Option<Life>) {
        let (stalled, damaged) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let follow = Follow {
            store: self.store.clone(),
            snapshots: self.snapshots.clone(),
            feed: self.feed.clone(),
            fleet: self.fleet.clone(),
            members: self.members.clone(),
            replicas: self.replicas.clone(),
            stalled: stalled.clone(),
            damaged: damaged.clone(),
        };
        let (store, feed, barrier) = (self.store.clone(), self.feed.clone(), self.barrier.clone());
        let barriers = read_barrier::run(
            store,
            feed,
            self.config.lease,
            barrier,
            stalled,
            self.hurry.clone(),
            self.went_back.clone(),
        );
        self.spawn(follow.run());
        self.spawn(barriers);
        self.spawn(verify::run(self.clone(), damaged));
        self.spawn(registration::run(self.clone(), life));
        self.spawn(high_water_mark::keep(self.clone()));
    }

    /// Runs `task` until it ends or distribution does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Whether the store hasn't been heard for so long that nothing of any lease is left to grant.
    pub(crate) fn is_cut_off(&self) -> bool {
        let barrier = *self.barrier.borrow();
        barrier.is_some_and(|barrier| read_barrier::ttl_left(barrier, self.config.lease).is_zero())
    }

    pub(crate) fn peer(&self, connection: &Extensions) -> Option<Peer> {
        self.config.identities.of(connection)
    }

    pub(crate) fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Relaxed)
    }
}

/// Unix milliseconds: what nodes compare their clocks with.
pub(crate) fn unix_now_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, leases::millis)
}

/// Unix seconds, for people to read.
pub(crate) fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
