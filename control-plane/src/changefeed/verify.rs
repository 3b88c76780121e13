//! Compares this replica's table with the store.
//!
//! etcd has lost watch events before, deletes among them, and a lost delete is a lost revocation:
//! replica and nodes would agree, and all be wrong. So every minute the store is listed, and its
//! checksum compared with the table's at the same revision.

use std::{sync::Arc, time::Duration};

use seks_runtime::run_blocking;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use crate::{
    changefeed::{ChangeFeed, compile::MaterializedTable, scope::NodeScope},
    store::{Store, StoreError, key::prefix},
};

/// How long the watch may take to bring what was listed; where it takes longer, the barriers
/// notice.
const WATCH_LIMIT: Duration = Duration::from_secs(10);
/// Of a large store at most this part of the time goes into listing it.
const SHARE: u32 = 50;

/// Compares until it is dropped. `relist` is notified when the two differ.
pub(crate) async fn verify_periodically(
    store: Arc<dyn Store>,
    changes: ChangeFeed,
    every: Duration,
    relist: Arc<Notify>,
) {
    let mut pause = every;
    loop {
        sleep(pause).await;
        let begun = Instant::now();
        match matches_store(&*store, &changes).await {
            Ok(true) => {}
            Ok(false) => {
                changes.metrics.diverged("replica");
                tracing::error!(
                    "the table of this replica differs from the store: an event was lost; listing it again"
                );
                relist.notify_one();
            }
            Err(error) => tracing::warn!(%error, "the store can't be listed, and so not compared with"),
        }
        pause = every.max(begun.elapsed() * SHARE);
    }
}

/// Counts as equal when the two can't be compared.
async fn matches_store(store: &dyn Store, changes: &ChangeFeed) -> Result<bool, StoreError> {
    let (records, revision) = store.list(prefix::ALL).await?;
    let authenticated = store.is_authenticated();
    let Ok(listed) = run_blocking(move || MaterializedTable::load(records, authenticated).checksum(|_| true)).await
    else {
        return Ok(true);
    };
    let mut head = changes.log.subscribe_head();
    if !matches!(timeout(WATCH_LIMIT, head.wait_for(|head| *head >= revision)).await, Ok(Ok(_))) {
        return Ok(true);
    }
    let followed = changes.snapshots.checksum_at(revision, &NodeScope::default(), &changes.log);
    Ok(followed.is_none_or(|followed| followed == listed))
}
