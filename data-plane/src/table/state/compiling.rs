//! Policies are compiled beside the stream, by a few threads that all tables of the process share.
//!
//! Compiling a tenant's policies can take seconds. The stream that brings them also brings every
//! other tenant's revocations, so it only hands them over. **From then on, and until they are
//! compiled, nothing is permitted to the tenant**: a request waits for them
//! ([`TenantState::policies_or_wait`]) and is refused when that takes too long. That is why the
//! revision may be acknowledged at once. What an acknowledgement says is that no request begins any
//! more under the policies before: a new `forbid` is in force, and a new `permit` is for the first
//! request that asks.
//!
//! Tenants take turns, policy by policy, so the longest wait of a small tenant doesn't depend on
//! how much another has to compile.

use std::{
    collections::VecDeque,
    sync::{Arc, LazyLock, Weak},
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use seks_policy::{Compilation, Policies, PolicyError, STACK_BYTES};
use seks_proto::wire;
use seks_runtime::lower_thread_priority;
use tokio::sync::Notify;

use super::TenantState;

/// Threads that compile: one tenant's policies never take more than one of them.
const THREADS: usize = 2;
/// A tenant's turn. One policy is compiled whole, which may take longer: 20 ms for the most complex
/// that is accepted.
const TURN: Duration = Duration::from_millis(2);
/// Time that compiling a tenant's policies may take in all its turns: ten times what a full quota
/// of policies was measured to take. Past it everything is denied to the tenant.
const DEADLINE: Duration = Duration::from_secs(60);
/// A thread without work ends after this.
const IDLE: Duration = Duration::from_secs(10);

/// Which policies a tenant waits for.
#[derive(Default)]
pub(super) struct Compiling {
    state: Mutex<State>,
    done: Notify,
}

#[derive(Default)]
struct State {
    /// Grows with every change of the policies: a compilation that began before is of no use.
    ticket: u64,
    pending: bool,
    /// What was compiled last. Its parts are taken over where they haven't changed.
    last: Option<Arc<Policies>>,
}

impl TenantState {
    /// These policies count from now on.
    pub(in crate::table) fn put_policies(&self, policies: Arc<Policies>) {
        let mut state = self.compiling.state.lock();
        self.settle(&mut state, Some(policies));
    }

    /// No policy counts from now on: everything is denied.
    pub(in crate::table) fn remove_policies(&self) {
        let mut state = self.compiling.state.lock();
        self.settle(&mut state, None);
    }

    /// What a compilation may take over from: the policies of the same tenant in another generation
    /// of the table.
    pub(in crate::table) fn compile_after(&self, other: &Self) {
        let last = other.compiling.state.lock().last.clone();
        self.compiling.state.lock().last = last;
    }

    /// These policies count as soon as they are compiled, and until then none.
    pub(in crate::table) fn compile_policies(self: &Arc<Self>, policies: Vec<wire::Policy>) {
        let mut state = self.compiling.state.lock();
        if let Some(same) = state.last.clone().filter(|last| last.have_same_text(&policies)) {
            return self.settle(&mut state, Some(same));
        }
        let replaces = std::mem::replace(&mut state.pending, true);
        state.ticket += 1;
        self.policies.remove();
        self.changed();
        let compilation = Compilation::new(policies, state.last.as_deref());
        let job = Job { slot: Arc::downgrade(self), ticket: state.ticket, compilation, spent: Duration::ZERO };
        drop(state);
        if compiles_at_once() {
            run(job, Duration::MAX);
        } else {
            COMPILER.add(job, replaces);
        }
    }

    /// The tenant's policies; while they are compiled, those that come of it, for which it waits
    /// until `patience` has passed. `None` denies.
    pub async fn policies_or_wait(&self, patience: Duration) -> Result<Option<Arc<Policies>>, StillCompiling> {
        // What is there is enough nearly always: no lock.
        if let Some(policies) = self.policies.get() {
            return Ok(Some(policies));
        }
        let wait = async {
            loop {
                let mut done = std::pin::pin!(self.compiling.done.notified());
                done.as_mut().enable();
                if !self.compiling.state.lock().pending {
                    return self.policies.get();
                }
                done.await;
            }
        };
        tokio::time::timeout(patience, wait).await.map_err(|_| StillCompiling)
    }

    fn settle(&self, state: &mut State, policies: Option<Arc<Policies>>) {
        state.ticket += 1;
        state.pending = false;
        state.last.clone_from(&policies);
        match policies {
            Some(policies) => self.policies.put_arc(policies),
            None => self.policies.remove(),
        }
        self.changed();
        self.compiling.done.notify_waiters();
    }

    /// Whether it isn't known yet what its policies say.
    pub fn is_compiling(&self) -> bool {
        self.compiling.state.lock().pending
    }

    fn is_waiting_for(&self, ticket: u64) -> bool {
        let state = self.compiling.state.lock();
        state.pending && state.ticket == ticket
    }

    fn compiled(&self, ticket: u64, policies: Option<Arc<Policies>>) {
        let mut state = self.compiling.state.lock();
        if state.pending && state.ticket == ticket {
            self.settle(&mut state, policies);
        }
    }
}

/// The tenant's policies aren't compiled yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tenant's policies are still being compiled")]
pub struct StillCompiling;

/// A simulated host has one thread.
fn compiles_at_once() -> bool {
    #[cfg(feature = "simulation")]
    if seks_simulated_host::is_active() {
        return true;
    }
    false
}

/// A tenant's policies, to be compiled for the slot that waits for them.
struct Job {
    slot: Weak<TenantState>,
    ticket: u64,
    compilation: Compilation,
    spent: Duration,
}

/// Compiles for at most `turn`. Gives the job back when more is to be done.
fn run(mut job: Job, turn: Duration) -> Option<Job> {
    let slot = job.slot.upgrade().filter(|slot| slot.is_waiting_for(job.ticket))?;
    let begun = Instant::now();
    let outcome = loop {
        match job.compilation.compile_next() {
            Ok(None) if job.spent + begun.elapsed() > DEADLINE => {
                let reason = format!("they take longer than {DEADLINE:?} to compile");
                break Err(PolicyError { line: 1, reason });
            }
            Ok(None) if begun.elapsed() >= turn => {
                job.spent += begun.elapsed();
                return Some(job);
            }
            Ok(None) => {}
            Ok(Some(policies)) => break Ok(policies),
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = &outcome {
        tracing::error!(seks.tenant = %slot.name(), %error, "policies can't be compiled here: everything is denied");
    }
    slot.compiled(job.ticket, outcome.ok().map(Arc::new));
    None
}

static COMPILER: LazyLock<Arc<Compiler>> = LazyLock::new(Arc::default);

#[derive(Default)]
struct Compiler {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Compiler {
    /// `replaces`: there may be a job of the same slot, which is of no use any more.
    fn add(self: &Arc<Self>, job: Job, replaces: bool) {
        let mut queue = self.queue.lock();
        if replaces {
            queue.jobs.retain(|other| !Weak::ptr_eq(&other.slot, &job.slot));
        }
        queue.jobs.push_back(job);
        if queue.idle == 0 && queue.threads < THREADS {
            let own = Arc::clone(self);
            let thread = thread::Builder::new().name("seks-policies".into()).stack_size(STACK_BYTES);
            match thread.spawn(move || own.work()) {
                Ok(_) => queue.threads += 1,
                // Denied until a thread can be had: the next job tries again.
                Err(error) => tracing::error!(%error, "no thread to compile policies"),
            }
        }
        drop(queue);
        self.more.notify_one();
    }

    fn work(&self) {
        lower_thread_priority();
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                let rest = run(job, TURN);
                queue = self.queue.lock();
                queue.jobs.extend(rest);
                continue;
            }
            queue.idle += 1;
            let waited = self.more.wait_while_for(&mut queue, |queue| queue.jobs.is_empty(), IDLE);
            queue.idle -= 1;
            if waited.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str) -> Arc<TenantState> {
        Arc::new(TenantState::new(name.try_into().unwrap()))
    }

    /// Policies that take some milliseconds each, and more in a debug build.
    fn many(count: usize) -> Vec<wire::Policy> {
        let policy = |n: usize| {
            let id = format!("p{n}");
            let paths: Vec<_> = (0..100).map(|i| format!("context.path like \"/v{n}/{i}/*\"")).collect();
            let text = format!("@id(\"{id}\") permit (principal, action, resource) when {{ {} }};", paths.join(" || "));
            wire::Policy { id, text, ..wire::Policy::default() }
        };
        (0..count).map(policy).collect()
    }

    #[tokio::test]
    async fn nothing_is_permitted_while_policies_compile_and_a_request_waits_for_them() {
        let slot = slot("acme");
        assert!(slot.policies_or_wait(Duration::MAX).await.unwrap().is_none(), "there is nothing to wait for");
        slot.put_policies(Arc::default());
        slot.compile_policies(many(8));
        assert!(slot.policies.get().is_none(), "the policies before don't count any more");
        assert_eq!(slot.policies_or_wait(Duration::ZERO).await.err(), Some(StillCompiling));
        let compiled = slot.policies_or_wait(Duration::from_secs(60)).await.unwrap().unwrap();
        assert!(compiled.have_same_text(&many(8)));
    }

    #[tokio::test]
    async fn the_newest_policies_count_however_long_those_before_take() {
        let slot = slot("acme");
        for count in [8, 12, 3] {
            slot.compile_policies(many(count));
        }
        assert!(slot.policies_or_wait(Duration::from_secs(60)).await.unwrap().unwrap().have_same_text(&many(3)));
        slot.compile_policies(many(8));
        slot.remove_policies();
        assert!(slot.policies_or_wait(Duration::from_secs(60)).await.unwrap().is_none(), "removed while they compile");
        slot.compile_policies(vec![wire::Policy { id: "x".into(), text: "?".into(), ..wire::Policy::default() }]);
        assert!(slot.policies_or_wait(Duration::from_secs(60)).await.unwrap().is_none(), "no policies");
    }

    #[tokio::test]
    async fn a_small_tenant_does_not_wait_for_large_ones() {
        let (large, small) = ([slot("a"), slot("b"), slot("c")], slot("d"));
        large.iter().for_each(|slot| slot.compile_policies(many(30)));
        small.compile_policies(many(1));
        assert!(small.policies_or_wait(Duration::from_secs(60)).await.unwrap().is_some());
        assert!(large.iter().any(|slot| slot.policies.get().is_none()), "the large ones had been done before");
    }

    #[tokio::test]
    async fn unchanged_policies_count_at_once() {
        let (before, after) = (slot("acme"), slot("acme"));
        before.compile_policies(many(2));
        before.policies_or_wait(Duration::from_secs(60)).await.unwrap();
        after.compile_after(&before);
        after.compile_policies(many(2));
        assert!(after.policies.get().is_some());
    }
}
