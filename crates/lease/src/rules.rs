//! The rules from which "enforced" follows, as pure functions of what each side knows. Replica and node decide by these, and
//! so does the model that is checked exhaustively (`tests/model`): what is proved is what runs.
//!
//! Times are of the caller's own clock; no function here reads one. Why the rules suffice:
//!
//! 1. A lease is rooted in a barrier: a moment before which everything that was committed is at or below the barrier's
//!    revision. Of its TTL only what is left since then is granted ([`remaining_ttl`]), and the node counts that from when it *asked*
//!    ([`lease_expiry`]): so a lease ends a TTL after its barrier, however long messages and processes were held up.
//! 2. A node takes a grant only when it has applied what the grant vouches for ([`may_accept_grant`]), and applies a change only where the one
//!    before it is applied ([`check_continuity`]): so a lease that is rooted after a change isn't held by who lacks the change.
//! 3. A replica grants only to whom the store has known since before the barrier ([`may_grant`]): so who has seen a revision knows
//!    everybody who may hold a lease that is rooted before it.
//! 4. A change is enforced when each of those has acknowledged it, or no lease from before it is left ([`node_status`], [`all_leases_end`]).

use std::time::Duration;

use super::{BootInstant, CLOCK_SKEW};

/// A table's place in the store's total order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position<'a> {
    /// The store's lifetime.
    pub epoch: &'a str,
    /// The newest revision in it that is applied.
    pub revision: u64,
}

/// Why a change doesn't lead on from a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discontinuity {
    /// It belongs to another lifetime of the store.
    Epoch,
    /// Something before it is missing, or it has been applied already.
    Gap,
    /// It would take the table back.
    Backwards,
}

/// How long to wait on one clock for `time` to have passed on every other.
#[must_use]
pub fn with_skew(time: Duration) -> Duration {
    time.mul_f64(1.0 + CLOCK_SKEW)
}

/// What is left at `now` of a lease of `ttl` that is `rooted` in a barrier of that time. Replica's clock.
#[must_use]
pub fn remaining_ttl(rooted: BootInstant, now: BootInstant, ttl: Duration) -> Duration {
    ttl.saturating_sub(now.since(rooted))
}

/// Whether a lease may be granted: the store has known the node, with a TTL of no less than this one, since `recorded`, and the
/// `barrier` is not older than that.
#[must_use]
pub fn may_grant(recorded: Option<u64>, recorded_ttl: Duration, ttl: Duration, barrier: u64) -> bool {
    recorded_ttl >= ttl && recorded.is_some_and(|revision| revision <= barrier)
}

/// Whether a lease may be rooted at `barrier`, on a stream of a node that had no lease since it started, which began then (`None`: it had one).
/// Whatever such a node acknowledged before it was restarted, to whichever replica, was committed before it came back.
#[must_use]
pub fn may_use_barrier(after: Option<BootInstant>, barrier: BootInstant) -> bool {
    after.is_none_or(|began| began <= barrier)
}

/// When nothing is left of a lease that is granted now, whatever clock its holder counts on. Replica's clock.
#[must_use]
pub fn grant_expiry(rooted: BootInstant, ttl: Duration) -> BootInstant {
    rooted.plus(with_skew(ttl))
}

/// Until when a node may serve that `asked` then and was granted what is `left` of `ttl`. Node's clock.
#[must_use]
pub fn lease_expiry(asked: BootInstant, left: Duration, ttl: Duration) -> BootInstant {
    asked.plus(left.min(ttl).mul_f64(1.0 - CLOCK_SKEW))
}

/// Whether a node that holds `held` takes a grant that vouches for everything up to `granted`.
#[must_use]
pub fn may_accept_grant(held: Position<'_>, granted: Position<'_>) -> bool {
    held.epoch == granted.epoch && held.revision >= granted.revision
}

/// Whether a change of `epoch` that leads from `previous` to `revision` leads on from `held`.
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

/// When every lease that is rooted before a change has ended, on the clock of who has `observed` the change then.
#[must_use]
pub fn all_leases_end(observed: BootInstant, ttl: Duration) -> BootInstant {
    observed.plus(with_skew(ttl))
}

/// What a holder of leases has come to, with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeStatus {
    /// It has acknowledged the change.
    Applied,
    /// No lease from before the change is left, since then.
    LeaseExpired(BootInstant),
    /// Neither.
    Outstanding,
}

/// How a node stands to the change `revision`. `acked`: the highest revision that it has acknowledged; `lease_ends`: when the last
/// lease does that it may hold, `None` when others may have granted it any; `bound`: [`all_leases_end`] of the change.
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

/// Whether a replica may come to answer for a node that has acknowledged `acked`, given the last revision that means anything to nodes of
/// those that it has `promised` all its nodes to have applied. The replica that answered for the node before forgets it
/// when it learns of that, so the promise has to be true of this node too.
#[must_use]
pub fn may_own(acked: u64, promised: u64) -> bool {
    acked >= promised
}

/// What a replica can say for all nodes that it has granted leases, as (highest revision acknowledged, end of the last lease): none of
/// them serves anything that was taken away at or before the result. `head`: what the replica has taken in itself; `effective`:
/// the last revision up to there that meant anything to nodes.
///
/// A node that is gone counts until its lease has ended. The result may be lower than one before it (a node's new stream has acknowledged
/// nothing yet); the higher one stays true, because a node takes no grant before it has applied what the replica had.
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
    fn the_first_lease_of_who_has_started_is_rooted_after_that() {
        assert!(
            may_use_barrier(None, at(1)) && may_use_barrier(Some(at(2)), at(2)) && may_use_barrier(Some(at(2)), at(3))
        );
        assert!(!may_use_barrier(Some(at(2)), at(1)));
    }

    #[test]
    fn a_lease_shrinks_with_its_barriers_age_and_by_the_skew() {
        assert_eq!(remaining_ttl(at(5), at(8), TTL), Duration::from_secs(7));
        assert_eq!(remaining_ttl(at(5), at(50), TTL), Duration::ZERO);
        assert_eq!(lease_expiry(at(100), Duration::from_secs(10), TTL), at(109));
        assert_eq!(lease_expiry(at(100), Duration::from_secs(999), TTL), at(109), "never more than the TTL");
        assert_eq!((grant_expiry(at(5), TTL), all_leases_end(at(5), TTL)), (at(16), at(16)));
    }

    #[test]
    fn only_who_was_recorded_before_the_barrier_is_granted() {
        assert!(may_grant(Some(7), TTL, TTL, 7) && !may_grant(Some(8), TTL, TTL, 7) && !may_grant(None, TTL, TTL, 7));
        assert!(!may_grant(Some(7), TTL, TTL * 2, 9), "the record promises less");
    }

    #[test]
    fn only_who_has_applied_what_it_vouches_for_takes_a_grant() {
        assert!(
            may_accept_grant(held(5), held(5))
                && may_accept_grant(held(6), held(5))
                && !may_accept_grant(held(4), held(5))
        );
        assert!(!may_accept_grant(held(5), Position { epoch: "b", revision: 5 }));
    }

    #[test]
    fn a_change_follows_exactly_what_it_names() {
        assert_eq!(check_continuity(held(5), "a", 5, 9), Ok(()));
        assert_eq!(check_continuity(held(5), "b", 5, 9), Err(Discontinuity::Epoch));
        assert_eq!(check_continuity(held(5), "a", 6, 9), Err(Discontinuity::Gap));
        assert_eq!(check_continuity(held(9), "a", 5, 9), Err(Discontinuity::Gap), "twice");
        assert_eq!(check_continuity(held(5), "a", 5, 4), Err(Discontinuity::Backwards));
    }

    #[test]
    fn a_node_is_done_by_its_word_by_its_lease_or_by_the_bound() {
        assert_eq!(node_status(5, 5, Some(at(9)), at(9), at(1)), NodeStatus::Applied);
        assert_eq!(node_status(4, 5, Some(at(9)), at(20), at(8)), NodeStatus::Outstanding);
        assert_eq!(node_status(4, 5, Some(at(9)), at(20), at(9)), NodeStatus::LeaseExpired(at(9)));
        assert_eq!(node_status(4, 5, None, at(20), at(19)), NodeStatus::Outstanding, "nobody here knows its lease");
        assert_eq!(node_status(4, 5, None, at(20), at(20)), NodeStatus::LeaseExpired(at(20)));
    }

    #[test]
    fn the_watermark_is_the_least_of_whom_may_serve() {
        let low = |holders: &[(u64, BootInstant)]| watermark(holders.iter().copied(), 9, 7, at(10));
        assert_eq!(low(&[]), 9);
        assert_eq!(low(&[(7, at(11)), (4, at(11))]), 4);
        assert_eq!(low(&[(7, at(11)), (4, at(10))]), 9, "its lease has ended, and 8 and 9 mean nothing to nodes");
    }
}
