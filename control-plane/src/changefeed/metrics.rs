//! What is counted of the change feed: how long a change takes to a node, and tables that differ.
use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, core::Collector};

/// From a millisecond in one machine to the longest lease.
const PUSH_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

pub(crate) struct Metrics {
    /// `seks_control_push_seconds`: from this replica learning of a commit to a node's
    /// acknowledgement.
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

impl Metrics {
    /// What to register with the process's metrics.
    pub(crate) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        let push = self.push.clone().map(|push| Box::new(push) as Box<dyn Collector>);
        let divergence = self.divergence.clone().map(|counter| Box::new(counter) as Box<dyn Collector>);
        push.into_iter().chain(divergence).collect()
    }
}
