//! Threads that parse, validate and try out policies: few, of low priority, and shared fairly
//! between tenants.
//!
//! Cedar needs up to seconds of CPU for a file of policies. None of that runs on the threads of a
//! runtime, where leases, revocations or other operators' calls would wait for it. Each tenant has
//! a queue; the queues take turns. A call that is cancelled leaves its queue. A tenant runs on half
//! of the threads at most, so that another tenant finds one.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::{sync::oneshot, time::timeout};

/// Jobs of one operator that are queued or running.
const MAX_OF_OPERATOR: usize = 4;
/// Jobs of one tenant that are queued or running. Each holds up to 1 MiB of policies.
const MAX_OF_TENANT: usize = 16;
/// Jobs of all tenants that are queued or running.
const MAX_IN_ALL: usize = 128;
/// A caller waits this long for its turn and the result.
const DEADLINE: Duration = Duration::from_secs(30);
/// Fewest and most threads; between them as many as there are cores.
const THREADS: (usize, usize) = (2, 4);
/// Added to the threads' nice value: under contention they get a tenth of what others get
/// (`sched(7)`).
#[cfg(target_os = "linux")]
const NICE: i32 = 10;
/// When a refused caller may try again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why work on policies is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyWorkError {
    /// The operator has as many as it may.
    #[error("this operator has {MAX_OF_OPERATOR} calls that check policies, which is the limit")]
    Operator,
    /// The tenant has as many as it may.
    #[error("the tenant has {MAX_OF_TENANT} calls that check policies, which is the limit")]
    Tenant,
    /// The replica has as many as it can.
    #[error("this replica has {MAX_IN_ALL} calls that check policies, which is the limit")]
    Replica,
    /// It wasn't done in time.
    #[error("the policies were not checked within {} s: nothing was changed", DEADLINE.as_secs())]
    Late,
    /// It has panicked, or the control plane stops.
    #[error("the policies could not be checked")]
    Failed,
}

/// Whose work it is.
#[derive(Clone, Debug)]
pub(crate) struct Requester {
    pub(crate) tenant: String,
    pub(crate) operator: String,
}

/// Where work on policies is done.
pub(crate) enum PolicyRun<'a> {
    /// For tools and tests, which serve no clients.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests call the registry without an admin API"))]
    Here,
    /// On the threads for it.
    On(&'a PolicyWorkers, Requester),
}

impl PolicyRun<'_> {
    /// Does `work`.
    ///
    /// # Errors
    /// [`PolicyWorkError`]; `work` may go on running after [`PolicyWorkError::Late`].
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PolicyWorkError> {
        match self {
            Self::Here => Ok(work()),
            Self::On(workers, requester) => workers.run(requester, work).await,
        }
    }
}

/// The threads. Cheap to clone; they end with the last clone, after what they are at.
#[derive(Clone)]
pub struct PolicyWorkers {
    shared: Arc<Shared>,
    _stop: Arc<Stop>,
}

impl PolicyWorkers {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the operating system has none to give.
    pub fn start() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(THREADS.0, NonZero::get);
        Self::with_threads(cores.clamp(THREADS.0, THREADS.1))
    }

    fn with_threads(threads: usize) -> io::Result<Self> {
        let state = State { share: (threads / 2).max(1), ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let workers = Self { shared: shared.clone(), _stop: Arc::new(Stop(shared.clone())) };
        for _ in 0..threads {
            let shared = shared.clone();
            thread::Builder::new().name("seks-policies".into()).spawn(move || work(&shared))?;
        }
        Ok(workers)
    }

    async fn run<T: Send + 'static>(
        &self,
        requester: &Requester,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PolicyWorkError> {
        let (done, outcome) = oneshot::channel();
        let _queued = self.enqueue(requester, move || drop(done.send(work())))?; // dropped: it leaves the queue
        match timeout(DEADLINE, outcome).await {
            Ok(outcome) => outcome.map_err(|_| PolicyWorkError::Failed),
            Err(_) => Err(PolicyWorkError::Late),
        }
    }

    fn enqueue(&self, requester: &Requester, work: impl FnOnce() + Send + 'static) -> Result<Queued, PolicyWorkError> {
        let Requester { tenant, operator } = requester;
        let mut state = self.shared.lock();
        if count(&state.of_operator, operator) >= MAX_OF_OPERATOR {
            return Err(PolicyWorkError::Operator);
        }
        if count(&state.of_tenant, tenant) >= MAX_OF_TENANT {
            return Err(PolicyWorkError::Tenant);
        }
        if state.of_tenant.values().sum::<usize>() >= MAX_IN_ALL {
            return Err(PolicyWorkError::Replica);
        }
        *state.of_operator.entry(operator.clone()).or_default() += 1;
        *state.of_tenant.entry(tenant.clone()).or_default() += 1;
        state.last += 1;
        let id = state.last;
        let slot = Slot { shared: self.shared.clone(), requester: requester.clone() };
        state.queues.entry(tenant.clone()).or_default().push_back(Job { id, work: Box::new(work), slot });
        drop(state);
        self.shared.changed.notify_one();
        Ok(Queued { shared: self.shared.clone(), tenant: tenant.clone(), id })
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

#[derive(Default)]
struct State {
    /// Jobs that wait, by tenant. None is empty.
    queues: BTreeMap<String, VecDeque<Job>>,
    /// Jobs that run, by tenant.
    running: HashMap<String, usize>,
    /// Jobs that wait or run.
    of_tenant: HashMap<String, usize>,
    of_operator: HashMap<String, usize>,
    /// Threads that one tenant may keep busy.
    share: usize,
    /// The tenant whose turn was last: the next one in order is first.
    turn: String,
    last: u64,
    stopped: bool,
}

impl State {
    /// The next job in turn of a tenant that may run one more.
    fn next(&mut self) -> Option<(String, Job)> {
        let may = |(tenant, _): &(&String, &VecDeque<Job>)| count(&self.running, tenant) < self.share;
        let after = (std::ops::Bound::Excluded(self.turn.clone()), std::ops::Bound::Unbounded);
        let next = self.queues.range(after).find(may).or_else(|| self.queues.iter().find(may));
        let tenant = next?.0.clone();
        let queue = self.queues.get_mut(&tenant)?;
        let job = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&tenant);
        }
        *self.running.entry(tenant.clone()).or_default() += 1;
        self.turn.clone_from(&tenant);
        Some((tenant, job))
    }
}

struct Job {
    id: u64,
    work: Box<dyn FnOnce() + Send>,
    slot: Slot,
}

/// A job's place among those of its tenant and operator, until it is done or has left.
struct Slot {
    shared: Arc<Shared>,
    requester: Requester,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        release(&mut state.of_operator, &self.requester.operator);
        release(&mut state.of_tenant, &self.requester.tenant);
    }
}

/// Takes the job out of its queue when the caller has gone.
struct Queued {
    shared: Arc<Shared>,
    tenant: String,
    id: u64,
}

impl Drop for Queued {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let Some(queue) = state.queues.get_mut(&self.tenant) else { return };
        let left = queue.iter().position(|job| job.id == self.id).and_then(|at| queue.remove(at));
        if queue.is_empty() {
            state.queues.remove(&self.tenant);
        }
        drop(state); // the job's slot takes the lock as well
        drop(left);
    }
}

/// Ends the threads.
struct Stop(Arc<Shared>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

/// What each thread does.
fn work(shared: &Shared) {
    #[cfg(target_os = "linux")] // elsewhere it would be the whole process
    let _ = rustix::process::nice(NICE); // without it they compete as equals
    let mut state = shared.lock();
    loop {
        if state.stopped {
            return;
        }
        let Some((tenant, Job { work, slot, .. })) = state.next() else {
            shared.changed.wait(&mut state);
            continue;
        };
        drop(state);
        let _ = catch_unwind(AssertUnwindSafe(work)); // the caller hears that there is no outcome
        drop(slot);
        state = shared.lock();
        release(&mut state.running, &tenant);
        shared.changed.notify_all(); // the tenant's next one may run, on any thread
    }
}

fn count(counts: &HashMap<String, usize>, name: &str) -> usize {
    counts.get(name).copied().unwrap_or_default()
}

fn release(counts: &mut HashMap<String, usize>, name: &str) {
    if let Some(count) = counts.get_mut(name) {
        *count -= 1;
        if *count == 0 {
            counts.remove(name);
        }
    }
}

#[cfg(test)]
mod tests;
