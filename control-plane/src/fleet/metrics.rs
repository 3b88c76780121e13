//! What is read of the fleet: streams, and how far the store's watch is behind.

use prometheus::{
    Gauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use seks_lease::BootInstant;

use super::Fleet;

/// What to register with the process's metrics.
pub(crate) fn collectors(fleet: &Fleet) -> Vec<Box<dyn Collector>> {
    type Read = fn(&Fleet) -> f64;
    let gauges: [(&str, &str, Read); 2] = [
        ("seks_control_streams", "Nodes that are connected to this replica.", |fleet| fleet.leases.streams() as f64),
        ("seks_store_watch_lag_seconds", "How long ago this replica had certainly seen every commit.", |fleet| {
            fleet.barriers.latest().map_or(f64::INFINITY, |b| BootInstant::now().since(b.at).as_secs_f64())
        }),
    ];
    let mut all: Vec<Box<dyn Collector>> = Vec::new();
    for (name, help, read) in gauges {
        if let Ok(gauge) = Gauge::new(name, help) {
            all.push(Box::new(Reading { gauge, read, fleet: fleet.clone() }));
        }
    }
    all
}

/// A gauge whose value is read at each scrape.
struct Reading {
    gauge: Gauge,
    read: fn(&Fleet) -> f64,
    fleet: Fleet,
}

impl Collector for Reading {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set((self.read)(&self.fleet));
        self.gauge.collect()
    }
}
