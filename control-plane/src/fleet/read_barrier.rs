//! Leases, rooted in the store: a node may serve because this replica, a moment ago, had seen everything that was committed.
//!
//! Every second: note the time, *then* ask the store for its revision by a linearizable read; once the watch has brought that revision, the time
//! becomes a [`Barrier`]. A lease is counted from the barrier's time, so a replica that is cut off from the store, or whose
//! watch has stalled, can extend nothing, however long it goes on talking to its nodes.

use std::{sync::Arc, time::Duration};

use crate::{
    changefeed::log::Feed,
    store::{Revision, Store, StoreError},
};
use seks_proto::table::{BootInstant, rules};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

/// How often a barrier is raised.
const PERIOD: Duration = Duration::from_secs(1);
/// Nodes that come back at the same time share a barrier: each wakes everybody who waits for one.
const COALESCE: Duration = Duration::from_millis(10);
/// How long the watch may take to bring what the store has.
const WATCH_LIMIT: Duration = Duration::from_secs(3);

/// Everything that was committed before `at` is at or before `revision`, and in the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Barrier {
    pub(crate) at: BootInstant,
    pub(crate) revision: Revision,
}

/// What is left of a lease of `ttl` that counts from `barrier`.
pub(crate) fn ttl_left(barrier: Barrier, ttl: Duration) -> Duration {
    rules::ttl_left(barrier.at, BootInstant::now(), ttl)
}

/// Raises barriers for ever, the next at once when `hurry` asks; `stalled` is told when the watch doesn't bring what the store has.
pub(crate) async fn run(
    store: Arc<dyn Store>,
    feed: Arc<Feed>,
    ttl: Duration,
    barrier: watch::Sender<Option<Barrier>>,
    stalled: Arc<Notify>,
    hurry: Arc<Notify>,
    went_back: watch::Sender<Option<Revision>>,
) {
    let period = PERIOD.min(ttl / 5);
    loop {
        let (at, seen) = (BootInstant::now(), feed.head());
        match timeout(ttl, store.revision()).await {
            Ok(Ok(revision)) if revision < seen => return report(&went_back, revision, seen),
            Ok(Err(StoreError::Replaced)) => return report(&went_back, 0, seen),
            Ok(Ok(revision)) => {
                if timeout(WATCH_LIMIT, reached(&feed, revision)).await.is_ok() {
                    barrier.send_replace(Some(Barrier { at, revision }));
                } else {
                    tracing::warn!(revision, applied = feed.head(), "the store's watch has stalled; watching anew");
                    stalled.notify_one();
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "the store's revision can't be read; leases aren't renewed"),
            Err(_) => tracing::warn!("the store is silent; leases aren't renewed"),
        }
        // Somebody's first lease waits for a barrier after its record; everybody else's doesn't.
        if timeout(period, hurry.notified()).await.is_ok() {
            sleep(COALESCE).await;
        }
    }
}

/// What was seen of the store is not in it any more: nothing is granted from here on.
fn report(went_back: &watch::Sender<Option<Revision>>, now: Revision, seen: Revision) {
    tracing::error!(
        now,
        seen,
        "the store has gone back: an old copy of it is where it was; no lease is granted any more"
    );
    went_back.send_replace(Some(now));
}

async fn reached(feed: &Feed, revision: Revision) {
    // An error means that the feed is gone, and with it this task.
    let _ = feed.subscribe().wait_for(|head| *head >= revision).await;
}
