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
pub struct Dedicated {
    handle: Handle,
    /// Dropped: the thread ends.
    _running: oneshot::Sender<()>,
}

impl Dedicated {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn its_tasks_run_while_every_other_thread_is_busy_and_end_with_it() {
        let own = Dedicated::start("test-own").unwrap();
        let (done, ran) = std::sync::mpsc::channel();
        own.handle().spawn(async move { done.send(thread::current().name().map(str::to_owned)) });
        // This blocks the test's only worker thread.
        assert_eq!(ran.recv().unwrap().as_deref(), Some("test-own"));
        let task = own.handle().spawn(std::future::pending::<()>());
        drop(own);
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
