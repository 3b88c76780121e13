//! One node, as this replica knows it.

use std::collections::VecDeque;

use seks_lease::{BootInstant, rules};
use seks_proto::wire;
use seks_types::id::ReplicaId;
use tokio_util::sync::CancellationToken;

use super::ApplyStatus;
use crate::{clock::unix_now, store::Revision};

/// How many acknowledgements of a node are remembered with their time.
const MAX_ACKS: usize = 64;
/// Before every lease.
const NEVER: BootInstant = BootInstant::from_nanos(0);

/// After every lease.
pub(super) const FOREVER: BootInstant = BootInstant::from_nanos(u64::MAX);

/// One node, as this replica knows it.
pub(super) struct NodeState {
    /// As the store has it, with what the node has said since.
    pub(super) record: wire::Node,
    /// The revision of the record that is known; 0: the store has none.
    pub(super) stored: Revision,
    /// The revision that took the record before away: an answer about an older one, come late,
    /// brings nothing back.
    pub(super) removed: Revision,
    /// The revision at which the store named this replica as the node's owner. Every lease is based
    /// on a later barrier. So a reader of a later revision knows the owner.
    pub(super) recorded: Option<Revision>,
    /// The stream on which it was granted a lease last, or is about to be: one that began later has
    /// nothing to do with what the store says of it from before.
    pub(super) granted_on: Option<u64>,
    /// The stream that speaks for it, by number; older ones are fenced.
    pub(super) stream: Option<(u64, CancellationToken)>,
    /// Highest revision that it said it has applied, on its latest stream.
    pub(super) acked: Revision,
    pub(super) acks: VecDeque<(Revision, BootInstant)>,
    /// The process that speaks for it, or did last, as its Hello named it.
    pub(super) instance: Vec<u8>,
    /// No lease that this process may hold, and that we answer for, outlives this.
    pub(super) lease_ends: BootInstant,
    /// Audit spans that its collector has not confirmed, as of its last renewal.
    pub(super) audit_queue: u64,
    /// The leases of other processes that showed the same certificate: a machine that was cloned,
    /// or started elsewhere while the first is only cut off. What this process acknowledges says
    /// nothing of them.
    previous: PreviousInstances,
    /// The instances for which this replica is writing owner records. Until the outcome of a write
    /// is known, the record may appear at any time (a slow store, a process that was stopped in
    /// between). With it, this replica becomes the owner of a lease that another one granted.
    /// Meanwhile it promises no revision that the node has not applied.
    writing: Vec<Vec<u8>>,
    /// Replicas that the store doesn't name any more, each with until when they may answer for a
    /// lease: its record is gone, or speaks of another process.
    previous_owners: Vec<(String, BootInstant)>,
}

/// Several processes, taken together.
#[derive(Clone, Copy)]
struct PreviousInstances {
    /// What each of them has acknowledged.
    acked: Revision,
    /// When the last of their leases has ended.
    ends: BootInstant,
}

impl PreviousInstances {
    fn hold(&mut self, acked: Revision, until: BootInstant) {
        let now = BootInstant::now();
        if until > now {
            let acked = if self.ends > now { acked.min(self.acked) } else { acked };
            *self = Self { acked, ends: until.max(self.ends) };
        }
    }
}

impl NodeState {
    pub(super) fn new() -> Self {
        Self {
            record: wire::Node::default(),
            stored: 0,
            removed: 0,
            recorded: None,
            granted_on: None,
            stream: None,
            acked: 0,
            acks: VecDeque::new(),
            instance: Vec::new(),
            lease_ends: NEVER,
            audit_queue: 0,
            previous: PreviousInstances { acked: 0, ends: NEVER },
            writing: Vec::new(),
            previous_owners: Vec::new(),
        }
    }

    /// Whether `stream` speaks for it.
    pub(super) fn is_current_stream(&self, stream: u64) -> bool {
        self.stream.as_ref().is_some_and(|(current, _)| *current == stream)
    }

    /// `instance` speaks for it from now on. What another was granted is another's: says whether we
    /// know of such a lease.
    pub(super) fn set_instance(&mut self, instance: &[u8]) -> bool {
        if self.instance == instance {
            return false;
        }
        self.retire_instance();
        self.instance = instance.to_vec();
        self.recorded = None;
        self.previous.ends > BootInstant::now()
    }

    /// The lease that it may have becomes that of a process before.
    fn retire_instance(&mut self) {
        let ends = std::mem::replace(&mut self.lease_ends, NEVER);
        self.previous.hold(self.acked, ends);
    }

    /// It says that it has applied `revision`. Says whether that was news.
    pub(super) fn ack(&mut self, revision: Revision) -> bool {
        self.record.last_seen_at = unix_now();
        let news = revision > self.acked;
        if news {
            self.acked = revision;
            self.acks.push_back((revision, BootInstant::now()));
            if self.acks.len() > MAX_ACKS {
                self.acks.pop_front();
            }
        }
        news
    }

    /// The store's record of `revision`. `lease` is the end of a lease that another replica has
    /// just granted.
    pub(super) fn update_from_store(
        &mut self,
        record: wire::Node,
        revision: Revision,
        me: Option<&ReplicaId>,
        lease: BootInstant,
    ) {
        self.stored = revision;
        let ours = me.is_some_and(|me| me.as_str() == record.replica);
        let (had, same) = (self.recorded.take(), record.instance == self.instance);
        self.note_instance_change(&record, me, lease);
        if ours {
            // Written by us; the answer may have been lost.
            self.recorded = same.then_some(revision);
            self.extend_instance_lease(&record.instance, lease);
        } else if !record.replica.is_empty() {
            // Another answers for it now, whatever lease it has. If we did on the stream that is
            // here, that isn't the node's any more; a stream that has come since, or for which we
            // are about to write the next record, is.
            let displaced =
                |(stream, _): &mut (u64, CancellationToken)| had.is_some() && self.granted_on == Some(*stream);
            if let Some((_, stream)) = self.stream.take_if(displaced) {
                stream.cancel();
            }
            if self.stream.is_none() && same {
                self.lease_ends = NEVER;
            }
        }
        if self.stream.is_some() {
            self.copy_ownership(&record);
            return;
        }
        if !same {
            // Who answers for that process doesn't for the one before: we go on.
            self.retire_instance();
        }
        self.instance.clone_from(&record.instance);
        self.record = record;
    }

    /// The store has `record`; what the node has said since counts otherwise.
    pub(super) fn copy_ownership(&mut self, record: &wire::Node) {
        self.record.replica.clone_from(&record.replica);
        self.record.instance.clone_from(&record.instance);
        self.record.lease_ttl_ms = record.lease_ttl_ms;
    }

    /// `record` replaces the known record. For a lease of another process, the replica that is
    /// named there remains the owner.
    pub(super) fn note_instance_change(&mut self, record: &wire::Node, me: Option<&ReplicaId>, lease: BootInstant) {
        if self.record.instance != record.instance {
            let host = self.record.replica.clone();
            self.keep_previous_owner(host, me, lease);
        }
    }

    fn keep_previous_owner(&mut self, host: String, me: Option<&ReplicaId>, until: BootInstant) {
        if !host.is_empty() && me.is_none_or(|me| me.as_str() != host) {
            let now = BootInstant::now();
            self.previous_owners.retain(|(other, ends)| *other != host && *ends > now);
            self.previous_owners.push((host, until));
        }
    }

    /// The store has no record of it any more. It may have the lease that it was granted last.
    pub(super) fn record_deleted(&mut self, revision: Revision, me: Option<&ReplicaId>, lease: BootInstant) {
        (self.stored, self.removed) = (0, revision);
        self.recorded = None;
        let host = std::mem::take(&mut self.record.replica);
        self.keep_previous_owner(host, me, lease);
    }

    /// The other replica that owns the node's lease; `None` if there is no lease, or no other
    /// owner.
    pub(super) fn owner(&self, now: BootInstant) -> Option<&str> {
        Some(self.record.replica.as_str()).filter(|host| !host.is_empty()).or(self.previous_owners_at(now).next())
    }

    /// Who may answer for leases of it beside the replica that its record names.
    pub(super) fn previous_owners_at(&self, now: BootInstant) -> impl Iterator<Item = &str> {
        self.previous_owners.iter().filter(move |(_, ends)| *ends > now).map(|(host, _)| host.as_str())
    }

    /// Not one that has enrolled and was never granted a lease.
    pub(super) fn may_have_served(&self, now: BootInstant) -> bool {
        self.record.lease_ttl_ms > 0 || self.stream.is_some() || self.may_be_here(now)
    }

    /// Whether we, or a replica that the store doesn't name any more, may answer for a lease of it.
    pub(super) fn may_be_here(&self, now: BootInstant) -> bool {
        self.holders().iter().any(|(_, ends)| *ends > now) || self.previous_owners_at(now).next().is_some()
    }

    /// Those whose leases we may answer for, as (what they have acknowledged, until when): the
    /// process that speaks for the node, and those before.
    pub(super) fn holders(&self) -> [(Revision, BootInstant); 2] {
        let is_written = |own: bool| self.writing.iter().any(|of| (*of == self.instance) == own);
        let current = if is_written(true) { FOREVER } else { self.lease_ends };
        let previous = if is_written(false) { (0, FOREVER) } else { (self.previous.acked, self.previous.ends) };
        [(self.acked, current), previous]
    }

    /// The ends of leases that are known.
    pub(super) fn known_ends(&self) -> [BootInstant; 2] {
        [self.lease_ends, self.previous.ends]
    }

    pub(super) fn extend_lease(&mut self, until: BootInstant) {
        self.lease_ends = self.lease_ends.max(until);
    }

    /// As [`extend_lease`](Self::extend_lease), for the process `instance`.
    pub(super) fn extend_instance_lease(&mut self, instance: &[u8], until: BootInstant) {
        match self.instance == instance {
            true => self.extend_lease(until),
            false => self.previous.hold(0, until),
        }
    }

    /// We are about to write that we answer for the process that speaks for it.
    pub(super) fn begin_write(&mut self) {
        self.writing.push(self.instance.clone());
    }

    /// It is known what has become of a record for `instance`.
    pub(super) fn end_write(&mut self, instance: &[u8]) {
        if let Some(at) = self.writing.iter().position(|of| of == instance) {
            self.writing.swap_remove(at);
        }
    }

    pub(super) fn status(&self, effective: Revision, bound: BootInstant, now: BootInstant) -> ApplyStatus {
        let of = |acked, ends| match rules::node_status(acked, effective, Some(ends), bound, now) {
            rules::NodeStatus::Applied => {
                let at = self.acks.iter().find(|(revision, _)| *revision >= effective).map(|(_, at)| *at);
                ApplyStatus::Applied(at.unwrap_or(now))
            }
            rules::NodeStatus::LeaseExpired(at) => ApplyStatus::LeaseExpired(at),
            rules::NodeStatus::Outstanding => ApplyStatus::Outstanding,
        };
        match (of(self.acked, self.lease_ends), of(self.previous.acked, self.previous.ends)) {
            (ApplyStatus::Outstanding, _) | (_, ApplyStatus::Outstanding) => ApplyStatus::Outstanding,
            (ApplyStatus::LeaseExpired(at), ApplyStatus::LeaseExpired(previous)) => {
                ApplyStatus::LeaseExpired(at.max(previous))
            }
            // Another process's lease was what had to be waited for.
            (ApplyStatus::Applied(at), ApplyStatus::LeaseExpired(previous)) if previous > at => {
                ApplyStatus::LeaseExpired(previous)
            }
            (current, _) => current,
        }
    }
}
