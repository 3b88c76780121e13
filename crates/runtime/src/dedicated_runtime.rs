//! A tokio runtime on a thread of its own. Load on the process's other runtimes does not delay its
//! tasks.

use std::{io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

use crate::memory_release::release_on_park;

/// Threads of a dedicated runtime for blocking file and name operations.
const BLOCKING_THREADS: usize = 4;

/// A runtime of one thread. Spawn tasks through its [`handle`](Self::handle). Dropping it ends the
/// thread and drops its tasks. It may be dropped in asynchronous code.
#[derive(Debug)]
pub struct DedicatedRuntime {
    handle: Handle,
    /// The thread ends when this is dropped.
    _running: oneshot::Sender<()>,
}

impl DedicatedRuntime {
    /// Starts a runtime. `name` is the thread's name; `top` shows its first 15 bytes.
    ///
    /// # Errors
    /// When the system has no thread or no descriptors.
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name(name)
            .on_thread_park(release_on_park)
            .build()?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel::<()>();
        thread::Builder::new().name(name.into()).spawn(move || {
            let _ = runtime.block_on(ended); // Err: the sender was dropped, which is the only end there is
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _running: running })
    }

    /// The handle for spawning tasks.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// The nice value of threads after [`lower_thread_priority`].
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Lowers the scheduling priority of the current thread, for long computations. It has no effect
/// outside of Linux, where a priority belongs to the whole process.
pub fn lower_thread_priority() {
    // A refusal is harmless.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, NICE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn its_tasks_run_while_every_other_thread_is_busy_and_end_with_it() {
        let own = DedicatedRuntime::start("test-own").unwrap();
        let (done, ran) = std::sync::mpsc::channel();
        own.handle().spawn(async move { done.send(thread::current().name().map(str::to_owned)) });
        // This blocks the test's only worker thread.
        assert_eq!(ran.recv().unwrap().as_deref(), Some("test-own"));
        let task = own.handle().spawn(std::future::pending::<()>());
        drop(own);
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
