//! The fleet: what each node has applied, and until when it may hold a lease. What "enforced" is computed from.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use seks_proto::{
    id::NodeId,
    table::{
        BootInstant,
        rules::{self, with_skew},
    },
    wire,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::unix_now;
use crate::store::Revision;

/// How many acknowledgements of a node are remembered with their time.
const MAX_ACKS: usize = 64;

/// One node, as this replica knows it.
struct NodeState {
    record: wire::Node,
    /// The revision at which [`record`](Self::record) came into the store: no lease is granted that isn't rooted after it, so
    /// that whoever has seen a later revision knows of the node.
    recorded: Option<Revision>,
    /// The stream that speaks for it, by number; older ones are fenced.
    stream: Option<(u64, CancellationToken)>,
    /// Highest revision that it said it has applied, on its latest stream.
    acked: Revision,
    acks: VecDeque<(Revision, BootInstant)>,
    /// No lease that it may hold outlives this.
    lease_ends: BootInstant,
}

/// What a node has come to, with a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It acknowledged the change then, or a little later.
    Applied(BootInstant),
    /// No lease that it may hold is left.
    LeaseExpired(BootInstant),
    /// Neither.
    Outstanding,
}

/// All nodes that are known.
pub(super) struct Fleet {
    nodes: Mutex<BTreeMap<NodeId, NodeState>>,
    ttl: Duration,
    /// Other replicas may serve from the same store: of a node that isn't connected here, nobody here knows the lease.
    shared: bool,
    /// Moves with everything that may change an answer.
    changed: watch::Sender<u64>,
}

impl Fleet {
    /// The nodes that the store knows. Each may hold a lease that this replica's predecessor granted just before now, for at
    /// most the TTL that stands in its record.
    pub(super) fn new(records: Vec<(NodeId, wire::Node)>, ttl: Duration, shared: bool) -> Self {
        let fleet = Self { nodes: Mutex::default(), ttl, shared, changed: watch::Sender::new(0) };
        records.into_iter().for_each(|(id, record)| fleet.learn(id, Some(record), 0));
        fleet
    }

    /// The store says of a node that it may hold leases, or that it may not any more (`None`).
    pub(super) fn learn(&self, id: NodeId, record: Option<wire::Node>, revision: Revision) {
        let mut nodes = self.lock();
        let known = nodes.get_mut(&id);
        match (record, known) {
            (Some(record), _) if record.lease_ttl_ms == 0 => {} // enrolled, and never granted a lease
            (Some(record), Some(node)) => {
                node.record.lease_ttl_ms = node.record.lease_ttl_ms.max(record.lease_ttl_ms);
            }
            (Some(record), None) => {
                let granted = Duration::from_millis(record.lease_ttl_ms).max(self.ttl);
                let ends = BootInstant::now().plus(with_skew(granted));
                nodes.insert(id, NodeState { recorded: Some(revision), ..NodeState::new(record, ends) });
            }
            (None, Some(node)) if node.stream.is_none() && !node.lease_ends.remaining().is_zero() => {
                node.recorded = None; // it goes when its lease has
            }
            (None, Some(node)) if node.stream.is_some() => node.recorded = None,
            (None, _) => drop(nodes.remove(&id)),
        }
        drop(nodes);
        self.notify();
    }

    /// A stream of `id` begins: it speaks for the node from now on, and an older one no more. The token ends it in turn.
    pub(super) fn join(&self, id: &NodeId, stream: u64, hello: &wire::Hello) -> CancellationToken {
        let token = CancellationToken::new();
        let mut nodes = self.lock();
        let new = || {
            NodeState::new(wire::Node { first_seen_at: unix_now(), ..Default::default() }, BootInstant::from_nanos(0))
        };
        let node = nodes.entry(id.clone()).or_insert_with(new);
        if let Some((_, older)) = node.stream.replace((stream, token.clone())) {
            older.cancel();
        }
        if node.record.region != hello.region {
            node.recorded = None;
        }
        if self.shared {
            // Another replica may have granted it a lease a moment ago.
            node.lease_ends = node.lease_ends.max(BootInstant::now().plus(with_skew(self.ttl)));
        }
        node.record.id = id.to_string();
        node.record.region.clone_from(&hello.region);
        node.record.version.clone_from(&hello.version);
        node.record.features.clone_from(&hello.features);
        node.record.last_seen_at = unix_now();
        node.acked = 0;
        drop(nodes);
        self.notify();
        token
    }

    /// A stream has ended.
    pub(super) fn leave(&self, id: &NodeId, stream: u64) {
        self.of(id, stream, |node| {
            node.stream = None;
            node.record.last_seen_at = unix_now();
        });
    }

    /// `id` says on `stream` that it has applied `revision`. Says whether that was news.
    pub(super) fn ack(&self, id: &NodeId, stream: u64, revision: Revision) -> bool {
        let news = self.of(id, stream, |node| {
            node.record.last_seen_at = unix_now();
            let news = revision > node.acked;
            if news {
                node.acked = revision;
                node.acks.push_back((revision, BootInstant::now()));
                if node.acks.len() > MAX_ACKS {
                    node.acks.pop_front();
                }
            }
            news
        });
        news == Some(true)
    }

    /// What the store must know of a node before it is granted a lease of up to `ttl`; `None` when it does.
    pub(super) fn to_record(&self, id: &NodeId, ttl: Duration) -> Option<wire::Node> {
        let nodes = self.lock();
        let node = nodes.get(id)?;
        let ttl = millis(ttl);
        let record = wire::Node { lease_ttl_ms: ttl.max(node.record.lease_ttl_ms), ..node.record.clone() };
        (node.recorded.is_none() || node.record.lease_ttl_ms < ttl).then_some(record)
    }

    /// `record` is in the store since `revision`.
    pub(super) fn recorded(&self, id: &NodeId, record: &wire::Node, revision: Revision) {
        if let Some(node) = self.lock().get_mut(id) {
            node.recorded = (node.record.region == record.region).then_some(revision);
            node.record.lease_ttl_ms = record.lease_ttl_ms;
        }
    }

    /// Whether a lease of up to `ttl` that is rooted at `barrier` may be granted: the store has known the node since before.
    pub(super) fn may_grant(&self, id: &NodeId, ttl: Duration, barrier: Revision) -> bool {
        let nodes = self.lock();
        nodes.get(id).is_some_and(|node| {
            rules::may_grant(node.recorded, Duration::from_millis(node.record.lease_ttl_ms), ttl, barrier)
        })
    }

    /// The node is about to be granted a lease that ends by `ends`. `false`: the stream is no longer its.
    #[must_use]
    pub(super) fn grant(&self, id: &NodeId, stream: u64, ends: BootInstant) -> bool {
        self.of(id, stream, |node| node.lease_ends = node.lease_ends.max(ends)).is_some()
    }

    /// How each node stands to a change that is applied with revision `effective`; `bound`: when every lease that was granted
    /// before the change has ended.
    pub(super) fn standings(&self, effective: Revision, bound: BootInstant) -> Vec<(NodeId, String, Standing)> {
        let now = BootInstant::now();
        let standing = |node: &NodeState| {
            let elsewhere = self.shared && node.stream.is_none();
            let ends = (!elsewhere).then_some(node.lease_ends);
            match rules::standing(node.acked, effective, ends, bound, now) {
                rules::Standing::Applied => {
                    let at = node.acks.iter().find(|(revision, _)| *revision >= effective).map(|(_, at)| *at);
                    Standing::Applied(at.unwrap_or(now))
                }
                rules::Standing::LeaseExpired(ends) => Standing::LeaseExpired(ends),
                rules::Standing::Outstanding => Standing::Outstanding,
            }
        };
        let mut nodes = self.lock();
        // Whom the store has forgotten, and who can't serve any more, is of no interest.
        nodes.retain(|_, n| n.recorded.is_some() || n.stream.is_some() || n.lease_ends > now);
        nodes.iter().map(|(id, node)| (id.clone(), node.record.region.clone(), standing(node))).collect()
    }

    /// The earliest moment at which a lease that matters now ends.
    pub(super) fn next_expiry(&self) -> Option<BootInstant> {
        let now = BootInstant::now();
        self.lock().values().map(|node| node.lease_ends).filter(|ends| *ends > now).min()
    }

    /// All nodes, for people. `head`: what they should have applied, `effective` what that comes to.
    pub(super) fn list(&self, head: Revision, effective: Revision) -> Vec<wire::Node> {
        let nodes = self.lock();
        let show = |node: &NodeState| wire::Node {
            connected: node.stream.is_some(),
            applied_revision: node.acked,
            lag: if node.acked >= effective { 0 } else { head.saturating_sub(node.acked) },
            lease_remaining_ms: millis(node.lease_ends.remaining()),
            ..node.record.clone()
        };
        nodes.values().map(show).collect()
    }

    /// Streams that are open.
    pub(super) fn streams(&self) -> usize {
        self.lock().values().filter(|node| node.stream.is_some()).count()
    }

    /// Wakes whenever a standing may have changed.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Does `what` to the node if `stream` speaks for it.
    fn of<T>(&self, id: &NodeId, stream: u64, what: impl FnOnce(&mut NodeState) -> T) -> Option<T> {
        let mut nodes = self.lock();
        let node = nodes.get_mut(id).filter(|n| n.stream.as_ref().is_some_and(|(current, _)| *current == stream))?;
        let done = what(node);
        drop(nodes);
        self.notify();
        Some(done)
    }

    fn notify(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, NodeState>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodeState {
    fn new(record: wire::Node, lease_ends: BootInstant) -> Self {
        Self { record, recorded: None, stream: None, acked: 0, acks: VecDeque::new(), lease_ends }
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn hello(region: &str) -> wire::Hello {
        wire::Hello { region: region.into(), ..Default::default() }
    }

    fn standing(fleet: &Fleet, name: &str, revision: Revision, bound: BootInstant) -> Standing {
        let all = fleet.standings(revision, bound);
        all.into_iter().find(|(node, ..)| *node == id(name)).unwrap().2
    }

    fn later() -> BootInstant {
        BootInstant::now().plus(Duration::from_secs(60))
    }

    #[test]
    fn an_ack_counts_for_the_stream_that_speaks_for_the_node() {
        let fleet = Fleet::new(Vec::new(), TTL, false);
        let old = fleet.join(&id("a"), 1, &hello("eu"));
        assert!(fleet.grant(&id("a"), 1, later()) && fleet.ack(&id("a"), 1, 5));
        assert!(matches!(standing(&fleet, "a", 5, later()), Standing::Applied(_)));
        assert_eq!(standing(&fleet, "a", 6, later()), Standing::Outstanding);
        let new = fleet.join(&id("a"), 2, &hello("eu"));
        assert!(old.is_cancelled() && !new.is_cancelled());
        assert!(!fleet.ack(&id("a"), 1, 9) && !fleet.grant(&id("a"), 1, later()));
        assert_eq!(standing(&fleet, "a", 5, later()), Standing::Outstanding, "the new stream has said nothing yet");
        fleet.leave(&id("a"), 1);
        assert_eq!(fleet.streams(), 1, "the old stream's end isn't the new one's");
    }

    #[test]
    fn a_node_is_done_with_a_change_when_it_has_applied_it_or_its_lease_is_over() {
        let fleet = Fleet::new(Vec::new(), TTL, false);
        fleet.join(&id("a"), 1, &hello("eu"));
        let past = BootInstant::now();
        assert!(matches!(standing(&fleet, "a", 5, later()), Standing::LeaseExpired(_)), "it never had one");
        assert!(fleet.grant(&id("a"), 1, later()));
        fleet.leave(&id("a"), 1);
        assert_eq!(standing(&fleet, "a", 5, later()), Standing::Outstanding, "gone, but it may still serve");
        assert!(matches!(standing(&fleet, "a", 5, past), Standing::LeaseExpired(_)), "every old lease has ended");
    }

    #[test]
    fn nodes_of_the_store_may_hold_the_leases_of_a_replica_before() {
        let minute = wire::Node { lease_ttl_ms: 60_000, ..Default::default() };
        let short = wire::Node { lease_ttl_ms: 1, ..Default::default() };
        let fleet = Fleet::new(vec![(id("a"), short), (id("b"), minute)], TTL, false);
        assert_eq!(standing(&fleet, "a", 1, later()), Standing::Outstanding);
        let list = fleet.list(1, 1);
        assert!((10_000..=11_000).contains(&list[0].lease_remaining_ms), "TTL and skew");
        assert!((60_000..=66_000).contains(&list[1].lease_remaining_ms), "as it was granted then");
    }

    #[test]
    fn a_node_is_recorded_before_its_first_lease_and_when_what_matters_changes() {
        let fleet = Fleet::new(Vec::new(), TTL, false);
        fleet.join(&id("a"), 1, &hello("eu"));
        let record = fleet.to_record(&id("a"), TTL).unwrap();
        assert_eq!((record.id.as_str(), record.region.as_str(), record.lease_ttl_ms), ("a", "eu", 10_000));
        assert!(!fleet.may_grant(&id("a"), TTL, 99));
        fleet.recorded(&id("a"), &record, 7);
        assert!(fleet.to_record(&id("a"), TTL).is_none());
        assert!(fleet.may_grant(&id("a"), TTL, 7) && !fleet.may_grant(&id("a"), TTL, 6));
        assert_eq!(fleet.to_record(&id("a"), TTL * 2).unwrap().lease_ttl_ms, 20_000);
        fleet.join(&id("a"), 2, &hello("us"));
        assert!(fleet.to_record(&id("a"), TTL).is_some());
    }
    #[test]
    fn with_other_replicas_only_the_bound_speaks_for_who_is_not_connected_here() {
        let fleet = Fleet::new(Vec::new(), TTL, true);
        fleet.learn(id("a"), Some(wire::Node { lease_ttl_ms: 1, ..Default::default() }), 3);
        fleet.join(&id("b"), 1, &hello("eu"));
        assert_eq!(standing(&fleet, "a", 5, later()), Standing::Outstanding);
        assert_eq!(standing(&fleet, "b", 5, later()), Standing::Outstanding, "it may come from another replica");
        assert!(matches!(standing(&fleet, "a", 5, BootInstant::now()), Standing::LeaseExpired(_)));
        fleet.learn(id("a"), None, 4);
        assert_eq!(standing(&fleet, "a", 5, later()), Standing::Outstanding, "forgotten when its lease has ended");
    }
}
