//! Follows the store: its watch into the materialised table and the feed.

use std::sync::Arc;

use crate::{
    changefeed::{
        compile::{Compiled, Materialised},
        log::Feed,
        snapshot::Snapshots,
    },
    fleet::{leases::Fleet, membership::Members, replicas::Replicas},
    store::{Key, Record, Revision, Store, StoreError, WatchEvent, Write, key::prefix},
};
use futures_util::StreamExt as _;
use seks_proto::{
    id::{NodeId, ReplicaId},
    wire,
};
use tokio::{sync::Notify, time::sleep};

/// Pause before a listing that failed is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(500);

/// Where the store's changes go.
pub(crate) struct Follow {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) members: Arc<Members>,
    pub(crate) replicas: Arc<Replicas>,
    /// The watch has stalled: begin another.
    pub(crate) stalled: Arc<Notify>,
    /// What was followed isn't what the store holds: list it again.
    pub(crate) damaged: Arc<Notify>,
}

impl Follow {
    /// For ever.
    pub(crate) async fn run(self) {
        loop {
            let mut watch = self.store.watch(self.feed.head());
            let lost = loop {
                tokio::select! {
                    event = watch.next() => match event {
                        Some(event) => if self.take(event) { break true },
                        None => break true,
                    },
                    () = self.damaged.notified() => break true,
                    () = self.stalled.notified() => break false,
                }
            };
            drop(watch);
            while lost && !self.relist().await {
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
                let revokes = revokes(&changes);
                let push = |compiled: Compiled| self.feed.push_as(revision, compiled, revokes);
                let authenticated = self.store.is_authenticated();
                let apply = |table: &mut Materialised| {
                    table.set_authenticated(authenticated);
                    table.apply(changes)
                };
                self.snapshots.update(revision, apply, push);
            }
            WatchEvent::Progress(revision) if revision > self.feed.head() => {
                self.snapshots.update(revision, |_| (), |()| self.feed.push(revision, Compiled::default()));
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
                    let record = readable::<wire::Node>(value, "node");
                    self.members.learn(id, &record, revision);
                    self.fleet.learn(id.clone(), Some(record), revision);
                }
                Write::Delete(Key::Node(id)) => {
                    self.members.revoke(id, revision);
                    self.fleet.learn(id.clone(), None, revision);
                }
                Write::Put(Key::Replica(id), value) => {
                    self.learn_replica(id, Some(readable::<wire::Replica>(value, "replica")), revision);
                }
                Write::Delete(Key::Replica(id)) => self.learn_replica(id, None, revision),
                _ => {}
            }
        }
    }

    fn learn_replica(&self, id: &ReplicaId, record: Option<wire::Replica>, revision: Revision) {
        if record.as_ref().is_none_or(|record| record.retired) {
            // Before the head moves, and with it a barrier that nothing may be granted from any more.
            self.fleet.disown_if(id);
        }
        self.replicas.learn(id, record, revision);
        self.fleet.allow_for(self.replicas.longest_ttl());
    }

    /// Starts again from a listing: every node gets a snapshot, because nobody knows what the gap held.
    async fn relist(&self) -> bool {
        tracing::warn!(
            "history was lost (the store has compacted it, or an event is missing); listing the store again"
        );
        match list(&*self.store).await {
            Ok(Listing { table, nodes, replicas, revision, .. }) => {
                self.members.reset(&nodes);
                let stands = |me| replicas.iter().any(|(id, record, _)| *id == me && !record.retired);
                if !self.fleet.me().is_some_and(stands) {
                    self.fleet.disown(); // the gap may have held that we were retired
                }
                self.replicas.reset(replicas);
                self.fleet.allow_for(self.replicas.longest_ttl());
                self.fleet.reset(nodes, revision);
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
pub(crate) struct Listing {
    pub(crate) table: Materialised,
    /// Nodes that may hold leases, each with the revision of its record.
    pub(crate) nodes: Vec<(NodeId, wire::Node, Revision)>,
    /// Replicas that may grant them.
    pub(crate) replicas: Vec<(ReplicaId, wire::Replica, Revision)>,
    pub(crate) revision: Revision,
    /// No record of a node that may hold a lease was taken away or given to another process after this revision: whoever was
    /// granted one since then is in `nodes`. `None`: nothing is known of the past.
    pub(crate) complete_since: Option<Revision>,
}

pub(crate) async fn list(store: &dyn Store) -> Result<Listing, StoreError> {
    let (records, revision) = store.list(prefix::ALL).await?;
    let fleet: Vec<Record> = records.iter().filter(|record| is_of_fleet(&record.key)).cloned().collect();
    Ok(Listing::of(fleet, Materialised::load(records, store.is_authenticated()), revision))
}

impl Listing {
    /// `fleet`: the records of which [`is_of_fleet`].
    pub(crate) fn of(fleet: impl IntoIterator<Item = Record>, table: Materialised, revision: Revision) -> Self {
        let (mut nodes, mut replicas) = (Vec::new(), Vec::new());
        for Record { key, value, modified } in fleet {
            match key {
                Key::Node(id) => nodes.push((id, readable(&value, "node"), modified)),
                Key::Replica(id) => replicas.push((id, readable(&value, "replica"), modified)),
                _ => {}
            }
        }
        Self { table, nodes, replicas, revision, complete_since: None }
    }
}

/// A record of the fleet. One that doesn't decode says nothing: that is somebody's to look into.
fn readable<T: prost::Message + Default>(value: &bytes::Bytes, kind: &'static str) -> T {
    T::decode(value.clone()).unwrap_or_else(|error| {
        tracing::error!(kind, %error, "a record in the store is not readable; what it says of the fleet is not known");
        T::default()
    })
}

/// Whether a process that may hold a lease isn't named in the store any more once the record `before` is replaced by `after`.
pub(crate) fn leaves_holder(before: &Record, after: Option<&bytes::Bytes>) -> bool {
    if !matches!(before.key, Key::Node(_)) {
        return false;
    }
    let held = readable::<wire::Node>(&before.value, "node");
    let same = |value| readable::<wire::Node>(value, "node").instance == held.instance;
    // Nobody has ever answered for it: it never had a lease.
    !held.replica.is_empty() && !after.is_some_and(same)
}

/// Whether a record is of a node or a replica, and not of the nodes' table.
pub(crate) fn is_of_fleet(key: &Key) -> bool {
    matches!(key, Key::Node(_) | Key::Replica(_))
}

/// Who may still serve after a node was revoked is known by who has acknowledged that revision, though it changes no table: not the
/// node itself.
pub(crate) fn revokes(changes: &[Write]) -> bool {
    changes.iter().any(|change| matches!(change, Write::Delete(Key::Node(_))))
}
