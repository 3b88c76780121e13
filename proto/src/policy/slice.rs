//! Slices: the policies that can matter to one agent and one service.

use std::{collections::BTreeMap, sync::Arc};

use cedar_policy::{Entities, Entity, EntityUid, PolicyId as CedarId, PolicySet, RestrictedExpression};

use super::{
    Call, Decision, PolicyError, decide,
    parse::{Checked, check},
    schema::vocabulary,
};
use crate::{
    id::{AgentName, ServiceName},
    wire,
};

/// A tenant's policies, compiled. The default has none, and so denies everything.
#[derive(Default)]
pub struct Policies {
    policies: Vec<Checked>,
    body: bool,
}

impl Policies {
    /// Checks and compiles a tenant's policies, by the same rules as [`super::parse_file`].
    ///
    /// # Errors
    /// The first policy that doesn't pass: a tenant's policies hold together or not at all.
    pub fn compile(policies: &[wire::Policy]) -> Result<Self, PolicyError> {
        let text: String = policies.iter().map(|p| format!("{}\n", p.text)).collect();
        let checked = check(&text).map_err(|e| e.into_iter().next().unwrap_or_else(|| PolicyError::new(1, "")))?;
        Ok(Self { policies: checked, body: text.contains("body") })
    }

    /// The slice for an agent and a service, cached. `attributes` are the agent's: its tags, and its groups by the attribute `group`.
    #[must_use]
    pub fn scope(&self, agent: &AgentName, attributes: &BTreeMap<String, String>, service: &ServiceName) -> Arc<Scope> {
        Arc::new(Scope { cedar: self.cedar(agent, attributes, service), body: self.body })
    }

    fn cedar(&self, agent: &AgentName, attributes: &BTreeMap<String, String>, service: &ServiceName) -> Option<Cedar> {
        let v = vocabulary()?;
        let (agent, service) = (v.agent(agent.as_str()), v.service(service.as_str()));
        let groups: Vec<EntityUid> =
            attributes.get("group").iter().flat_map(|g| g.split(',')).map(|g| v.group(g.trim())).collect();
        let tags = attributes.iter().map(|(k, v)| (k.clone(), RestrictedExpression::new_string(v.clone())));
        let principal = Entity::new_with_tags(agent.clone(), [], groups.clone(), tags).ok()?;
        let others = groups.into_iter().map(Entity::with_uid).chain([Entity::with_uid(service.clone())]);
        let entities = Entities::from_entities(others.chain([principal]), Some(&v.schema)).ok()?;
        let (mut enforced, mut audited) = (PolicySet::new(), PolicySet::new());
        for checked in &self.policies {
            let policy = checked.policy.new_id(CedarId::new(checked.id.as_str()));
            if checked.audit { &mut audited } else { &mut enforced }.add(policy).ok()?;
        }
        Some(Cedar { agent, service, entities, enforced, audited })
    }
}

/// What decides for one agent and one service.
pub struct Scope {
    cedar: Option<Cedar>,
    body: bool,
}

pub(super) struct Cedar {
    pub(super) agent: EntityUid,
    pub(super) service: EntityUid,
    pub(super) entities: Entities,
    pub(super) enforced: PolicySet,
    pub(super) audited: PolicySet,
}

impl Scope {
    /// Whether the body must be read before [`Scope::decide`]: a policy in scope looks at it. `call.body` is not looked at.
    #[must_use]
    pub fn needs_body(&self, _call: &Call<'_>) -> bool {
        self.body
    }

    /// Decides. Never fails: what can't be decided is denied.
    #[must_use]
    pub fn decide(&self, call: &Call<'_>) -> Decision {
        self.cedar.as_ref().and_then(|cedar| decide::evaluate(cedar, call, self.body)).unwrap_or_else(decide::denied)
    }
}
