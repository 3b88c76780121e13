//! Slices: what is left of a tenant's policies for one agent, one service and one method.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, BuildHasherDefault},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use cedar_policy::{Context, Request};
use dashmap::DashMap;
use seks_types::id::{AgentName, ServiceName};

use super::{
    Body, Call, Decision, PolicyError,
    budget::{CostBound, check_budget},
    cache::{self, Answer, DecisionCache, Question},
    condition::{Condition, Leaf, Truth},
    decide::{self, Plan, evaluate_with_cedar},
    head::{Agents, Services},
    identity_hasher::IdentityHasher,
    parse::CheckedPolicy,
    schema::{METHODS, action_index, vocabulary},
    subject::Subject,
};

/// Slices that a tenant keeps. A slice costs 1 to 10 KB; past this all are dropped and made anew as they are asked for.
const MAX_SLICES: usize = 8192;

/// Bytes that a tenant's plans take; past it they are dropped with their slices.
const MAX_PLAN_BYTES: usize = 32 * 1024 * 1024;
/// What a node of a plan's condition takes, its heap included.
const PLAN_NODE_BYTES: usize = 96;

/// A tenant's policies, compiled. The default has none, and so denies everything.
#[derive(Default)]
pub struct Policies {
    policies: Arc<[Arc<CheckedPolicy>]>,
    shared: Arc<Shared>,
    /// By a keyed hash of agent and service; an entry says itself whose it is.
    slices: DashMap<u64, Arc<PolicySlice>, BuildHasherDefault<IdentityHasher>>,
    hasher: foldhash::quality::RandomState,
}

/// What all slices of a tenant's policies have in common.
#[derive(Default)]
struct Shared {
    decisions: DecisionCache,
    /// What all plans take, in bytes.
    plan_bytes: AtomicUsize,
    bound: CostBound,
}

impl Policies {
    pub(super) fn from_checked(compiled: Vec<Arc<CheckedPolicy>>) -> Self {
        let shared = Shared { bound: CostBound::of_policies(&compiled), ..Shared::default() };
        Self { policies: compiled.into(), shared: shared.into(), ..Self::default() }
    }

    pub(super) fn checked(&self) -> &[Arc<CheckedPolicy>] {
        &self.policies
    }

    /// Refuses policies that may cost one request more than [`BUDGET`](super::BUDGET). A node compiles them nevertheless: what costs much there
    /// is decided apart from what serves requests ([`PolicySlice::needs_body_within`]).
    ///
    /// # Errors
    /// The costliest policy, its cost, and the budget.
    pub fn check_budget(&self) -> Result<(), PolicyError> {
        check_budget(self.policies.iter().map(|p| &**p))
    }

    /// The slice for an agent and a service, cached. `attributes` are the agent's: its tags, and its groups by the attribute
    /// `group` (`a,b`: in both).
    #[must_use]
    pub fn slice_for(
        &self,
        agent: &AgentName,
        attributes: &BTreeMap<String, String>,
        service: &ServiceName,
    ) -> Arc<PolicySlice> {
        let key = self.hasher.hash_one((agent, service));
        if let Some(slice) = self.slices.get(&key)
            && slice.subject.matches(agent, attributes, service)
        {
            return Arc::clone(&slice);
        }
        let slice = Arc::new(PolicySlice::new(self, agent, attributes, service));
        if self.slices.len() >= MAX_SLICES || self.shared.plan_bytes.load(Relaxed) > MAX_PLAN_BYTES {
            self.slices.clear();
            self.shared.plan_bytes.store(0, Relaxed);
        }
        self.slices.insert(key, Arc::clone(&slice));
        slice
    }
}

/// What decides for one agent and one service.
pub struct PolicySlice {
    policies: Arc<[Arc<CheckedPolicy>]>,
    shared: Arc<Shared>,
    subject: Subject,
    /// For each of [`METHODS`], and whether the token grants the service; made when first asked for.
    plans: [[OnceLock<Plan>; 2]; METHODS.len()],
}

impl PolicySlice {
    fn new(of: &Policies, agent: &AgentName, attributes: &BTreeMap<String, String>, service: &ServiceName) -> Self {
        Self {
            policies: Arc::clone(&of.policies),
            shared: Arc::clone(&of.shared),
            subject: Subject::new(agent.clone(), attributes.clone(), service.clone()),
            plans: Default::default(),
        }
    }

    /// Whether the body must be read before [`PolicySlice::decide`]: whether a policy's answer to this call hangs on it.
    /// `call.body` is not looked at.
    #[must_use]
    pub fn needs_body(&self, call: &Call<'_>) -> bool {
        let Some(plan) = self.plan_for(call).filter(|plan| plan.may_need_body()) else { return false };
        let unread = Call { body: Body::NotRead, ..call.clone() };
        let evaluate = || Answer::NeedsBody(plan.needs_body(&self.subject, &unread));
        match self.answer(plan, Question::NeedsBody, &unread, evaluate) {
            Answer::NeedsBody(needs) => needs,
            Answer::Decision(_) => true, // not what was asked
        }
    }

    /// Decides. Never fails: what can't be decided is denied.
    #[must_use]
    pub fn decide(&self, call: &Call<'_>) -> Decision {
        let Some(plan) = self.plan_for(call) else { return decide::denied() };
        if let Some(decision) = plan.constant() {
            return decision.clone();
        }
        match self.answer(plan, Question::Decide, call, || Answer::Decision(plan.decide(&self.subject, call))) {
            Answer::Decision(decision) => decision,
            Answer::NeedsBody(_) => decide::denied(), // not what was asked
        }
    }

    /// As [`Self::needs_body`], unless it may take longer than `limit`.
    #[must_use]
    pub fn needs_body_within(&self, limit: Duration, call: &Call<'_>) -> Option<bool> {
        let unread = || Call { body: Body::NotRead, ..call.clone() };
        (self.cost(call) <= limit || self.is_cached(Question::NeedsBody, &unread())).then(|| self.needs_body(call))
    }

    /// As [`Self::decide`], unless it may take longer than `limit`.
    #[must_use]
    pub fn decide_within(&self, limit: Duration, call: &Call<'_>) -> Option<Decision> {
        (self.cost(call) <= limit || self.is_cached(Question::Decide, call)).then(|| self.decide(call))
    }

    /// What deciding takes at most.
    fn cost(&self, call: &Call<'_>) -> Duration {
        let Some((method, granted)) = self.plan_index(call) else { return Duration::ZERO };
        match self.plan_cell(method, granted).and_then(OnceLock::get) {
            Some(plan) => plan.cost(call),
            None => self.shared.bound.plan + self.shared.bound.decide,
        }
    }

    /// Whether the answer is at hand: settled, or kept from before.
    fn is_cached(&self, question: Question, call: &Call<'_>) -> bool {
        let made = self.plan_index(call).and_then(|(method, granted)| self.plan_cell(method, granted)?.get());
        made.is_some_and(|plan| {
            plan.key(question, call).is_some_and(|key| self.shared.decisions.get(&key).is_some())
                || (question == Question::NeedsBody && !plan.may_need_body())
        })
    }

    /// From the answers that are kept, where that is worth it.
    fn answer(&self, plan: &Plan, question: Question, call: &Call<'_>, evaluate: impl FnOnce() -> Answer) -> Answer {
        let Some(key) = (plan.cost(call) > cache::MIN_CACHED_COST).then(|| plan.key(question, call)).flatten() else {
            return evaluate();
        };
        if let Some(known) = self.shared.decisions.get(&key) {
            return known;
        }
        let answer = evaluate();
        self.shared.decisions.insert(&key, answer.clone());
        answer
    }

    #[cfg(test)]
    pub(super) fn cached_bytes(&self) -> usize {
        self.shared.decisions.bytes()
    }

    /// `None`: the method is no action.
    fn plan_index(&self, call: &Call<'_>) -> Option<(usize, bool)> {
        Some((action_index(call.method)?, call.services.contains(&self.subject.service)))
    }

    fn plan_cell(&self, method: usize, granted: bool) -> Option<&OnceLock<Plan>> {
        self.plans.get(method)?.get(usize::from(granted))
    }

    fn plan_for(&self, call: &Call<'_>) -> Option<&Plan> {
        let (method, granted) = self.plan_index(call)?;
        Some(self.plan_cell(method, granted)?.get_or_init(|| self.make_plan(method, granted)))
    }

    fn make_plan(&self, method: usize, granted: bool) -> Plan {
        let evaluate = |leaf: &Leaf| self.evaluate_constant_leaf(leaf, method);
        let policies = self.policies.iter().filter(|p| self.head_covers(p, method)).map(|p| {
            let fold = |c: &Condition| c.fold_constants(granted, &evaluate);
            decide::SlicedPolicy::new(p, fold(&p.as_sent), p.normalized.as_ref().map(fold))
        });
        let plan = Plan::new(policies.collect(), granted);
        self.shared.plan_bytes.fetch_add(plan.node_count() * PLAN_NODE_BYTES, Relaxed);
        plan
    }

    /// What a leaf comes to that mentions nothing of the call.
    fn evaluate_constant_leaf(&self, leaf: &Leaf, method: usize) -> Truth {
        let request = self.subject.entities().and_then(|entities| {
            let action = vocabulary()?.action(method)?.method.clone();
            Request::new(entities.agent.clone(), action, entities.service.clone(), Context::empty(), None).ok()
        });
        match (self.subject.entities(), request) {
            (Some(entities), Some(request)) => evaluate_with_cedar(leaf, &request, &entities.entities),
            _ => Truth::Failed,
        }
    }

    /// Whether a policy's head covers this agent, service and method.
    fn head_covers(&self, policy: &CheckedPolicy, method: usize) -> bool {
        let head = &policy.head;
        let service = match &head.services {
            Services::Any => true,
            Services::One(name) => **name == *self.subject.service.as_str(),
            Services::None => false,
        };
        service
            && head.has_method(method)
            && match &head.agents {
                Agents::Any => true,
                Agents::One(name) => **name == *self.subject.agent.as_str(),
                Agents::Group(name) => self.subject.groups().any(|group| *group == **name),
                Agents::None => false,
            }
    }
}
