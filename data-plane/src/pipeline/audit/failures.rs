//! Log lines for upstreams that fail. A failing upstream fails every request, so the lines are
//! limited and what is left out is counted.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::http::client::UpstreamError;

/// Most lines a second of one process.
const MAX_LINES_A_SECOND: u64 = 10;

/// The second that lines were last written in, and how many were in it.
static SECOND: AtomicU64 = AtomicU64::new(0);
static LINES: AtomicU64 = AtomicU64::new(0);
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Logs one failure, unless there were too many in this second. `now` is the time of any steady
/// clock.
pub(super) fn log(service: &str, request_id: &str, error: UpstreamError, now: Duration) {
    let second = now.as_secs();
    if SECOND.swap(second, Relaxed) != second {
        LINES.store(0, Relaxed);
    }
    if LINES.fetch_add(1, Relaxed) >= MAX_LINES_A_SECOND {
        LEFT_OUT.fetch_add(1, Relaxed);
        return;
    }
    let left_out = LEFT_OUT.swap(0, Relaxed);
    tracing::info!(service, request_id, error = error.as_str(), left_out, "{error}");
}
