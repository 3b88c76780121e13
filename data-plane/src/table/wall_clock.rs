//! The time for expiry: the later of two wall clocks, this machine's and that of the replica which
//! grants its leases.
//!
//! A node with a slow clock would honour expired tokens without notice. So every grant carries the
//! replica's wall clock, and the node continues from it on the boot clock, which cannot be set and
//! which runs during suspend. A token has expired when either clock says so. A fast clock, here or
//! at the replica, ends tokens early, and that is noticed. A slow clock ends tokens late only if
//! both are slow. Refusing to serve beyond some difference would protect no better, and one
//! replica's wrong clock would stop the whole fleet. So the difference is measured and reported.
//!
//! The replica read its clock after the node's request and before its response. The time is counted
//! from the request, so it is late by at most the round trip, and a token may end that much early.

use std::{
    sync::atomic::{AtomicI64, Ordering::Relaxed},
    time::{SystemTime, UNIX_EPOCH},
};

use seks_lease::BootInstant;

/// Nothing was heard yet.
const UNKNOWN: i64 = i64::MIN;
/// Nanoseconds in a second.
const SECOND: i64 = 1_000_000_000;

/// The two wall clocks. Times are in unix nanoseconds.
#[derive(Debug)]
pub struct WallClock {
    /// What the replica's clock is ahead of this machine's boot clock, at most.
    ahead: AtomicI64,
    /// How far this machine's wall clock is ahead of the replica's, as far as that is certain.
    skew: AtomicI64,
}

impl Default for WallClock {
    fn default() -> Self {
        Self { ahead: AtomicI64::new(UNKNOWN), skew: AtomicI64::new(0) }
    }
}

impl WallClock {
    /// The later of the two, in unix seconds. Two clock reads without a system call.
    #[must_use]
    pub fn unix_now(&self) -> i64 {
        let own = own();
        let now = match self.ahead.load(Relaxed) {
            UNKNOWN => own,
            ahead => own.max(boot(BootInstant::now()).saturating_add(ahead)),
        };
        now / SECOND
    }

    /// This machine's own wall clock, in unix seconds: for what is compared with nothing of a
    /// replica's.
    #[must_use]
    pub fn machine_now() -> i64 {
        own() / SECOND
    }

    /// A replica's clock said `wall_ms` (unix milliseconds) at a time between `asked` and now.
    pub fn heard(&self, wall_ms: u64, asked: BootInstant) {
        self.heard_at(wall_ms, asked, BootInstant::now(), own());
    }

    fn heard_at(&self, wall_ms: u64, asked: BootInstant, now: BootInstant, own: i64) {
        if wall_ms == 0 {
            return; // a replica of the version before
        }
        let wall = i64::try_from(wall_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        self.ahead.store(wall.saturating_sub(boot(asked)), Relaxed);
        // Its clock shows between these now.
        let (least, most) = (wall, wall.saturating_add(boot(now).saturating_sub(boot(asked))));
        let skew = own.saturating_sub(most).max(0) + own.saturating_sub(least).min(0);
        self.skew.store(skew, Relaxed);
    }

    /// How many seconds this machine's wall clock is ahead of the replica's; negative: behind. 0
    /// within the round trip of a grant.
    #[must_use]
    pub fn skew_seconds(&self) -> f64 {
        self.skew.load(Relaxed) as f64 / SECOND as f64
    }
}

/// This machine's, in unix nanoseconds.
fn own() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

fn boot(at: BootInstant) -> i64 {
    i64::try_from(at.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_later_clock_counts() {
        let (clock, now) = (WallClock::default(), own() / SECOND);
        assert!((now..now + 2).contains(&clock.unix_now()));
        let said =
            |seconds: i64| clock.heard(u64::try_from((own() / SECOND + seconds) * 1000).unwrap(), BootInstant::now());
        said(1200); // this machine is 20 minutes slow
        assert!((now + 1199..now + 1210).contains(&clock.unix_now()), "{}", clock.unix_now() - now);
        assert!((-1201.0..-1198.0).contains(&clock.skew_seconds()), "{}", clock.skew_seconds());
        said(-1200); // the replica is
        assert!((now..now + 10).contains(&clock.unix_now()));
        assert!((1198.0..1201.0).contains(&clock.skew_seconds()), "{}", clock.skew_seconds());
    }

    #[test]
    fn what_the_way_took_is_no_skew_and_tokens_end_no_later_for_it() {
        let clock = WallClock::default();
        let (asked, wall) = (BootInstant::from_nanos(5_000_000_000), 100_000);
        let now = asked.plus(Duration::from_secs(4));
        for own_seconds in [100, 102, 104] {
            clock.heard_at(wall, asked, now, own_seconds * SECOND);
            assert_eq!(clock.skew_seconds(), 0.0, "{own_seconds}");
        }
        clock.heard_at(wall, asked, now, 109 * SECOND);
        assert_eq!(clock.skew_seconds(), 5.0);
        clock.heard_at(wall, asked, now, 97 * SECOND);
        assert_eq!(clock.skew_seconds(), -3.0);
        assert_eq!(clock.ahead.load(Relaxed), 95 * SECOND, "as of when it was asked");
        clock.heard_at(0, asked, now, 0);
        assert_eq!(clock.skew_seconds(), -3.0, "a replica that doesn't say changes nothing");
    }
}
