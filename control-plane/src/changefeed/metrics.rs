//! What distribution counts.

use std::sync::{Arc, Weak};

use crate::distribution::Inner;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounterVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// From a millisecond in one machine to the longest lease.
const PUSH_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

pub(crate) struct Metrics {
    /// `seks_control_push_seconds`: from this replica learning of a commit to a node's acknowledgement.
    pub(crate) push: Option<Histogram>,
    /// `seks_table_divergence_total`: tables that were not what they should be.
    divergence: Option<IntCounterVec>,
}

impl Metrics {
    /// A table `of` a node, or of this replica, isn't what it should be.
    pub(crate) fn diverged(&self, of: &str) {
        if let Some(counter) = &self.divergence {
            counter.with_label_values(&[of]).inc();
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let opts = HistogramOpts::new("seks_control_push_seconds", "From a commit to a node's acknowledgement.");
        let differ = Opts::new(
            "seks_table_divergence_total",
            "Tables that differed from what they should hold, and were replaced.",
        );
        let divergence = IntCounterVec::new(differ, &["of"]).ok();
        for of in ["node", "replica"] {
            divergence.iter().for_each(|counter| drop(counter.with_label_values(&[of])));
        }
        Self { push: Histogram::with_opts(opts.buckets(PUSH_BUCKETS.to_vec())).ok(), divergence }
    }
}

pub(crate) fn collectors(inner: &Arc<Inner>) -> Vec<Box<dyn Collector>> {
    let mut all: Vec<Box<dyn Collector>> = Vec::new();
    all.extend(inner.metrics.push.clone().map(|push| Box::new(push) as Box<dyn Collector>));
    all.extend(inner.metrics.divergence.clone().map(|counter| Box::new(counter) as Box<dyn Collector>));
    type Read = fn(&Inner) -> f64;
    let gauges: [(&str, &str, Read); 2] = [
        ("seks_control_streams", "Nodes that are connected to this replica.", |inner| inner.fleet.streams() as f64),
        ("seks_store_watch_lag_seconds", "How long ago this replica had certainly seen every commit.", |inner| {
            let barrier = *inner.barrier.borrow();
            barrier.map_or(f64::INFINITY, |b| seks_proto::table::BootInstant::now().since(b.at).as_secs_f64())
        }),
    ];
    for (name, help, read) in gauges {
        if let Ok(gauge) = Gauge::new(name, help) {
            all.push(Box::new(Reading { gauge, read, inner: Arc::downgrade(inner) }));
        }
    }
    all
}

/// A gauge that is read when it is asked for.
struct Reading {
    gauge: Gauge,
    read: fn(&Inner) -> f64,
    inner: Weak<Inner>,
}

impl Collector for Reading {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(inner) = self.inner.upgrade() {
            self.gauge.set((self.read)(&inner));
        }
        self.gauge.collect()
    }
}
