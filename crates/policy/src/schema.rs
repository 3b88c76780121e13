//! The schema and its names.

use std::{
    collections::HashMap,
    fmt::Write as _,
    str::FromStr as _,
    sync::{Arc, LazyLock},
};

use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema, Validator};
use http::Method;
use parking_lot::Mutex;
use seks_service::{
    methods::{MethodGroup, STANDARD, is_action, known_group},
    request::BodyFields,
};

/// The schema as published, contract §8.
const SOURCE: &str = include_str!("../seks.cedarschema");
/// Begins the schema's methods that a service must list. They end at the next empty line.
const FURTHER: &str = "  // Methods that a service must list";
/// The body's type, which declared fields are added to.
const BODY: &str = "body?: { model?: String, stream?: Bool, max_tokens?: Long },";
/// What a reference to an action looks like in a policy.
const ACTION: &str = "Action::\"";
/// Most sets of further methods and body fields whose validator is kept.
const MAX_VALIDATORS: usize = 64;

/// The methods that every service takes.
pub(super) const METHODS: [Method; 7] = STANDARD;

/// The compiled schema, and the entity names for decisions.
pub(super) struct Vocabulary {
    /// Of the standard methods. Cedar checks a policy once for each action that it covers, so the
    /// further ones are added only for a policy that names them.
    validator: Arc<Validator>,
    agent: EntityTypeName,
    group: EntityTypeName,
    service: EntityTypeName,
    action: EntityTypeName,
    /// An action for each of [`METHODS`], in that order.
    actions: Vec<Action>,
    /// Validators with further methods and body fields.
    further: Mutex<HashMap<Box<str>, Arc<Validator>>>,
}

/// A method and its group, as entities.
#[derive(Clone)]
pub(super) struct Action {
    pub(super) method: EntityUid,
    /// `None`: in neither.
    pub(super) group: Option<EntityUid>,
}

static VOCABULARY: LazyLock<Option<Vocabulary>> = LazyLock::new(|| {
    let (schema, _) = Schema::from_cedarschema_str(&source_with(&[], &BodyFields::default())?).ok()?;
    let kind = |name| EntityTypeName::from_str(name).ok();
    let mut vocabulary = Vocabulary {
        validator: Arc::new(Validator::new(schema)),
        agent: kind("Seks::Agent")?,
        group: kind("Seks::Group")?,
        service: kind("Seks::Service")?,
        action: kind("Seks::Action")?,
        actions: Vec::new(),
        further: Mutex::default(),
    };
    let group = |m: &Method| if m.is_safe() { MethodGroup::Read } else { MethodGroup::Write };
    vocabulary.actions = METHODS.iter().map(|m| vocabulary.named_action(m.as_str(), group(m))).collect();
    Some(vocabulary)
});

/// The vocabulary. `None` when the built-in schema is invalid, which a test rules out. Callers then
/// deny.
pub(super) fn vocabulary() -> Option<&'static Vocabulary> {
    VOCABULARY.as_ref()
}

/// The published schema, with the body fields that a tenant's services declare.
#[must_use]
pub fn schema_text(fields: &BodyFields) -> String {
    with_body_fields(SOURCE, fields)
}

fn with_body_fields(source: &str, fields: &BodyFields) -> String {
    if fields.is_empty() {
        return source.into();
    }
    let body = BODY.trim_end_matches(" },");
    source.replacen(BODY, &format!("{body}, {} }},", fields.cedar_attributes()), 1)
}

/// The schema with these further methods and no others, and these body fields. `None` when the
/// built-in text has no place for them.
fn source_with(further: &[&str], fields: &BodyFields) -> Option<String> {
    let (before, after) = SOURCE.split_once(FURTHER)?;
    let (_, after) = after.split_once("\n\n")?;
    let mut source = before.to_owned();
    for method in further {
        let group = match known_group(method).unwrap_or_default() {
            MethodGroup::Read => " in [\"read\"]",
            MethodGroup::Write => " in [\"write\"]",
            MethodGroup::Neither => "",
        };
        let applies = "appliesTo { principal: Agent, resource: Service, context: Call }";
        let _ = writeln!(source, "  action \"{method}\"{group} {applies};");
    }
    source.push_str(after);
    Some(with_body_fields(&source, fields))
}

/// The further methods that a policy names, sorted. Its text is searched, so a comment counts too.
pub(super) fn further_methods(text: &str) -> Vec<&str> {
    let named = text.match_indices(ACTION).filter_map(|(at, _)| {
        let name = text.get(at + ACTION.len()..)?.split('"').next()?;
        (is_action(name) && !STANDARD.iter().any(|m| m == name)).then_some(name)
    });
    let mut named: Vec<&str> = named.collect();
    named.sort_unstable();
    named.dedup();
    named
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

impl Vocabulary {
    pub(super) fn schema(&self) -> &Schema {
        self.validator.schema()
    }

    /// The validator of a policy that names these further methods and may use these body fields.
    pub(super) fn validator_with(&self, further: &[&str], fields: &BodyFields) -> Option<Arc<Validator>> {
        if further.is_empty() && fields.is_empty() {
            return Some(Arc::clone(&self.validator));
        }
        let key = format!("{}; {}", further.join(" "), fields.cedar_attributes()).into_boxed_str();
        let mut known = self.further.lock();
        if let Some(validator) = known.get(&key) {
            return Some(Arc::clone(validator));
        }
        let (schema, _) = Schema::from_cedarschema_str(&source_with(further, fields)?).ok()?;
        let validator = Arc::new(Validator::new(schema));
        if known.len() >= MAX_VALIDATORS {
            known.clear();
        }
        known.insert(key, Arc::clone(&validator));
        Some(validator)
    }

    /// The action at this index of [`METHODS`].
    pub(super) fn action(&self, index: usize) -> Option<&Action> {
        self.actions.get(index)
    }

    /// The action of any method.
    pub(super) fn named_action(&self, method: &str, group: MethodGroup) -> Action {
        let group = match group {
            MethodGroup::Read => Some("read"),
            MethodGroup::Write => Some("write"),
            MethodGroup::Neither => None,
        };
        Action { method: uid(&self.action, method), group: group.map(|group| uid(&self.action, group)) }
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

#[cfg(test)]
mod tests {
    use seks_service::methods::KNOWN;

    use super::*;

    #[test]
    fn the_published_schema_names_every_known_method_in_its_group() {
        assert!(Schema::from_cedarschema_str(SOURCE).is_ok());
        let all: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
        let (built, _) = Schema::from_cedarschema_str(&source_with(&all, &BodyFields::default()).unwrap()).unwrap();
        let (published, _) = Schema::from_cedarschema_str(SOURCE).unwrap();
        let actions = |schema: &Schema| {
            let mut actions: Vec<String> = schema.actions().map(ToString::to_string).collect();
            actions.sort();
            actions
        };
        assert_eq!(actions(&published), actions(&built));
        let entities = |schema: &Schema| schema.action_entities().unwrap();
        assert_eq!(entities(&published), entities(&built));
    }

    #[test]
    fn declared_body_fields_are_part_of_the_schema() {
        assert!(SOURCE.contains(BODY), "the place for them");
        let declared = [("amount", "Long"), ("card.number", "String"), ("in", "Bool"), ("price", "decimal")];
        let fields = BodyFields::parse(declared).unwrap();
        let text = schema_text(&fields);
        assert!(text.contains("\"amount\"?: Long, \"card\"?: { \"number\"?: String }"), "{text}");
        assert!(Schema::from_cedarschema_str(&text).is_ok());
        assert_eq!(schema_text(&BodyFields::default()), SOURCE);
    }

    #[test]
    fn a_policys_further_methods_are_found() {
        let text = "permit (principal, action in [Seks::Action::\"LIST\", Seks::Action::\"GET\", Seks::Action::\"read\"], resource)
            when { action == Seks::Action::\"FETCH\" || action == Seks::Action::\"LIST\" };";
        assert_eq!(further_methods(text), ["FETCH", "LIST"]);
        assert!(further_methods("Action::\"TRACE\" Action::\"get\" Action::\"").is_empty());
    }
}
