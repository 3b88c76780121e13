//! The threads that read. A page that isn't cached waits for the disk, so reads don't run on a
//! runtime's threads; and they don't run in a runtime's pool for blocking calls either, which name
//! resolution and others can fill.

use std::{
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use parking_lot::Mutex;
use redb::ReadableDatabase as _;
use tokio::sync::oneshot;

use super::database::{Database, Fault};
use crate::store::{OpenError, StoreError};

/// Threads for each kind of read.
const THREADS: usize = 2;

type Job = Box<dyn FnOnce(&Database) + Send>;

/// What a read costs.
#[derive(Clone, Copy)]
pub(super) enum Cost {
    /// A record, a counter, a page of the log: leases and revocations wait for such.
    Point,
    /// Many records.
    Listing,
}

/// The threads. They end when this is dropped, and with them their hold on the file.
pub(super) struct Readers {
    queues: Option<[mpsc::Sender<Job>; 2]>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(database: &Arc<Database>) -> Result<Self, OpenError> {
        let (mut threads, path) = (Vec::new(), database.path().display().to_string());
        let mut start = |name: &str| -> Result<_, OpenError> {
            let (queue, jobs) = mpsc::channel::<Job>();
            let jobs = Arc::new(Mutex::new(jobs));
            for _ in 0..THREADS {
                let (jobs, database) = (jobs.clone(), database.clone());
                let thread = thread::Builder::new().name(name.into()).spawn(move || work(&jobs, &database));
                threads.push(thread.map_err(|source| OpenError::File { path: path.clone(), source })?);
            }
            Ok(queue)
        };
        let queues = [start("seks-store-get")?, start("seks-store-list")?];
        Ok(Self { queues: Some(queues), threads })
    }

    /// Runs `read` in a transaction of its own, unless the caller has gone by then.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        cost: Cost,
        read: impl FnOnce(&redb::ReadTransaction) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let closed = || StoreError::Unavailable("the store is closed".into());
        let (done, outcome) = oneshot::channel();
        let job = Box::new(move |database: &Database| {
            if !done.is_closed() {
                let _gone = done.send(database.with(|db| read(&db.begin_read()?)));
            }
        });
        let [get, list] = self.queues.as_ref().ok_or_else(closed)?;
        let queue = match cost {
            Cost::Point => get,
            Cost::Listing => list,
        };
        queue.send(job).map_err(|_| closed())?;
        outcome.await.map_err(|_| StoreError::Unavailable("a read of the store has failed".into()))?
    }
}

fn work(jobs: &Mutex<mpsc::Receiver<Job>>, database: &Database) {
    loop {
        let job = jobs.lock().recv();
        let Ok(job) = job else { return };
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(database))); // its caller hears of it
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        drop(self.queues.take());
        for thread in self.threads.drain(..) {
            let _ended = thread.join(); // what is being read is given up by nobody: it takes moments
        }
    }
}
