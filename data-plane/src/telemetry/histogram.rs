//! A histogram of durations with fixed bounds, and a trace for each of its buckets.

use std::{
    fmt::Write as _,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, UNIX_EPOCH},
};

use parking_lot::Mutex;

/// Upper bounds in microseconds, as seconds in text: 5 µs, a node's own share, to 5 min, a model
/// that thinks.
const BOUNDS: [(u64, &str); 22] = [
    (5, "0.000005"),
    (10, "0.00001"),
    (20, "0.00002"),
    (50, "0.00005"),
    (100, "0.0001"),
    (200, "0.0002"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_000, "0.002"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (20_000, "0.02"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (200_000, "0.2"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_000_000, "2"),
    (5_000_000, "5"),
    (20_000_000, "20"),
    (60_000_000, "60"),
    (300_000_000, "300"),
];

const BUCKETS: usize = BOUNDS.len() + 1;

/// Counts durations into buckets. Two atomic additions an observation.
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
    /// Made when the first trace is known.
    exemplars: OnceLock<Box<[Exemplar; BUCKETS]>>,
}

/// A request that was counted in one bucket.
#[derive(Default)]
struct Exemplar {
    /// The Unix second in which it was kept. The first of each second is kept, so that a busy node
    /// pays one load a request.
    second: AtomicU64,
    kept: Mutex<([u8; 16], Duration)>,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            nanos: AtomicU64::new(0),
            exemplars: OnceLock::new(),
        }
    }

    /// Adds one duration.
    pub fn observe(&self, duration: Duration) {
        self.count(duration);
    }

    /// Adds the duration of a request with this trace id, which ended at `now`, a Unix time.
    pub fn observe_traced(&self, duration: Duration, trace: &[u8; 16], now: Duration) {
        let at = self.count(duration);
        let exemplars = self.exemplars.get_or_init(no_exemplars);
        let Some(exemplar) = exemplars.get(at) else { return };
        let second = now.as_secs();
        if exemplar.second.load(Relaxed) != second && exemplar.second.swap(second, Relaxed) != second {
            *exemplar.kept.lock() = (*trace, duration);
        }
    }

    /// Returns the bucket.
    fn count(&self, duration: Duration) -> usize {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let at = BOUNDS.partition_point(|(bound, _)| bound * 1000 < nanos);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Relaxed);
        }
        self.nanos.fetch_add(nanos, Relaxed);
        at
    }

    fn is_used(&self) -> bool {
        self.buckets.iter().any(|bucket| bucket.load(Relaxed) > 0)
    }

    /// Writes the samples. `labels` are `name="value"` pairs with a comma after each.
    fn render_samples(&self, name: &str, labels: &str, out: &mut String) {
        let mut total = 0;
        let bounds = BOUNDS.iter().map(|(_, text)| *text).chain(["+Inf"]);
        for (at, (bucket, bound)) in self.buckets.iter().zip(bounds).enumerate() {
            total += bucket.load(Relaxed);
            // Writing to a String can't fail.
            let _ = write!(out, "{name}_bucket{{{labels}le=\"{bound}\"}} {total}");
            let exemplar = self.exemplars.get().and_then(|exemplars| exemplars.get(at));
            exemplar.into_iter().for_each(|exemplar| exemplar.render(out));
            out.push('\n');
        }
        let sum = self.nanos.load(Relaxed) as f64 / 1e9;
        let labels = match labels.trim_end_matches(',') {
            "" => String::new(),
            labels => format!("{{{labels}}}"),
        };
        let _ = write!(out, "{name}_sum{labels} {sum}\n{name}_count{labels} {total}\n");
    }
}

fn no_exemplars() -> Box<[Exemplar; BUCKETS]> {
    Box::new(std::array::from_fn(|_| Exemplar::default()))
}

impl Exemplar {
    /// Writes it behind its sample, as OpenMetrics has it.
    fn render(&self, out: &mut String) {
        let second = self.second.load(Relaxed);
        if second == 0 {
            return;
        }
        let (trace, duration) = *self.kept.lock();
        let _ = write!(
            out,
            " # {{trace_id=\"{}\"}} {} {second}",
            data_encoding::HEXLOWER.encode(&trace),
            duration.as_secs_f64()
        );
    }
}

/// Writes a family: a histogram for each list of labels. Those without observations are left out.
pub(super) fn render<'a>(
    name: &str,
    help: &str,
    histograms: impl Iterator<Item = (String, &'a Histogram)>,
    out: &mut String,
) {
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} histogram\n");
    for (labels, histogram) in histograms.filter(|(_, histogram)| histogram.is_used()) {
        histogram.render_samples(name, &labels, out);
    }
}

/// The Unix time now.
pub(crate) fn unix_now() -> Duration {
    UNIX_EPOCH.elapsed().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(histogram: &Histogram) -> String {
        let mut out = String::new();
        render("h", "Help.", [("service=\"a\",".to_owned(), histogram)].into_iter(), &mut out);
        out
    }

    #[test]
    fn one_trace_a_second_is_kept_for_each_bucket() {
        let histogram = Histogram::new();
        assert_eq!(page(&histogram), "# HELP h Help.\n# TYPE h histogram\n");
        let (fast, slow) = (Duration::from_millis(3), Duration::from_millis(300));
        let at = Duration::from_secs;
        histogram.observe_traced(fast, &[1; 16], at(100));
        histogram.observe_traced(fast, &[2; 16], at(100));
        histogram.observe_traced(slow, &[3; 16], at(100));
        histogram.observe(slow);
        let shown = page(&histogram);
        let one = "01".repeat(16);
        assert!(
            shown.contains(&format!("h_bucket{{service=\"a\",le=\"0.005\"}} 2 # {{trace_id=\"{one}\"}} 0.003 100\n"))
        );
        assert!(shown.contains(&format!("le=\"0.5\"}} 4 # {{trace_id=\"{}\"}} 0.3 100\n", "03".repeat(16))), "{shown}");
        assert!(shown.contains("h_bucket{service=\"a\",le=\"0.2\"} 2\n"), "a bucket without one: {shown}");
        assert!(shown.contains("h_count{service=\"a\"} 4\n"), "{shown}");
        histogram.observe_traced(fast, &[4; 16], at(101));
        assert!(page(&histogram).contains(&"04".repeat(16)) && !page(&histogram).contains(&one));
    }
}
