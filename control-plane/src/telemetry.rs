//! Metrics of the control plane, and the listener that shows them.

mod listener;

use std::sync::Arc;

use prometheus::{IntCounterVec, Opts, Registry, TextEncoder, core::Collector};

pub(crate) use self::listener::Readiness;

/// The metrics of one control plane. Labels come from fixed lists, so clients cannot create new
/// ones.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    admin_requests: IntCounterVec,
}

impl Metrics {
    /// A fresh set.
    ///
    /// # Errors
    /// Never in practice: only when two metrics have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let opts = Opts::new("seks_admin_requests_total", "Calls of the admin API by method and outcome");
        let admin_requests = IntCounterVec::new(opts, &["verb", "outcome"])?;
        registry.register(Box::new(admin_requests.clone()))?;
        Ok(Self(Arc::new(Inner { registry, admin_requests })))
    }

    /// Adds others' metrics.
    ///
    /// # Errors
    /// When one of them has a name that is taken.
    pub fn add(&self, collectors: Vec<Box<dyn Collector>>) -> Result<(), prometheus::Error> {
        collectors.into_iter().try_for_each(|collector| self.0.registry.register(collector))
    }

    /// Counts a call of the admin API.
    pub(crate) fn admin_request(&self, verb: &str, outcome: &str) {
        self.0.admin_requests.with_label_values(&[verb, outcome]).inc();
    }

    /// All of it in Prometheus's text format.
    #[must_use]
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.0.registry.gather()).unwrap_or_default()
    }
}
