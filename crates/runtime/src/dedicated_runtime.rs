//! A runtime with one thread of its own, for work that the load of the process's other runtimes must not delay.

use std::{io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// Threads of a dedicated runtime that may block on files and names.
const BLOCKING_THREADS: usize = 4;

/// A runtime of one thread. Tasks are given to it by its [`handle`](Self::handle). Dropping it ends the thread and drops what
/// still runs there; it may be dropped in asynchronous code.
#[derive(Debug)]
pub struct DedicatedRuntime {
    handle: Handle,
    /// Dropped: the thread ends.
    _running: oneshot::Sender<()>,
}

impl DedicatedRuntime {
    /// Starts one. `name` is the thread's, at most 15 bytes of it are seen in `top`.
    ///
    /// # Errors
    /// When the system has no thread or no descriptors to give.
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name(name)
            .build()?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel::<()>();
        thread::Builder::new().name(name.into()).spawn(move || {
            let _ = runtime.block_on(ended); // Err: the sender was dropped, which is the only end there is
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _running: running })
    }

    /// Where tasks are spawned.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// How far below others the threads of [`lower_thread_priority`] are scheduled, as `nice` counts.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Lets the process's other threads go first from now on: for threads that compute for long. Does nothing on systems other than Linux,
/// where priorities are a whole process's.
pub fn lower_thread_priority() {
    // Where it isn't allowed nothing is lost but that.
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
