//! Reloads without a restart: on `SIGHUP`, and when the configuration file changes.
//!
//! What is reloaded: the log filter (`telemetry.log`) and the files of listener certificates, which
//! their listeners also read again when they change. Every other key needs a restart.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use super::{config::ConfigError, logs};

/// Interval at which files are checked for changes: the configuration here, certificates at their
/// listeners.
pub const CHECK_EVERY: Duration = Duration::from_secs(5);

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static REQUESTED: Notify = Notify::const_new();

/// How many reloads were requested by signal so far. A listener that has seen another number reads
/// its files again.
#[must_use]
pub fn requests() -> u64 {
    REQUESTS.load(Relaxed)
}

/// Waits for [`CHECK_EVERY`], or until a reload is requested by signal.
pub async fn due() {
    tokio::select! {
        () = REQUESTED.notified() => {}
        () = tokio::time::sleep(CHECK_EVERY) => {}
    }
}

/// Starts to handle `SIGHUP` and changes of `file`. From then on the signal does not end the
/// process. `log_filter` reads the configuration again and returns its `telemetry.log`. A
/// configuration that is invalid is logged, and the present filter remains. Call it within the main
/// runtime.
///
/// # Errors
/// When the process may not install a signal handler.
pub fn listen(
    file: Option<PathBuf>,
    log_filter: impl Fn() -> Result<Option<String>, ConfigError> + Send + 'static,
) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut seen = modified(file.as_deref());
        loop {
            let signalled = tokio::select! {
                _ = hangup.recv() => true,
                () = tokio::time::sleep(CHECK_EVERY) => false,
            };
            let now = modified(file.as_deref());
            if !signalled && now == seen {
                continue;
            }
            seen = now;
            if signalled {
                REQUESTS.fetch_add(1, Relaxed);
                REQUESTED.notify_waiters();
            }
            reload(&log_filter);
        }
    });
    Ok(())
}

fn reload(log_filter: &impl Fn() -> Result<Option<String>, ConfigError>) {
    match log_filter() {
        Ok(filter) => match logs::set_filter(filter.as_deref()) {
            Ok(filter) => {
                tracing::info!(filter, "reloaded: log filter and listener certificates; other keys need a restart")
            }
            Err(error) => tracing::error!(%error, "telemetry.log: not reloaded"),
        },
        Err(error) => tracing::error!(%error, "the configuration is not reloaded"),
    }
}

fn modified(file: Option<&Path>) -> Option<SystemTime> {
    std::fs::metadata(file?).and_then(|metadata| metadata.modified()).ok()
}
