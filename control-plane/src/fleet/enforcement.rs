//! When a change is enforced: no node serves what it removed. Each node that may hold a lease has
//! applied the change, or its lease has ended.
//!
//! A replica knows this of the nodes that it owns. For all other nodes their replicas publish it,
//! as a watermark at or past the change.
//!
//! Why the bound holds: a lease that was granted without knowledge of the change counts from a
//! barrier before the change's commit, so it has ended TTL after that on a perfect clock, and
//! [`rules::with_skew`] of TTL on any clock that we trust. A grant after this replica learnt of the
//! change names a revision at or after it, and no node takes it before it has applied that.

use std::{collections::BTreeMap, time::Duration};

use seks_lease::{BootInstant, rules};
use seks_proto::wire;
use seks_types::id::ReplicaId;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::{
    changefeed::log::ChangeLog,
    clock::millis,
    fleet::{Fleet, leases::ApplyStatus},
    store::Revision,
};

/// Acknowledgements of a large fleet come in bursts; one look serves many.
const COALESCE: Duration = Duration::from_millis(1);

pub(crate) async fn wait_until_enforced(
    log: &ChangeLog,
    fleet: &Fleet,
    revision: Revision,
    timeout: Duration,
) -> wire::Enforcement {
    let (start, deadline) = (Instant::now(), Instant::now() + timeout);
    let mut head = log.subscribe_head();
    let heard = timeout_at(deadline, head.wait_for(|head| *head >= revision)).await.is_ok();
    let mut changed = fleet.leases.subscribe();
    let mut state = None;
    while heard && Instant::now() < deadline {
        // A node may come back in between the two, with nothing acknowledged yet: the answer is
        // what counts.
        state = (!is_outstanding(log, fleet, revision))
            .then(|| enforcement_status(log, fleet, revision))
            .filter(|state| state.enforced);
        if state.is_some() {
            break;
        }
        let bound = log.observed(revision).map(|at| rules::all_leases_end(at, fleet.replicas.longest_ttl()));
        let ends = [bound, fleet.leases.next_expiry(), fleet.replicas.next_end()].into_iter().flatten();
        let sleep_for = ends.map(BootInstant::remaining).filter(|left| !left.is_zero()).min().unwrap_or(timeout);
        let wake = deadline.min(Instant::now() + sleep_for + COALESCE);
        tokio::select! {
            _ = changed.changed() => sleep(COALESCE).await,
            () = sleep_until(wake) => {}
        }
        changed.mark_unchanged();
    }
    let mut state = state.unwrap_or_else(|| enforcement_status(log, fleet, revision));
    state.waited_ms = millis(start.elapsed());
    state
}

/// A change that this replica knows of, and what the others have come to with it.
struct Change {
    observed: BootInstant,
    effective: Revision,
    bound: BootInstant,
    others: BTreeMap<ReplicaId, ApplyStatus>,
}

impl Change {
    /// `None`: it hasn't even heard of it.
    fn of(log: &ChangeLog, fleet: &Fleet, revision: Revision) -> Option<Self> {
        let observed = log.observed(revision)?;
        let effective = log.effective(revision);
        let bound = rules::all_leases_end(observed, fleet.replicas.longest_ttl());
        let me = fleet.leases.own_id();
        let others = fleet.replicas.statuses(me.as_ref(), effective, observed, |other| fleet.leases.owns_nodes(other));
        Some(Self { observed, effective, bound, others })
    }

    fn elsewhere(&self, replica: &str) -> ApplyStatus {
        let of = ReplicaId::try_from(replica).ok().and_then(|id| self.others.get(&id).copied());
        // A replica without a record has granted nothing that is left.
        of.unwrap_or(ApplyStatus::LeaseExpired(self.observed))
    }

    /// Replicas that haven't said yet that their nodes have come to it.
    fn silent(&self) -> impl Iterator<Item = &ReplicaId> {
        self.others.iter().filter(|(_, standing)| **standing == ApplyStatus::Outstanding).map(|(id, _)| id)
    }
}

/// Whether a node or a replica has not applied the change yet: [`enforcement_status`] without the
/// list for people.
fn is_outstanding(log: &ChangeLog, fleet: &Fleet, revision: Revision) -> bool {
    Change::of(log, fleet, revision).is_none_or(|change| {
        change.silent().next().is_some()
            || fleet.leases.is_outstanding(change.effective, change.bound, |replica| change.elsewhere(replica))
    })
}

pub(crate) fn enforcement_status(log: &ChangeLog, fleet: &Fleet, revision: Revision) -> wire::Enforcement {
    use wire::node_enforcement::State;
    let Some(change) = Change::of(log, fleet, revision) else {
        let never = BootInstant::from_nanos(u64::MAX);
        let outstanding = fleet.leases.statuses(Revision::MAX, never, |_| ApplyStatus::Outstanding);
        let nodes = outstanding.into_iter().map(|(id, region, _)| node(id.to_string(), region, State::Outstanding, 0));
        return wire::Enforcement { revision, nodes: nodes.collect(), ..Default::default() };
    };
    let statuses = fleet.leases.statuses(change.effective, change.bound, |replica| change.elsewhere(replica));
    let nodes = statuses.iter().map(|(_, _, standing)| standing);
    let enforced = nodes.chain(change.others.values()).all(|standing| *standing != ApplyStatus::Outstanding);
    let nodes = statuses.into_iter().map(|(id, region, standing)| {
        let (state, ms) = match standing {
            ApplyStatus::Applied(at) => (State::Applied, at.since(change.observed)),
            ApplyStatus::LeaseExpired(at) => (State::LeaseExpired, at.since(change.observed)),
            ApplyStatus::Outstanding => (State::Outstanding, BootInstant::now().since(change.observed)),
        };
        node(id.to_string(), region, state, millis(ms))
    });
    let name = |id: &ReplicaId| fleet.replicas.summary(id.as_str()).map_or_else(|| id.to_string(), |host| host.name);
    let replicas = change.silent().map(name).collect();
    wire::Enforcement { revision, enforced, waited_ms: 0, replicas, nodes: nodes.collect() }
}

fn node(node: String, region: String, state: wire::node_enforcement::State, ms: u64) -> wire::NodeEnforcement {
    wire::NodeEnforcement { node, region, state: state.into(), ms }
}
