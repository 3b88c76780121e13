//! The node's lease: until when it may serve, on the boot clock. That clock cannot be set, and it
//! runs while the machine sleeps.

use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use parking_lot::Mutex;
use seks_lease::BootInstant;

const MINUTE_NANOS: u64 = 60_000_000_000;

/// Until when the node may serve. Read on the path of every request: one atomic load and one clock
/// read without a system call.
#[derive(Debug, Default)]
pub struct Lease {
    /// 0: none.
    ends: AtomicU64,
    /// When the table was last known to hold everything that was committed.
    current: AtomicU64,
    lows: Mutex<Lows>,
}

/// The shortest that the lease was, in this minute and in the one before.
#[derive(Debug, Default)]
struct Lows {
    minute: u64,
    now: Option<Duration>,
    before: Option<Duration>,
}

impl Lease {
    /// As [`remaining`](Self::remaining), which counts for [`lowest`](Self::lowest). To be called
    /// again and again.
    pub fn watch(&self) -> Duration {
        let (remaining, minute) = (self.remaining(), BootInstant::now().as_nanos() / MINUTE_NANOS);
        let mut lows = self.lows.lock();
        if lows.minute != minute {
            lows.before = lows.now.take().filter(|_| lows.minute + 1 == minute);
            lows.minute = minute;
        }
        // Before the first lease there is nothing to run out.
        if self.was_current() {
            lows.now = Some(lows.now.map_or(remaining, |low| low.min(remaining)));
        }
        remaining
    }

    /// The shortest that [`watch`](Self::watch) has seen it, within a minute or two.
    #[must_use]
    pub fn lowest(&self) -> Duration {
        let lows = self.lows.lock();
        [lows.now, lows.before].into_iter().flatten().min().unwrap_or_else(|| self.remaining())
    }

    /// Whether the node may serve now.
    #[must_use]
    pub fn valid(&self) -> bool {
        BootInstant::now() < self.ends()
    }

    /// How long it may, if nothing is heard.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.ends().remaining()
    }

    /// When it ends.
    #[must_use]
    pub fn ends(&self) -> BootInstant {
        BootInstant::from_nanos(self.ends.load(SeqCst))
    }

    /// Extends it to `until`; a grant that ends earlier than the present one changes nothing.
    pub fn extend(&self, until: BootInstant) {
        self.ends.fetch_max(until.as_nanos(), SeqCst);
    }

    /// The table held everything that was committed before `at`.
    pub fn current_at(&self, at: BootInstant) {
        self.current.fetch_max(at.as_nanos(), SeqCst);
    }

    /// Whether the table was ever known to be current.
    #[must_use]
    pub fn was_current(&self) -> bool {
        self.current.load(SeqCst) != 0
    }

    /// How long ago the table was last known to be current; since the machine started when it never
    /// was.
    #[must_use]
    pub fn lag(&self) -> Duration {
        BootInstant::now().since(BootInstant::from_nanos(self.current.load(SeqCst)))
    }

    /// Ends it now: the node was fenced.
    pub fn end(&self) {
        self.ends.store(0, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_is_remembered_after_a_grant() {
        let (lease, now) = (Lease::default(), BootInstant::now());
        lease.watch();
        lease.current_at(now);
        lease.extend(now.plus(Duration::from_secs(2)));
        assert!(lease.watch() <= Duration::from_secs(2));
        lease.extend(now.plus(Duration::from_secs(60)));
        lease.watch();
        assert!(lease.remaining() > Duration::from_secs(50) && lease.lowest() <= Duration::from_secs(2));
        lease.end();
        lease.watch();
        assert!(lease.lowest().is_zero());
    }

    #[test]
    fn a_lease_starts_invalid_ends_by_itself_and_never_shrinks_by_a_grant() {
        let lease = Lease::default();
        assert!(!lease.valid() && lease.remaining().is_zero());
        let now = BootInstant::now();
        lease.extend(now.plus(Duration::from_secs(60)));
        lease.extend(now.plus(Duration::from_secs(1)));
        assert!(lease.valid() && lease.remaining() > Duration::from_secs(50));
        lease.end();
        assert!(!lease.valid());
        lease.extend(now);
        assert!(!lease.valid(), "a grant that has run out is none");
    }
}
