//! The agent and the service of a policy slice, with their Cedar entities.

use std::{
    collections::{BTreeMap, HashSet},
    sync::OnceLock,
};

use cedar_policy::{Entities, Entity, EntityUid, RestrictedExpression};
use seks_types::id::{AgentName, ServiceName};

use super::schema::{Action, vocabulary};

/// The attribute that lists an agent's groups: `group=a,b`.
const GROUP: &str = "group";

/// An agent with its attributes, and a service.
pub(super) struct Subject {
    pub(super) agent: AgentName,
    attributes: BTreeMap<String, String>,
    pub(super) service: ServiceName,
    entities: OnceLock<Option<StaticEntities>>,
}

/// The entities of a subject. They are the same for every request.
pub(super) struct StaticEntities {
    pub(super) agent: EntityUid,
    pub(super) service: EntityUid,
    pub(super) entities: Entities,
}

impl Subject {
    pub(super) fn new(agent: AgentName, attributes: BTreeMap<String, String>, service: ServiceName) -> Self {
        Self { agent, attributes, service, entities: OnceLock::new() }
    }

    pub(super) fn matches(
        &self,
        agent: &AgentName,
        attributes: &BTreeMap<String, String>,
        service: &ServiceName,
    ) -> bool {
        self.agent == *agent && self.service == *service && self.attributes == *attributes
    }

    /// The groups in the agent's attribute, separated by commas.
    pub(super) fn groups(&self) -> impl Iterator<Item = &str> {
        self.attributes.get(GROUP).into_iter().flat_map(|g| g.split(',')).map(str::trim).filter(|g| !g.is_empty())
    }

    /// The entities of agent, groups and service, made when Cedar first needs them. `None` when
    /// that fails.
    pub(super) fn entities(&self) -> Option<&StaticEntities> {
        self.entities.get_or_init(|| self.make_entities()).as_ref()
    }

    /// The same with a further method, which the schema's entities don't include.
    pub(super) fn entities_with(&self, action: &Action) -> Option<Entities> {
        let group = action.group.iter().cloned().collect();
        let action = Entity::new_no_attrs(action.method.clone(), group);
        self.entities()?.entities.clone().add_entities([action], None).ok()
    }

    fn make_entities(&self) -> Option<StaticEntities> {
        let v = vocabulary()?;
        let (agent, service) = (v.agent(self.agent.as_str()), v.service(self.service.as_str()));
        let groups: HashSet<EntityUid> = self.groups().map(|g| v.group(g)).collect();
        let tags = self.attributes.iter().map(|(k, v)| (k.clone(), RestrictedExpression::new_string(v.clone())));
        let principal = Entity::new_with_tags(agent.clone(), [], groups.iter().cloned(), tags).ok()?;
        let others = groups.into_iter().map(Entity::with_uid).chain([Entity::with_uid(service.clone())]);
        let entities = Entities::from_entities(others.chain([principal]), Some(v.schema())).ok()?;
        Some(StaticEntities { agent, service, entities })
    }
}
