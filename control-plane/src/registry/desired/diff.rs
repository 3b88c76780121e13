//! What changes in an object, in words. Nothing here is a secret: secrets are not in these records.

use std::collections::{BTreeMap, BTreeSet};

use seks_service::spec::ServiceSpec;

use crate::registry::record::{Agent, Credential, Policy, Service};

/// Longest value in a line, in characters.
const VALUE: usize = 120;

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// Services.
    Service,
    /// Agents.
    Agent,
    /// Policies.
    Policy,
    /// References to credentials.
    Credential,
}

impl ObjectKind {
    /// The noun.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Agent => "agent",
            Self::Policy => "policy",
            Self::Credential => "credential",
        }
    }

    /// The key of a file.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::Agent => "agents",
            Self::Policy => "policies",
            Self::Credential => "credentials",
        }
    }

    /// The kind of this noun.
    #[must_use]
    pub fn parse(noun: &str) -> Option<Self> {
        [Self::Service, Self::Agent, Self::Policy, Self::Credential].into_iter().find(|kind| kind.noun() == noun)
    }
}

/// What happens to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is new.
    Create,
    /// It is there, and differs.
    Update,
    /// It is not wanted.
    Delete,
}

impl Action {
    /// The verb.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// A change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectChange {
    /// Of which kind.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// What happens.
    pub action: Action,
    /// What changes in it, a line for each key.
    pub details: Vec<String>,
}

impl ObjectChange {
    pub(super) fn create<T: Describe>(kind: ObjectKind, value: &T) -> Self {
        Self {
            kind,
            name: value.name().into(),
            action: Action::Create,
            details: lines(&BTreeMap::new(), &value.keys()),
        }
    }

    pub(super) fn update<T: Describe>(kind: ObjectKind, old: &T, new: &T) -> Self {
        Self { kind, name: new.name().into(), action: Action::Update, details: lines(&old.keys(), &new.keys()) }
    }

    pub(super) fn delete(kind: ObjectKind, name: &str) -> Self {
        Self { kind, name: name.into(), action: Action::Delete, details: Vec::new() }
    }
}

/// An object as the keys of a file.
pub(super) trait Describe {
    fn name(&self) -> &str;
    fn keys(&self) -> BTreeMap<String, String>;
}

impl Describe for Service {
    fn name(&self) -> &str {
        &self.name
    }
    fn keys(&self) -> BTreeMap<String, String> {
        match serde_json::to_value(ServiceSpec::from(self)) {
            Ok(serde_json::Value::Object(keys)) => {
                keys.into_iter().filter(|(key, _)| key != "name").map(|(key, value)| (key, value.to_string())).collect()
            }
            _ => BTreeMap::new(),
        }
    }
}

impl Describe for Agent {
    fn name(&self) -> &str {
        &self.name
    }
    fn keys(&self) -> BTreeMap<String, String> {
        let mut keys: BTreeMap<String, String> =
            self.attributes.iter().map(|(key, value)| (format!("attributes.{key}"), format!("{value:?}"))).collect();
        if self.disabled {
            keys.insert("disabled".into(), "true".into());
        }
        keys
    }
}

impl Describe for Policy {
    fn name(&self) -> &str {
        &self.id
    }
    fn keys(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("text".into(), self.text.split_whitespace().collect::<Vec<_>>().join(" "))])
    }
}

impl Describe for Credential {
    fn name(&self) -> &str {
        &self.name
    }
    fn keys(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("pools".into(), format!("[{}]", self.pools.join(", ")))])
    }
}

fn lines(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<String> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let line = |key: &String| match (old.get(key), new.get(key)) {
        (Some(old), Some(new)) if old == new => None,
        (Some(old), Some(new)) => Some(format!("{key}: {} -> {}", short(old), short(new))),
        (None, Some(new)) => Some(format!("{key}: {}", short(new))),
        (Some(old), None) => Some(format!("{key}: {} -> (none)", short(old))),
        (None, None) => None,
    };
    keys.into_iter().filter_map(line).collect()
}

fn short(value: &str) -> String {
    match value.char_indices().nth(VALUE) {
        Some((end, _)) => format!("{}…", value.get(..end).unwrap_or_default()),
        None => value.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_each_key() {
        let agent = |attributes: &[(&str, &str)], disabled| Agent {
            name: "a".into(),
            attributes: attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            disabled,
            ..Agent::default()
        };
        let (old, new) = (agent(&[("a", "1"), ("b", "2")], false), agent(&[("a", "2"), ("c", "3")], true));
        let change = ObjectChange::update(ObjectKind::Agent, &old, &new);
        assert_eq!(
            change.details,
            ["attributes.a: \"1\" -> \"2\"", "attributes.b: \"2\" -> (none)", "attributes.c: \"3\"", "disabled: true"]
        );
        assert!(ObjectChange::update(ObjectKind::Agent, &old, &old).details.is_empty());
    }
}
