//! Slices: what is left of a tenant's policies for one agent, one service and one method.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasher as _, BuildHasherDefault, Hasher},
    sync::{Arc, OnceLock},
};

use cedar_policy::{
    ActionConstraint, Context, Entities, Entity, EntityUid, PrincipalConstraint, Request, ResourceConstraint,
    RestrictedExpression,
};
use dashmap::DashMap;

use super::{
    Call, Decision, PolicyError,
    compilation::Compilation,
    condition::{Condition, Leaf, Truth},
    decide::{self, Plan, truth_of},
    parse::{Checked, on_deep_stack},
    schema::{METHODS, action_index, vocabulary},
};
use crate::{
    id::{AgentName, ServiceName},
    wire,
};

/// Scopes that a tenant keeps. A scope costs 1 to 10 KB; past this all are dropped and made anew as they are asked for.
const MAX_SCOPES: usize = 8192;

/// The attribute that says which groups an agent is in: `group=a,b`.
const GROUP: &str = "group";

/// A tenant's policies, compiled. The default has none, and so denies everything.
#[derive(Default)]
pub struct Policies {
    policies: Arc<[Arc<Checked>]>,
    /// By a keyed hash of agent and service; an entry says itself whose it is.
    scopes: DashMap<u64, Arc<Scope>, BuildHasherDefault<Hashed>>,
    hasher: foldhash::quality::RandomState,
}

/// For keys that are hashes.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Policies {
    /// Checks and compiles a tenant's policies, by the same rules as [`super::parse_file`].
    ///
    /// # Errors
    /// The first policy that doesn't pass: a tenant's policies hold together or not at all.
    pub fn compile(policies: &[wire::Policy]) -> Result<Self, PolicyError> {
        let failed = || PolicyError { line: 1, reason: "the policies could not be checked".into() };
        let mut compilation = Compilation::new(policies.to_vec(), None);
        on_deep_stack(|| {
            loop {
                if let Some(whole) = compilation.step()? {
                    return Ok(whole);
                }
            }
        })
        .ok_or_else(failed)?
    }

    pub(super) fn of(compiled: Vec<Arc<Checked>>) -> Self {
        Self { policies: compiled.into(), ..Self::default() }
    }

    pub(super) fn all(&self) -> &[Arc<Checked>] {
        &self.policies
    }

    /// The slice for an agent and a service, cached. `attributes` are the agent's: its tags, and its groups by the attribute
    /// `group` (`a,b`: in both).
    #[must_use]
    pub fn scope(&self, agent: &AgentName, attributes: &BTreeMap<String, String>, service: &ServiceName) -> Arc<Scope> {
        let key = self.hasher.hash_one((agent, service));
        if let Some(scope) = self.scopes.get(&key)
            && scope.is_for(agent, attributes, service)
        {
            return Arc::clone(&scope);
        }
        let scope = Arc::new(Scope::new(&self.policies, agent, attributes, service));
        if self.scopes.len() >= MAX_SCOPES {
            self.scopes.clear();
        }
        self.scopes.insert(key, Arc::clone(&scope));
        scope
    }
}

/// What decides for one agent and one service.
pub struct Scope {
    policies: Arc<[Arc<Checked>]>,
    agent: AgentName,
    attributes: BTreeMap<String, String>,
    service: ServiceName,
    ground: OnceLock<Option<Ground>>,
    /// For each of [`METHODS`], and whether the token grants the service; made when first asked for.
    plans: [[OnceLock<Plan>; 2]; METHODS.len()],
}

/// What doesn't change from call to call, as Cedar knows it.
pub(super) struct Ground {
    pub(super) agent: EntityUid,
    pub(super) service: EntityUid,
    pub(super) entities: Entities,
}

impl Scope {
    fn new(
        policies: &Arc<[Arc<Checked>]>,
        agent: &AgentName,
        attributes: &BTreeMap<String, String>,
        service: &ServiceName,
    ) -> Self {
        Self {
            policies: Arc::clone(policies),
            agent: agent.clone(),
            attributes: attributes.clone(),
            service: service.clone(),
            ground: OnceLock::new(),
            plans: Default::default(),
        }
    }

    fn is_for(&self, agent: &AgentName, attributes: &BTreeMap<String, String>, service: &ServiceName) -> bool {
        self.agent == *agent && self.service == *service && self.attributes == *attributes
    }

    /// Whether the body must be read before [`Scope::decide`]: whether a policy's answer to this call hangs on it.
    /// `call.body` is not looked at.
    #[must_use]
    pub fn needs_body(&self, call: &Call<'_>) -> bool {
        self.plan(call).is_some_and(|plan| plan.needs_body(self, call))
    }

    /// Decides. Never fails: what can't be decided is denied.
    #[must_use]
    pub fn decide(&self, call: &Call<'_>) -> Decision {
        self.plan(call).map_or_else(decide::denied, |plan| plan.decide(self, call))
    }

    /// `None`: the method is no action.
    fn plan(&self, call: &Call<'_>) -> Option<&Plan> {
        let method = action_index(call.method)?;
        let granted = call.services.contains(&self.service);
        Some(self.plans.get(method)?.get(usize::from(granted))?.get_or_init(|| self.make_plan(method, granted)))
    }

    fn make_plan(&self, method: usize, granted: bool) -> Plan {
        let settle = |leaf: &Leaf| self.settle(leaf, method);
        let members = self.policies.iter().filter(|p| self.applies(p, method)).map(|p| {
            let settled = |c: &Condition| c.settled(granted, &settle);
            decide::Member::new(p, settled(&p.strict), p.loose.as_ref().map(settled))
        });
        Plan::new(members.collect(), granted)
    }

    /// What a leaf comes to that mentions nothing of the call.
    fn settle(&self, leaf: &Leaf, method: usize) -> Truth {
        let request = self.ground().and_then(|ground| {
            let action = vocabulary()?.action(method)?.method.clone();
            Request::new(ground.agent.clone(), action, ground.service.clone(), Context::empty(), None).ok()
        });
        match (self.ground(), request) {
            (Some(ground), Some(request)) => truth_of(leaf, &request, &ground.entities),
            _ => Truth::Failed,
        }
    }

    /// The agent, its groups and the service. Made only when Cedar is asked something.
    pub(super) fn ground(&self) -> Option<&Ground> {
        self.ground.get_or_init(|| self.make_ground()).as_ref()
    }

    fn make_ground(&self) -> Option<Ground> {
        let v = vocabulary()?;
        let (agent, service) = (v.agent(self.agent.as_str()), v.service(self.service.as_str()));
        let groups: HashSet<EntityUid> = self.groups().map(|g| v.group(g)).collect();
        let tags = self.attributes.iter().map(|(k, v)| (k.clone(), RestrictedExpression::new_string(v.clone())));
        let principal = Entity::new_with_tags(agent.clone(), [], groups.iter().cloned(), tags).ok()?;
        let others = groups.into_iter().map(Entity::with_uid).chain([Entity::with_uid(service.clone())]);
        let entities = Entities::from_entities(others.chain([principal]), Some(v.schema())).ok()?;
        Some(Ground { agent, service, entities })
    }

    fn groups(&self) -> impl Iterator<Item = &str> {
        self.attributes.get(GROUP).into_iter().flat_map(|g| g.split(',')).map(str::trim).filter(|g| !g.is_empty())
    }

    /// Whether a policy's scope (its head) covers this agent, service and method.
    fn applies(&self, policy: &Checked, method: usize) -> bool {
        let Some(v) = vocabulary() else { return true }; // leaves nothing out; nothing is permitted then
        let Some(action) = v.action(method) else { return true };
        let is_action = |uid: &EntityUid| *uid == action.method || *uid == action.group;
        let is_service = |uid: &EntityUid| *uid == v.service(self.service.as_str());
        let is_agent = |uid: &EntityUid| *uid == v.agent(self.agent.as_str());
        let in_agent = |uid: &EntityUid| is_agent(uid) || self.groups().any(|g| *uid == v.group(g));
        let principal = match policy.policy.principal_constraint() {
            PrincipalConstraint::Any => true,
            PrincipalConstraint::Eq(uid) => is_agent(&uid),
            PrincipalConstraint::In(uid) => in_agent(&uid),
            PrincipalConstraint::Is(kind) => v.is_agent(&kind),
            PrincipalConstraint::IsIn(kind, uid) => v.is_agent(&kind) && in_agent(&uid),
        };
        let resource = match policy.policy.resource_constraint() {
            ResourceConstraint::Any => true,
            ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) => is_service(&uid),
            ResourceConstraint::Is(kind) => v.is_service(&kind),
            ResourceConstraint::IsIn(kind, uid) => v.is_service(&kind) && is_service(&uid),
        };
        let action = match policy.policy.action_constraint() {
            ActionConstraint::Any => true,
            ActionConstraint::Eq(uid) => uid == action.method,
            ActionConstraint::In(uids) => uids.iter().any(is_action),
        };
        principal && resource && action
    }
}
