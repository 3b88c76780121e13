//! Work for one request that is too long for the threads that serve requests: decisions of costly
//! policies, and looking into large bodies.
//!
//! Deciding takes microseconds nearly always, and is done where the request is served. What may
//! take longer than [`INLINE`] waits for one of a few threads of lower priority here. Tenants take
//! turns, so one tenant's decisions delay its own requests.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use seks_runtime::lower_thread_priority;
use seks_types::id::TenantName;
use tokio::sync::oneshot;

/// Longest work that is done on a thread that serves requests.
pub(crate) const INLINE: Duration = Duration::from_micros(100);
/// Most requests of one tenant that wait for a decision.
const WAITING: usize = 256;
/// Longest wait for a decision.
const PATIENCE: Duration = Duration::from_secs(5);
/// A thread without work ends after this.
const IDLE: Duration = Duration::from_secs(10);

/// Threads for decisions that take long, and who waits for them. One a node.
pub(crate) struct PolicyPool {
    shared: Arc<Shared>,
}

/// The tenant has too much policy work waiting, or it took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Busy;

type Job = Box<dyn FnOnce() + Send>;

struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    most_threads: usize,
}

#[derive(Default)]
struct Queue {
    /// Tenants with work, in the order of their turns.
    turns: VecDeque<TenantName>,
    jobs: HashMap<TenantName, VecDeque<Job>>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Default for PolicyPool {
    /// Half as many threads as there are cores, at least one.
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let shared = Shared { queue: Mutex::default(), more: Condvar::new(), most_threads: (cores / 2).max(1) };
        Self { shared: Arc::new(shared) }
    }
}

impl PolicyPool {
    /// The result of `work`, when it is the tenant's turn. If the caller has given up by then, the
    /// work is not started.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        tenant: &TenantName,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let (done, result) = oneshot::channel();
        let job = move || {
            if !done.is_closed() {
                let _ = done.send(work()); // Err: it was given up meanwhile
            }
        };
        if !self.shared.add(tenant, Box::new(job)) {
            return Err(Busy);
        }
        // Err of the inside: the work has panicked, which has been reported.
        tokio::time::timeout(PATIENCE, result).await.map_err(|_| Busy)?.map_err(|_| Busy)
    }
}

impl Drop for PolicyPool {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.more.notify_all();
    }
}

impl Shared {
    fn add(self: &Arc<Self>, tenant: &TenantName, job: Job) -> bool {
        let mut queue = self.queue.lock();
        if !queue.push(tenant, job) {
            return false;
        }
        if queue.idle == 0 && queue.threads < self.most_threads {
            let own = Arc::clone(self);
            match thread::Builder::new().name("seks-decisions".into()).spawn(move || own.work()) {
                Ok(_) => queue.threads += 1,
                Err(error) => tracing::error!(%error, "no thread for policy decisions"),
            }
        }
        drop(queue);
        self.more.notify_one();
        true
    }

    fn work(&self) {
        lower_thread_priority();
        let mut queue = self.queue.lock();
        while !queue.closed {
            if let Some(job) = queue.next() {
                drop(queue);
                // A panic ends one decision, not the thread.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                queue = self.queue.lock();
                continue;
            }
            queue.idle += 1;
            let waited = self.more.wait_while_for(&mut queue, |queue| queue.turns.is_empty() && !queue.closed, IDLE);
            queue.idle -= 1;
            if waited.timed_out() && queue.turns.is_empty() {
                break;
            }
        }
        queue.threads -= 1;
    }
}

impl Queue {
    fn push(&mut self, tenant: &TenantName, job: Job) -> bool {
        let jobs = self.jobs.entry(tenant.clone()).or_default();
        if jobs.len() >= WAITING {
            return false;
        }
        jobs.push_back(job);
        if jobs.len() == 1 {
            self.turns.push_back(tenant.clone());
        }
        true
    }

    /// One of the tenant whose turn it is, which then waits for all others with work.
    fn next(&mut self) -> Option<Job> {
        let tenant = self.turns.pop_front()?;
        let jobs = self.jobs.get_mut(&tenant)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.jobs.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn tenant(name: &str) -> TenantName {
        name.try_into().unwrap()
    }

    #[test]
    fn tenants_take_turns() {
        let mut queue = Queue::default();
        let (ran, order) = mpsc::channel();
        for name in ["a", "a", "a", "b", "c"] {
            let ran = ran.clone();
            assert!(queue.push(&tenant(name), Box::new(move || ran.send(name).unwrap())));
        }
        while let Some(job) = queue.next() {
            job();
        }
        drop(ran);
        assert_eq!(order.iter().collect::<Vec<_>>(), ["a", "b", "c", "a", "a"]);
        assert!(queue.jobs.is_empty());
    }

    #[tokio::test]
    async fn a_tenant_with_too_much_work_is_refused_and_no_other() {
        let pool = PolicyPool::default();
        let (begun, is_begun) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let ended = Arc::new(Mutex::new(ended));
        let threads = pool.shared.most_threads;
        for _ in 0..threads {
            let (begun, ended) = (begun.clone(), ended.clone());
            pool.shared.add(
                &tenant("hostile"),
                Box::new(move || {
                    begun.send(()).unwrap();
                    let _ = ended.lock().recv();
                }),
            );
        }
        is_begun.recv().unwrap(); // one holds the lock and waits; any others wait for the lock
        while pool.shared.queue.lock().jobs.contains_key(&tenant("hostile")) {
            tokio::task::yield_now().await;
        }
        for _ in 0..WAITING {
            assert!(pool.shared.add(&tenant("hostile"), Box::new(|| {})));
        }
        assert_eq!(pool.run(&tenant("hostile"), || ()).await, Err(Busy));
        let other = tenant("other");
        let mut waits = std::pin::pin!(pool.run(&other, || 7));
        assert!(futures_util::poll!(waits.as_mut()).is_pending(), "it was taken in");
        drop(end);
        assert_eq!(waits.await, Ok(7));
    }
}
