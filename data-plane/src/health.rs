//! `/healthz`, `/readyz` and `/metrics`, on a listener and a thread of their own: agents never
//! reach it, and it holds no secret.

use std::{future::Future, io, net::SocketAddr, pin::Pin, sync::Arc};

use seks_runtime::probes::{self, ProbeHandler};
use tokio_util::sync::CancellationToken;

use crate::{table::Table, telemetry::Metrics};

/// What a node says of itself.
#[derive(Clone)]
pub(crate) struct Health {
    table: Arc<Table>,
    metrics: Metrics,
    stop: CancellationToken,
}

impl Health {
    pub(crate) fn new(table: Arc<Table>, metrics: Metrics, stop: CancellationToken) -> Self {
        Self { table, metrics, stop }
    }

    /// What `/metrics` shows.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether agents are served: there is a table, its lease is valid, and the node isn't
    /// stopping.
    pub(crate) fn is_ready(&self) -> bool {
        self.table.is_loaded() && self.table.lease().valid() && !self.stop.is_cancelled()
    }

    /// Binds and serves until `end`.
    pub(crate) fn start(self, listen: SocketAddr, end: CancellationToken) -> io::Result<SocketAddr> {
        probes::serve_probes(listen, self, end.cancelled_owned())
    }

    fn why_not(&self) -> &'static str {
        match (self.stop.is_cancelled(), self.table.is_loaded()) {
            (true, _) => "stopping",
            (false, false) => "no table yet",
            (false, true) => "the lease has run out",
        }
    }
}

impl ProbeHandler for Health {
    fn ready(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async { if self.is_ready() { Ok(()) } else { Err(self.why_not().into()) } })
    }

    fn metrics(&self) -> String {
        self.metrics.render()
    }
}
