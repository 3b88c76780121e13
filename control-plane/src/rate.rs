//! Rate limits: a token bucket for each key, and warnings that repeat told as one.

use std::{collections::HashMap, hash::Hash, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Keys that are remembered. A key whose bucket is full again is forgotten.
const MAX_KEYS: usize = 10_000;

/// How much a key may do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    /// In the long run.
    pub(crate) per_second: f64,
    /// At once, after a rest.
    pub(crate) burst: f64,
}

/// Token buckets by key.
pub(crate) struct RateLimits<K>(Mutex<HashMap<K, Bucket>>);

struct Bucket {
    /// What is left of the burst at `at`.
    left: f64,
    at: Instant,
    rate: Rate,
}

impl Bucket {
    fn refill(&mut self, rate: Rate, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        *self = Self { left: (self.left + since * rate.per_second).min(rate.burst), at: now, rate };
    }

    fn is_full(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left + since * self.rate.per_second >= self.rate.burst
    }
}

impl<K> Default for RateLimits<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> RateLimits<K> {
    /// Takes one from the bucket of `key`.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub(crate) fn try_acquire(&self, key: &K, rate: Rate) -> Result<(), Duration> {
        self.take(key, rate, 1.0)
    }

    /// Whether there is one in the bucket of `key`, which stays there.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub(crate) fn peek(&self, key: &K, rate: Rate) -> Result<(), Duration> {
        self.take(key, rate, 0.0)
    }

    fn take(&self, key: &K, rate: Rate, count: f64) -> Result<(), Duration> {
        let now = Instant::now();
        let mut buckets = self.lock();
        if buckets.len() >= MAX_KEYS && !buckets.contains_key(key) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
            if buckets.len() >= MAX_KEYS {
                buckets.clear(); // so many sources at once are no single one's doing
            }
        }
        let fresh = || Bucket { left: rate.burst, at: now, rate };
        let bucket = buckets.entry(key.clone()).or_insert_with(fresh);
        bucket.refill(rate, now);
        if bucket.left >= 1.0 {
            bucket.left -= count;
            return Ok(());
        }
        let wait = (1.0 - bucket.left) / rate.per_second.max(f64::MIN_POSITIVE);
        Err(Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Bucket>> {
        self.0.lock()
    }
}

/// Passes one warning of a kind per interval, with the number of suppressed ones.
pub(crate) struct Repeated {
    every: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Repeated {
    /// One in `every`.
    pub(crate) const fn new(every: Duration) -> Self {
        Self { every, state: Mutex::new((None, 0)) }
    }

    /// Counts one more. `Some`: it is to be logged, with the number since the last that was, this
    /// one included.
    pub(crate) fn count(&self) -> Option<u64> {
        let mut state = self.state.lock();
        state.1 += 1;
        let now = Instant::now();
        if state.0.is_some_and(|last| now.saturating_duration_since(last) < self.every) {
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10.0, burst: 3.0 };

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate_for_each_key() {
        let limits = RateLimits::default();
        for _ in 0..3 {
            limits.peek(&"a", RATE).unwrap();
            limits.try_acquire(&"a", RATE).unwrap();
        }
        assert_eq!(limits.peek(&"a", RATE).unwrap_err().as_millis(), 100);
        assert_eq!(limits.try_acquire(&"a", RATE).unwrap_err().as_millis(), 100);
        limits.try_acquire(&"b", RATE).unwrap();
        tokio::time::advance(Duration::from_millis(101)).await;
        limits.try_acquire(&"a", RATE).unwrap();
        limits.try_acquire(&"a", RATE).unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn keys_without_number_are_not_remembered_without_end() {
        let limits = RateLimits::default();
        for key in 0..3 * MAX_KEYS {
            limits.try_acquire(&key, RATE).unwrap();
        }
        assert!(limits.lock().len() <= MAX_KEYS);
    }

    #[tokio::test(start_paused = true)]
    async fn of_repeated_warnings_one_stands_for_all() {
        let warning = Repeated::new(Duration::from_secs(60));
        assert_eq!(warning.count(), Some(1));
        assert!((0..99).all(|_| warning.count().is_none()));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(warning.count(), Some(100));
    }
}
