//! The idle timeout of a tunnel.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::pipeline::audit::Counters;

/// Shows that there is life, and counts it.
#[derive(Clone)]
pub(crate) struct IdleTracker {
    began: Instant,
    last: Arc<AtomicU64>,
    counters: Arc<Counters>,
}

impl IdleTracker {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { began: Instant::now(), last: Arc::default(), counters }
    }

    /// Something came.
    pub(crate) fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// So many bytes came from the agent.
    pub(crate) fn sent(&self, bytes: usize) {
        self.touch();
        self.counters.sent(bytes);
    }

    /// So many bytes went to the agent.
    pub(crate) fn received(&self, bytes: usize) {
        self.counters.received(bytes);
    }

    /// Ends when nothing came for `idle`.
    pub(crate) async fn idle_for(&self, idle: Duration) {
        loop {
            let deadline = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed)) + idle;
            if Instant::now() >= deadline {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}
