//! Gives the memory of deleted records back to the system.
//!
//! mimalloc keeps freed blocks in pages of the thread that allocated them, and only that thread
//! returns them. After a large delete, every thread of the process's runtimes is asked to do so.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::{runtime::Handle, time::sleep};

use crate::alloc::release_freed_memory;

/// A delete of fewer records is not worth a look: some 10 MiB at most.
const LARGE_DELETE: u64 = 10_000;
/// How often the number of deleted records is looked at. A delete is over when it has not changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A worker thread that sleeps has to be woken. Which one a task wakes is the runtime's choice, so
/// tasks are started several times.
const ROUNDS: u32 = 5;
const ROUND_EVERY: Duration = Duration::from_millis(100);

/// Records that were deleted since memory was last released.
static DELETED: AtomicU64 = AtomicU64::new(0);
/// Releases so far.
static RELEASES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The value of [`RELEASES`] at this thread's last release.
    static RELEASED: Cell<u64> = const { Cell::new(0) };
}

/// Counts `records` that a table has dropped.
pub fn records_deleted(records: u64) {
    DELETED.fetch_add(records, Relaxed);
}

/// Releases this thread's freed memory if that was asked for since the last time. For
/// `on_thread_park` of a runtime. Costs one load where nothing was asked for.
pub fn release_on_park() {
    let newest = RELEASES.load(Relaxed);
    if RELEASED.replace(newest) != newest {
        release_freed_memory();
    }
}

/// Watches for large deletes, and then releases the memory of the threads of `runtimes`, which call
/// [`release_on_park`]. Never returns.
pub async fn release_after_deletes(runtimes: Vec<Handle>) {
    let mut before = 0;
    loop {
        sleep(LOOK_EVERY).await;
        let deleted = DELETED.load(Relaxed);
        if deleted < LARGE_DELETE || deleted != before {
            before = deleted;
            continue;
        }
        DELETED.fetch_sub(deleted, Relaxed);
        before = 0;
        RELEASES.fetch_add(1, Relaxed);
        for _ in 0..ROUNDS {
            for runtime in &runtimes {
                // The thread that runs it parks soon after.
                (0..runtime.metrics().num_workers()).for_each(|_| drop(runtime.spawn(async { release_on_park() })));
            }
            sleep(ROUND_EVERY).await;
        }
        tracing::debug!(deleted, "memory of deleted records was released");
    }
}
