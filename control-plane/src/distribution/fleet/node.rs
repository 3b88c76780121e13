//! One node, as this replica knows it.

use std::collections::VecDeque;

use seks_proto::{
    id::ReplicaId,
    table::{BootInstant, rules},
    wire,
};
use tokio_util::sync::CancellationToken;

use super::{super::unix_now, Standing};
use crate::store::Revision;

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
    /// The revision that took the record before away: an answer about an older one, come late, brings nothing back.
    pub(super) removed: Revision,
    /// The revision at which the store came to say that we answer for the node: no lease is granted that isn't rooted after
    /// it, so that whoever has seen a later revision knows whom to ask.
    pub(super) recorded: Option<Revision>,
    /// The stream on which it was granted a lease last, or is about to be: one that began later has nothing to do with what the
    /// store says of it from before.
    pub(super) answered: Option<u64>,
    /// The stream that speaks for it, by number; older ones are fenced.
    pub(super) stream: Option<(u64, CancellationToken)>,
    /// Highest revision that it said it has applied, on its latest stream.
    pub(super) acked: Revision,
    pub(super) acks: VecDeque<(Revision, BootInstant)>,
    /// No lease that it may hold, and that we answer for, outlives this.
    pub(super) lease_ends: BootInstant,
    /// Records of it that we are writing. Until it is known what has become of one it may come to stand at any moment, however
    /// long that takes (a slow store, a process that was stopped in between), and with it we answer for the lease that the node
    /// has from another: nothing is promised meanwhile that the node hasn't applied.
    pub(super) writing: u32,
    /// Its record is gone, and until then it may have a lease that this replica answers for.
    pub(super) lingers: Option<(String, BootInstant)>,
}

impl NodeState {
    pub(super) fn new() -> Self {
        Self {
            record: wire::Node::default(),
            stored: 0,
            removed: 0,
            recorded: None,
            answered: None,
            stream: None,
            acked: 0,
            acks: VecDeque::new(),
            lease_ends: NEVER,
            writing: 0,
            lingers: None,
        }
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

    /// The store's record of `revision`. `lease`: when a lease that somebody has just granted ends.
    pub(super) fn learn(&mut self, record: wire::Node, revision: Revision, me: Option<&ReplicaId>, lease: BootInstant) {
        self.stored = revision;
        let ours = me.is_some_and(|me| me.as_str() == record.replica);
        let had = self.recorded.take();
        if ours {
            // Written by us; the answer may have been lost.
            self.recorded = Some(revision);
            self.hold(lease);
        } else if !record.replica.is_empty() {
            // Another answers for it now, whatever lease it has. If we did on the stream that is here, that isn't the node's any more;
            // a stream that has come since, or for which we are about to write the next record, is.
            let displaced =
                |(stream, _): &mut (u64, CancellationToken)| had.is_some() && self.answered == Some(*stream);
            if let Some((_, stream)) = self.stream.take_if(displaced) {
                stream.cancel();
            }
            if self.stream.is_none() {
                self.lease_ends = NEVER;
            }
        }
        match self.stream {
            Some(_) => {
                self.record.replica = record.replica;
                self.record.lease_ttl_ms = record.lease_ttl_ms;
            }
            None => self.record = record,
        }
    }

    /// The store has no record of it any more. It may have the lease that it was granted last.
    pub(super) fn forget(&mut self, revision: Revision, me: Option<&ReplicaId>, lease: BootInstant) {
        (self.stored, self.removed) = (0, revision);
        self.recorded = None;
        let host = std::mem::take(&mut self.record.replica);
        if !host.is_empty() && me.is_none_or(|me| me.as_str() != host) {
            self.lingers = Some((host, lease));
        }
    }

    /// The replica that answers for what lease it may have; `None`: there is none, or nobody else does.
    pub(super) fn host(&self, now: BootInstant) -> Option<&str> {
        Some(self.record.replica.as_str()).filter(|host| !host.is_empty()).or(self.lingers_at(now))
    }

    pub(super) fn lingers_at(&self, now: BootInstant) -> Option<&str> {
        self.lingers.as_ref().filter(|(_, ends)| *ends > now).map(|(host, _)| host.as_str())
    }

    /// Not one that has enrolled and was never granted a lease.
    pub(super) fn may_have_served(&self, now: BootInstant) -> bool {
        self.record.lease_ttl_ms > 0 || self.stream.is_some() || self.lease_ends > now || self.lingers_at(now).is_some()
    }

    /// Until when we may answer for a lease of it.
    pub(super) fn ends(&self) -> BootInstant {
        if self.writing > 0 { FOREVER } else { self.lease_ends }
    }

    pub(super) fn hold(&mut self, until: BootInstant) {
        self.lease_ends = self.lease_ends.max(until);
    }

    pub(super) fn standing(&self, effective: Revision, bound: BootInstant, now: BootInstant) -> Standing {
        match rules::standing(self.acked, effective, Some(self.lease_ends), bound, now) {
            rules::Standing::Applied => {
                let at = self.acks.iter().find(|(revision, _)| *revision >= effective).map(|(_, at)| *at);
                Standing::Applied(at.unwrap_or(now))
            }
            rules::Standing::LeaseExpired(at) => Standing::LeaseExpired(at),
            rules::Standing::Outstanding => Standing::Outstanding,
        }
    }
}
