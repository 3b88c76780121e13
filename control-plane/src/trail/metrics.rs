//! What is read of the trail: its sizes, its age, and how late records arrive.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::{
    Gauge, IntCounter, IntCounterVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use seks_audit::spool::unix_micros;

use super::{Trail, object_storage::BucketDisk, tripwires::AlarmKind};

/// What the trail counts.
pub(super) struct Counters {
    ingested: IntCounter,
    tripwires: IntCounterVec,
    pub(super) dropped_alarms: IntCounter,
    /// From the beginning of the newest record's request until it was stored, in microseconds.
    lag_us: AtomicU64,
}

impl Counters {
    /// # Errors
    /// Never: the names are constants.
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let tripwires = Opts::new("seks_audit_tripwires_total", "Requests that tripped a wire, by kind.");
        let tripwires = IntCounterVec::new(tripwires, &["kind"])?;
        for tripwire in AlarmKind::ALL {
            tripwires.with_label_values(&[tripwire.name()]).inc_by(0);
        }
        let counter = IntCounter::new;
        Ok(Self {
            ingested: counter("seks_audit_trail_ingested_total", "Records that were stored since the start.")?,
            tripwires,
            dropped_alarms: counter(
                "seks_audit_alarms_dropped_total",
                "Alarms that were lost because too many waited.",
            )?,
            lag_us: AtomicU64::new(0),
        })
    }

    pub(super) fn stored(&self, records: u64, newest_us: u64) {
        self.ingested.inc_by(records);
        self.lag_us.store(unix_micros().saturating_sub(newest_us), Relaxed);
    }

    pub(super) fn tripped(&self, tripwire: AlarmKind) {
        self.tripwires.with_label_values(&[tripwire.name()]).inc();
    }
}

/// What to register with the process's metrics.
pub(crate) fn collectors(trail: &Trail) -> Vec<Box<dyn Collector>> {
    type Read = fn(&Trail) -> f64;
    let of_bucket: [(&str, &str, Read); 2] = [
        (
            "seks_audit_trail_pending_bytes",
            "Bytes of the trail's files that wait for the bucket; 0 without one.",
            |trail| trail.in_bucket().iter().map(BucketDisk::pending_bytes).sum::<u64>() as f64,
        ),
        (
            "seks_audit_trail_upload_failing_seconds",
            "For how long files of the trail cannot be uploaded to the bucket; 0: the last upload succeeded.",
            |trail| trail.in_bucket().iter().map(BucketDisk::failing_seconds).fold(0.0, f64::max),
        ),
    ];
    let gauges: [(&str, &str, Read); 5] = [
        ("seks_audit_trail_records", "Records in this replica's trail.", |trail| trail.size().records as f64),
        ("seks_audit_trail_bytes", "Bytes of the trail's blocks.", |trail| trail.size().bytes as f64),
        ("seks_audit_trail_open_intents", "Intents without an outcome.", |trail| trail.size().open_intents as f64),
        ("seks_audit_trail_oldest_seconds", "Age of the oldest record in a block; 0: there is none.", |trail| {
            trail.blocks().oldest_us().map_or(0.0, |oldest| unix_micros().saturating_sub(oldest) as f64 / 1e6)
        }),
        (
            "seks_audit_trail_lag_seconds",
            "From the beginning of the last stored request until it was stored.",
            |trail| trail.counters().lag_us.load(Relaxed) as f64 / 1e6,
        ),
    ];
    let counters = trail.counters();
    let mut all: Vec<Box<dyn Collector>> = vec![
        Box::new(counters.ingested.clone()),
        Box::new(counters.tripwires.clone()),
        Box::new(counters.dropped_alarms.clone()),
    ];
    for (name, help, read) in gauges.into_iter().chain(of_bucket) {
        if let Ok(gauge) = Gauge::new(name, help) {
            all.push(Box::new(Reading { gauge, read, trail: trail.clone() }));
        }
    }
    all
}

/// A gauge that is read when it is asked for.
struct Reading {
    gauge: Gauge,
    read: fn(&Trail) -> f64,
    trail: Trail,
}

impl Collector for Reading {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set((self.read)(&self.trail));
        self.gauge.collect()
    }
}
