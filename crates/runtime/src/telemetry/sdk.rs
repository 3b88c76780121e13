//! Exports spans of `tracing`: the SDK ends them, and they are queued with the others.

use std::{sync::Arc, time::Duration};

use opentelemetry::Context;
use opentelemetry_proto::tonic::trace::v1;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanProcessor},
};
use prost::Message as _;

use super::{queue::Queue, span::SpanWriter};

/// Queues ended spans.
#[derive(Debug)]
pub(super) struct QueueProcessor(pub(super) Arc<Queue>);

impl SpanProcessor for QueueProcessor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.push(&SpanWriter::from_encoded(&v1::Span::from(span).encode_to_vec()));
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.wake();
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        self.0.close();
        Ok(())
    }
}
