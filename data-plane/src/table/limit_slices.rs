//! What this node may spend of each limit, and what it asks a replica for.
//!
//! A request takes from a [`Slice`] under a short lock of its limit alone. Where nothing is left,
//! the stream asks the replica, and the request waits for the answer, for [`PATIENCE`] at most. The
//! rules are in `seks_limits`.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use dashmap::DashMap;
use parking_lot::Mutex;
use seks_lease::BootInstant;
use seks_limits::{Grant, Limit, Quantity, Reserved, Slice, Take};
use seks_policy::AppliedLimit;
use seks_proto::wire;
use seks_types::id::{AgentName, PolicyId, TenantName};
use tokio::{sync::Notify, time::timeout};

use super::TokenEntry;

/// How long a request waits for a slice. A replica answers within a round trip and a write of its
/// store.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same for a limit in shadow mode, which must not delay much.
const SHADOW_PATIENCE: Duration = Duration::from_millis(100);
/// Limits that are kept. Above it, those whose window has ended are dropped.
const MAX_IDLE: usize = 1024;
/// Questions that wait for a stream. More of them are asked again by the requests that need them.
const MAX_QUESTIONS: usize = 1024;

/// Whose budget of which limit. A limit that was changed is another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    tenant: TenantName,
    name: PolicyId,
    agent: Option<AgentName>,
    limit: Limit,
}

#[derive(Default)]
struct State {
    slice: Mutex<Slice>,
    concurrent: AtomicU64,
    news: Notify,
}

/// A question that a replica is to answer.
#[derive(Clone, Debug)]
struct Question {
    key: Key,
    state: Arc<State>,
    asked: u64,
    wanted: u64,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

/// Why a request is over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverLimit {
    /// The budget of the window is spent. The window ends after this time.
    Spent(Duration),
    /// So many requests are in flight at this node already.
    Concurrent,
    /// It is a limit of money, and this node has no prices.
    NoPrices,
    /// No replica has answered: this node is cut off, or its replica has no store.
    Unanswered,
}

/// A request that counts for a limit of concurrent requests until this is dropped.
pub struct ConcurrentSlot(Arc<State>);

impl Drop for ConcurrentSlot {
    fn drop(&mut self) {
        self.0.concurrent.fetch_sub(1, Relaxed);
    }
}

/// What a request has taken of a limit.
pub enum Taken {
    /// From the window's budget. What counts requests is not given back when the request ends.
    Counted(Counted),
    /// A place among those in flight.
    Slot(ConcurrentSlot),
}

/// A request, counted: for one, or for what was reserved for its answer.
pub struct Counted {
    state: Arc<State>,
    quantity: Quantity,
    reserved: Reserved,
    /// The node's clock.
    started: BootInstant,
}

impl Counted {
    /// What it counts.
    #[must_use]
    pub fn quantity(&self) -> Quantity {
        self.quantity
    }

    /// How much was reserved.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.reserved.amount
    }

    /// The answer has ended, and used so much.
    pub fn settle(self, used: u64) {
        self.state.slice.lock().settle(millis_since(self.started), self.reserved, used);
    }
}

/// Milliseconds of a clock that is never set, from 1.
fn millis_since(started: BootInstant) -> u64 {
    u64::try_from(BootInstant::now().since(started).as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// All limits that this node has seen requests for.
pub struct LimitSlices {
    states: DashMap<Key, Arc<State>>,
    questions: Mutex<VecDeque<Question>>,
    asked: Mutex<Vec<Question>>,
    news: Notify,
    started: BootInstant,
    refused: AtomicU64,
    shadowed: AtomicU64,
}

impl Default for LimitSlices {
    fn default() -> Self {
        Self {
            states: DashMap::new(),
            questions: Mutex::default(),
            asked: Mutex::default(),
            news: Notify::new(),
            started: BootInstant::now(),
            refused: AtomicU64::new(0),
            shadowed: AtomicU64::new(0),
        }
    }
}

impl LimitSlices {
    fn now(&self) -> u64 {
        millis_since(self.started)
    }

    /// Counts `amount` for a limit of `token`'s agent: 1 for a request, or what is reserved for
    /// its answer. A limit of concurrent requests counts one place.
    ///
    /// # Errors
    /// [`OverLimit`]: nothing was taken.
    pub async fn take(&self, token: &TokenEntry, applied: &AppliedLimit, amount: u64) -> Result<Taken, OverLimit> {
        let key = Key {
            tenant: token.tenant().clone(),
            name: applied.id.clone(),
            agent: applied.limit.each_agent.then(|| token.agent_name().clone()),
            limit: applied.limit,
        };
        let state = self.state(&key);
        match applied.limit.quantity {
            Quantity::Concurrent => {
                let free = |count: u64| (count < applied.limit.amount).then_some(count + 1);
                let entered = state.concurrent.fetch_update(Relaxed, Relaxed, free);
                entered.map(|_| Taken::Slot(ConcurrentSlot(state))).map_err(|_| OverLimit::Concurrent)
            }
            Quantity::Requests | Quantity::Tokens | Quantity::Money => {
                let patience = if applied.shadow { SHADOW_PATIENCE } else { PATIENCE };
                let waiting = timeout(patience, self.take_counted(key, &state, amount));
                waiting.await.unwrap_or(Err(OverLimit::Unanswered)).map(Taken::Counted)
            }
        }
    }

    async fn take_counted(&self, key: Key, state: &Arc<State>, amount: u64) -> Result<Counted, OverLimit> {
        loop {
            let news = state.news.notified();
            let now = self.now();
            let taken = state.slice.lock().take(now, amount);
            let (ask, reserved) = match taken {
                Take::Taken { ask, reserved } => (ask, Some(reserved)),
                Take::Wait { ask } => (ask, None),
                Take::Spent { until } => {
                    return Err(OverLimit::Spent(Duration::from_millis(until.saturating_sub(now))));
                }
            };
            if let Some(wanted) = ask {
                self.ask(Question { key: key.clone(), state: state.clone(), asked: now, wanted });
            }
            if let Some(reserved) = reserved {
                let quantity = key.limit.quantity;
                return Ok(Counted { state: state.clone(), quantity, reserved, started: self.started });
            }
            news.await;
        }
    }

    /// What was taken for a request that is not sent goes back.
    pub fn give_back(&self, taken: Taken) {
        if let Taken::Counted(Counted { state, reserved, .. }) = taken {
            state.slice.lock().give_back(self.now(), reserved);
        }
    }

    fn state(&self, key: &Key) -> Arc<State> {
        if let Some(state) = self.states.get(key) {
            return state.clone();
        }
        if self.states.len() >= MAX_IDLE {
            let now = self.now();
            // What a request holds is not dropped: its slot has to be found again.
            self.states.retain(|_, state| Arc::strong_count(state) > 1 || !state.slice.lock().is_idle(now));
        }
        self.states.entry(key.clone()).or_default().clone()
    }

    fn ask(&self, question: Question) {
        let mut questions = self.questions.lock();
        if questions.len() < MAX_QUESTIONS {
            questions.push_back(question);
            self.news.notify_one();
        }
    }

    /// The next question for the replica; waits for it. Dropped while it waits, it has taken
    /// nothing.
    pub(crate) async fn next_question(&self) -> wire::LimitQuestion {
        loop {
            let news = self.news.notified();
            if let Some(question) = self.questions.lock().pop_front() {
                let message = question.message();
                let mut asked = self.asked.lock();
                asked.retain(|earlier| earlier.key != question.key); // its answer is late, or lost
                asked.push(question);
                return message;
            }
            news.await;
        }
    }

    /// A replica has answered.
    pub(crate) fn answered(&self, answer: &wire::LimitSlice) {
        let question = {
            let mut asked = self.asked.lock();
            let is = |question: &Question| {
                question.asked == answer.asked_ms
                    && question.key.name.as_str() == answer.limit
                    && question.key.tenant.as_str() == answer.tenant
                    && question.key.agent.as_ref().map_or("", AgentName::as_str) == answer.agent
            };
            asked.iter().position(is).map(|at| asked.swap_remove(at))
        };
        let Some(question) = question else { return };
        let grant = Grant {
            wanted: question.wanted,
            amount: answer.amount,
            window: answer.window,
            ends_in: answer.ends_in_ms,
            again_in: answer.again_in_ms,
        };
        question.state.slice.lock().granted(self.now(), question.asked, grant);
        question.state.news.notify_waiters();
    }

    /// The stream has ended: what was asked on it is asked again.
    pub(crate) fn stream_ended(&self) {
        for question in self.asked.lock().drain(..) {
            question.state.slice.lock().forget_question();
            question.state.news.notify_waiters();
        }
    }

    /// A request was refused, or would have been in shadow mode.
    pub(crate) fn count_over(&self, shadow: bool) {
        if shadow { &self.shadowed } else { &self.refused }.fetch_add(1, Relaxed);
    }

    /// Requests that were refused, and those that would have been.
    pub(crate) fn over(&self) -> (u64, u64) {
        (self.refused.load(Relaxed), self.shadowed.load(Relaxed))
    }
}

impl Question {
    fn message(&self) -> wire::LimitQuestion {
        let Key { tenant, name, agent, limit } = &self.key;
        wire::LimitQuestion {
            tenant: tenant.to_string(),
            limit: name.to_string(),
            agent: agent.as_ref().map(ToString::to_string).unwrap_or_default(),
            text: limit.to_string(),
            wanted: self.wanted,
            asked_ms: self.asked,
        }
    }
}
