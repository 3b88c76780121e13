//! A request to a model, and what its answer says that it has used.

use std::{sync::Arc, time::SystemTime};

use http::Method;
use seks_service::Service;
use seks_usage::{Prices, Tokens, Usage};

/// A request to a model.
#[derive(Clone, Debug)]
pub(crate) struct ModelCall {
    pub(crate) provider: &'static str,
    /// `gen_ai.operation.name`.
    pub(crate) operation: &'static str,
    /// The model that the path names.
    pub(crate) model: Option<Box<str>>,
    /// What models cost, where the node knows it.
    pub(crate) prices: Option<Arc<Prices>>,
}

impl ModelCall {
    /// `None`: the service has no `usage`, or the method asks no model.
    pub(crate) fn of(
        service: &Service,
        method: &Method,
        path: &str,
        prices: Option<&Arc<Prices>>,
    ) -> Option<Box<Self>> {
        let provider = service.usage.filter(|_| method == Method::POST)?;
        let model = seks_usage::model_in_path(path).map(Into::into);
        if path.ends_with(":countTokens") || path.ends_with("/count-tokens") || path.ends_with("/count_tokens") {
            return None; // it asks what a request would use
        }
        Some(Box::new(Self {
            provider,
            operation: seks_usage::operation(provider, path),
            model,
            prices: prices.cloned(),
        }))
    }
}

impl ModelCall {
    /// What tokens of a model cost today, in millionths of a dollar. A model without a price costs
    /// as much as the dearest. `None`: the node has no prices.
    pub(crate) fn cost(&self, model: &str, tokens: &Tokens) -> Option<u64> {
        let prices = self.prices.as_deref()?;
        let today = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let day = today.get(..10).unwrap_or_default();
        let cost = prices.cost(self.provider, model, day, tokens);
        Some(cost.unwrap_or_else(|| prices.cost_at_most(self.provider, tokens.total())))
    }
}

/// What a model's answer says that it has used.
#[derive(Debug)]
pub(crate) struct MeasuredUsage {
    /// The model that has answered; where the answer names none, the one that the path names.
    pub(crate) model: Option<Box<str>>,
    pub(crate) usage: Usage,
}
