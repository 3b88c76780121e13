//! The replicas that serve from the same store, as their records describe them.
//!
//! No replica sees all nodes. Each one registers before it grants its first lease, and publishes
//! its watermark: the lowest revision that all of its nodes have applied. A reader of a revision
//! therefore knows every replica with leases from before that revision. A change is enforced when
//! all watermarks have passed it.
//!
//! A replica *retires* another one that was silent for three leases. From that revision on, the
//! retired replica grants no leases. Its last leases have ended one TTL later, and then its record
//! is deleted. A retired replica that is still alive registers again under another id.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use seks_lease::{
    BootInstant,
    rules::{self, with_skew},
};
use seks_proto::wire;
use seks_types::id::ReplicaId;

use crate::{fleet::leases::ApplyStatus, store::Revision};

/// How many watermarks of a replica are remembered with their time.
const MAX_WATERMARKS: usize = 64;
/// A replica writes at least once a lease; after so many leases without a word it is retired.
const SILENT_LEASES: u32 = 3;

/// One record, and when this replica saw what in it.
struct ReplicaState {
    record: wire::Replica,
    modified: Revision,
    heard: BootInstant,
    retired: Option<BootInstant>,
    /// It has ended, and every node that it granted a lease is named in the store.
    ended: bool,
    /// Its record was deleted by something other than a replica, so it may still have leases.
    gone: bool,
    watermarks: VecDeque<(Revision, BootInstant)>,
}

/// What another replica's record needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerCleanup {
    /// It has fallen silent.
    Retire(ReplicaId, wire::Replica, Revision),
    /// Nothing of it is left.
    Forget(ReplicaId, Revision),
}

/// What a replica is to the nodes that it answers for, for people.
pub(crate) struct ReplicaSummary {
    pub(crate) name: String,
    pub(crate) serving: bool,
    pub(crate) watermark: Revision,
}

/// Every replica that this one knows of.
pub(crate) struct Replicas {
    known: Mutex<BTreeMap<ReplicaId, ReplicaState>>,
    ttl: Duration,
    /// No other process can have the store open. Every other registered replica has ended.
    exclusive: bool,
    since: BootInstant,
}

impl Replicas {
    pub(crate) fn new(ttl: Duration, exclusive: bool) -> Self {
        Self { known: Mutex::default(), ttl, exclusive, since: BootInstant::now() }
    }

    /// The store says this of a replica; `None`: its record is gone.
    pub(crate) fn learn(&self, id: &ReplicaId, record: Option<wire::Replica>, modified: Revision) {
        let ttl = self.longest_ttl();
        let mut known = self.lock();
        let now = BootInstant::now();
        let Some(record) = record else {
            // Replicas delete each other's records when no lease is left. If another writer deleted
            // the record, its leases are waited for.
            match known.get_mut(id).filter(|entry| !self.exclusive && entry.may_have_leases(ttl, now)) {
                Some(entry) => {
                    tracing::warn!(replica = %id, "the record of a replica that may have granted leases was deleted; they are waited for");
                    entry.retired.get_or_insert(now);
                    entry.gone = true;
                }
                None => drop(known.remove(id)),
            }
            return;
        };
        let new = || ReplicaState {
            record: wire::Replica::default(),
            modified: 0,
            heard: now,
            retired: None,
            ended: false,
            gone: false,
            watermarks: VecDeque::new(),
        };
        let entry = known.entry(id.clone()).or_insert_with(new);
        if modified <= entry.modified {
            return;
        }
        if record.watermark > entry.record.watermark {
            entry.watermarks.push_back((record.watermark, now));
            if entry.watermarks.len() > MAX_WATERMARKS {
                entry.watermarks.pop_front();
            }
        }
        if record.retired && entry.retired.is_none() {
            entry.retired = Some(now);
        }
        (entry.modified, entry.heard, entry.record) = (modified, now, record);
    }

    /// The store holds exactly these.
    pub(crate) fn reset(&self, records: Vec<(ReplicaId, wire::Replica, Revision)>) {
        let missing = |id: &&ReplicaId| !records.iter().any(|(listed, ..)| listed == *id);
        let missing: Vec<ReplicaId> = self.lock().keys().filter(missing).cloned().collect();
        missing.iter().for_each(|id| self.learn(id, None, 0));
        records.into_iter().for_each(|(id, record, modified)| self.learn(&id, Some(record), modified));
    }

    /// A replica starts on a store that no other process can have open, so every registered replica
    /// has ended. If such a replica stated that the store named all of its nodes at some revision,
    /// and no node has left the store since `complete_since`, then its nodes are known. Nodes that
    /// have returned, or that it does not own, are not waited for.
    pub(crate) fn mark_ended(&self, complete_since: Option<Revision>) {
        if !self.exclusive {
            return;
        }
        for known in self.lock().values_mut() {
            let named_at = known.record.named_at;
            let followed = complete_since.is_some_and(|since| named_at >= since);
            // A last word was said by who granted nothing any more.
            known.ended = (known.record.retired && known.record.named) || (named_at > 0 && followed);
        }
    }

    /// Whether no other process can have the store open.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// Whether the store says of `id`, whose record was written at `modified`, that it may grant no
    /// more. `seen`: how far the store has been followed.
    pub(crate) fn is_retired(&self, id: &ReplicaId, modified: Revision, seen: Revision) -> bool {
        self.lock().get(id).map_or(seen >= modified, |known| known.retired.is_some())
    }

    /// Whether another replica reads the records of `me`.
    pub(crate) fn has_others(&self, me: &ReplicaId) -> bool {
        self.lock().iter().any(|(id, known)| id != me && known.retired.is_none())
    }

    /// The longest lease that any node may have.
    pub(crate) fn longest_ttl(&self) -> Duration {
        let known = self.lock();
        let longest = known.values().map(|k| Duration::from_millis(k.record.lease_ttl_ms)).max().unwrap_or_default();
        longest.max(self.ttl)
    }

    /// The status of each replica except `me` for a change. `observed` is when this replica saw the
    /// change, and `effective` is the revision that includes its effect. `holds` says whether the
    /// store names a node that the replica owns.
    pub(crate) fn statuses(
        &self,
        me: Option<&ReplicaId>,
        effective: Revision,
        observed: BootInstant,
        holds: impl Fn(&ReplicaId) -> bool,
    ) -> BTreeMap<ReplicaId, ApplyStatus> {
        let (ttl, now) = (self.longest_ttl(), BootInstant::now());
        let bound = rules::all_leases_end(observed, ttl);
        // A record of a node that was gone before we came may have named a replica.
        let complete = self.since.plus(with_skew(ttl)) <= now;
        let known = self.lock();
        let others = known.iter().filter(|(id, _)| Some(*id) != me);
        let standing = |(id, known): (&ReplicaId, &ReplicaState)| {
            let over = known.retired.map(|at| at.plus(with_skew(ttl)));
            let standing = match rules::node_status(known.record.watermark, effective, over, bound, now) {
                rules::NodeStatus::Applied => ApplyStatus::Applied(known.passed_at(effective)),
                rules::NodeStatus::LeaseExpired(at) => ApplyStatus::LeaseExpired(at),
                // If no other replica could have evicted a node meanwhile, the last statement of
                // the replica is still true.
                rules::NodeStatus::Outstanding if (complete || known.ended) && !holds(id) => {
                    ApplyStatus::LeaseExpired(observed)
                }
                rules::NodeStatus::Outstanding => ApplyStatus::Outstanding,
            };
            (id.clone(), standing)
        };
        others.map(standing).collect()
    }

    /// The next moment at which leases of a retired replica have ended.
    pub(crate) fn next_end(&self) -> Option<BootInstant> {
        let (ttl, now) = (self.longest_ttl(), BootInstant::now());
        let ends = |known: &ReplicaState| known.retired.map(|at| at.plus(with_skew(ttl)));
        self.lock().values().filter_map(ends).filter(|at| *at > now).min()
    }

    /// What is to be done for the records of others.
    pub(crate) fn peer_cleanups(&self, me: &ReplicaId) -> Vec<PeerCleanup> {
        let (ttl, now) = (self.longest_ttl(), BootInstant::now());
        let patience = if self.exclusive { Duration::ZERO } else { ttl * SILENT_LEASES };
        self.lock().retain(|_, known| !known.gone || known.may_have_leases(ttl, now));
        let cleanup = |(id, known): (&ReplicaId, &ReplicaState)| match known.retired {
            _ if known.gone => None,
            Some(at) => (at.plus(with_skew(ttl)) <= now).then(|| PeerCleanup::Forget(id.clone(), known.modified)),
            None => (known.heard.plus(patience) <= now).then(|| {
                let record = wire::Replica { retired: true, ..known.record.clone() };
                PeerCleanup::Retire(id.clone(), record, known.modified)
            }),
        };
        self.lock().iter().filter(|(id, _)| *id != me).filter_map(cleanup).collect()
    }

    /// What `id`, as a node's record names it, is to its nodes.
    pub(crate) fn summary(&self, id: &str) -> Option<ReplicaSummary> {
        let known = self.lock();
        let known = known.get(&ReplicaId::try_from(id).ok()?)?;
        let serving = known.retired.is_none();
        Some(ReplicaSummary { name: known.record.name.clone(), serving, watermark: known.record.watermark })
    }

    /// Names of the replicas that may be alive and don't read records of `format`.
    pub(crate) fn older_than(&self, format: u32) -> Vec<String> {
        let known = self.lock();
        let older = known.values().filter(|k| k.retired.is_none() && k.record.store_format < format);
        older.map(|known| known.record.name.clone()).collect()
    }

    /// All of them, for people.
    pub(crate) fn list(&self) -> Vec<wire::Replica> {
        self.lock().values().map(|known| known.record.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, ReplicaState>> {
        self.known.lock()
    }
}

impl ReplicaState {
    /// Whether leases that it granted may not be over.
    fn may_have_leases(&self, ttl: Duration, now: BootInstant) -> bool {
        !self.record.released && self.retired.is_none_or(|at| at.plus(with_skew(ttl)) > now)
    }

    /// When it was seen to have passed `revision`.
    fn passed_at(&self, revision: Revision) -> BootInstant {
        self.watermarks.iter().find(|(mark, _)| *mark >= revision).map_or(self.heard, |(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn id(name: &str) -> ReplicaId {
        name.parse().unwrap()
    }

    fn record(name: &str, watermark: u64) -> wire::Replica {
        wire::Replica { id: name.into(), name: name.into(), watermark, lease_ttl_ms: 10_000, ..Default::default() }
    }

    fn status(replicas: &Replicas, name: &str, effective: Revision, observed: BootInstant) -> ApplyStatus {
        *replicas.statuses(Some(&id("me")), effective, observed, |_| true).get(&id(name)).unwrap()
    }

    #[test]
    fn a_replica_has_passed_a_change_by_its_watermark_or_by_the_bound() {
        let replicas = Replicas::new(TTL, false);
        replicas.learn(&id("me"), Some(record("me", 0)), 1);
        replicas.learn(&id("a"), Some(record("a", 5)), 2);
        let now = BootInstant::now();
        assert!(matches!(status(&replicas, "a", 5, now), ApplyStatus::Applied(_)));
        assert_eq!(status(&replicas, "a", 6, now), ApplyStatus::Outstanding);
        assert!(matches!(status(&replicas, "a", 6, now.minus(TTL * 2)), ApplyStatus::LeaseExpired(_)));
        replicas.learn(&id("a"), Some(record("a", 6)), 9);
        replicas.learn(&id("a"), Some(record("a", 4)), 8);
        assert!(matches!(status(&replicas, "a", 6, now), ApplyStatus::Applied(_)), "an older record changes nothing");
        assert_eq!(replicas.statuses(Some(&id("me")), 6, now, |_| true).len(), 1, "we are not an other");
    }

    #[test]
    fn a_replica_whose_record_somebody_deletes_is_waited_for() {
        let replicas = Replicas::new(TTL, false);
        replicas.learn(&id("a"), Some(record("a", 5)), 2);
        replicas.learn(&id("b"), Some(wire::Replica { released: true, retired: true, ..record("b", 5) }), 3);
        replicas.learn(&id("a"), None, 4);
        replicas.learn(&id("b"), None, 5);
        let statuses = replicas.statuses(Some(&id("me")), 6, BootInstant::now(), |_| true);
        assert_eq!(statuses.get(&id("a")), Some(&ApplyStatus::Outstanding));
        assert_eq!(statuses.get(&id("b")), None, "it said that nothing of it is left");
        assert!(replicas.is_retired(&id("a"), 2, 4) && replicas.peer_cleanups(&id("me")).is_empty());
    }

    #[test]
    fn a_longer_lease_of_another_is_waited_for() {
        let replicas = Replicas::new(TTL, false);
        replicas.learn(&id("a"), Some(wire::Replica { lease_ttl_ms: 60_000, ..record("a", 5) }), 2);
        assert_eq!(replicas.longest_ttl(), TTL * 6);
        assert_eq!(status(&replicas, "a", 6, BootInstant::now().minus(TTL * 2)), ApplyStatus::Outstanding);
    }

    #[test]
    fn who_is_retired_is_over_and_forgotten_a_lease_later() {
        let replicas = Replicas::new(Duration::ZERO, false);
        // A lease of no length is over at once.
        let short = |watermark| wire::Replica { lease_ttl_ms: 0, ..record("a", watermark) };
        replicas.learn(&id("a"), Some(short(5)), 2);
        let Some(PeerCleanup::Retire(who, retired, 2)) = replicas.peer_cleanups(&id("me")).pop() else {
            panic!("not retired")
        };
        assert!(who == id("a") && retired.retired && !replicas.is_retired(&id("a"), 2, 2));
        assert!(replicas.has_others(&id("me")) && !replicas.has_others(&id("a")));
        replicas.learn(&id("a"), Some(retired), 3);
        assert!(replicas.is_retired(&id("a"), 2, 3) && !replicas.has_others(&id("me")));
        assert!(matches!(status(&replicas, "a", 9, BootInstant::now()), ApplyStatus::LeaseExpired(_)));
        assert_eq!(replicas.peer_cleanups(&id("me")), [PeerCleanup::Forget(id("a"), 3)]);
        assert!(replicas.peer_cleanups(&id("a")).is_empty(), "nobody looks after itself");
        replicas.learn(&id("a"), None, 4);
        assert!(
            replicas.is_retired(&id("a"), 2, 4) && !replicas.is_retired(&id("b"), 9, 4),
            "not seen yet is not over"
        );
    }

    #[test]
    fn who_answers_for_no_node_is_not_waited_for_once_all_old_records_have_had_their_time() {
        let mut replicas = Replicas::new(TTL, false);
        replicas.learn(&id("a"), Some(record("a", 5)), 2);
        let idle =
            |replicas: &Replicas| *replicas.statuses(None, 6, BootInstant::now(), |_| false).values().next().unwrap();
        assert_eq!(idle(&replicas), ApplyStatus::Outstanding);
        replicas.since = BootInstant::now().minus(TTL * 2);
        assert!(matches!(idle(&replicas), ApplyStatus::LeaseExpired(_)));
    }

    #[test]
    fn who_has_ended_is_waited_for_only_with_nodes_that_it_may_have_granted_leases() {
        let standing = |exclusive, record, complete_since, holds: bool| {
            let replicas = Replicas::new(TTL, exclusive);
            replicas.learn(&id("a"), Some(record), 2);
            replicas.mark_ended(complete_since);
            *replicas.statuses(None, 6, BootInstant::now(), |_| holds).values().next().unwrap()
        };
        let named = || wire::Replica { named_at: 4, ..record("a", 5) };
        assert!(matches!(standing(true, named(), Some(4), false), ApplyStatus::LeaseExpired(_)));
        let outstanding = [
            ("it answers for a node", standing(true, named(), Some(4), true)),
            ("a node has left the store since", standing(true, named(), Some(5), false)),
            ("nothing is known of the past", standing(true, named(), None, false)),
            ("it never said so", standing(true, record("a", 5), Some(0), false)),
            ("it may be alive", standing(false, named(), Some(4), false)),
        ];
        for (why, standing) in outstanding {
            assert_eq!(standing, ApplyStatus::Outstanding, "{why}");
        }
    }
}
