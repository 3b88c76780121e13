//! Cells that hold the current record of a name. A token points to its agent's cell and to those of
//! what it reaches. So a change of an agent is one store, not one for each token, and a request
//! finds everything with one hash look-up.

mod compiling;

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{
        AtomicU32, AtomicU64, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
};

use arc_swap::ArcSwapOption;
use seks_policy::Policies;
use seks_types::id::{AgentName, TenantName};

use self::compiling::Compiling;
pub use self::compiling::StillCompiling;
use super::{entry::AgentEntry, waiters::Waiters};

/// The place of one named record; empty while the record doesn't exist.
pub struct RecordCell<N, T> {
    name: N,
    value: ArcSwapOption<T>,
    /// Grows whenever rights are taken away; a request that began before compares.
    cuts: AtomicU32,
}

impl<N, T> RecordCell<N, T> {
    pub(super) fn new(name: N) -> Self {
        Self { name, value: ArcSwapOption::empty(), cuts: AtomicU32::new(0) }
    }

    /// Whose place it is.
    #[must_use]
    pub fn name(&self) -> &N {
        &self.name
    }

    /// The present record.
    #[must_use]
    pub fn get(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.value.load().is_none()
    }

    pub(super) fn put(&self, value: T) {
        self.value.store(Some(Arc::new(value)));
    }

    pub(super) fn put_arc(&self, value: Arc<T>) {
        self.value.store(Some(value));
    }

    pub(super) fn remove(&self) {
        self.value.store(None);
        self.cut();
    }

    pub(super) fn cut(&self) {
        self.cuts.fetch_add(1, SeqCst);
    }

    pub(super) fn cuts(&self) -> u32 {
        self.cuts.load(SeqCst)
    }
}

/// The requests in flight of a tenant.
pub(super) trait Requests: Send + Sync {
    /// Wakes all of them, so that each looks at what it was decided on.
    fn wake_all(&self);
}

/// A tenant: its name and policies, compiled or being compiled.
pub struct TenantState {
    pub(super) policies: RecordCell<TenantName, Policies>,
    compiling: Compiling,
    /// See [`version`](Self::version).
    version: AtomicU64,
    /// Requests under way.
    in_flight: AtomicUsize,
    /// Whose requests are woken when a record changes.
    pub(super) requests: OnceLock<Weak<dyn Requests>>,
}

/// Versions of tenants' records are unique in a process, over snapshots too.
fn next_version() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

impl TenantState {
    pub(super) fn new(name: TenantName) -> Self {
        Self {
            policies: RecordCell::new(name),
            compiling: Compiling::default(),
            version: AtomicU64::new(next_version()),
            requests: OnceLock::new(),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// Differs after any change of a record that a request of this tenant was decided on: policies,
    /// agents, services, credentials, or a new snapshot. A request takes it before it reads the
    /// first of them; where it is the same later, so are they. Tokens are not counted: a revoked
    /// one is marked itself.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(SeqCst)
    }

    /// A record has changed that requests are decided on: they are to be decided again. Call it
    /// after the change can be seen.
    pub(super) fn changed(&self) {
        self.changed_for_one();
        if let Some(requests) = self.requests.get().and_then(Weak::upgrade) {
            requests.wake_all();
        }
    }

    /// The same, where the caller wakes whom it concerns.
    pub(super) fn changed_for_one(&self) {
        self.version.store(next_version(), SeqCst);
    }

    /// Counts a request in. Returns how many there were before it. A new snapshot restarts the
    /// count.
    pub(crate) fn enter(&self) -> usize {
        self.in_flight.fetch_add(1, Relaxed)
    }

    /// Counts one out.
    pub(crate) fn leave(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Its name, unique in the tenant.
    #[must_use]
    pub fn name(&self) -> &TenantName {
        self.policies.name()
    }
}

/// An agent, its tenant, and the requests in flight that act for it.
pub struct AgentState {
    pub(super) tenant: Arc<TenantState>,
    pub(super) agent: RecordCell<AgentName, AgentEntry>,
    /// Woken by every change that may cut a request of this agent. A woken task checks for itself.
    pub(super) waiters: Waiters,
}

impl AgentState {
    pub(super) fn new(tenant: Arc<TenantState>, name: AgentName) -> Self {
        Self { tenant, agent: RecordCell::new(name), waiters: Waiters::default() }
    }
}
