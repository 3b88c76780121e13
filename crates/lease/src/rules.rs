//! The rules behind "enforced", as pure functions of what replica and node know. Both call these
//! functions, and so does the model that is checked exhaustively (`tests/model`). The checked
//! functions are the shipped ones.
//!
//! Times are on the caller's own clock; no function here reads a clock. The rules are sufficient
//! for this reason:
//!
//! 1. A lease is based on a barrier: a time and a revision. Everything committed before that time
//!    has at most that revision. A grant covers only the part of the TTL that is left since the
//!    barrier ([`remaining_ttl`]). The node counts it from the time of its *request*
//!    ([`lease_expiry`]). So a lease ends at most one TTL after its barrier, however long messages
//!    and processes were delayed.
//! 2. A node accepts a grant only when it has applied the grant's revision ([`may_accept_grant`]).
//!    It applies a change only directly after the change before it ([`check_continuity`]). So a
//!    node without a change never holds a lease whose barrier is newer than that change.
//! 3. A replica grants a lease only to a node that was recorded in the store before the barrier
//!    ([`may_grant`]). So a replica that has read a revision knows every node that may hold a lease
//!    with an older barrier.
//! 4. A change is enforced when each of these nodes has acknowledged it, or has no lease left from
//!    before it ([`node_status`], [`all_leases_end`]).

use std::time::Duration;

use super::{BootInstant, CLOCK_SKEW};

/// A table's position in the store's order of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position<'a> {
    /// The store's epoch.
    pub epoch: &'a str,
    /// The newest applied revision of that epoch.
    pub revision: u64,
}

/// Why a change does not continue a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discontinuity {
    /// The change belongs to another epoch.
    Epoch,
    /// An earlier change is missing, or this change was applied before.
    Gap,
    /// The change would lower the table's revision.
    Backwards,
}

/// The time to wait on one clock until `time` has passed on every other.
#[must_use]
pub fn with_skew(time: Duration) -> Duration {
    time.mul_f64(1.0 + CLOCK_SKEW)
}

/// What remains at `now` of a lease of `ttl`. `rooted` is the barrier's time. Replica's clock.
#[must_use]
pub fn remaining_ttl(rooted: BootInstant, now: BootInstant, ttl: Duration) -> Duration {
    ttl.saturating_sub(now.since(rooted))
}

/// Whether a lease may be granted. The store must have recorded the node at or before the `barrier`
/// revision, with a TTL of at least `ttl`. `recorded` is the revision of that record.
#[must_use]
pub fn may_grant(recorded: Option<u64>, recorded_ttl: Duration, ttl: Duration, barrier: u64) -> bool {
    recorded_ttl >= ttl && recorded.is_some_and(|revision| revision <= barrier)
}

/// Whether the node's first lease may be based on `barrier`. `after` is the start of the stream of
/// a node that has had no lease since its process started; `None` when it has had one. Everything
/// that such a node acknowledged before its restart, to any replica, was committed before the
/// stream began.
#[must_use]
pub fn may_use_barrier(after: Option<BootInstant>, barrier: BootInstant) -> bool {
    after.is_none_or(|began| began <= barrier)
}

/// The time at which a lease that is granted now has ended on every clock. `rooted` is the
/// barrier's time. Replica's clock.
#[must_use]
pub fn grant_expiry(rooted: BootInstant, ttl: Duration) -> BootInstant {
    rooted.plus(with_skew(ttl))
}

/// The end of a lease that the node requested at `asked`, when `left` of `ttl` was granted. Node's
/// clock.
#[must_use]
pub fn lease_expiry(asked: BootInstant, left: Duration, ttl: Duration) -> BootInstant {
    asked.plus(left.min(ttl).mul_f64(1.0 - CLOCK_SKEW))
}

/// Whether a node whose table is at `held` may accept a grant for position `granted`.
#[must_use]
pub fn may_accept_grant(held: Position<'_>, granted: Position<'_>) -> bool {
    held.epoch == granted.epoch && held.revision >= granted.revision
}

/// Checks that a change of `epoch` from revision `previous` to `revision` continues the table at
/// `held`.
///
/// # Errors
/// The first reason why not.
pub fn check_continuity(held: Position<'_>, epoch: &str, previous: u64, revision: u64) -> Result<(), Discontinuity> {
    if epoch != held.epoch {
        return Err(Discontinuity::Epoch);
    }
    if previous != held.revision {
        return Err(Discontinuity::Gap);
    }
    if revision < held.revision {
        return Err(Discontinuity::Backwards);
    }
    Ok(())
}

/// The time at which every lease with a barrier before a change has ended, on the clock that
/// `observed` the change.
#[must_use]
pub fn all_leases_end(observed: BootInstant, ttl: Duration) -> BootInstant {
    observed.plus(with_skew(ttl))
}

/// The status of a node, or of a replica's nodes, for one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeStatus {
    /// It has acknowledged the change.
    Applied,
    /// All leases from before the change ended at this time.
    LeaseExpired(BootInstant),
    /// Neither. The change is not enforced there.
    Outstanding,
}

/// The status of a node for the change `revision`. `acked` is the highest acknowledged revision.
/// `lease_ends` is the end of the last lease that the node may hold; `None` when other replicas may
/// have granted it one. `bound` is [`all_leases_end`] of the change.
#[must_use]
pub fn node_status(
    acked: u64,
    revision: u64,
    lease_ends: Option<BootInstant>,
    bound: BootInstant,
    now: BootInstant,
) -> NodeStatus {
    if acked >= revision {
        return NodeStatus::Applied;
    }
    let ends = lease_ends.map_or(bound, |ends| ends.min(bound));
    if ends <= now { NodeStatus::LeaseExpired(ends) } else { NodeStatus::Outstanding }
}

/// Whether a replica may become the owner of a node that has acknowledged `acked`. `promised` is
/// the last revision with an effect on nodes that the replica has published in its watermark. The
/// former owner forgets the node when it learns of the change, so the watermark must hold for this
/// node too.
#[must_use]
pub fn may_own(acked: u64, promised: u64) -> bool {
    acked >= promised
}

/// The watermark of a replica. `holders` are all nodes to which it has granted leases, as (highest
/// acknowledged revision, end of the last lease). No such node serves anything that was removed at
/// or before the result. `head` is the newest revision that the replica has compiled. `effective`
/// is the last revision up to `head` with an effect on nodes.
///
/// A node without a stream counts until its lease has ended. The result may be lower than an
/// earlier one, because a new stream has acknowledged nothing yet. The earlier, higher result
/// remains true, because a node accepts no grant before it has applied the replica's table.
#[must_use]
pub fn watermark(
    holders: impl IntoIterator<Item = (u64, BootInstant)>,
    head: u64,
    effective: u64,
    now: BootInstant,
) -> u64 {
    let live = holders.into_iter().filter(|(_, ends)| *ends > now);
    live.map(|(acked, _)| if acked >= effective { head } else { acked.min(head) }).min().unwrap_or(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> BootInstant {
        BootInstant::from_nanos(seconds * 1_000_000_000)
    }

    fn held(revision: u64) -> Position<'static> {
        Position { epoch: "a", revision }
    }

    #[test]
    fn the_first_lease_after_a_start_needs_a_newer_barrier() {
        assert!(
            may_use_barrier(None, at(1)) && may_use_barrier(Some(at(2)), at(2)) && may_use_barrier(Some(at(2)), at(3))
        );
        assert!(!may_use_barrier(Some(at(2)), at(1)));
    }

    #[test]
    fn a_lease_shrinks_by_its_barriers_age_and_by_the_skew() {
        assert_eq!(remaining_ttl(at(5), at(8), TTL), Duration::from_secs(7));
        assert_eq!(remaining_ttl(at(5), at(50), TTL), Duration::ZERO);
        assert_eq!(lease_expiry(at(100), Duration::from_secs(10), TTL), at(109));
        assert_eq!(lease_expiry(at(100), Duration::from_secs(999), TTL), at(109), "never more than the TTL");
        assert_eq!((grant_expiry(at(5), TTL), all_leases_end(at(5), TTL)), (at(16), at(16)));
    }

    #[test]
    fn only_a_node_recorded_before_the_barrier_gets_a_lease() {
        assert!(may_grant(Some(7), TTL, TTL, 7) && !may_grant(Some(8), TTL, TTL, 7) && !may_grant(None, TTL, TTL, 7));
        assert!(!may_grant(Some(7), TTL, TTL * 2, 9), "the record promises less");
    }

    #[test]
    fn a_grant_is_accepted_only_after_its_revision_was_applied() {
        assert!(
            may_accept_grant(held(5), held(5))
                && may_accept_grant(held(6), held(5))
                && !may_accept_grant(held(4), held(5))
        );
        assert!(!may_accept_grant(held(5), Position { epoch: "b", revision: 5 }));
    }

    #[test]
    fn a_change_continues_only_its_previous_revision() {
        assert_eq!(check_continuity(held(5), "a", 5, 9), Ok(()));
        assert_eq!(check_continuity(held(5), "b", 5, 9), Err(Discontinuity::Epoch));
        assert_eq!(check_continuity(held(5), "a", 6, 9), Err(Discontinuity::Gap));
        assert_eq!(check_continuity(held(9), "a", 5, 9), Err(Discontinuity::Gap), "twice");
        assert_eq!(check_continuity(held(5), "a", 5, 4), Err(Discontinuity::Backwards));
    }

    #[test]
    fn a_node_is_done_by_acknowledgement_by_lease_or_by_the_bound() {
        assert_eq!(node_status(5, 5, Some(at(9)), at(9), at(1)), NodeStatus::Applied);
        assert_eq!(node_status(4, 5, Some(at(9)), at(20), at(8)), NodeStatus::Outstanding);
        assert_eq!(node_status(4, 5, Some(at(9)), at(20), at(9)), NodeStatus::LeaseExpired(at(9)));
        assert_eq!(node_status(4, 5, None, at(20), at(19)), NodeStatus::Outstanding, "its lease is unknown here");
        assert_eq!(node_status(4, 5, None, at(20), at(20)), NodeStatus::LeaseExpired(at(20)));
    }

    #[test]
    fn the_watermark_is_the_lowest_of_nodes_that_may_serve() {
        let low = |holders: &[(u64, BootInstant)]| watermark(holders.iter().copied(), 9, 7, at(10));
        assert_eq!(low(&[]), 9);
        assert_eq!(low(&[(7, at(11)), (4, at(11))]), 4);
        assert_eq!(low(&[(7, at(11)), (4, at(10))]), 9, "its lease has ended, and 8 and 9 mean nothing to nodes");
    }
}
