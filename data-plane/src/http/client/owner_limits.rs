//! Limits on the pools and the unused connections of one owner (a tenant).
//!
//! Connections in use are limited by the limit on requests in flight. Unused ones need a limit of
//! their own: an owner with many pools could otherwise keep `max_idle` descriptors for each.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// What one owner uses. Its pools hold it.
pub struct OwnerUsage {
    idle: AtomicUsize,
    pools: AtomicUsize,
    limits: Arc<OwnerLimits>,
}

/// The limits of every owner, and how often they were reached.
#[derive(Debug)]
pub struct OwnerLimits {
    /// Most unused connections.
    idle: usize,
    /// Most pools.
    pools: usize,
    closed: AtomicU64,
    refused: AtomicU64,
}

impl OwnerLimits {
    /// At most `idle` unused connections and `pools` pools.
    #[must_use]
    pub fn new(idle: usize, pools: usize) -> Self {
        Self { idle, pools, closed: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }

    /// Connections that were closed instead of kept, and pools that were refused.
    #[must_use]
    pub fn reached(&self) -> [u64; 2] {
        [self.closed.load(Relaxed), self.refused.load(Relaxed)]
    }
}

/// The right to keep one unused connection, until it is dropped.
pub struct IdleSlot(Arc<OwnerUsage>);

/// The right to have one pool, until it is dropped.
pub struct PoolSlot(Arc<OwnerUsage>);

impl OwnerUsage {
    /// An owner that uses nothing.
    #[must_use]
    pub fn new(limits: Arc<OwnerLimits>) -> Self {
        Self { idle: AtomicUsize::new(0), pools: AtomicUsize::new(0), limits }
    }

    /// `None`: the owner keeps as many as it may.
    #[must_use]
    pub fn keep(self: &Arc<Self>) -> Option<IdleSlot> {
        if self.idle.fetch_add(1, Relaxed) < self.limits.idle {
            return Some(IdleSlot(self.clone()));
        }
        self.idle.fetch_sub(1, Relaxed);
        self.limits.closed.fetch_add(1, Relaxed);
        None
    }

    /// `None`: the owner has as many pools as it may.
    #[must_use]
    pub fn open(self: &Arc<Self>) -> Option<PoolSlot> {
        if self.pools.fetch_add(1, Relaxed) < self.limits.pools {
            return Some(PoolSlot(self.clone()));
        }
        self.pools.fetch_sub(1, Relaxed);
        self.limits.refused.fetch_add(1, Relaxed);
        None
    }
}

impl PoolSlot {
    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> &Arc<OwnerUsage> {
        &self.0
    }
}

impl Drop for IdleSlot {
    fn drop(&mut self) {
        self.0.idle.fetch_sub(1, Relaxed);
    }
}

impl Drop for PoolSlot {
    fn drop(&mut self) {
        self.0.pools.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_keeps_no_more_than_its_limit_and_may_again_when_some_are_gone() {
        let limits = Arc::new(OwnerLimits::new(2, 1));
        let (own, other) = (Arc::new(OwnerUsage::new(limits.clone())), Arc::new(OwnerUsage::new(limits.clone())));
        let kept: Vec<_> = (0..3).map(|_| own.keep()).collect();
        assert_eq!(kept.iter().filter(|place| place.is_some()).count(), 2);
        assert!(other.keep().is_some(), "another tenant has limits of its own");
        drop(kept);
        assert!(own.keep().is_some());
        let pool = own.open();
        assert!(pool.is_some() && own.open().is_none() && other.open().is_some());
        drop(pool);
        assert!(own.open().is_some());
        assert_eq!(limits.reached(), [1, 1]);
    }
}
