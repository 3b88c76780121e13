//! The change log: the recent changes in order, kept once for all streams.
//!
//! A stream's position is a revision, so a slow node costs no queue. A node that has fallen behind
//! what is kept loads a snapshot.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use seks_lease::BootInstant;
use seks_types::id::TenantName;
use tokio::sync::watch;

use crate::{
    changefeed::{
        change::TableChange,
        checksum::{Checksum, ChecksumDelta},
        compile::CompiledChanges,
    },
    store::Revision,
};

/// Most deltas kept: several seconds of the busiest store.
const MAX_DELTAS: usize = 64 * 1024;
/// Most bytes kept.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// How many revisions' times are kept, for knowing how old a change is.
const MAX_TIMES: usize = 64 * 1024;

/// The changes of one revision. Revisions that change no node's table have no entry.
pub(crate) struct LogEntry {
    pub(crate) revision: Revision,
    /// Revocations first.
    pub(crate) changes: Vec<TableChange>,
    pub(crate) checksum_deltas: Vec<ChecksumDelta>,
}

/// The entries after the reader's revision are no longer kept: it has to load a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Truncated;

#[derive(Default)]
struct Ring {
    deltas: VecDeque<Arc<LogEntry>>,
    bytes: usize,
    /// A reader at this revision or later can continue with deltas.
    floor: Revision,
    /// When this replica learnt of each revision.
    times: VecDeque<(Revision, BootInstant)>,
}

/// The log, its head and its readers' wake-ups.
pub(crate) struct ChangeLog {
    ring: RwLock<Ring>,
    head: watch::Sender<Revision>,
    /// Moves with each entry, and when the log is reset.
    entries: watch::Sender<()>,
}

impl ChangeLog {
    /// A feed that begins after `floor`.
    pub(crate) fn new(floor: Revision) -> Self {
        let log = Self { ring: RwLock::default(), head: watch::Sender::new(0), entries: watch::Sender::new(()) };
        log.reset(floor);
        log
    }

    /// The newest revision: each entry up to it is in the log.
    pub(crate) fn head(&self) -> Revision {
        *self.head.borrow()
    }

    /// Wakes whenever the head moves.
    pub(crate) fn subscribe_head(&self) -> watch::Receiver<Revision> {
        self.head.subscribe()
    }

    /// Wakes whenever there may be something to send. Most revisions have no entry, such as those
    /// of nodes' own records: a thousand nodes that reconnect would otherwise wake each other a
    /// million times.
    pub(crate) fn subscribe_entries(&self) -> watch::Receiver<()> {
        self.entries.subscribe()
    }

    /// Removes all entries and starts again at `floor`: the changes before it are not known.
    pub(crate) fn reset(&self, floor: Revision) {
        let mut ring = self.write();
        *ring = Ring { floor, times: VecDeque::from([(floor, BootInstant::now())]), ..Ring::default() };
        self.head.send_replace(floor);
        self.entries.send_replace(());
    }

    /// Adds what `revision` did; no changes: nothing to nodes.
    pub(crate) fn append(&self, revision: Revision, compiled: CompiledChanges) {
        self.append_acknowledged(revision, compiled, false);
    }

    /// As [`append`](Self::append); what `must_be_acked` is sent to every node and acknowledged by
    /// it, even if its table stays as it was.
    pub(crate) fn append_acknowledged(&self, revision: Revision, compiled: CompiledChanges, must_be_acked: bool) {
        let CompiledChanges { changes, checksum_deltas } = compiled;
        let must_be_acked = must_be_acked || !changes.is_empty() || !checksum_deltas.is_empty();
        let mut ring = self.write();
        ring.times.push_back((revision, BootInstant::now()));
        if ring.times.len() > MAX_TIMES {
            ring.times.pop_front();
        }
        if must_be_acked {
            ring.bytes += size(&changes);
            ring.deltas.push_back(Arc::new(LogEntry { revision, changes, checksum_deltas }));
        }
        while ring.deltas.len() > MAX_DELTAS || (ring.bytes > MAX_BYTES && ring.deltas.len() > 1) {
            if let Some(oldest) = ring.deltas.pop_front() {
                ring.bytes = ring.bytes.saturating_sub(size(&oldest.changes));
                ring.floor = oldest.revision;
            }
        }
        // Under the lock: a reader that sees the head finds the entry.
        self.head.send_replace(revision);
        if must_be_acked {
            self.entries.send_replace(());
        }
    }

    /// Whether a reader at `revision` can continue with deltas.
    pub(crate) fn reaches(&self, revision: Revision) -> bool {
        let floor = self.read().floor;
        floor <= revision && revision <= self.head()
    }

    /// The first delta after `revision`, `None` when there is none yet.
    pub(crate) fn next(&self, revision: Revision) -> Result<Option<Arc<LogEntry>>, Truncated> {
        let ring = self.read();
        if revision < ring.floor {
            return Err(Truncated);
        }
        let at = ring.deltas.partition_point(|d| d.revision <= revision);
        Ok(ring.deltas.get(at).cloned())
    }

    /// The deltas after `revision`, as many as there are and `bytes` hold.
    pub(crate) fn after(&self, revision: Revision, bytes: usize) -> Vec<Arc<LogEntry>> {
        let ring = self.read();
        let at = ring.deltas.partition_point(|d| d.revision <= revision);
        let mut room = bytes;
        let fits = |delta: &&Arc<LogEntry>| {
            let size = size(&delta.changes);
            room.checked_sub(size).is_some_and(|left| {
                room = left;
                true
            })
        };
        ring.deltas.range(at..).take_while(fits).cloned().collect()
    }

    /// The revision of the last entry up to `revision`: a node that has applied it has applied
    /// `revision`.
    pub(crate) fn effective(&self, revision: Revision) -> Revision {
        let ring = self.read();
        let at = ring.deltas.partition_point(|d| d.revision <= revision);
        match at.checked_sub(1).and_then(|last| ring.deltas.get(last)) {
            Some(delta) => delta.revision,
            // Whatever it was, it isn't kept: the floor is the least that is known to suffice, if
            // it isn't later.
            None => ring.floor.min(revision),
        }
    }

    /// How the checksum of the tenants that `wanted` picks has changed since `revision`; `None`
    /// when that is no longer kept.
    pub(crate) fn checksum_delta_since(
        &self,
        revision: Revision,
        wanted: impl Fn(&TenantName) -> bool,
    ) -> Option<Checksum> {
        let ring = self.read();
        if revision < ring.floor {
            return None;
        }
        let at = ring.deltas.partition_point(|d| d.revision <= revision);
        let checksum_deltas = ring.deltas.iter().skip(at).flat_map(|d| &d.checksum_deltas);
        Some(checksum_deltas.filter(|s| wanted(&s.tenant)).fold(Checksum::default(), |sum, s| sum.plus(&s.delta)))
    }

    /// When this replica learnt of `revision` or a later one: never too early.
    pub(crate) fn observed(&self, revision: Revision) -> Option<BootInstant> {
        let ring = self.read();
        let at = ring.times.partition_point(|(r, _)| *r < revision);
        ring.times.get(at).map(|(_, time)| *time)
    }

    /// The last revision that this replica had learnt of by `then`; 0: of none that is remembered.
    pub(crate) fn head_at(&self, then: BootInstant) -> Revision {
        let ring = self.read();
        let at = ring.times.partition_point(|(_, time)| *time <= then);
        at.checked_sub(1).and_then(|last| ring.times.get(last)).map_or(0, |(revision, _)| *revision)
    }

    fn read(&self) -> RwLockReadGuard<'_, Ring> {
        self.ring.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Ring> {
        self.ring.write()
    }
}

fn size(changes: &[TableChange]) -> usize {
    changes.iter().map(|item| item.size() + 64).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn item(bytes: usize) -> CompiledChanges {
        let item = TableChange::plain(&"t".parse().unwrap(), Bytes::from(vec![0; bytes]), false);
        CompiledChanges { changes: vec![item], checksum_deltas: Vec::new() }
    }

    #[test]
    fn a_reader_reads_on_where_it_stopped_and_empty_revisions_cost_nothing() {
        let log = ChangeLog::new(10);
        log.append(12, item(1));
        log.append(13, CompiledChanges::default());
        log.append(17, item(1));
        let next = |after| log.next(after).unwrap().map(|d| d.revision);
        assert_eq!((next(10), next(11), next(12), next(13), next(17)), (Some(12), Some(12), Some(17), Some(17), None));
        assert_eq!(log.next(9).err(), Some(Truncated));
        assert!(log.reaches(10) && log.reaches(17) && !log.reaches(9) && !log.reaches(18));
        assert_eq!((log.effective(11), log.effective(13), log.effective(16), log.effective(99)), (10, 12, 12, 17));
    }

    #[test]
    fn what_has_piled_up_is_taken_in_order_and_within_bounds() {
        let log = ChangeLog::new(0);
        (1..=5).for_each(|revision| log.append(revision, item(100)));
        let after = |revision, bytes| log.after(revision, bytes).iter().map(|d| d.revision).collect::<Vec<_>>();
        assert_eq!(after(1, 10_000), [2, 3, 4, 5]);
        assert_eq!(after(1, 400), [2, 3], "164 bytes each");
        assert!(after(1, 100).is_empty() && after(5, 10_000).is_empty());
    }

    #[test]
    fn history_is_bounded_by_number_and_by_bytes() {
        let log = ChangeLog::new(0);
        for revision in 1..=MAX_DELTAS as u64 + 5 {
            log.append(revision, item(1));
        }
        assert!(!log.reaches(4) && log.reaches(5));
        let log = ChangeLog::new(0);
        for revision in 1..=5 {
            log.append(revision, item(MAX_BYTES / 2));
        }
        assert!(!log.reaches(3) && log.reaches(4), "one delta always stays");
        assert_eq!(log.next(3).err(), Some(Truncated));
    }

    #[test]
    fn a_reset_sends_everybody_to_a_snapshot() {
        let log = ChangeLog::new(1);
        log.append(2, item(1));
        log.reset(50);
        assert!(log.next(2).is_err() && log.next(50).unwrap().is_none() && log.head() == 50);
    }

    #[test]
    fn the_time_of_a_revision_is_never_too_early() {
        let log = ChangeLog::new(1);
        log.append(5, item(1));
        let before = BootInstant::now();
        log.append(9, CompiledChanges::default());
        assert!(log.observed(5).unwrap() <= before);
        assert!(log.observed(6).unwrap() >= before, "between two revisions the later counts");
        assert_eq!(log.observed(10), None);
        assert_eq!((log.head_at(before), log.head_at(BootInstant::now())), (5, 9));
        assert_eq!(log.head_at(BootInstant::from_nanos(0)), 0);
    }
}
