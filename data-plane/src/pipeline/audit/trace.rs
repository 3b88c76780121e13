//! The trace that a request's spans belong to.

use http::HeaderMap;
use seks_audit::record::{RecordWriter, field};
use seks_runtime::telemetry::SpanContext;

use super::{context, trace_id};
use crate::spans::{SpanIds, encode_context};

/// The trace of one request: its own, or the agent's where the service trusts the agent's
/// `traceparent`.
#[derive(Clone, Copy)]
pub(super) struct Trace {
    own: [u8; 16],
    agent: Option<SpanContext>,
    is_trusted: bool,
}

impl Trace {
    pub(super) fn begin(ids: &trace_id::Source, headers: &HeaderMap) -> Self {
        Self { own: ids.trace(), agent: context::parent(headers), is_trusted: false }
    }

    /// The service is known, and so is whether it trusts agents' trace context.
    pub(super) fn trust(&mut self, trusts: bool) {
        self.is_trusted = trusts && self.agent.is_some();
    }

    /// The upstream call's span. Sampled, whatever the agent says: an audit record is never sampled
    /// away.
    pub(super) fn upstream(&self, request_id: &[u8; 16]) -> SpanContext {
        SpanContext { trace: self.id(), span: SpanIds::of(request_id).upstream, flags: 1 }
    }

    pub(super) fn id(&self) -> [u8; 16] {
        self.agent.filter(|_| self.is_trusted).map_or(self.own, |agent| agent.trace)
    }

    pub(super) fn write(&self, fields: &mut RecordWriter) {
        fields.bytes(field::TRACE_ID, &self.id());
        if let Some(agent) = &self.agent {
            fields.bytes(field::AGENT_TRACE, &encode_context(agent));
            fields.number(field::AGENT_TRACE_TRUSTED, self.is_trusted.into());
        }
    }
}
