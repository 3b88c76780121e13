//! Policy slices: the part of a tenant's policies that applies to one agent and one service.

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

/// Slices kept for a tenant. A slice takes 1 to 10 KB. Above the limit all are dropped and made
/// again on demand.
const MAX_SLICES: usize = 8192;

/// Bytes of all plans of a tenant. Above the limit they are dropped with their slices.
const MAX_PLAN_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of one condition node, with its heap allocations.
const PLAN_NODE_BYTES: usize = 96;

/// A tenant's compiled policies. The default value has none and denies everything.
#[derive(Default)]
pub struct Policies {
    policies: Arc<[Arc<CheckedPolicy>]>,
    shared: Arc<Shared>,
    /// Slices by a keyed hash of agent and service. A slice is compared with the request, so a hash
    /// collision is harmless.
    slices: DashMap<u64, Arc<PolicySlice>, BuildHasherDefault<IdentityHasher>>,
    hasher: foldhash::quality::RandomState,
}

/// State that all slices of a tenant's policies share.
#[derive(Default)]
struct Shared {
    decisions: DecisionCache,
    /// Bytes of all plans.
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

    /// Checks that the policies cannot cost one request more than [`BUDGET`](super::BUDGET). A node
    /// also compiles policies above the budget, and decides costly requests on other threads
    /// ([`PolicySlice::needs_body_within`]).
    ///
    /// # Errors
    /// The costliest policy, its cost, and the budget.
    pub fn check_budget(&self) -> Result<(), PolicyError> {
        check_budget(self.policies.iter().map(|p| &**p))
    }

    /// The slice for an agent and a service, cached. `attributes` are the agent's tags. The
    /// attribute `group` lists its groups: `a,b` puts it into both.
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

/// The policies that decide for one agent and one service.
pub struct PolicySlice {
    policies: Arc<[Arc<CheckedPolicy>]>,
    shared: Arc<Shared>,
    subject: Subject,
    /// A plan for each of [`METHODS`] and for each answer to "does the token grant the service".
    /// Made on first use.
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

    /// Whether the body must be read before [`PolicySlice::decide`], because a policy's result
    /// depends on it. `call.body` is ignored.
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

    /// Decides. A request that cannot be decided is denied.
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

    /// [`Self::needs_body`], or `None` when the answer may take longer than `limit`.
    #[must_use]
    pub fn needs_body_within(&self, limit: Duration, call: &Call<'_>) -> Option<bool> {
        let unread = || Call { body: Body::NotRead, ..call.clone() };
        (self.cost(call) <= limit || self.is_cached(Question::NeedsBody, &unread())).then(|| self.needs_body(call))
    }

    /// [`Self::decide`], or `None` when the decision may take longer than `limit`.
    #[must_use]
    pub fn decide_within(&self, limit: Duration, call: &Call<'_>) -> Option<Decision> {
        (self.cost(call) <= limit || self.is_cached(Question::Decide, call)).then(|| self.decide(call))
    }

    /// Upper bound of the time to decide.
    fn cost(&self, call: &Call<'_>) -> Duration {
        let Some((method, granted)) = self.plan_index(call) else { return Duration::ZERO };
        match self.plan_cell(method, granted).and_then(OnceLock::get) {
            Some(plan) => plan.cost(call),
            None => self.shared.bound.plan + self.shared.bound.decide,
        }
    }

    /// Whether the answer is constant or cached.
    fn is_cached(&self, question: Question, call: &Call<'_>) -> bool {
        let made = self.plan_index(call).and_then(|(method, granted)| self.plan_cell(method, granted)?.get());
        made.is_some_and(|plan| {
            plan.key(question, call).is_some_and(|key| self.shared.decisions.get(&key).is_some())
                || (question == Question::NeedsBody && !plan.may_need_body())
        })
    }

    /// The cached answer, or a new one. Answers are cached when they cost more than a lookup.
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

    /// The index of the plan. `None` when the method is no action.
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

    /// Evaluates a leaf that mentions nothing of the call.
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
