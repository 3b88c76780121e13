//! The node's lease: until when it may serve, on a clock that nobody sets and that runs on while the machine sleeps.

use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// A moment on `CLOCK_BOOTTIME`, in nanoseconds since the machine started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(u64);

impl BootInstant {
    /// Now. Wall clocks are never used for leases: they are stepped; the monotonic clock stands still in suspend.
    #[must_use]
    pub fn now() -> Self {
        let t = clock_gettime(ClockId::Boottime);
        Self(u64::try_from(t.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000) + u64::try_from(t.tv_nsec).unwrap_or(0))
    }

    /// `after` later.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long until `self`, zero when it has passed.
    #[must_use]
    pub fn remaining(self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(Self::now().0))
    }
}

/// Until when the node may serve. Read on the path of every request: one atomic load and one clock read without a system call.
#[derive(Debug, Default)]
pub struct Lease {
    /// 0: none.
    ends: AtomicU64,
}

impl Lease {
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
        BootInstant(self.ends.load(SeqCst))
    }

    /// Extends it to `until`; a grant that ends earlier than the present one changes nothing.
    pub fn extend(&self, until: BootInstant) {
        self.ends.fetch_max(until.0, SeqCst);
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
