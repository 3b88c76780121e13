//! Fills the change log at the start of a replica, so that nodes can resume with deltas.
//!
//! A node resumes with deltas if the log reaches back to its revision. Otherwise it loads a
//! snapshot, and a thousand nodes that load one at the same time are late with their leases. So a
//! replica that starts lists the store as it was 10,000 revisions ago and replays the watch from
//! there before it serves. If that history has been compacted, or the replay takes too long, the
//! log starts at the present and nodes load snapshots.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout};

use crate::{
    changefeed::{
        change::TableChange,
        compile::{CompiledChanges, MaterializedTable},
        log::ChangeLog,
        watcher::{self, StoreListing, is_fleet_record, revokes_node},
    },
    seal::Sealer,
    store::{Key, Record, Revision, Store, StoreError, WatchEvent, Write, key::prefix},
};

/// How far back the replay starts, in revisions: minutes of a busy fleet. A replay of 20,000, a
/// token issued at each, took between one second and two and a half on a slow machine that was busy
/// with other things.
const HISTORY_REVISIONS: Revision = 10_000;
/// Where that history isn't kept, the replay is tried with this part of it, in this order.
const FALLBACK_DIVISORS: [Revision; 3] = [1, 8, 64];
/// How long the replay may take.
const REPLAY_LIMIT: Duration = Duration::from_secs(4);

/// The store as it is now, and a log of the changes that led to it.
///
/// # Errors
/// A store that can't be listed.
pub(crate) async fn bootstrap(store: &dyn Store, sealer: &Sealer) -> Result<(StoreListing, ChangeLog), StoreError> {
    let head = store.revision().await?;
    let past = list_history(store, head).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the store's past can't be listed");
        None
    });
    if let Some((records, from)) = past {
        let begun = Instant::now();
        let replay = Replay::new(records, from, sealer, store.is_authenticated());
        match timeout(REPLAY_LIMIT, replay.catch_up(store, head)).await {
            Ok(Some(replayed)) => {
                tracing::debug!(from, head, took = ?begun.elapsed(), "nodes that have applied what is kept of the past go on from there");
                return Ok(replayed);
            }
            _ => tracing::warn!(from, head, "the store's past can't be followed to the present"),
        }
    }
    let listing = watcher::list_store(store).await?;
    let log = ChangeLog::new(listing.revision);
    Ok((listing, log))
}

/// The store at an earlier revision; `None` when no history is kept.
async fn list_history(store: &dyn Store, head: Revision) -> Result<Option<(Vec<Record>, Revision)>, StoreError> {
    // Before that it was another store, or of another epoch.
    let mut since = 0;
    for key in [Key::StoreId, Key::Epoch] {
        since = store.get(&key).await?.map_or(0, |record| record.modified).max(since);
    }
    for divisor in FALLBACK_DIVISORS {
        let from = head.saturating_sub(HISTORY_REVISIONS / divisor).max(since);
        if from < head
            && let Some(records) = store.list_at(prefix::ALL, from).await?
        {
            return Ok(Some((records, from)));
        }
    }
    Ok(None)
}

/// A replay that has reached the revision `log.head()`.
struct Replay<'a> {
    table: MaterializedTable,
    /// The records of nodes and replicas, each in its latest form. Nothing else of their history is
    /// needed: no node was served here.
    fleet: BTreeMap<Key, Record>,
    /// See [`StoreListing::complete_since`].
    complete_since: Revision,
    log: ChangeLog,
    sealer: &'a Sealer,
}

impl<'a> Replay<'a> {
    fn new(records: Vec<Record>, from: Revision, sealer: &'a Sealer, authenticated: bool) -> Self {
        let fleet = records.iter().filter(|record| is_fleet_record(&record.key));
        let fleet = fleet.map(|record| (record.key.clone(), record.clone())).collect();
        Self {
            fleet,
            complete_since: from,
            table: MaterializedTable::load(records, authenticated),
            log: ChangeLog::new(from),
            sealer,
        }
    }

    /// Replays up to `head` at least; `None` when the watch ends before.
    async fn catch_up(mut self, store: &dyn Store, head: Revision) -> Option<(StoreListing, ChangeLog)> {
        let mut watch = store.watch(self.log.head());
        while self.log.head() < head {
            match watch.next().await? {
                WatchEvent::Changes { revision, changes } => self.apply_changes(revision, changes),
                WatchEvent::Progress(revision) => self.log.append(revision, CompiledChanges::default()),
                WatchEvent::Compacted => return None,
            }
        }
        let reached = self.log.head();
        let mut listing = StoreListing::from_records(self.fleet.into_values(), self.table, reached);
        listing.complete_since = Some(self.complete_since);
        Some((listing, self.log))
    }

    fn apply_changes(&mut self, revision: Revision, changes: Vec<Write>) {
        for change in &changes {
            match change {
                Write::Put(key, value) if is_fleet_record(key) => {
                    let record = Record { key: key.clone(), value: value.clone(), modified: revision };
                    let before = self.fleet.insert(key.clone(), record);
                    if before.is_some_and(|before| watcher::drops_lease_holder(&before, Some(value))) {
                        self.complete_since = revision;
                    }
                }
                Write::Delete(key) => {
                    if self.fleet.remove(key).is_some_and(|before| watcher::drops_lease_holder(&before, None)) {
                        self.complete_since = revision;
                    }
                }
                Write::Put(..) => {}
            }
        }
        let revokes = revokes_node(&changes);
        let compiled = self.table.apply(changes);
        // A credential may have been re-wrapped since then, and the old KEK removed. Sent as it
        // was, it would look deleted to nodes. Nodes from before this revision load a snapshot
        // instead.
        let opens = compiled.changes.iter().all(|item| self.can_open(item));
        self.log.append_acknowledged(revision, compiled, revokes);
        if !opens {
            self.log.reset(revision);
        }
    }

    fn can_open(&self, item: &TableChange) -> bool {
        item.envelope().is_none_or(|envelope| self.sealer.has_key_of(envelope))
    }
}

#[cfg(test)]
mod tests;
