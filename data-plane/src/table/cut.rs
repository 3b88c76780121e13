//! Cutting requests in flight. A request registers before its last check. An earlier revocation is
//! found by that check, and a later one wakes the request's task.
//!
//! When a policy, agent, service or credential changes, the requests that depend on the record are
//! decided again. A request that the new table does not permit ends before the node acknowledges
//! the change.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use seks_types::{id::ServiceName, token::Digest};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Found, Table,
    entry::{CredentialEntry, ServiceEntry},
    token::{Grant, TokenEntry},
};

/// A version that no tenant has: nothing was decided on it yet.
const NEVER: u64 = 0;

/// Why a request may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutReason {
    /// The token was revoked, replaced, or is gone from the table.
    TokenRevoked,
    /// Its agent was disabled or deleted, be it only for a moment.
    AgentDisabled,
    /// The service was deleted, or gives no leave any more for what passes through.
    ServiceRemoved,
    /// The service leads elsewhere now: to another origin, by another CA, or no longer to a private
    /// address or a WebSocket.
    ServiceChanged,
    /// The credential was deleted. One that was merely replaced lets requests in flight finish.
    CredentialRemoved,
    /// The credential was replaced, and the time that requests have to finish with it has passed.
    CredentialReplaced,
    /// No policy permits the request any more, or one forbids it.
    PolicyDenied,
    /// The node's lease has run out.
    LeaseExpired,
}

impl fmt::Display for CutReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TokenRevoked => "the token was revoked",
            Self::AgentDisabled => "the agent was disabled",
            Self::ServiceRemoved => "the service was removed",
            Self::ServiceChanged => "the service leads elsewhere now",
            Self::CredentialRemoved => "the credential was removed",
            Self::CredentialReplaced => "the credential was replaced",
            Self::PolicyDenied => "the policies deny it",
            Self::LeaseExpired => "the node's lease ran out",
        })
    }
}

/// What a request was decided on, beside its token.
pub trait Reevaluate: Send + Sync {
    /// Whether the request may continue under the present records.
    fn reevaluate(&self, token: &TokenEntry, service: &ServiceEntry) -> Verdict;
}

/// What came of a request that was decided again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Holds,
    /// It may go on for this long: its credential was replaced.
    HoldsFor(Duration),
    /// It has to end.
    Withdrawn(CutReason),
    /// The tenant's policies are being compiled: it waits, and nothing of it moves, until they are.
    Undecided,
}

/// One request's hold on what it was permitted. A future that is ready when the request must end;
/// it has to be polled by the task that would end it.
pub struct Cut {
    table: Arc<Table>,
    digest: Digest,
    held: HeldRights,
    /// How to decide again.
    decided: Option<Box<dyn Reevaluate>>,
    /// It waits for a decision.
    open: bool,
    /// When it has to end because its credential was replaced, and the timer for that.
    ends: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    registered: Option<(usize, Waker)>,
}

/// What the request was permitted, and by which generation of the table.
struct HeldRights {
    generation: u64,
    /// The tenant's version at the last decision.
    version: u64,
    token: Arc<TokenEntry>,
    grant: Grant,
    agent_cuts: u32,
    service_cuts: u32,
    credential_cuts: u32,
}

impl HeldRights {
    fn new(generation: u64, token: Arc<TokenEntry>, service: &ServiceName) -> Option<Self> {
        // Before anything is read that it is the version of.
        let version = token.tenant_state().version();
        let grant = token.grant(service.as_str())?.clone();
        let (agent_cuts, service_cuts) = (token.agent.agent.cuts(), grant.service.cuts());
        let credential_cuts = grant.credential.cuts();
        Some(Self { generation, version, token, grant, agent_cuts, service_cuts, credential_cuts })
    }

    fn reason(&self) -> Option<CutReason> {
        let agent = &self.token.agent.agent;
        if self.token.is_cut() {
            Some(CutReason::TokenRevoked)
        } else if agent.cuts() != self.agent_cuts || agent.get().is_none_or(|a| a.disabled) {
            Some(CutReason::AgentDisabled)
        } else if self.grant.service.cuts() != self.service_cuts || self.grant.service.is_empty() {
            Some(CutReason::ServiceRemoved)
        } else if self.grant.credential.cuts() != self.credential_cuts || self.grant.credential.is_empty() {
            Some(CutReason::CredentialRemoved)
        } else {
            None
        }
    }
}

impl Cut {
    pub(super) fn new(
        table: Arc<Table>,
        digest: Digest,
        token: Arc<TokenEntry>,
        service: &ServiceName,
    ) -> Option<Self> {
        // The token may be of an older generation than this number says; then it isn't what the
        // current one holds.
        let current = table.current();
        let generation = match table.find_in(&current, &digest) {
            Found::Token(now) if Arc::ptr_eq(&now, &token) => current.number(),
            _ => u64::MAX,
        };
        let held = HeldRights::new(generation, token, service)?;
        Some(Self { table, digest, held, decided: None, open: false, ends: None, timer: None, registered: None })
    }

    /// The request was decided on records of this [version](crate::table::TenantState::version),
    /// and `decided` decides again when they are of another.
    #[must_use]
    pub fn with_decision(mut self, version: u64, decided: Box<dyn Reevaluate>) -> Self {
        (self.held.version, self.decided) = (version, Some(decided));
        self
    }

    /// What time it is, in unix seconds, for what expires.
    #[must_use]
    pub fn unix_now(&self) -> i64 {
        self.table.wall.unix_now()
    }

    /// Whether the request must wait, because it is not known yet whether it may continue. The task
    /// that polls the cut is woken then.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        self.open
    }

    /// Whether the records that the request was decided on are still the ones that look-ups find:
    /// one atomic load. Where they aren't, a request of which nothing was sent is decided again
    /// from the beginning.
    #[must_use]
    pub fn is_latest(&self) -> bool {
        self.held.token.tenant_state().version() == self.held.version
    }

    /// The token that permits it.
    #[must_use]
    pub fn token(&self) -> &TokenEntry {
        &self.held.token
    }

    /// Whether the token's grant still leads to exactly this definition and this version of the
    /// credential.
    #[must_use]
    pub fn leads_to(&self, service: &ServiceEntry, credential: &CredentialEntry) -> bool {
        let grant = &self.held.grant;
        grant.service().is_some_and(|now| now.generation == service.generation)
            && grant.credential().is_some_and(|now| now.generation == credential.generation)
    }

    /// Why the request must end, if it must. A handful of atomic loads and one clock read.
    #[must_use]
    pub fn reason(&mut self) -> Option<CutReason> {
        if !self.table.lease.valid() {
            return Some(CutReason::LeaseExpired);
        }
        if (self.table.current.load().number() != self.held.generation || self.held.token.is_superseded())
            && let Err(reason) = self.move_to_current()
        {
            return Some(reason);
        }
        self.held.reason().or_else(|| self.decide_again()).or_else(|| self.has_ended())
    }

    fn has_ended(&self) -> Option<CutReason> {
        self.ends.filter(|ends| *ends <= Instant::now()).map(|_| CutReason::CredentialReplaced)
    }

    /// Decides again where a record has changed since the last decision.
    fn decide_again(&mut self) -> Option<CutReason> {
        let version = self.held.token.tenant_state().version();
        if version == self.held.version {
            return None;
        }
        self.open = false;
        if let Some(decided) = &self.decided {
            let Some(service) = self.held.grant.service() else { return Some(CutReason::ServiceRemoved) };
            match decided.reevaluate(&self.held.token, &service) {
                Verdict::Holds => {}
                Verdict::HoldsFor(grace) => {
                    self.ends.get_or_insert_with(|| Instant::now() + grace);
                }
                Verdict::Withdrawn(reason) => return Some(reason),
                Verdict::Undecided => {
                    self.open = true;
                    return None;
                }
            }
        }
        self.held.version = version;
        None
    }

    /// A new table was swapped in: holds on to the same rights in it, or finds them gone.
    fn move_to_current(&mut self) -> Result<(), CutReason> {
        if let Some(reason) = self.held.reason() {
            return Err(reason);
        }
        let current = self.table.current();
        let Found::Token(token) = self.table.find_in(&current, &self.digest) else {
            return Err(CutReason::TokenRevoked);
        };
        if token.id() != self.held.token.id() || token.agent_name() != self.held.token.agent_name() {
            return Err(CutReason::TokenRevoked);
        }
        let service = self.held.grant.service_name().clone();
        let mut held = HeldRights::new(current.number(), token, &service).ok_or(CutReason::TokenRevoked)?;
        held.version = NEVER;
        if held.grant.credential_name() != self.held.grant.credential_name() {
            return Err(CutReason::TokenRevoked);
        }
        let services = (self.held.grant.service(), held.grant.service());
        if let (Some(before), Some(after)) = services
            && before.loses_leave(&after)
        {
            return Err(CutReason::ServiceRemoved);
        }
        self.unregister();
        self.held = held;
        Ok(())
    }

    fn register(&mut self, waker: &Waker) {
        match &self.registered {
            Some((_, known)) if known.will_wake(waker) => {}
            known => {
                let key = known.as_ref().map(|(key, _)| *key);
                let key = self.held.token.agent.waiters.register(key, waker);
                self.registered = Some((key, waker.clone()));
            }
        }
    }

    fn unregister(&mut self) {
        if let Some((key, _)) = self.registered.take() {
            self.held.token.agent.waiters.remove(key);
        }
    }
}

impl Future for Cut {
    type Output = CutReason;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<CutReason> {
        loop {
            self.register(context.waker());
            if let Some(reason) = self.reason() {
                return Poll::Ready(reason);
            }
            // Following a swap gave the registration up.
            if self.registered.is_some() {
                let Some(ends) = self.ends else { return Poll::Pending };
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(ends)));
                ready!(timer.as_mut().poll(context));
            }
        }
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.unregister();
    }
}
