//! The node's side of distribution: one stream to the nearest control plane that answers.
//!
//! What arrives is checked, applied and only then acknowledged. What does not follow, does not
//! decode or does not match the checksum is rejected whole, and the table stays as it was. Without
//! a stream the node serves until its lease ends, and then refuses. It recovers without a person.

mod audit_upload;
mod backoff;
mod certificate_renewal;
mod channel;
mod decode;
mod endpoint_selector;
pub mod enrol;
mod high_water_mark;
mod identity;
mod instance;

#[cfg(feature = "simulation")]
pub mod simulation;
mod snapshot_loader;
mod stream;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use seks_lease::BootInstant;
use seks_runtime::{jitter, telemetry::Queue};
use tokio::{runtime::Handle, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use self::{
    backoff::Backoff,
    channel::Trust,
    endpoint_selector::EndpointSelector,
    high_water_mark::HighWaterMark,
    stream::{Stream, StreamEnd},
};
pub use self::{
    enrol::EnrolError,
    identity::{Identity, IdentityError},
};
use crate::{spool::Spool, table::Table};

/// A stream that lasted this long was a good one: the next failure counts as the first.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How often the end of the lease is looked for; requests look for themselves, so this bounds only
/// how late a stream is cut.
const LEASE_LOOK: Duration = Duration::from_millis(250);
/// How often it is looked whether the node's certificate was renewed.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(10);

/// Where a node's table comes from.
#[derive(Clone)]
pub struct SyncConfig {
    /// Control planes (`https://host:port`), nearest first.
    pub endpoints: Vec<String>,
    /// PEM roots of control planes whose certificates aren't of our own CA; empty: our own.
    pub roots_pem: String,
    /// The region to report; the certificate's counts when it names one.
    pub region: String,
    /// How often a node that had to go to a farther control plane looks whether a nearer one is
    /// back. Default: 30 s.
    pub return_every: Duration,
    /// The audit queue, whose length is reported with every renewal of the lease. Absent: 0 is
    /// reported.
    pub audit: Option<Arc<Queue>>,
    /// Set to when the node's own certificate ends, in Unix seconds.
    pub certificate_end: Arc<AtomicI64>,
    /// The spool of audit records, which is uploaded. Absent: nothing is recorded.
    pub spool: Option<Spool>,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            roots_pem: String::new(),
            region: String::new(),
            return_every: Duration::from_secs(30),
            audit: None,
            certificate_end: Arc::default(),
            spool: None,
        }
    }
}

/// How a node's stream is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncStatus {
    /// The control plane that it is connected to.
    pub connected: Option<String>,
    /// Why it is not, or why the last stream ended.
    pub last_error: Option<String>,
    /// What a person has to look at: the control plane's store is not the one that this node's
    /// table came from.
    pub alarm: Option<String>,
    /// Streams that were begun.
    pub streams: u64,
    /// Snapshots that were swapped in.
    pub snapshots: u64,
    /// Deltas that were applied.
    pub deltas: u64,
    /// Whatever was rejected.
    pub rejected: u64,
}

/// A running synchronisation. Stops when it is dropped.
pub struct Sync {
    status: Arc<Status>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// The runtimes that a node's synchronisation runs on.
#[derive(Clone, Copy, Debug)]
pub struct Runtimes<'a> {
    /// The stream, and applying what it brings.
    pub stream: &'a Handle,
    /// Watching for the end of the lease.
    pub lease: &'a Handle,
}

/// Shared between the stream and its callers.
#[derive(Default)]
struct Status(Mutex<SyncStatus>);

impl Status {
    fn update(&self, change: impl FnOnce(&mut SyncStatus)) {
        change(&mut self.0.lock());
    }
}

impl Sync {
    /// Begins to fill `table`, as `identity`. Returns at once; [`Table::is_loaded`] and
    /// [`Lease::valid`](crate::table::Lease::valid) tell when the node can serve. Runs on the
    /// runtime of the caller.
    #[must_use]
    pub fn start(config: SyncConfig, identity: Identity, table: Arc<Table>) -> Self {
        let own = Handle::current();
        Self::start_on(config, identity, table, Runtimes { stream: &own, lease: &own })
    }

    /// As [`start`](Self::start), on `runtimes`.
    #[must_use]
    pub fn start_on(config: SyncConfig, identity: Identity, table: Arc<Table>, runtimes: Runtimes<'_>) -> Self {
        let (status, stop) = (Arc::new(Status::default()), CancellationToken::new());
        let work = run(config, identity, table.clone(), status.clone());
        runtimes.lease.spawn(stop.clone().run_until_cancelled_owned(watch_lease(table)));
        let until = stop.clone();
        let task = runtimes.stream.spawn(async move {
            until.run_until_cancelled_owned(work).await;
        });
        Self { status, stop, task: Some(task) }
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> SyncStatus {
        self.status.0.lock().clone()
    }

    /// Closes the stream. The table stays, and so does the lease until it ends.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            // A panic in there has been reported, and there is nothing left to stop.
            let _ = task.await;
        }
    }
}

impl Drop for Sync {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn run(config: SyncConfig, identity: Identity, table: Arc<Table>, status: Arc<Status>) {
    let waits = || {
        tracing::warn!("another process has this node's data directory: this one serves when that has ended");
        status.update(|s| s.alarm = Some("another process has this node's data directory".into()));
    };
    let identity = match identity.claimed(waits).await {
        Ok(identity) => identity,
        Err(error) => {
            tracing::error!(%error, "this node's data directory can't be locked: it serves nothing");
            status.update(|s| s.alarm = Some(format!("lock: {error}")));
            return std::future::pending().await;
        }
    };
    status.update(|s| s.alarm = None);
    let mark = match HighWaterMark::load(identity.data_dir()) {
        Ok(mark) => Arc::new(mark),
        Err(error) => {
            tracing::error!(%error, "what this node has seen of the store can't be read: it serves nothing");
            status.update(|s| s.alarm = Some(format!("mark.json: {error}")));
            return std::future::pending().await;
        }
    };
    let identity = Arc::new(arc_swap::ArcSwap::from_pointee(identity));
    let trust = Trust { roots_pem: config.roots_pem.clone() };
    let renewing = certificate_renewal::run(config.endpoints.clone(), trust.clone(), identity.clone());
    let connecting = stay_connected(&config, &trust, &identity, &table, &status, &mark);
    let watching = watch_certificate(&identity, &config.certificate_end);
    let uploading = audit_upload::run(config.spool.clone(), &trust, &identity, &status);
    tokio::select! {
        () = renewing => {}
        () = connecting => {}
        () = watching => {}
        () = uploading => {}
        () = mark.keep() => {}
    }
}

/// Says when the node's certificate ends. It is renewed meanwhile.
async fn watch_certificate(identity: &arc_swap::ArcSwap<Identity>, end: &AtomicI64) {
    loop {
        end.store(identity.load().validity().map_or(0, |(_, until)| until), Relaxed);
        sleep(CERTIFICATE_LOOK).await;
    }
}

/// One stream after the other: to the nearest control plane that takes us, and back to a nearer one
/// when it is there again.
async fn stay_connected(
    config: &SyncConfig,
    trust: &Trust,
    identity: &arc_swap::ArcSwap<Identity>,
    table: &Arc<Table>,
    status: &Arc<Status>,
    mark: &HighWaterMark,
) {
    let (mut backoff, mut selector) = (Backoff::default(), EndpointSelector::new(config.endpoints.len()));
    loop {
        let Some(endpoint) = config.endpoints.get(selector.current()) else { return std::future::pending().await };
        let (begun, own) = (BootInstant::now(), identity.load_full());
        let end = tokio::select! {
            end = Stream::run(endpoint, trust, &own, config, table, status, mark) => end,
            nearer = return_to_nearer(config, trust, &own, table, &selector) => StreamEnd::Nearer(nearer),
        };
        table.limit_slices().stream_ended();
        table.approvals().stream_ended();
        status.update(|s| {
            s.connected = None;
            s.last_error = Some(end.to_string());
            s.alarm = matches!(end, StreamEnd::Diverged(_) | StreamEnd::Revoked(_))
                .then(|| end.to_string())
                .or(s.alarm.take());
        });
        report(endpoint, &end);
        if matches!(end, StreamEnd::Fenced(_) | StreamEnd::Revoked(_)) {
            table.lease().end();
            table.wake_all();
        }
        let was_stable = BootInstant::now().since(begun) >= STABLE_AFTER;
        if was_stable {
            backoff.reset();
        }
        let pause = match end {
            StreamEnd::Nearer(index) => selector.move_to(index),
            _ => selector.stream_ended(was_stable),
        };
        if pause {
            sleep(backoff.next()).await;
        }
    }
}

/// Ready with the index of a nearer control plane than that of `route`, once one can be reached
/// again. It is only looked for while the node serves: moving must not cost what a stream that
/// works would have saved.
async fn return_to_nearer(
    config: &SyncConfig,
    trust: &Trust,
    identity: &Identity,
    table: &Table,
    selector: &EndpointSelector,
) -> usize {
    let mut pause = config.return_every.saturating_mul(selector.return_backoff());
    loop {
        // Jitter, so that a fleet doesn't come back to a control plane all at once.
        sleep(pause.div_f64(2.0) + pause.mul_f64(jitter::fraction())).await;
        for (index, endpoint) in config.endpoints.iter().enumerate().take(selector.current()) {
            if table.lease().valid() && trust.connect(endpoint, identity).await.is_ok() {
                return index;
            }
        }
        pause = config.return_every;
    }
}

fn report(endpoint: &str, end: &StreamEnd) {
    match end {
        StreamEnd::Diverged(_) => {
            tracing::error!(endpoint, reason = %end, "this node's table is not of the control plane's store")
        }
        StreamEnd::Revoked(_) => {
            tracing::error!(endpoint, reason = %end, "turned away: this node serves nothing any more")
        }
        StreamEnd::Fenced(_) => {
            tracing::error!(endpoint, reason = %end, "fenced: another process has this node's identity")
        }
        StreamEnd::GoAway(_) | StreamEnd::Nearer(_) => {
            tracing::info!(endpoint, reason = %end, "moving to another control plane")
        }
        _ => tracing::warn!(endpoint, reason = %end, "the stream to the control plane has ended"),
    }
}

/// Cuts what is in flight when the lease ends: nothing else would wake it.
async fn watch_lease(table: Arc<Table>) {
    let mut was_valid = false;
    loop {
        let remaining = table.lease().watch();
        let valid = !remaining.is_zero();
        if was_valid && !valid {
            tracing::error!("the lease has run out: this node refuses everything until it hears from a control plane");
            table.wake_all();
        } else if valid && !was_valid {
            tracing::info!(revision = table.revision(), tokens = table.len(), "this node may serve");
        }
        was_valid = valid;
        sleep(if valid { remaining.min(LEASE_LOOK) } else { LEASE_LOOK }).await;
    }
}
