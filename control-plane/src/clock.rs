//! The wall clock, for people and for nodes to compare theirs with. No lease is counted with it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

/// How often the wall clock is read while a time of it is waited for: it may be set.
const POLL_SECONDS: u64 = 10;

/// Unix seconds; 0 before 1970.
pub(crate) fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// Unix seconds, as files and records hold them that have no sign; 0 before 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Returns at `at` of the wall clock, in Unix seconds.
pub(crate) async fn wait_until(at: i64) {
    loop {
        let left = u64::try_from(at.saturating_sub(unix_now())).unwrap_or(0);
        if left == 0 {
            return;
        }
        sleep(Duration::from_secs(left.min(POLL_SECONDS))).await;
    }
}

/// Unix milliseconds; 0 before 1970.
pub(crate) fn unix_now_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// Unix microseconds; 0 before 1970.
pub(crate) fn unix_now_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

/// Whole milliseconds of `time`, at most `u64::MAX`.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
