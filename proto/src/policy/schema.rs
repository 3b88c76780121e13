//! The schema, and the names in it.

use std::{str::FromStr as _, sync::LazyLock};

use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema};
use http::Method;

/// Contract §8, as published.
const SOURCE: &str = include_str!("../../seks/policy.cedarschema");

/// The methods that are actions.
pub(super) const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// The compiled schema and the entity names that every decision needs.
pub(super) struct Vocabulary {
    pub(super) schema: Schema,
    agent: EntityTypeName,
    group: EntityTypeName,
    service: EntityTypeName,
    /// In the order of [`METHODS`].
    pub(super) actions: Vec<EntityUid>,
}

static VOCABULARY: LazyLock<Option<Vocabulary>> = LazyLock::new(|| {
    let (schema, _) = Schema::from_cedarschema_str(SOURCE).ok()?;
    let kind = |name| EntityTypeName::from_str(name).ok();
    let action = kind("Seks::Action")?;
    let actions = METHODS.iter().map(|m| uid(&action, m.as_str())).collect();
    Some(Vocabulary {
        schema,
        agent: kind("Seks::Agent")?,
        group: kind("Seks::Group")?,
        service: kind("Seks::Service")?,
        actions,
    })
});

/// The vocabulary. `None` only if the built-in schema is broken, which a test rules out; callers deny then.
pub(super) fn vocabulary() -> Option<&'static Vocabulary> {
    VOCABULARY.as_ref()
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

impl Vocabulary {
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

/// A method's place in [`METHODS`].
pub(super) fn action_index(method: &Method) -> Option<usize> {
    METHODS.iter().position(|m| m == method)
}
