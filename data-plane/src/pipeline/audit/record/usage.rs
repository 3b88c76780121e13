//! What a model has used for a request: in its record, in the metrics, and for limits.

use std::sync::atomic::Ordering::Relaxed;

use seks_audit::record::{RecordWriter, field};
use seks_limits::Quantity;

use super::{Open, Record};
use crate::{
    pipeline::model_call::{MeasuredUsage, ModelCall},
    table::Taken,
    telemetry::UsageLabels,
};

impl Record {
    /// What is asked of a model.
    pub(crate) fn model_call(&mut self, call: Option<Box<ModelCall>>) {
        self.open.model_call = call;
    }

    /// What is asked of a model, so that its answer may say what it has used.
    #[must_use]
    pub(crate) fn asked_model(&self) -> Option<&ModelCall> {
        self.open.model_call.as_deref()
    }

    /// What was taken of a limit for the usage of the answer is settled when the record closes.
    pub(crate) fn reserves(&mut self, taken: Taken) {
        match taken {
            Taken::Counted(counted) if counted.quantity().is_usage() => self.open.reserved.push(counted),
            Taken::Counted(_) => {}
            Taken::Slot(slot) => self.holds(slot),
        }
    }
}

impl Open {
    /// Settles what was reserved for the usage of the answer.
    pub(super) fn settle(&mut self) {
        for counted in std::mem::take(&mut self.reserved) {
            let is_success = self.upstream_status.is_some_and(|status| status.is_success());
            let used = match self.counters.usage.get() {
                _ if !is_success => 0, // no model has worked
                Some(Some(measured)) => self.charged(counted.quantity(), measured).unwrap_or(counted.amount()),
                Some(None) => 0,
                // An answer of another type, such as speech: nobody counts it.
                None => counted.amount(),
            };
            counted.settle(used);
        }
    }

    /// What counts for a limit. Where the provider's count is unknown, an upper bound: a byte of
    /// the request and of the answer is a token at most. `None`: it has no price.
    fn charged(&self, quantity: Quantity, measured: &MeasuredUsage) -> Option<u64> {
        let (tokens, is_known) = measured.usage.tokens();
        let mut tokens = *tokens;
        if !is_known && tokens.input == 0 {
            tokens.input = self.counters.request_bytes.load(Relaxed);
        }
        if quantity != Quantity::Money {
            return Some(tokens.total());
        }
        let call = self.model_call.as_deref()?;
        let model = measured.model.as_deref().or(call.model.as_deref()).unwrap_or_default();
        call.cost(model, &tokens)
    }

    pub(super) fn measured(&self) -> Option<(&ModelCall, &MeasuredUsage)> {
        Some((self.model_call.as_deref()?, self.counters.usage.get()?.as_deref()?))
    }

    pub(super) fn write_usage(&self, fields: &mut RecordWriter, call: &ModelCall, measured: &MeasuredUsage) {
        let (tokens, is_known) = measured.usage.tokens();
        let model = measured.model.as_deref().or(call.model.as_deref()).unwrap_or_default();
        fields.text(field::PROVIDER, call.provider);
        fields.text(field::MODEL, model);
        fields.number(field::INPUT_TOKENS, tokens.input);
        fields.number(field::OUTPUT_TOKENS, tokens.output);
        fields.number(field::CACHED_TOKENS, tokens.cached);
        fields.number(field::CACHE_WRITTEN_TOKENS, tokens.cache_written);
        fields.number(field::REASONING_TOKENS, tokens.reasoning);
        fields.number(field::USAGE_UNKNOWN, (!is_known).into());
    }

    /// Adds what a model has used to the metrics.
    pub(super) fn count_usage(&self) {
        if let Some((call, measured)) = self.measured() {
            let model = measured.model.as_deref().or(call.model.as_deref()).unwrap_or_default();
            let (provider, operation) = (call.provider, call.operation);
            let labels = UsageLabels { service: self.service.name(), provider, operation, model };
            self.audit.metrics.model_used(labels, &measured.usage);
        }
    }
}
