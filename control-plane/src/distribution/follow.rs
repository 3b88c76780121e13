//! Follows the store: its watch into the materialised table and the feed.

use std::sync::Arc;

use futures_util::StreamExt as _;
use prost::Message as _;
use seks_proto::{id::NodeId, wire};
use tokio::{sync::Notify, time::sleep};

use super::{compile::Materialised, feed::Feed, fleet::Fleet, members::Members, snapshot::Snapshots};
use crate::store::{Key, Record, Revision, Store, StoreError, WatchEvent, Write, key::prefix};

/// Pause before a listing that failed is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(500);

/// Where the store's changes go.
pub(super) struct Follow {
    pub(super) store: Arc<dyn Store>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) feed: Arc<Feed>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) members: Arc<Members>,
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
                // Before the head moves: who has seen this revision knows the nodes in it.
                self.learn(&changes, revision);
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

    fn learn(&self, changes: &[Write], revision: Revision) {
        for change in changes {
            match change {
                Write::Put(Key::Node(id), value) => {
                    let record = wire::Node::decode(value.clone()).unwrap_or_default();
                    self.members.learn(id, Some(&record));
                    self.fleet.learn(id.clone(), Some(record), revision);
                }
                Write::Delete(Key::Node(id)) => {
                    self.members.learn(id, None);
                    self.fleet.learn(id.clone(), None, revision);
                }
                _ => {}
            }
        }
    }

    /// Starts again from a listing: every node gets a snapshot, because nobody knows what the gap held.
    async fn relist(&self) -> bool {
        tracing::warn!("the store has compacted the history that was asked for; listing it again");
        match list(&*self.store).await {
            Ok(Listing { table, nodes, revision }) => {
                self.members.reset(&nodes);
                nodes.into_iter().for_each(|(id, record)| self.fleet.learn(id, Some(record), revision));
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

/// The store as it is now.
pub(super) struct Listing {
    pub(super) table: Materialised,
    /// Nodes that may hold leases.
    pub(super) nodes: Vec<(NodeId, wire::Node)>,
    pub(super) revision: Revision,
}

pub(super) async fn list(store: &dyn Store) -> Result<Listing, StoreError> {
    let (records, revision) = store.list(prefix::ALL).await?;
    let node = |record: &Record| match &record.key {
        Key::Node(id) => Some((id.clone(), wire::Node::decode(record.value.clone()).unwrap_or_default())),
        _ => None,
    };
    let nodes = records.iter().filter_map(node).collect();
    Ok(Listing { table: Materialised::load(records), nodes, revision })
}
