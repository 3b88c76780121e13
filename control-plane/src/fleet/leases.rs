//! What each node has applied, until when it may hold a lease, and which replica owns that lease.
//!
//! A replica owns a node's lease from the revision that records it in the store. From then on its
//! watermark covers every lease that the node may hold, those from other replicas included. The
//! previous owner can forget the node when it sees that record. So a node that moves is always
//! covered, and delays no enforcement.

mod node;

use std::{collections::BTreeMap, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use seks_lease::{
    BootInstant,
    rules::{self, with_skew},
};
use seks_proto::wire;
use seks_types::id::{NodeId, ReplicaId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::node::{FOREVER, NodeState};
use crate::{
    clock::{millis, unix_now},
    store::Revision,
};

/// What a node, or a replica with its nodes, has come to with a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ApplyStatus {
    /// It acknowledged the change then, or a little later.
    Applied(BootInstant),
    /// No lease that it may hold is left.
    LeaseExpired(BootInstant),
    /// Neither.
    Outstanding,
}

/// Nodes, and what was promised of them.
#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeId, NodeState>,
    /// This life's id, once it is registered.
    me: Option<ReplicaId>,
    /// What we have told, or are about to tell, the other replicas: no node comes in below it.
    promised: Revision,
    /// The longest lease that any replica grants.
    longest: Duration,
    /// The last revision that changed a node's record.
    changed_at: Revision,
    /// A lower bound for the end of every remaining lease; `None` if no lease remains. After that
    /// time it must be computed again.
    next_end: Option<BootInstant>,
}

/// All nodes that are known.
pub(crate) struct Leases {
    state: Mutex<State>,
    /// Moves with everything that may change an answer.
    changed: watch::Sender<u64>,
}

impl Leases {
    /// The nodes that the store knows, each with the revision of its record. `longest`: the longest
    /// lease that any of them may hold.
    pub(crate) fn new(records: Vec<(NodeId, wire::Node, Revision)>, longest: Duration) -> Self {
        let state = State { longest, ..State::default() };
        let fleet = Self { state: Mutex::new(state), changed: watch::Sender::new(0) };
        records.into_iter().for_each(|(id, record, revision)| fleet.update_from_store(id, Some(record), revision));
        fleet
    }

    /// This replica is registered: from now on it may answer for nodes.
    pub(crate) fn register(&self, me: ReplicaId) {
        self.lock().me = Some(me);
        self.notify();
    }

    /// This replica is no longer registered. It remains the owner of its leases, and takes no new
    /// nodes.
    pub(crate) fn resign(&self) {
        let mut state = self.lock();
        state.me = None;
        state.nodes.values_mut().for_each(|node| node.recorded = None);
    }

    /// This life's id, while it is registered.
    pub(crate) fn own_id(&self) -> Option<ReplicaId> {
        self.lock().me.clone()
    }

    /// As [`resign`](Self::resign), if `id` is us.
    pub(crate) fn resign_if(&self, id: &ReplicaId) {
        if self.lock().me.as_ref() == Some(id) {
            self.resign();
        }
    }

    /// Records that another replica grants leases of this length.
    pub(crate) fn raise_longest_lease(&self, longest: Duration) {
        let mut state = self.lock();
        state.longest = state.longest.max(longest);
        drop(state);
        self.notify();
    }

    /// The store says this of a node since `revision`; `None`: it has no record any more.
    pub(crate) fn update_from_store(&self, id: NodeId, record: Option<wire::Node>, revision: Revision) {
        let mut state = self.lock();
        state.changed_at = state.changed_at.max(revision);
        let lease = state.note_longest_lease();
        let State { nodes, me, .. } = &mut *state;
        match (record, nodes.get_mut(&id)) {
            (Some(_) | None, Some(node)) if revision <= node.stored.max(node.removed) => {}
            (Some(record), Some(node)) => node.update_from_store(record, revision, me.as_ref(), lease),
            (Some(record), None) => {
                nodes.entry(id).or_insert_with(NodeState::new).update_from_store(record, revision, me.as_ref(), lease);
            }
            (None, Some(node)) => node.record_deleted(revision, me.as_ref(), lease),
            (None, None) => {}
        }
        drop(state);
        self.notify();
    }

    /// The store holds exactly these, at `revision`.
    pub(crate) fn reset(&self, records: Vec<(NodeId, wire::Node, Revision)>, revision: Revision) {
        let listed = |id: &NodeId| records.iter().any(|(known, ..)| known == id);
        let missing: Vec<_> = self.lock().nodes.keys().filter(|id| !listed(id)).cloned().collect();
        missing.into_iter().for_each(|id| self.update_from_store(id, None, revision));
        records.into_iter().for_each(|(id, record, revision)| self.update_from_store(id, Some(record), revision));
    }

    /// A stream of `id` begins: it speaks for the node from now on, and an older one no more. The
    /// token ends it in turn.
    pub(crate) fn open_stream(&self, id: &NodeId, stream: u64, hello: &wire::Hello) -> CancellationToken {
        let token = CancellationToken::new();
        let mut state = self.lock();
        let node = state.nodes.entry(id.clone()).or_insert_with(NodeState::new);
        if let Some((_, older)) = node.stream.replace((stream, token.clone())) {
            older.cancel();
        }
        if node.set_instance(&hello.instance) {
            tracing::warn!(
                seks.node = %id,
                "another process has shown this node's certificate and may hold a lease: what changes is enforced when that has ended"
            );
        }
        if node.record.region != hello.region {
            node.recorded = None;
        }
        if node.record.first_seen_at == 0 {
            node.record.first_seen_at = unix_now();
        }
        node.record.id = id.to_string();
        node.record.region.clone_from(&hello.region);
        node.record.version.clone_from(&hello.version);
        node.record.features.clone_from(&hello.features);
        node.record.last_seen_at = unix_now();
        node.acked = 0;
        drop(state);
        self.notify();
        token
    }

    /// A stream has ended.
    pub(crate) fn close_stream(&self, id: &NodeId, stream: u64) {
        self.with_stream(id, stream, |node| {
            node.stream = None;
            node.record.last_seen_at = unix_now();
        });
    }

    /// `id` says on `stream` that it has applied `revision`. Says whether that was news.
    pub(crate) fn ack(&self, id: &NodeId, stream: u64, revision: Revision) -> bool {
        let mut state = self.lock();
        let node = state.nodes.get_mut(id).filter(|node| node.is_current_stream(stream));
        let news = node.is_some_and(|node| node.ack(revision));
        drop(state);
        if news {
            self.notify(); // a node that repeats itself wakes nobody
        }
        news
    }

    /// `id` asks on `stream` for a lease, and says how many tokens it honours.
    pub(crate) fn renewal_requested(&self, id: &NodeId, stream: u64, tokens: u64) {
        let mut state = self.lock();
        if let Some(node) = state.nodes.get_mut(id).filter(|node| node.is_current_stream(stream)) {
            node.record.last_seen_at = unix_now();
            node.record.tokens = tokens;
        }
    }

    /// A node says how many of its audit spans wait for its collector.
    pub(crate) fn set_audit_queue(&self, id: &NodeId, stream: u64, queue: u64) {
        if let Some(node) = self.lock().nodes.get_mut(id)
            && node.stream.as_ref().is_some_and(|(current, _)| *current == stream)
        {
            node.audit_queue = queue;
        }
    }

    /// Audit spans that wait at the connected nodes.
    pub(crate) fn audit_queue(&self) -> u64 {
        let state = self.lock();
        let connected = state.nodes.values().filter(|node| node.stream.is_some());
        connected.fold(0, |sum, node| sum.saturating_add(node.audit_queue))
    }

    /// The record that the store must have before the node is granted a lease of up to `ttl`. It
    /// names this replica as the owner. `None` if the store has it already, or if it cannot be
    /// written yet: this replica must be registered, and the node must have applied the revision
    /// that the replica promised for all of its nodes. The caller must write a returned record.
    /// From here on, this replica's watermark covers every lease of the node.
    pub(crate) fn ownership_to_record(
        &self,
        id: &NodeId,
        ttl: Duration,
        effective: impl Fn(Revision) -> Revision,
    ) -> Option<wire::Node> {
        let mut state = self.lock();
        let lease = state.note_longest_lease();
        let State { nodes, me, promised, .. } = &mut *state;
        let (node, me) = (nodes.get_mut(id)?, me.as_ref()?);
        let ttl = millis(ttl);
        let known = node.recorded.is_some() && node.record.lease_ttl_ms >= ttl;
        if known || !rules::may_own(node.acked, effective(*promised)) {
            return None;
        }
        node.extend_lease(lease);
        node.begin_write();
        node.granted_on = node.stream.as_ref().map(|(stream, _)| *stream);
        let (replica, lease_ttl_ms) = (me.to_string(), ttl.max(node.record.lease_ttl_ms));
        Some(wire::Node { replica, lease_ttl_ms, instance: node.instance.clone(), ..node.record.clone() })
    }

    /// `record`, from [`ownership_to_record`](Self::ownership_to_record), isn't known to have been
    /// written: should it have been, it is now at the latest.
    pub(crate) fn ownership_unknown(&self, id: &NodeId, record: &wire::Node) {
        let mut state = self.lock();
        let lease = state.note_longest_lease();
        if let Some(node) = state.nodes.get_mut(id) {
            node.end_write(&record.instance);
            node.extend_instance_lease(&record.instance, lease);
        }
        drop(state);
        self.notify();
    }

    /// `record`, from [`ownership_to_record`](Self::ownership_to_record), is in the store since
    /// `revision`.
    pub(crate) fn ownership_recorded(&self, id: &NodeId, record: &wire::Node, revision: Revision) {
        let mut state = self.lock();
        let lease = state.note_longest_lease();
        let State { nodes, me, .. } = &mut *state;
        if let Some(node) = nodes.get_mut(id) {
            node.end_write(&record.instance);
        }
        if let Some(node) = nodes.get_mut(id).filter(|node| revision > node.stored) {
            // Until just now another may have granted it leases.
            node.extend_instance_lease(&record.instance, lease);
            if revision > node.removed {
                node.stored = revision;
                node.note_instance_change(record, me.as_ref(), lease);
                node.copy_ownership(record);
                let ours = me.as_ref().is_some_and(|me| me.as_str() == record.replica);
                let same = node.record.region == record.region && node.instance == record.instance;
                node.recorded = (ours && same).then_some(revision);
            }
        }
        drop(state);
        self.notify();
    }

    /// Up to `most` nodes that this replica owns, that are disconnected and whose leases have
    /// ended, each with the revision of its record. The caller may delete these records. The
    /// deletion counts when the watch reports it. A node that returns meanwhile is recorded again
    /// before it gets a lease.
    pub(crate) fn departed_nodes(&self, most: usize) -> Vec<(NodeId, Revision)> {
        let now = BootInstant::now();
        let mut state = self.lock();
        let State { nodes, me, .. } = &mut *state;
        let Some(me) = me else { return Vec::new() };
        let over = |node: &NodeState| node.holders().iter().all(|(_, ends)| *ends <= now);
        let gone = |node: &NodeState| node.record.replica == me.as_str() && node.stream.is_none() && over(node);
        let gone = nodes.iter_mut().filter(|(_, node)| gone(node)).take(most);
        gone.map(|(id, node)| {
            node.recorded = None;
            (id.clone(), node.stored)
        })
        .collect()
    }

    /// Whether a lease of up to `ttl` that is rooted at `barrier` may be granted: the store has
    /// known since before that we answer for the node.
    pub(crate) fn may_grant(&self, id: &NodeId, ttl: Duration, barrier: Revision) -> bool {
        self.lock().nodes.get(id).is_some_and(|node| {
            rules::may_grant(node.recorded, Duration::from_millis(node.record.lease_ttl_ms), ttl, barrier)
        })
    }

    /// The node is about to be granted a lease that ends by `ends`. `false`: the stream is no
    /// longer its.
    #[must_use]
    pub(crate) fn grant(&self, id: &NodeId, stream: u64, ends: BootInstant) -> bool {
        self.lock().note_lease_end(ends);
        let granted = self.with_stream(id, stream, |node| {
            node.extend_lease(ends);
            node.granted_on = Some(stream);
        });
        granted.is_some()
    }

    /// The status of each node for a change that is applied with revision `effective`. `bound` is
    /// the time at which every lease that was granted before the change has ended. `elsewhere`
    /// gives the status of another replica with all nodes that it owns.
    pub(crate) fn statuses(
        &self,
        effective: Revision,
        bound: BootInstant,
        elsewhere: impl Fn(&str) -> ApplyStatus,
    ) -> Vec<(NodeId, String, ApplyStatus)> {
        let now = BootInstant::now();
        let mut state = self.lock();
        // A node without a record and without a lease cannot serve, so it is left out.
        state.nodes.retain(|_, node| node.stored > 0 || node.stream.is_some() || node.may_be_here(now));
        state
            .statuses(effective, bound, now, &elsewhere)
            .map(|(id, region, s)| (id.clone(), region.to_owned(), s))
            .collect()
    }

    /// Whether there is a node that a change waits for, as [`statuses`](Self::statuses) would say.
    /// Asked with every burst of acknowledgements: it ends at the first, and copies nothing.
    pub(crate) fn is_outstanding(
        &self,
        effective: Revision,
        bound: BootInstant,
        elsewhere: impl Fn(&str) -> ApplyStatus,
    ) -> bool {
        let state = self.lock();
        let mut statuses = state.statuses(effective, bound, BootInstant::now(), &elsewhere);
        statuses.any(|(_, _, standing)| standing == ApplyStatus::Outstanding)
    }

    /// What can be promised of all nodes that we answer for, and is from now on. `settled`: no
    /// lease is left that is rooted before what was committed up to there.
    pub(crate) fn watermark(
        &self,
        head: Revision,
        settled: Revision,
        effective: impl Fn(Revision) -> Revision,
    ) -> Revision {
        let now = BootInstant::now();
        let (mut state, effective_head) = (self.lock(), effective(head));
        let promised = state.promised;
        // A node that has a table and waits for its record keeps the promised revision within its
        // reach.
        let waits = |node: &NodeState| node.stream.is_some() && node.recorded.is_none() && node.acked > 0;
        let holders = || {
            state.nodes.values().flat_map(|node| {
                let [(acked, ends), previous] = node.holders();
                [(acked, if waits(node) { FOREVER } else { ends }), previous]
            })
        };
        // If one node is at the promised revision or below, the others need not be checked.
        let stays = |(acked, ends): (Revision, BootInstant)| ends > now && acked <= promised && acked < effective_head;
        let low = match holders().any(stays) {
            true => promised,
            false => rules::watermark(holders(), head, effective_head, now),
        };
        state.promised = promised.max(low).max(settled);
        state.promised
    }

    /// Whether we answer for a lease that may be left.
    pub(crate) fn has_leases(&self) -> bool {
        let now = BootInstant::now();
        self.lock().nodes.values().flat_map(NodeState::known_ends).any(|ends| ends > now)
    }

    /// The last revision that changed a node's record.
    pub(crate) fn changed_at(&self) -> Revision {
        self.lock().changed_at
    }

    /// Whether the store names every node that may have a lease, and us with it.
    pub(crate) fn are_all_recorded(&self) -> bool {
        let now = BootInstant::now();
        let named = |node: &NodeState| {
            let [lease, previous] = node.known_ends();
            previous <= now
                && (lease <= now || node.recorded.is_some())
                && node.previous_owners_at(now).next().is_none()
        };
        self.lock().nodes.values().all(named)
    }

    /// Whether there may be a node that `replica` answers for, as far as the store tells.
    pub(crate) fn owns_nodes(&self, replica: &ReplicaId) -> bool {
        let now = BootInstant::now();
        let holds = |host: &str| host == replica.as_str();
        self.lock().nodes.values().any(|node| holds(&node.record.replica) || node.previous_owners_at(now).any(holds))
    }

    /// When the next lease ends that is left now, or a little earlier.
    pub(crate) fn next_expiry(&self) -> Option<BootInstant> {
        let now = BootInstant::now();
        let mut state = self.lock();
        // Asked with every burst of acknowledgements: all nodes are looked at only when the one
        // before has come.
        if state.next_end.is_some_and(|ends| ends <= now) {
            state.next_end = state.nodes.values().flat_map(NodeState::known_ends).filter(|ends| *ends > now).min();
        }
        state.next_end
    }

    /// All nodes, for people. `head` is the newest revision, and `effective` is the revision that
    /// includes its effect. `elsewhere` gives the watermark of another replica; `None` if that
    /// replica does not serve.
    pub(crate) fn list(
        &self,
        head: Revision,
        effective: Revision,
        elsewhere: impl Fn(&str) -> Option<Revision>,
    ) -> Vec<wire::Node> {
        let state = self.lock();
        let now = BootInstant::now();
        let me = state.me.as_ref().map_or("", ReplicaId::as_str);
        let show = |node: &NodeState| {
            // A node of ours without a stream is gone, whatever its record says until that is
            // written down.
            let here = node.stream.is_some() || node.lease_ends > now || node.record.replica == me;
            let host = (!here).then(|| elsewhere(&node.record.replica)).flatten();
            let applied = node.acked.max(host.unwrap_or_default());
            wire::Node {
                connected: node.stream.is_some() || host.is_some(),
                applied_revision: applied,
                lag: if applied >= effective { 0 } else { head.saturating_sub(applied) },
                // Of a lease that another replica grants only the length is known here.
                lease_remaining_ms: if host.is_some() {
                    node.record.lease_ttl_ms
                } else {
                    millis(node.lease_ends.since(now))
                },
                ..node.record.clone()
            }
        };
        state.nodes.values().filter(|node| node.stored > 0 || node.stream.is_some()).map(show).collect()
    }

    /// Streams that are open.
    pub(crate) fn streams(&self) -> usize {
        self.lock().nodes.values().filter(|node| node.stream.is_some()).count()
    }

    /// Wakes whenever a standing may have changed.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Does `what` to the node if `stream` speaks for it.
    fn with_stream<T>(&self, id: &NodeId, stream: u64, what: impl FnOnce(&mut NodeState) -> T) -> Option<T> {
        let mut state = self.lock();
        let node = state.nodes.get_mut(id);
        let node = node.filter(|node| node.is_current_stream(stream))?;
        let done = what(node);
        drop(state);
        self.notify();
        Some(done)
    }

    pub(crate) fn notify(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// A lease may end then.
    fn note_lease_end(&mut self, ends: BootInstant) {
        self.next_end = Some(self.next_end.map_or(ends, |next| next.min(ends)));
    }

    /// The end of a lease that another replica may just have granted.
    fn note_longest_lease(&mut self) -> BootInstant {
        let ends = BootInstant::now().plus(with_skew(self.longest));
        self.note_lease_end(ends);
        ends
    }

    fn statuses(
        &self,
        effective: Revision,
        bound: BootInstant,
        now: BootInstant,
        elsewhere: &impl Fn(&str) -> ApplyStatus,
    ) -> impl Iterator<Item = (&NodeId, &str, ApplyStatus)> {
        let me = self.me.as_ref().map_or("", ReplicaId::as_str);
        let standing = move |node: &NodeState| match (node.status(effective, bound, now), node.owner(now)) {
            // This replica does not own the node's leases. The owner knows more.
            (ApplyStatus::LeaseExpired(_), Some(other)) if other != me => elsewhere(other),
            (own, _) => own,
        };
        let nodes = self.nodes.iter().filter(move |(_, node)| node.may_have_served(now));
        nodes.map(move |(id, node)| (id, node.record.region.as_str(), standing(node)))
    }
}

#[cfg(test)]
mod tests;
