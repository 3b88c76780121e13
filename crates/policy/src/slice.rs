//! Policy slices: the part of a tenant's policies that applies to one agent and one service.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, BuildHasherDefault},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use cedar_policy::{Context, Request};
use dashmap::DashMap;
use http::Method;
use seks_service::{
    methods::{MethodGroup, is_action, known_group},
    request::BodyFields,
};
use seks_types::id::{AgentName, ServiceName};

use super::{
    Body, Call, Decision, PolicyError,
    budget::{CostBound, check_budget},
    cache::{self, Answer, DecisionCache, Question},
    condition::{Condition, Leaf, Truth},
    decide::{self, Plan, PlanAction, Reach, SlicedPolicy, evaluate_with_cedar},
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
    /// Methods that the policies name beside the standard ones, sorted.
    further_methods: Box<[Box<str>]>,
}

impl Policies {
    pub(super) fn from_checked(compiled: Vec<Arc<CheckedPolicy>>) -> Self {
        let named: BTreeSet<&str> = compiled.iter().flat_map(|p| &p.further_methods).map(|m| &**m).collect();
        let further_methods = named.into_iter().map(Into::into).collect();
        let shared = Shared { bound: CostBound::of_policies(&compiled), further_methods, ..Shared::default() };
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
    /// The fields that are read from bodies. `None`: policies disagree about a type, and no body
    /// can be inspected.
    body_fields: Option<Arc<BodyFields>>,
    /// A plan for each of [`METHODS`] and for each answer to "does the token grant the service".
    /// Made on first use.
    plans: [[OnceLock<Plan>; 2]; METHODS.len()],
    /// The same for further methods: for each that a policy names, and then for all others, which
    /// no policy tells apart, by [`MethodGroup`]. Made for the first request with one.
    further: OnceLock<Box<[[OnceLock<Plan>; 2]]>>,
}

/// Which plan decides a call.
#[derive(Clone, Copy)]
struct PlanIndex {
    method: MethodIndex,
    granted: bool,
}

#[derive(Clone, Copy)]
enum MethodIndex {
    /// Of [`METHODS`].
    Standard(usize),
    /// Of the methods that the policies name, or one behind their end.
    Further(usize, MethodGroup),
}

/// Groups that a further method may be in.
const GROUPS: usize = 3;

impl PolicySlice {
    pub(super) fn new(
        of: &Policies,
        agent: &AgentName,
        attributes: &BTreeMap<String, String>,
        service: &ServiceName,
    ) -> Self {
        let mut slice = Self {
            policies: Arc::clone(&of.policies),
            shared: Arc::clone(&of.shared),
            subject: Subject::new(agent.clone(), attributes.clone(), service.clone()),
            body_fields: Some(Arc::default()),
            plans: Default::default(),
            further: OnceLock::new(),
        };
        if slice.policies.iter().any(|policy| !policy.body_fields.is_empty()) {
            slice.body_fields = union_of_fields(slice.policies.iter().filter(|policy| slice.head_covers(policy)));
        }
        slice
    }

    /// The fields that [`BodyFacts::read`](seks_service::request::BodyFacts::read) must look for.
    /// `None`: no body can be inspected.
    #[must_use]
    pub fn body_fields(&self) -> Option<&Arc<BodyFields>> {
        self.body_fields.as_ref()
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

    /// Whether the decision may depend on the query.
    #[must_use]
    pub fn asks_for_query(&self, call: &Call<'_>) -> bool {
        self.plan_for(call).is_some_and(Plan::asks_for_query)
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
        match self.plan_index(call).and_then(|index| self.plan_cell(index)?.get()) {
            Some(plan) => plan.cost(call),
            None => self.shared.bound.plan + self.shared.bound.decide,
        }
    }

    /// Whether the answer is constant or cached.
    fn is_cached(&self, question: Question, call: &Call<'_>) -> bool {
        let made = self.plan_index(call).and_then(|index| self.plan_cell(index)?.get());
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

    /// The plan of a call. `None` when the method can be no action: it is then denied.
    fn plan_index(&self, call: &Call<'_>) -> Option<PlanIndex> {
        let method = match action_index(call.method) {
            Some(at) => MethodIndex::Standard(at),
            None => self.further_index(call.method.as_str(), call.method_group)?,
        };
        Some(PlanIndex { method, granted: call.services.contains(&self.subject.service) })
    }

    fn further_index(&self, name: &str, group: MethodGroup) -> Option<MethodIndex> {
        let named = &self.shared.further_methods;
        let at = named.binary_search_by(|method| (**method).cmp(name)).unwrap_or(named.len());
        is_action(name).then(|| MethodIndex::Further(at, known_group(name).unwrap_or(group)))
    }

    fn plan_cell(&self, index: PlanIndex) -> Option<&OnceLock<Plan>> {
        let plans = match index.method {
            MethodIndex::Standard(method) => self.plans.get(method)?,
            MethodIndex::Further(at, group) => {
                let count = (self.shared.further_methods.len() + 1) * GROUPS;
                let plans = self.further.get_or_init(|| (0..count).map(|_| Default::default()).collect());
                plans.get(at * GROUPS + group as usize)?
            }
        };
        plans.get(usize::from(index.granted))
    }

    fn plan_for(&self, call: &Call<'_>) -> Option<&Plan> {
        let index = self.plan_index(call)?;
        let cell = self.plan_cell(index)?;
        match cell.get() {
            Some(plan) => Some(plan),
            None => {
                let plan = self.make_plan(index, call.method)?;
                Some(cell.get_or_init(|| plan))
            }
        }
    }

    fn make_plan(&self, index: PlanIndex, method: &Method) -> Option<Plan> {
        let action = self.plan_action(index, method)?;
        let evaluate = |leaf: &Leaf| self.evaluate_constant_leaf(leaf, &action);
        let covers = |policy: &&Arc<CheckedPolicy>| {
            self.head_covers(policy)
                && match index.method {
                    MethodIndex::Standard(at) => policy.head.has_method(at),
                    MethodIndex::Further(..) => policy.head.has_action(&action.action),
                }
        };
        let policies = self.policies.iter().filter(covers).map(|p| {
            let fold = |c: &Condition| c.fold_constants(index.granted, &evaluate);
            SlicedPolicy::new(p, fold(&p.as_sent), p.normalized.as_ref().map(fold))
        });
        let policies = policies.collect();
        let plan = Plan::new(action, policies, index.granted, self.body_fields.clone());
        self.shared.plan_bytes.fetch_add(plan.node_count() * PLAN_NODE_BYTES, Relaxed);
        Some(plan)
    }

    fn plan_action(&self, index: PlanIndex, method: &Method) -> Option<PlanAction> {
        let vocabulary = vocabulary()?;
        Some(match index.method {
            MethodIndex::Standard(at) => PlanAction { action: vocabulary.action(at)?.clone(), entities: None },
            MethodIndex::Further(_, group) => {
                let action = vocabulary.named_action(method.as_str(), group);
                let entities = Some(self.subject.entities_with(&action)?);
                PlanAction { action, entities }
            }
        })
    }

    /// Evaluates a leaf that mentions nothing of the call.
    fn evaluate_constant_leaf(&self, leaf: &Leaf, action: &PlanAction) -> Truth {
        let request = self.subject.entities().and_then(|entities| {
            let method = action.action.method.clone();
            Request::new(entities.agent.clone(), method, entities.service.clone(), Context::empty(), None).ok()
        });
        match (action.entities(&self.subject), request) {
            (Some(entities), Some(request)) => evaluate_with_cedar(leaf, &request, entities),
            _ => Truth::Failed,
        }
    }

    /// Whether a policy's head covers this agent and service.
    fn head_covers(&self, policy: &CheckedPolicy) -> bool {
        self.has_service(policy) && self.has_agent(policy)
    }

    pub(super) fn has_service(&self, policy: &CheckedPolicy) -> bool {
        match &policy.head.services {
            Services::Any => true,
            Services::One(name) => **name == *self.subject.service.as_str(),
            Services::None => false,
        }
    }

    pub(super) fn has_agent(&self, policy: &CheckedPolicy) -> bool {
        match &policy.head.agents {
            Agents::Any => true,
            Agents::One(name) => **name == *self.subject.agent.as_str(),
            Agents::Group(name) => self.subject.groups().any(|group| *group == **name),
            Agents::None => false,
        }
    }
}

/// For explanations: all policies, whatever their heads cover.
impl PolicySlice {
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(super) fn has_action(&self, policy: &CheckedPolicy, call: &Call<'_>) -> bool {
        let Some(index) = self.plan_index(call) else { return false };
        match index.method {
            MethodIndex::Standard(at) => policy.head.has_method(at),
            MethodIndex::Further(..) => {
                self.plan_action(index, call.method).is_some_and(|action| policy.head.has_action(&action.action))
            }
        }
    }

    /// A plan in which the conditions of every policy can be evaluated. It decides nothing.
    pub(super) fn plan_of_all(&self, call: &Call<'_>) -> Option<Plan> {
        let index = self.plan_index(call)?;
        let action = self.plan_action(index, call.method)?;
        let policies = self.policies.iter().map(|p| SlicedPolicy::new(p, p.as_sent.clone(), p.normalized.clone()));
        Some(Plan::new(action, policies.collect(), index.granted, self.body_fields.clone()))
    }

    /// Which calls of a method are permitted.
    pub(super) fn reach(&self, call: &Call<'_>) -> Reach {
        self.plan_for(call).map_or(Reach::Never, Plan::reach)
    }
}

fn union_of_fields<'a>(policies: impl Iterator<Item = &'a Arc<CheckedPolicy>>) -> Option<Arc<BodyFields>> {
    let fields = policies.flat_map(|policy| policy.body_fields.iter()).map(|(path, kind)| (path, kind.name()));
    BodyFields::parse(fields).ok().map(Arc::new)
}
