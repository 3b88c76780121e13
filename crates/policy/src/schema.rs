//! The schema and its names.

use std::{str::FromStr as _, sync::LazyLock};

use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema, Validator};
use http::Method;

/// The schema as published, contract §8.
const SOURCE: &str = include_str!("../seks.cedarschema");

/// The methods that are actions.
pub(super) const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// The compiled schema, and the entity names for decisions.
pub(super) struct Vocabulary {
    pub(super) validator: Validator,
    agent: EntityTypeName,
    group: EntityTypeName,
    service: EntityTypeName,
    /// An action for each of [`METHODS`], in that order.
    actions: Vec<Action>,
}

/// A method and its group, as entities.
pub(super) struct Action {
    pub(super) method: EntityUid,
    pub(super) group: EntityUid,
}

static VOCABULARY: LazyLock<Option<Vocabulary>> = LazyLock::new(|| {
    let (schema, _) = Schema::from_cedarschema_str(SOURCE).ok()?;
    let kind = |name| EntityTypeName::from_str(name).ok();
    let action = kind("Seks::Action")?;
    let group = |m: &Method| if m.is_safe() { "read" } else { "write" };
    let entities = |m: &Method| Action { method: uid(&action, m.as_str()), group: uid(&action, group(m)) };
    Some(Vocabulary {
        validator: Validator::new(schema),
        agent: kind("Seks::Agent")?,
        group: kind("Seks::Group")?,
        service: kind("Seks::Service")?,
        actions: METHODS.iter().map(entities).collect(),
    })
});

/// The vocabulary. `None` when the built-in schema is invalid, which a test rules out. Callers then
/// deny.
pub(super) fn vocabulary() -> Option<&'static Vocabulary> {
    VOCABULARY.as_ref()
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

impl Vocabulary {
    pub(super) fn schema(&self) -> &Schema {
        self.validator.schema()
    }

    /// The action at this index of [`METHODS`].
    pub(super) fn action(&self, index: usize) -> Option<&Action> {
        self.actions.get(index)
    }

    pub(super) fn agent(&self, name: &str) -> EntityUid {
        uid(&self.agent, name)
    }

    pub(super) fn group(&self, name: &str) -> EntityUid {
        uid(&self.group, name)
    }

    pub(super) fn service(&self, name: &str) -> EntityUid {
        uid(&self.service, name)
    }
}

impl Vocabulary {
    pub(super) fn is_agent(&self, kind: &EntityTypeName) -> bool {
        *kind == self.agent
    }

    pub(super) fn is_group(&self, kind: &EntityTypeName) -> bool {
        *kind == self.group
    }

    pub(super) fn is_service(&self, kind: &EntityTypeName) -> bool {
        *kind == self.service
    }
}

/// The index of a method in [`METHODS`].
pub(super) fn action_index(method: &Method) -> Option<usize> {
    METHODS.iter().position(|m| m == method)
}
