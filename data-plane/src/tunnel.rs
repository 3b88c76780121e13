//! What becomes of a connection that HTTP has left.

pub(crate) mod interception;
pub(crate) mod passthrough;
pub(crate) mod websocket;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use self::{interception::Interception, passthrough::Passage, websocket::Socket};
use crate::pipeline::audit::{Counters, Record};

/// Waits for the connection that the answer goes out on.
pub(crate) enum Tunnel {
    /// Frames, both ways.
    Socket(Box<Socket>),
    /// TLS, and in it HTTP again.
    Interception(Box<Interception>),
    /// What the node doesn't look into.
    Passage(Box<Passage>),
}

impl Tunnel {
    /// Hands the tunnel to its connection; it closes `record` when it ends.
    pub(crate) fn hand_over(self, record: Record) {
        match self {
            Self::Socket(socket) => socket.hand_over(record),
            Self::Interception(interception) => interception.hand_over(record),
            Self::Passage(passage) => passage.hand_over(record),
        }
    }
}

/// Shows that there is life, and counts it.
#[derive(Clone)]
pub(crate) struct Pulse {
    began: Instant,
    last: Arc<AtomicU64>,
    counters: Arc<Counters>,
}

impl Pulse {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { began: Instant::now(), last: Arc::default(), counters }
    }

    /// Something came.
    pub(crate) fn beat(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// So many bytes came from the agent.
    pub(crate) fn sent(&self, bytes: usize) {
        self.beat();
        self.counters.sent(bytes);
    }

    /// So many bytes went to the agent.
    pub(crate) fn received(&self, bytes: usize) {
        self.counters.received(bytes);
    }

    /// Ends when nothing came for `idle`.
    pub(crate) async fn stopped(&self, idle: Duration) {
        loop {
            let deadline = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed)) + idle;
            if Instant::now() >= deadline {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}
