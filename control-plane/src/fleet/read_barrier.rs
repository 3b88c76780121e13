//! Read barriers, which leases count from: at the barrier's time this replica had seen everything
//! that was committed.
//!
//! Every second a replica notes the time, then reads the store's revision with a linearizable read.
//! Once the watch has reached that revision, the time becomes a [`ReadBarrier`]. So a replica that
//! is cut off from the store, or whose watch has stalled, cannot extend leases, however long it
//! stays connected to its nodes.

use std::{sync::Arc, time::Duration};

use seks_lease::{BootInstant, rules};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use crate::{
    changefeed::log::ChangeLog,
    store::{Revision, Store, StoreError},
};

/// How often a barrier is raised.
const PERIOD: Duration = Duration::from_secs(1);
/// Nodes that come back at the same time share a barrier: each wakes everybody who waits for one.
const COALESCE: Duration = Duration::from_millis(10);
/// How long the watch may take to bring what the store has.
const WATCH_LIMIT: Duration = Duration::from_secs(3);

/// Everything that was committed before `at` is at or before `revision`, and in the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadBarrier {
    pub(crate) at: BootInstant,
    pub(crate) revision: Revision,
}

/// What is left of a lease of `ttl` that counts from `barrier`.
pub(crate) fn ttl_left(barrier: ReadBarrier, ttl: Duration) -> Duration {
    rules::remaining_ttl(barrier.at, BootInstant::now(), ttl)
}

/// The newest barrier, and how to ask for another. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ReadBarriers {
    latest: watch::Sender<Option<ReadBarrier>>,
    requested: Arc<Notify>,
    /// The store's revision, when that is older than what was seen.
    went_back: watch::Sender<Option<Revision>>,
}

impl Default for ReadBarriers {
    fn default() -> Self {
        Self { latest: watch::Sender::new(None), requested: Arc::default(), went_back: watch::Sender::new(None) }
    }
}

impl ReadBarriers {
    /// The newest one; `None`: there was none yet.
    pub(crate) fn latest(&self) -> Option<ReadBarrier> {
        *self.latest.borrow()
    }

    /// Wakes with each new one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<ReadBarrier>> {
        self.latest.subscribe()
    }

    /// Asks for one now, ahead of the period.
    pub(crate) fn request(&self) {
        self.requested.notify_one();
    }

    /// Whether the store hasn't been heard for so long that nothing of a lease of `ttl` is left to
    /// grant.
    pub(crate) fn is_cut_off(&self, ttl: Duration) -> bool {
        self.latest().is_some_and(|barrier| ttl_left(barrier, ttl).is_zero())
    }

    /// Whether the store was found to have gone back.
    pub(crate) fn has_gone_back(&self) -> bool {
        self.went_back.borrow().is_some()
    }

    /// Waits until the store is found to have gone back: its revision then.
    pub(crate) async fn gone_back(&self) -> Revision {
        let mut went_back = self.went_back.subscribe();
        went_back.wait_for(Option::is_some).await.ok().and_then(|now| *now).unwrap_or_default()
    }

    /// Raises barriers until it is dropped, the next one immediately after a
    /// [`request`](Self::request). It notifies `restart_watch` if the watch has not delivered what
    /// the store has.
    pub(crate) async fn raise_forever(
        self,
        store: Arc<dyn Store>,
        log: Arc<ChangeLog>,
        ttl: Duration,
        restart_watch: Arc<Notify>,
    ) {
        let period = PERIOD.min(ttl / 5);
        loop {
            let (at, seen) = (BootInstant::now(), log.head());
            match timeout(ttl, store.revision()).await {
                Ok(Ok(revision)) if revision < seen => return self.report_rollback(revision, seen),
                Ok(Err(StoreError::Replaced)) => return self.report_rollback(0, seen),
                Ok(Ok(revision)) => {
                    if timeout(WATCH_LIMIT, reached(&log, revision)).await.is_ok() {
                        self.latest.send_replace(Some(ReadBarrier { at, revision }));
                    } else {
                        tracing::warn!(revision, applied = log.head(), "the store's watch has stalled; watching anew");
                        restart_watch.notify_one();
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "the store's revision can't be read; leases aren't renewed"),
                Err(_) => tracing::warn!("the store is silent; leases aren't renewed"),
            }
            // Only a node's first lease waits for a barrier after its record.
            if timeout(period, self.requested.notified()).await.is_ok() {
                sleep(COALESCE).await;
            }
        }
    }

    /// What was seen of the store is not in it any more: nothing is granted from here on.
    fn report_rollback(&self, now: Revision, seen: Revision) {
        tracing::error!(
            now,
            seen,
            "the store has gone back: an old copy of it is where it was; no lease is granted any more"
        );
        self.went_back.send_replace(Some(now));
    }
}

async fn reached(feed: &ChangeLog, revision: Revision) {
    // An error means that the feed is gone, and with it this task.
    let _ = feed.subscribe_head().wait_for(|head| *head >= revision).await;
}
