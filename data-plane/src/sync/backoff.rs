//! Back-off between attempts: exponential with full jitter, so that nodes that lost their control
//! plane do not return at the same time.

use std::time::Duration;

use seks_runtime::jitter;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// How long to wait next.
#[derive(Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Anything between nothing and a bound that doubles with each failure, up to 5 s.
    pub(super) fn next(&mut self) -> Duration {
        let bound = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(jitter::fraction())
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= FIRST && pauses.iter().all(|p| *p <= LONGEST));
        assert!(pauses[20..].iter().any(|p| *p > LONGEST / 4), "they grow");
        assert_ne!(pauses[30], pauses[31]);
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
