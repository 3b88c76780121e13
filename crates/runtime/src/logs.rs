//! Logs: JSON lines on stderr, plain text when stderr is a terminal. A slow reader never blocks the
//! process.

mod limiter;
mod writer;

use std::{
    io::{self, IsTerminal as _},
    sync::OnceLock,
    time::Duration,
};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    layer::{Filter, SubscriberExt as _},
    reload,
};

use self::{
    limiter::{Limiter, RateLimitedFormat},
    writer::{Hooks, Writer},
};

/// The environment variable with the log filter, `info` or `warn,seks_data_plane=debug`. Default:
/// `info`.
pub const FILTER_VARIABLE: &str = "SEKS_LOG";

/// Longest wait of an ending process for its last lines to be read.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static STDERR: Writer =
    Writer::new("log-stderr", rustix::stdio::stderr, Hooks { recovered: report_dropped, tick: report_suppressed });
static STDOUT: Writer = Writer::new("log-stdout", rustix::stdio::stdout, Hooks { recovered: |_| {}, tick: || {} });
static LIMITER: OnceLock<Limiter> = OnceLock::new();
static FILTER: OnceLock<ReloadableFilter> = OnceLock::new();

/// The filter of this process's log, and what it is when nothing is configured.
struct ReloadableFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    /// The value of [`FILTER_VARIABLE`], which overrides the configuration.
    variable: Option<String>,
    default: &'static str,
}

/// Crates whose debug and trace events print headers, frames or handshakes. They are logged at
/// `warn` and above only, whatever the filter, so that no log level can print a credential.
const CAPPED: &[&str] = &[
    "h2",
    "hyper",
    "hyper_util",
    "rustls",
    "tokio_rustls",
    "rustls_platform_verifier",
    "tonic",
    "tower",
    "etcd_client",
    "opentelemetry",
    "opentelemetry_sdk",
    "cedar_policy",
    "cedar_policy_core",
];

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is invalid.
    #[error("{FILTER_VARIABLE}: not a log filter; write a level, or `TARGET=LEVEL,…`")]
    Filter,
    /// The filter in the configuration is invalid.
    #[error("not a log filter; write a level, or `TARGET=LEVEL,…`")]
    Configured,
    /// A subscriber is installed.
    #[error("logging is already initialized")]
    Twice,
}

/// Sends the process's events to stderr. Call it once in `main`.
///
/// # Errors
/// When [`FILTER_VARIABLE`] is invalid, or a subscriber is installed.
pub fn init() -> Result<(), LogError> {
    init_with_default("info")
}

/// [`init`] with another default filter, for processes at a terminal.
///
/// # Errors
/// As [`init`].
pub fn init_with_default(default: &'static str) -> Result<(), LogError> {
    let variable = std::env::var(FILTER_VARIABLE).ok();
    let (filter, handle) = reload::Layer::new(filter(variable.as_deref().unwrap_or(default))?);
    let json = !io::stderr().is_terminal();
    let limiter = LIMITER.get_or_init(Limiter::default).clone();
    tracing::subscriber::set_global_default(subscriber(filter, limiter, json, || StderrLine))
        .map_err(|_| LogError::Twice)?;
    let _ = FILTER.set(ReloadableFilter { handle, variable, default }); // a second subscriber was refused above
    Ok(())
}

/// Replaces the filter of a log that was initialized: by [`FILTER_VARIABLE`] if it is set, else by
/// `configured`, else by the default. Returns the filter that now applies.
///
/// # Errors
/// When `configured` is invalid. The present filter then remains.
pub fn set_filter(configured: Option<&str>) -> Result<String, LogError> {
    let Some(reloadable) = FILTER.get() else { return Ok(String::new()) };
    let text = reloadable.variable.as_deref().or(configured).unwrap_or(reloadable.default);
    let new = filter(text).map_err(|_| LogError::Configured)?;
    let _ = reloadable.handle.reload(new); // fails only if the subscriber is gone
    Ok(text.to_owned())
}

/// Whether a text is a log filter.
///
/// # Errors
/// When it is not.
pub(crate) fn check_filter(text: &str) -> Result<(), LogError> {
    filter(text).map(drop).map_err(|_| LogError::Configured)
}

/// Queues a line for stderr, beside the log. Returns at once; the log's thread writes it.
pub fn write_stderr_line(text: &str) {
    STDERR.append(format!("{text}\n").as_bytes());
}

/// Queues text for stdout and returns at once, for a process that must not wait for its reader.
pub fn write_stdout(text: &str) {
    STDOUT.append(text.as_bytes());
}

/// Waits until all lines are written, at most `within`. Call it last in `main`. Returns whether all
/// were written.
pub fn flush(within: Duration) -> bool {
    report_suppressed();
    let began = std::time::Instant::now();
    let logs = STDERR.flush(within);
    STDOUT.flush(within.saturating_sub(began.elapsed())) && logs
}

/// Lines dropped since the start because stderr was not read.
#[must_use]
pub fn dropped() -> u64 {
    STDERR.dropped()
}

/// Lines suppressed since the start by the rate limit of their call site.
#[must_use]
pub fn suppressed() -> u64 {
    LIMITER.get().map_or(0, Limiter::suppressed)
}

/// Both counters in Prometheus' text format.
#[must_use]
pub fn metrics() -> String {
    let mut text = String::new();
    for (name, help, value) in [
        ("seks_log_dropped_total", "Log lines lost because standard error was not read.", dropped()),
        ("seks_log_suppressed_total", "Repeated log lines that a rate limit has left out.", suppressed()),
    ] {
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n"));
    }
    text
}

fn report_dropped(dropped: u64) {
    tracing::warn!(dropped, "log lines were lost: standard error was not read");
}

fn report_suppressed() {
    if let Some(limiter) = LIMITER.get() {
        limiter.report();
    }
}

/// One event, which the subscriber writes at once.
struct StderrLine;

impl io::Write for StderrLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        STDERR.append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn filter(text: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(text).map_err(|_| LogError::Filter)
}

fn subscriber<W>(
    filter: impl Filter<Registry> + Send + Sync + 'static,
    limiter: Limiter,
    json: bool,
    writer: W,
) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    // The combined level hint is the filter's: a library's disabled event costs one comparison.
    let filter = filter.and(filter_fn(may_be_logged).with_max_level_hint(LevelFilter::TRACE));
    if json {
        let layer = layer.json().flatten_event(true).with_current_span(false).with_span_list(false);
        let layer = layer.map_event_format(|format| RateLimitedFormat { format, limiter });
        Box::new(tracing_subscriber::registry().with(layer.with_filter(filter)))
    } else {
        let layer = layer.map_event_format(|format| RateLimitedFormat { format, limiter });
        Box::new(tracing_subscriber::registry().with(layer.with_filter(filter)))
    }
}

fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let root = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::WARN || !CAPPED.contains(&root)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter_text: &str, json: bool, events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(filter(filter_text).unwrap(), Limiter::default(), json, move || writer.clone());
        tracing::subscriber::with_default(subscriber, events);
        let bytes = sink.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_is_below_the_filter_is_not_even_asked_about() {
        let subscriber = subscriber(filter("info").unwrap(), Limiter::default(), true, io::sink);
        assert_eq!(subscriber.max_level_hint(), Some(LevelFilter::INFO));
    }

    #[test]
    fn no_filter_lets_a_library_print_what_it_moves() {
        let text = logged("trace,hyper=trace,h2::codec=trace", true, || {
            tracing::trace!(target: "hyper::proto::h1", "authorization: Bearer sk-REAL");
            tracing::debug!(target: "h2::codec", "authorization: Bearer sk-REAL");
            tracing::info!(target: "rustls", "sk-REAL");
            tracing::warn!(target: "hyper", "a warning");
            tracing::debug!("ours");
        });
        assert!(!text.contains("sk-REAL") && text.contains("a warning") && text.contains("ours"), "{text}");
    }

    #[test]
    fn a_line_that_is_left_out_takes_no_other_with_it() {
        let text = logged("info", true, || {
            for n in 0..200 {
                tracing::warn!(n, "again and again");
                tracing::info!(n, "a record");
            }
        });
        assert_eq!(text.matches("a record").count(), 200, "{text}");
        assert!(text.matches("again and again").count() < 40, "{text}");
    }

    #[test]
    fn every_json_line_is_one_record() {
        let text = logged("info", true, || tracing::info!(agent = "a\r\nb\u{1b}[2J", "hello\nthere"));
        let record: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!((text.matches('\n').count(), &record["message"]), (1, &"hello\nthere".into()));
    }

    #[test]
    fn a_bad_filter_is_an_error() {
        assert!(matches!(filter("seks=loud"), Err(LogError::Filter)));
    }
}
