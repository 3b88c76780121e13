//! Logs: JSON lines on stderr, plain text when stderr is a terminal.

use std::io::{self, IsTerminal as _};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    layer::SubscriberExt as _,
};

/// The variable that says which levels are logged, `info` or `warn,seks_data_plane=debug`. Default: `info`.
pub const FILTER_VARIABLE: &str = "SEKS_LOG";

/// Crates whose debug and trace events print headers, frames or handshakes: they never get below `warn`, whatever the
/// filter says, so that no log level can print a credential.
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

/// Why logging can't start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter can't be read.
    #[error("{FILTER_VARIABLE}: not a log filter; write a level, or `TARGET=LEVEL,…`")]
    Filter,
    /// Somebody installed a subscriber before.
    #[error("logging is set up already")]
    Twice,
}

/// Sends the process's events to stderr. Call it once, in `main`.
///
/// # Errors
/// When [`FILTER_VARIABLE`] can't be read, or a subscriber is installed already.
pub fn init() -> Result<(), LogError> {
    init_with_default("info")
}

/// The same with another filter where [`FILTER_VARIABLE`] says none: at a terminal a person reads along.
///
/// # Errors
/// As [`init`].
pub fn init_with_default(default: &str) -> Result<(), LogError> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) => filter(&text)?,
        Err(_) => filter(default)?,
    };
    let json = !io::stderr().is_terminal();
    tracing::subscriber::set_global_default(subscriber(filter, json, io::stderr)).map_err(|_| LogError::Twice)
}

fn filter(text: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(text).map_err(|_| LogError::Filter)
}

fn subscriber<W>(filter: EnvFilter, json: bool, writer: W) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    // With a hint of its own, the other's counts: what is below it costs the libraries one comparison.
    let filter = filter.and(filter_fn(may_be_logged).with_max_level_hint(LevelFilter::TRACE));
    if json {
        let layer = layer.json().flatten_event(true).with_current_span(false).with_span_list(false);
        Box::new(tracing_subscriber::registry().with(layer.with_filter(filter)))
    } else {
        Box::new(tracing_subscriber::registry().with(layer.with_filter(filter)))
    }
}

fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let root = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::WARN || !CAPPED.contains(&root)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter_text: &str, json: bool, events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(filter(filter_text).unwrap(), json, move || writer.clone());
        tracing::subscriber::with_default(subscriber, events);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_is_below_the_filter_is_not_even_asked_about() {
        let subscriber = subscriber(filter("info").unwrap(), true, io::sink);
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
