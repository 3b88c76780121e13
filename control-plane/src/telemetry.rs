//! Metrics of the control plane, and the listener that shows them.

mod listener;

use std::{sync::Arc, time::Duration};

use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

use seks_runtime::{logs, process};

pub(crate) use self::listener::Readiness;

/// The metrics of one control plane. Labels come from fixed lists, so clients cannot create new
/// ones.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    admin_requests: IntCounterVec,
    admin_duration: HistogramVec,
    certificates: IntGaugeVec,
}

/// From a read to a change that waits for the longest lease.
const ADMIN_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

impl Metrics {
    /// A fresh set.
    ///
    /// # Errors
    /// Never in practice: only when two metrics have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let opts = Opts::new("seks_admin_requests_total", "Calls of the admin API by method and outcome");
        let admin_requests = IntCounterVec::new(opts, &["verb", "outcome"])?;
        let opts = HistogramOpts::new("seks_admin_request_duration_seconds", "Calls of the admin API by method");
        let admin_duration = HistogramVec::new(opts.buckets(ADMIN_BUCKETS.to_vec()), &["verb"])?;
        let opts = Opts::new("seks_certificate_expiry_timestamp_seconds", "When a certificate ends, in Unix time.");
        let certificates = IntGaugeVec::new(opts, &["certificate"])?;
        registry.register(Box::new(admin_requests.clone()))?;
        registry.register(Box::new(admin_duration.clone()))?;
        registry.register(Box::new(certificates.clone()))?;
        Ok(Self(Arc::new(Inner { registry, admin_requests, admin_duration, certificates })))
    }

    /// Adds others' metrics.
    ///
    /// # Errors
    /// When one of them has a name that is taken.
    pub fn add(&self, collectors: Vec<Box<dyn Collector>>) -> Result<(), prometheus::Error> {
        collectors.into_iter().try_for_each(|collector| self.0.registry.register(collector))
    }

    /// Counts a call of the admin API.
    pub(crate) fn admin_request(&self, verb: &str, outcome: &str, took: Duration) {
        self.0.admin_requests.with_label_values(&[verb, outcome]).inc();
        self.0.admin_duration.with_label_values(&[verb]).observe(took.as_secs_f64());
    }

    /// Says when a certificate ends. `name` is of a fixed list.
    pub(crate) fn certificate(&self, name: &str, certificate: &[u8]) {
        if let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) {
            self.0.certificates.with_label_values(&[name]).set(parsed.validity().not_after.timestamp());
        }
    }

    /// These metrics and those of the process, in Prometheus's text format.
    #[must_use]
    pub fn page(&self) -> String {
        self.text() + &logs::metrics() + &process::metrics()
    }

    /// All of it in Prometheus's text format.
    #[must_use]
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.0.registry.gather()).unwrap_or_default()
    }
}
