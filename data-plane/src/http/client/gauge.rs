//! The number of connections, reported to the caller's gauge.

use std::sync::Arc;

/// Counts connections for the caller.
pub trait Gauge: Send + Sync {
    /// Connections in use (`active`) or kept for the next request, more or fewer by `change`.
    fn connections(&self, active: bool, change: i64);
}

/// One connection, as the gauge sees it: in use or put aside, and gone when this is dropped.
pub(crate) struct ConnectionGauge {
    gauge: Arc<dyn Gauge>,
    active: bool,
}

impl ConnectionGauge {
    pub(super) fn new(gauge: Arc<dyn Gauge>) -> Self {
        gauge.connections(true, 1);
        Self { gauge, active: true }
    }

    pub(super) fn set_active(&mut self, active: bool) {
        self.gauge.connections(self.active, -1);
        self.gauge.connections(active, 1);
        self.active = active;
    }
}

impl Drop for ConnectionGauge {
    fn drop(&mut self) {
        self.gauge.connections(self.active, -1);
    }
}
