//! Follows the store: its watch into the materialised table and the feed.

use std::sync::Arc;

use futures_util::StreamExt as _;
use tokio::{sync::Notify, time::sleep};

use super::{compile::Materialised, feed::Feed, snapshot::Snapshots};
use crate::store::{Store, StoreError, WatchEvent, key::prefix};

/// Pause before a listing that failed is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(500);

/// Where the store's changes go.
pub(super) struct Follow {
    pub(super) store: Arc<dyn Store>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) feed: Arc<Feed>,
    /// The watch has stalled: begin another.
    pub(super) stalled: Arc<Notify>,
}

impl Follow {
    /// For ever.
    pub(super) async fn run(self) {
        loop {
            let mut watch = self.store.watch(self.feed.head());
            let compacted = loop {
                tokio::select! {
                    event = watch.next() => match event {
                        Some(event) => if self.take(event) { break true },
                        None => break true,
                    },
                    () = self.stalled.notified() => break false,
                }
            };
            drop(watch);
            while compacted && !self.relist().await {
                sleep(RETRY).await;
            }
        }
    }

    /// Takes in one event; `true` when history has been lost.
    fn take(&self, event: WatchEvent) -> bool {
        match event {
            WatchEvent::Changes { revision, changes } if revision > self.feed.head() => {
                let push = |items| self.feed.push(revision, items);
                self.snapshots.update(revision, |table| table.apply(changes), push);
            }
            WatchEvent::Progress(revision) if revision > self.feed.head() => {
                self.snapshots.update(revision, |_| (), |()| self.feed.push(revision, Vec::new()));
            }
            WatchEvent::Changes { .. } | WatchEvent::Progress(_) => {}
            WatchEvent::Compacted => return true,
        }
        false
    }

    /// Starts again from a listing: every node gets a snapshot, because nobody knows what the gap held.
    async fn relist(&self) -> bool {
        tracing::warn!("the store has compacted the history that was asked for; listing it again");
        match list(&*self.store).await {
            Ok((table, revision)) => {
                self.snapshots.update(revision, |old| *old = table, |()| self.feed.reset(revision));
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the store can't be listed");
                false
            }
        }
    }
}

/// The whole table as the store has it now.
pub(super) async fn list(store: &dyn Store) -> Result<(Materialised, u64), StoreError> {
    let (records, revision) = store.list(prefix::ALL).await?;
    Ok((Materialised::load(records), revision))
}
