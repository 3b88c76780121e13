//! Waits for conditions: a test never sleeps in the hope that something has happened by then.

use std::{
    panic::Location,
    time::{Duration, Instant},
};

/// How long a condition may take on a slow, shared machine before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within [`PATIENCE`].
#[track_caller]
pub fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Waits, in a task, for a condition that has to come true.
///
/// # Panics
/// When it hasn't within [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let (asked_at, start) = (Location::caller(), Instant::now());
    async move {
        while !condition() {
            assert!(start.elapsed() < PATIENCE, "{asked_at}: waited {PATIENCE:?} in vain until {what}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}
