//! Watches the store and applies its events to the materialized table and the change log.

use std::sync::Arc;

use futures_util::StreamExt as _;
use seks_proto::wire;
use seks_types::id::{NodeId, ReplicaId};
use tokio::{sync::Notify, time::sleep};

use crate::{
    changefeed::{
        ChangeFeed,
        compile::{CompiledChanges, MaterializedTable},
    },
    store::{Key, Record, Revision, Store, StoreError, WatchEvent, Write, key::prefix},
};

/// Pause before a listing that failed is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(500);

/// Receives the records of nodes and replicas, before the log's head moves past them. A reader of a
/// revision then knows the nodes and replicas of that revision.
pub(crate) trait FleetRecords: Send + Sync + 'static {
    /// The store says this of a node since `revision`; `None`: it has no record any more.
    fn node(&self, id: &NodeId, record: Option<wire::Node>, revision: Revision);

    /// The store says this of a replica since `revision`; `None`: it has no record any more.
    fn replica(&self, id: &ReplicaId, record: Option<wire::Replica>, revision: Revision);

    /// The store holds exactly these at `revision`; what was in between is not known.
    fn reset(&self, nodes: NodeRecords, replicas: ReplicaRecords, revision: Revision);
}

/// Nodes' records, each with the revision that wrote it.
pub(crate) type NodeRecords = Vec<(NodeId, wire::Node, Revision)>;
/// Replicas' records, each with the revision that wrote it.
pub(crate) type ReplicaRecords = Vec<(ReplicaId, wire::Replica, Revision)>;

/// Applies what the store's watch brings.
pub(crate) struct StoreWatcher {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) changes: ChangeFeed,
    pub(crate) fleet: Box<dyn FleetRecords>,
    /// The watch has stalled: begin another.
    pub(crate) restart: Arc<Notify>,
    /// The table differs from the store: list the store again.
    pub(crate) relist_requested: Arc<Notify>,
}

impl StoreWatcher {
    /// Runs until it is dropped. It starts again from a listing when the watch loses history, or on
    /// request.
    pub(crate) async fn watch_forever(self) {
        loop {
            let mut watch = self.store.watch(self.changes.log.head());
            let lost = loop {
                tokio::select! {
                    event = watch.next() => match event {
                        Some(event) => if self.apply_event(event) { break true },
                        None => break true,
                    },
                    () = self.relist_requested.notified() => break true,
                    () = self.restart.notified() => break false,
                }
            };
            drop(watch);
            while lost && !self.relist().await {
                sleep(RETRY).await;
            }
        }
    }

    /// Applies one event; `true` when history has been lost and the store has to be listed again.
    fn apply_event(&self, event: WatchEvent) -> bool {
        match event {
            WatchEvent::Changes { revision, changes } if revision > self.changes.log.head() => {
                // Before the head moves: a reader of this revision then knows the nodes in it.
                self.report_fleet_records(&changes, revision);
                let revokes = revokes_node(&changes);
                let push =
                    |compiled: CompiledChanges| self.changes.log.append_acknowledged(revision, compiled, revokes);
                let authenticated = self.store.is_authenticated();
                let apply = |table: &mut MaterializedTable| {
                    table.set_authenticated(authenticated);
                    table.apply(changes)
                };
                self.changes.snapshots.update(revision, apply, push);
            }
            WatchEvent::Progress(revision) if revision > self.changes.log.head() => {
                self.changes.snapshots.update(
                    revision,
                    |_| (),
                    |()| self.changes.log.append(revision, CompiledChanges::default()),
                );
            }
            WatchEvent::Changes { .. } | WatchEvent::Progress(_) => {}
            WatchEvent::Compacted => return true,
        }
        false
    }

    fn report_fleet_records(&self, changes: &[Write], revision: Revision) {
        for change in changes {
            match change {
                Write::Put(Key::Node(id), value) => {
                    self.fleet.node(id, Some(decode_or_default(value, "node")), revision)
                }
                Write::Delete(Key::Node(id)) => self.fleet.node(id, None, revision),
                Write::Put(Key::Replica(id), value) => {
                    self.fleet.replica(id, Some(decode_or_default(value, "replica")), revision);
                }
                Write::Delete(Key::Replica(id)) => self.fleet.replica(id, None, revision),
                _ => {}
            }
        }
    }

    /// Replaces the table by a listing. Every node gets a snapshot, because the changes in the gap
    /// are not known.
    async fn relist(&self) -> bool {
        tracing::warn!(
            "history was lost (the store has compacted it, or an event is missing); listing the store again"
        );
        match list_store(&*self.store).await {
            Ok(StoreListing { table, nodes, replicas, revision, .. }) => {
                self.fleet.reset(nodes, replicas, revision);
                self.changes.snapshots.update(revision, |old| *old = table, |()| self.changes.log.reset(revision));
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
pub(crate) struct StoreListing {
    pub(crate) table: MaterializedTable,
    /// Nodes that may hold leases, each with the revision of its record.
    pub(crate) nodes: NodeRecords,
    /// Replicas that may grant them.
    pub(crate) replicas: ReplicaRecords,
    pub(crate) revision: Revision,
    /// After this revision no record of a node that may hold a lease was deleted or given to
    /// another process. Each node that was granted a lease since then is in `nodes`. `None`: the
    /// past is not known.
    pub(crate) complete_since: Option<Revision>,
}

pub(crate) async fn list_store(store: &dyn Store) -> Result<StoreListing, StoreError> {
    let (records, revision) = store.list(prefix::ALL).await?;
    let fleet: Vec<Record> = records.iter().filter(|record| is_fleet_record(&record.key)).cloned().collect();
    Ok(StoreListing::from_records(fleet, MaterializedTable::load(records, store.is_authenticated()), revision))
}

impl StoreListing {
    /// `fleet`: the records of which [`is_fleet_record`].
    pub(crate) fn from_records(
        fleet: impl IntoIterator<Item = Record>,
        table: MaterializedTable,
        revision: Revision,
    ) -> Self {
        let (mut nodes, mut replicas) = (Vec::new(), Vec::new());
        for Record { key, value, modified } in fleet {
            match key {
                Key::Node(id) => nodes.push((id, decode_or_default(&value, "node"), modified)),
                Key::Replica(id) => replicas.push((id, decode_or_default(&value, "replica"), modified)),
                _ => {}
            }
        }
        Self { table, nodes, replicas, revision, complete_since: None }
    }
}

/// A record of the fleet. One that doesn't decode is logged and counts as empty.
fn decode_or_default<T: prost::Message + Default>(value: &bytes::Bytes, kind: &'static str) -> T {
    T::decode(value.clone()).unwrap_or_else(|error| {
        tracing::error!(kind, %error, "a record in the store cannot be decoded; it counts as empty");
        T::default()
    })
}

/// Whether replacing the record `before` by `after` removes a process that may hold a lease from
/// the store.
pub(crate) fn drops_lease_holder(before: &Record, after: Option<&bytes::Bytes>) -> bool {
    if !matches!(before.key, Key::Node(_)) {
        return false;
    }
    let held = decode_or_default::<wire::Node>(&before.value, "node");
    let same = |value| decode_or_default::<wire::Node>(value, "node").instance == held.instance;
    // A node that no replica has ever owned never had a lease.
    !held.replica.is_empty() && !after.is_some_and(same)
}

/// Whether a record is of a node or a replica, and not of the nodes' table.
pub(crate) fn is_fleet_record(key: &Key) -> bool {
    matches!(key, Key::Node(_) | Key::Replica(_))
}

/// Whether `changes` revoke a node. Such a revision does not change the table. It is acknowledged
/// nevertheless, because the acknowledgement states that the revoked node has stopped.
pub(crate) fn revokes_node(changes: &[Write]) -> bool {
    changes.iter().any(|change| matches!(change, Write::Delete(Key::Node(_))))
}
