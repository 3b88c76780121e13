//! The clock of leases, in nodes and replicas. It cannot be set, and it runs while the machine is
//! suspended.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A time on `CLOCK_BOOTTIME`, in nanoseconds since the machine started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(u64);

impl BootInstant {
    /// The current time. Leases never use wall clocks, which can be set, or the monotonic clock,
    /// which stops during suspend.
    #[must_use]
    pub fn now() -> Self {
        #[cfg(feature = "simulation")]
        if let Some(nanos) = seks_simulated_host::boot_nanos() {
            return Self(nanos);
        }
        let t = clock_gettime(ClockId::Boottime);
        Self(u64::try_from(t.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000) + u64::try_from(t.tv_nsec).unwrap_or(0))
    }

    /// This time plus `after`.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// This time minus `before`, at least the machine's start.
    #[must_use]
    pub fn minus(self, before: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(before.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The time since `earlier`. Zero when `earlier` is in the future.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Nanoseconds since the machine started, for storage in an atomic.
    #[must_use]
    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// The inverse of [`as_nanos`](Self::as_nanos). 0 is before every lease.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The time until `self`. Zero when it has passed.
    #[must_use]
    pub fn remaining(self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(Self::now().0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_forward_and_differences_never_underflow() {
        let (a, b) = (BootInstant::now(), BootInstant::now());
        assert!(b >= a && a.as_nanos() > 0);
        let later = a.plus(Duration::from_secs(5));
        assert_eq!((later.since(a), a.since(later)), (Duration::from_secs(5), Duration::ZERO));
        assert!(a.remaining().is_zero() && later.remaining() <= Duration::from_secs(5));
        assert_eq!(BootInstant::from_nanos(a.as_nanos()), a);
    }
}
