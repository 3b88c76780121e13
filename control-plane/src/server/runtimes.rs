//! The control plane's threads: what leases and revocations need, and what operators can keep busy.

use std::{io, num::NonZero, thread::available_parallelism};

use seks_runtime::memory_release::release_on_park;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinError,
};

/// Fewest worker threads of a runtime: one that is held up must not be the only one.
const MIN_THREADS: usize = 2;
/// Most threads that admin calls keep busy, however many cores there are.
const MAX_ADMIN_THREADS: usize = 4;

/// Two runtimes. Tasks of one never run on threads of the other, and neither do calls that block:
/// each has a pool for those.
///
/// Dropped, they end in the background, so that this may happen within another runtime.
pub(super) struct Runtimes {
    /// Leases, the store's watch, the feed, nodes' connections and their streams: nothing here is
    /// an operator's.
    distribution: Option<Runtime>,
    /// Admin calls, operators' connections, reflection, metrics, minting.
    admin: Option<Runtime>,
}

impl Runtimes {
    /// Starts both.
    ///
    /// # Errors
    /// When the operating system has no threads to give.
    pub(super) fn start() -> io::Result<Self> {
        let cores = available_parallelism().map_or(MIN_THREADS, NonZero::get).max(MIN_THREADS);
        let distribution = start("seks-distribution", cores)?;
        let admin = start("seks-admin", cores.min(MAX_ADMIN_THREADS))?;
        Ok(Self { distribution: Some(distribution), admin: Some(admin) })
    }

    /// Where leases and nodes are served.
    pub(super) fn distribution(&self) -> Handle {
        handle(self.distribution.as_ref())
    }

    /// Where operators are served.
    pub(super) fn admin(&self) -> Handle {
        handle(self.admin.as_ref())
    }
}

/// The current runtime takes its place only while the owner is dropped.
fn handle(runtime: Option<&Runtime>) -> Handle {
    runtime.map_or_else(Handle::current, |runtime| runtime.handle().clone())
}

fn start(name: &str, threads: usize) -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(threads).thread_name(name).enable_all().on_thread_park(release_on_park).build()
}

/// Runs `task` on the runtime of `handle`, and waits for it.
///
/// # Errors
/// If that runtime shuts down. A panic of the task is propagated.
pub(super) async fn run_on<T: Send + 'static>(
    handle: Handle,
    task: impl Future<Output = T> + Send + 'static,
) -> Result<T, JoinError> {
    handle.spawn(task).await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => error,
    })
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        for runtime in [self.admin.take(), self.distribution.take()].into_iter().flatten() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_blocks_every_admin_thread_holds_up_no_distribution() {
        let runtimes = Runtimes::start().unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Arc::new(parking_lot::Mutex::new(held));
        for _ in 0..64 {
            let held = held.clone();
            runtimes.admin().spawn(async move { held.lock().recv().unwrap_or_default() });
        }
        let served = run_on(runtimes.distribution(), async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            tokio::task::spawn_blocking(|| 7).await.unwrap()
        });
        assert_eq!(tokio::time::timeout(Duration::from_secs(20), served).await.unwrap().unwrap(), 7);
        drop(release);
    }
}
