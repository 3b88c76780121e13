//! Audit: one record for every request, including refused and aborted ones.
//!
//! A [`Record`] is opened when a request's head has been read. Each stage adds what it found. The
//! record closes exactly once: when the response has been sent, or when it is dropped. Closing
//! writes the `seks.proxy` span and the metrics.
//!
//! A record contains only names and numbers that the node knows, and the agent's method and path,
//! both cleaned. Nothing here waits on the request path: a record is appended to the spool's queue,
//! and everything else is done by others. Its spans are made from the spool. A node without a spool
//! makes them when the record closes, and queues them in memory.

mod body;
mod buffers;
mod clean;
mod context;
mod failures;
mod record;
mod request_id;
mod spooled;
mod trace;
mod trace_id;

use std::sync::Arc;

use http::{HeaderMap, Method};
use seks_runtime::telemetry::Telemetry;

pub(crate) use self::{
    body::Body,
    record::{Counters, Record},
    request_id::RequestId,
};
use crate::{config::AuditMode, spans::SpanNode, spool::Spool, telemetry::Metrics};

/// Why an audit trail can't be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// Records are required and there is nowhere to put them.
    #[error("audit.mode: `required` needs a collector: set telemetry.otlp_endpoint")]
    NoCollector,
}

/// Opens records. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Audit {
    inner: Arc<Inner>,
}

struct Inner {
    telemetry: Telemetry,
    /// Absent in nodes without a control plane.
    spool: Option<Spool>,
    metrics: Metrics,
    mode: AuditMode,
    node: SpanNode,
    region: Box<str>,
    ids: request_id::Source,
    trace_ids: trace_id::Source,
}

impl Audit {
    /// # Errors
    /// [`AuditError::NoCollector`] when `mode` is `required` and spans go nowhere. Without a
    /// collector, records of a `best_effort` node go to the log, one line each.
    pub(crate) fn new(
        (telemetry, spool): (Telemetry, Option<Spool>),
        metrics: Metrics,
        mode: AuditMode,
        node: SpanNode,
        region: &str,
    ) -> Result<Self, AuditError> {
        if mode == AuditMode::Required && !telemetry.is_enabled() && spool.is_none() {
            return Err(AuditError::NoCollector);
        }
        let (ids, trace_ids) = (request_id::Source::new(), trace_id::Source::new());
        let region = region.into();
        Ok(Self { inner: Arc::new(Inner { telemetry, spool, metrics, mode, node, region, ids, trace_ids }) })
    }

    /// Begins a record. Ask [`Record::refusal`] before anything else is done: a node that must
    /// record and can't, doesn't serve.
    ///
    /// `path` is the agent's, as it came, without the query; `headers` are looked at for W3C trace
    /// context alone.
    #[must_use]
    pub(crate) fn open(&self, method: &Method, path: &str, headers: &HeaderMap) -> Record {
        Record::open(&self.inner, method, path, headers)
    }

    /// The node's metrics.
    #[must_use]
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }
}

#[cfg(test)]
mod tests;
