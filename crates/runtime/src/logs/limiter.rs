//! A rate limit for each call site of a warning or an error.
//!
//! A call site is one `tracing` macro in the source: one target and one message. A client without a
//! token, or a collector that is down, could cause any number of lines. Each call site may log a
//! burst, then one line a second. Suppressed lines are counted, and each tick of the log writer
//! reports them.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tracing::{
    Event, Level, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext,
        format::{FormatEvent, FormatFields, Writer},
    },
    registry::LookupSpan,
};

/// Lines of one call site that may be logged at once.
const BURST_LINES: u32 = 20;
/// The interval of further lines after the burst.
const REFILL_INTERVAL: Duration = Duration::from_secs(1);
/// Longest message in a report, in bytes.
const MAX_MESSAGE_BYTES: usize = 120;

/// The limits of all call sites. Their number is that of the macros in the source.
#[derive(Clone, Default)]
pub(super) struct Limiter(Arc<Inner>);

#[derive(Default)]
struct Inner {
    sites: Mutex<HashMap<Identifier, CallSite>>,
    suppressed: AtomicU64,
}

struct CallSite {
    target: &'static str,
    /// The message of the first suppressed line.
    message: String,
    /// Lines that may still be logged.
    left: u32,
    refilled: Instant,
    /// Left out since it was last reported.
    suppressed: u64,
}

impl Limiter {
    /// Lines suppressed since the start.
    pub(super) fn suppressed(&self) -> u64 {
        self.0.suppressed.load(Relaxed)
    }

    /// Logs, for each call site, the number of lines suppressed since the last report.
    pub(super) fn report(&self) {
        let mut reports = Vec::new();
        for site in self.lock().values_mut().filter(|site| site.suppressed > 0) {
            reports.push((site.target, site.message.clone(), std::mem::take(&mut site.suppressed)));
        }
        for (of_target, of_message, suppressed) in reports {
            tracing::warn!(suppressed, of_target, of_message, "repeated log lines were left out");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identifier, CallSite>> {
        self.0.sites.lock()
    }

    fn admit(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        // Lines of level `info` are records of requests and calls, and all are needed. Reports are
        // rate-limited by the tick.
        if *metadata.level() > Level::WARN || metadata.target() == module_path!() {
            return true;
        }
        let mut sites = self.lock();
        let site = sites.entry(metadata.callsite()).or_insert_with(|| CallSite {
            target: metadata.target(),
            message: String::new(),
            left: BURST_LINES,
            refilled: now,
            suppressed: 0,
        });
        let earned = now.saturating_duration_since(site.refilled).as_secs() / REFILL_INTERVAL.as_secs();
        if earned > 0 {
            site.left = site.left.saturating_add(u32::try_from(earned).unwrap_or(BURST_LINES)).min(BURST_LINES);
            site.refilled = now;
        }
        if site.left > 0 {
            site.left -= 1;
            return true;
        }
        site.suppressed += 1;
        if site.message.is_empty() {
            event.record(&mut MessageVisitor(&mut site.message));
        }
        self.0.suppressed.fetch_add(1, Relaxed);
        false
    }
}

/// An event format that writes nothing for suppressed lines.
///
/// A filter would be the usual place. But per-layer filters of tracing-subscriber 0.3 apply the
/// refusal of one event to the next one on the same thread.
pub(super) struct RateLimitedFormat<E> {
    pub(super) format: E,
    pub(super) limiter: Limiter,
}

impl<S, N, E> FormatEvent<S, N> for RateLimitedFormat<E>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    E: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if self.limiter.admit(event, Instant::now()) {
            self.format.format_event(context, writer, event)
        } else {
            Ok(())
        }
    }
}

/// Reads the message of an event.
struct MessageVisitor<'a>(&'a mut String);

impl Visit for MessageVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
            self.0.truncate(self.0.floor_char_boundary(MAX_MESSAGE_BYTES));
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines that pass.
    fn passed(limiter: &Limiter, events: impl FnOnce()) -> Vec<String> {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let layer = layer.map_event_format(|format| RateLimitedFormat { format, limiter: limiter.clone() });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), events);
        let text = String::from_utf8(sink.0.lock().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_call_site_that_repeats_is_limited_alone_and_told_of() {
        let limiter = Limiter::default();
        let noisy = |of: u32| (0..of).for_each(|n| tracing::warn!(n, "the collector doesn't answer"));
        let lines = passed(&limiter, || {
            noisy(1000);
            tracing::warn!("something else");
            limiter.report();
            limiter.report(); // nothing was left out since
        });
        let is_report = |line: &&String| line.contains("repeated log lines were left out");
        let reports = lines.iter().filter(is_report).count();
        let of = |text: &str| lines.iter().filter(|line| line.contains(text) && !is_report(line)).count();
        assert!((20..30).contains(&of("the collector doesn't answer")), "{lines:?}");
        assert_eq!((of("something else"), reports), (1, 1), "{lines:?}");
        assert_eq!(limiter.suppressed() as usize, 1000 - of("the collector doesn't answer"));
    }

    #[test]
    fn a_record_is_not_a_warning_and_is_not_limited() {
        let limiter = Limiter::default();
        assert_eq!(passed(&limiter, || (0..100).for_each(|_| tracing::info!("request"))).len(), 100);
        assert_eq!(limiter.suppressed(), 0);
    }
}
