//! Reads what a model's answer says about tokens, for services with `usage`, and hands it to the
//! request's record.
//!
//! Only POST asks a model for something. A GET of a stored answer shows the usage of an earlier
//! request once more.

use std::sync::Arc;

use http::{HeaderMap, Response, header};
use seks_usage::{Framing, Meter, Usage};

use super::{
    audit::Counters,
    model_call::{MeasuredUsage, ModelCall},
};

/// Bedrock's counts of an answer that streams nothing.
const BEDROCK_INPUT: &str = "x-amzn-bedrock-input-token-count";
const BEDROCK_OUTPUT: &str = "x-amzn-bedrock-output-token-count";

/// Reads one answer. What it has found is in the record when it ends, or is dropped.
pub(crate) struct UsageMeter {
    meter: Meter,
    framing: Framing,
    /// The path names a model, which is asked for an answer.
    names_model: bool,
    is_embedding: bool,
    counters: Arc<Counters>,
    has_ended: bool,
}

impl UsageMeter {
    /// For an answer that may have a count. `response` is decoded.
    pub(crate) fn of<B>(call: &ModelCall, response: &Response<B>, counters: &Arc<Counters>) -> Option<Box<Self>> {
        if response.headers().contains_key(header::CONTENT_ENCODING) {
            return None; // the scrubber had nothing to look for, and left the coding on
        }
        let kind = response.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
        let framing = Framing::of(kind).filter(|_| response.status().is_success())?;
        let mut meter = Meter::new(framing);
        meter.count_header(number(response.headers(), BEDROCK_INPUT), number(response.headers(), BEDROCK_OUTPUT));
        let (names_model, is_embedding) = (call.model.is_some(), call.operation == seks_usage::EMBEDDINGS);
        let counters = Arc::clone(counters);
        Some(Box::new(Self { meter, framing, names_model, is_embedding, counters, has_ended: false }))
    }

    /// The next bytes of the body.
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        self.meter.read(bytes);
    }

    /// The body has ended; `whole`: as its framing says.
    pub(crate) fn end(&mut self, whole: bool) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let mut usage = self.meter.usage(whole);
        if let Usage::Unknown { at_most } = &mut usage
            && self.is_embedding
        {
            at_most.output = 0; // vectors are no tokens
        }
        // A file that was stored, a count of tokens: no model has answered.
        let is_named = self.names_model || self.meter.model().is_some();
        let is_other = self.framing == Framing::Json && whole && !is_named;
        let model = self.meter.model().map(Into::into);
        let is_usage = !is_other || matches!(usage, Usage::Known(_));
        self.counters.used(is_usage.then_some(MeasuredUsage { model, usage }));
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

impl Drop for UsageMeter {
    fn drop(&mut self) {
        self.end(false);
    }
}
