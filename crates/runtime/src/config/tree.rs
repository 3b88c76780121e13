//! The merged sources as a tree that serde reads from, each leaf knowing where it came from.
//!
//! A variable's name doesn't say where its section ends and its key begins (`SEKS_PROXY_TLS_CERT_FILE`), and its value
//! doesn't say of which type it is. Both are decided here, when serde asks for a struct with known fields and for a
//! value of a known type.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, IntoDeserializer, MapAccess, Unexpected, Visitor, value::SeqDeserializer},
    forward_to_deserialize_any,
};

use super::{
    Origin,
    environment::{self, Entry},
};

pub(super) struct Node {
    value: Value,
    origin: Origin,
    /// Variables that belong somewhere below.
    pub(super) environment: Vec<Entry>,
}

enum Value {
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
    Scalar(toml::Value),
    /// A variable's value: of whatever type is asked for.
    Text(String),
}

impl Node {
    pub(super) fn empty() -> Self {
        Self { value: Value::Table(BTreeMap::new()), origin: Origin::Absent, environment: Vec::new() }
    }

    pub(super) fn from_table(table: toml::Table, origin: &Origin) -> Self {
        Self::from_toml(toml::Value::Table(table), origin)
    }

    fn from_toml(value: toml::Value, origin: &Origin) -> Self {
        let value = match value {
            toml::Value::Table(t) => {
                Value::Table(t.into_iter().map(|(k, v)| (k, Self::from_toml(v, origin))).collect())
            }
            toml::Value::Array(a) => Value::List(a.into_iter().map(|v| Self::from_toml(v, origin)).collect()),
            scalar => Value::Scalar(scalar),
        };
        Self { value, origin: origin.clone(), environment: Vec::new() }
    }

    /// Puts `stronger` over `self`: tables key by key, anything else as a whole.
    pub(super) fn merge(&mut self, stronger: Self) {
        match (&mut self.value, stronger.value) {
            (Value::Table(mine), Value::Table(theirs)) => {
                for (key, node) in theirs {
                    match mine.get_mut(&key) {
                        Some(old) => old.merge(node),
                        None => drop(mine.insert(key, node)),
                    }
                }
            }
            (mine, theirs) => {
                *mine = theirs;
                self.origin = stronger.origin;
            }
        }
    }

    /// Hands each variable down to the field that it names; the longest name wins (`tls_cert` before `tls`).
    fn distribute(&mut self, fields: &[&str]) -> Result<(), TreeError> {
        let entries = std::mem::take(&mut self.environment);
        for entry in entries {
            let below = |f: &&&str| environment::strip(&entry.rest, f).is_some();
            let Some(field) = fields.iter().filter(below).max_by_key(|f| f.len()) else {
                // At the root it is a section of the other plane; below it is a mistake in a section of this one.
                if self.is_root() {
                    continue;
                }
                return Err(TreeError::new(format!("no such key; known are {}", list(fields)))
                    .at(Origin::Environment(entry.name)));
            };
            let rest = environment::strip(&entry.rest, field).unwrap_or_default().to_owned();
            self.hand_down(field, Entry { rest, ..entry });
        }
        Ok(())
    }

    fn is_root(&self) -> bool {
        self.origin == Origin::Absent
    }

    fn hand_down(&mut self, field: &str, entry: Entry) {
        let Value::Table(table) = &mut self.value else { return };
        let origin = Origin::Environment(entry.name.clone());
        if entry.rest.is_empty() {
            if table.get(field).is_none_or(|n| n.origin != Origin::CommandLine) {
                let node = Self { value: Value::Text(entry.value), origin, environment: Vec::new() };
                table.insert(field.into(), node);
            }
            return;
        }
        let empty = || Self { value: Value::Table(BTreeMap::new()), origin, environment: Vec::new() };
        table.entry(field.into()).or_insert_with(empty).environment.push(entry);
    }

    /// Where serde asks for a map, or for anything: the names are taken as they are.
    fn distribute_by_name(&mut self) {
        for entry in std::mem::take(&mut self.environment) {
            let field = entry.rest.to_ascii_lowercase();
            self.hand_down(&field, Entry { rest: String::new(), ..entry });
        }
    }

    fn visit_any<'de, V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, TreeError> {
        self.distribute_by_name();
        let origin = self.origin;
        let result = match self.value {
            Value::Table(table) => return visitor.visit_map(Entries::new(table)),
            Value::List(list) => return visitor.visit_seq(SeqDeserializer::new(list.into_iter())),
            Value::Scalar(toml::Value::Boolean(b)) => visitor.visit_bool(b),
            Value::Scalar(toml::Value::Integer(i)) => visitor.visit_i64(i),
            Value::Scalar(toml::Value::Float(f)) => visitor.visit_f64(f),
            Value::Scalar(toml::Value::String(s)) => visitor.visit_string(s),
            Value::Scalar(other) => visitor.visit_string(other.to_string()),
            Value::Text(text) => match text.parse::<toml::Value>() {
                Ok(toml::Value::Boolean(b)) => visitor.visit_bool(b),
                Ok(toml::Value::Integer(i)) => visitor.visit_i64(i),
                Ok(array @ toml::Value::Array(_)) => return Self::from_toml(array, &origin).visit_any(visitor),
                _ => visitor.visit_string(text),
            },
        };
        result.map_err(|e: TreeError| e.at(origin))
    }

    /// A variable's text as the number or flag that is asked for.
    fn visit_text<'de, V, T>(
        self,
        visitor: V,
        kind: &str,
        visit: fn(V, T) -> Result<V::Value, TreeError>,
    ) -> Result<V::Value, TreeError>
    where
        V: Visitor<'de>,
        T: std::str::FromStr,
    {
        match &self.value {
            Value::Text(text) => match text.trim().parse() {
                Ok(value) => visit(visitor, value).map_err(|e| e.at(self.origin)),
                Err(_) => Err(TreeError::new(format!("expected {kind}")).at(self.origin)),
            },
            _ => self.visit_any(visitor),
        }
    }
}

impl IntoDeserializer<'_, TreeError> for Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $kind:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
            self.visit_text(visitor, $kind, V::$visit)
        }
    )*};
}

impl<'de> Deserializer<'de> for Node {
    type Error = TreeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        self.visit_any(visitor)
    }

    numbers! {
        deserialize_bool visit_bool "true or false";
        deserialize_i8 visit_i64 "a whole number";
        deserialize_i16 visit_i64 "a whole number";
        deserialize_i32 visit_i64 "a whole number";
        deserialize_i64 visit_i64 "a whole number";
        deserialize_u8 visit_u64 "a whole number";
        deserialize_u16 visit_u64 "a whole number";
        deserialize_u32 visit_u64 "a whole number";
        deserialize_u64 visit_u64 "a whole number";
        deserialize_f32 visit_f64 "a number";
        deserialize_f64 visit_f64 "a number";
        deserialize_char visit_char "a character";
        deserialize_str visit_string "text";
        deserialize_string visit_string "text";
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, TreeError> {
        visitor.visit_newtype_struct(self)
    }

    /// A variable holds a list as TOML (`["a", "b"]`) or with commas (`a,b`).
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        let Value::Text(text) = &self.value else { return self.visit_any(visitor) };
        let items = match text.parse::<toml::Value>() {
            Ok(array @ toml::Value::Array(_)) => return Self::from_toml(array, &self.origin).visit_any(visitor),
            _ => text.split(',').map(str::trim).filter(|s| !s.is_empty()),
        };
        let node =
            |s: &str| Self { value: Value::Text(s.into()), origin: self.origin.clone(), environment: Vec::new() };
        visitor.visit_seq(SeqDeserializer::new(items.map(node)))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        self.distribute(fields)?;
        self.visit_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        let origin = self.origin.clone();
        match self.value {
            Value::Scalar(toml::Value::String(s)) | Value::Text(s) => {
                let text: de::value::StringDeserializer<TreeError> = s.into_deserializer();
                text.deserialize_enum(name, variants, visitor).map_err(|e| e.at(origin))
            }
            _ => Err(TreeError::new(format!("expected one of {}", list(variants))).at(origin)),
        }
    }

    forward_to_deserialize_any! { i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct map identifier ignored_any }
}

struct Entries {
    entries: std::collections::btree_map::IntoIter<String, Node>,
    next: Option<(String, Node)>,
}

impl Entries {
    fn new(table: BTreeMap<String, Node>) -> Self {
        Self { entries: table.into_iter(), next: None }
    }
}

impl<'de> MapAccess<'de> for Entries {
    type Error = TreeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, TreeError> {
        let Some((key, node)) = self.entries.next() else { return Ok(None) };
        let text: de::value::StringDeserializer<TreeError> = key.clone().into_deserializer();
        let value = seed.deserialize(text).map_err(|e| e.at(node.origin.clone()))?;
        self.next = Some((key, node));
        Ok(Some(value))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, TreeError> {
        let (key, node) = self.next.take().ok_or_else(|| TreeError::new("a value without a key"))?;
        let origin = node.origin.clone();
        seed.deserialize(node).map_err(|e| e.at(origin).below(key))
    }
}

/// A reason on its way up to the root: the key's path and the leaf's origin are added where they are known.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct TreeError {
    pub(super) origin: Origin,
    pub(super) path: Vec<String>,
    pub(super) reason: String,
}

impl TreeError {
    fn new(reason: impl Into<String>) -> Self {
        Self { origin: Origin::Absent, path: Vec::new(), reason: reason.into() }
    }

    fn at(mut self, origin: Origin) -> Self {
        if self.origin == Origin::Absent {
            self.origin = origin;
        }
        self
    }

    fn below(mut self, key: String) -> Self {
        if self.path.is_empty() && may_hold_secret(&key) {
            self.reason = "the value is not acceptable".into();
        }
        self.path.insert(0, key);
        self
    }
}

fn may_hold_secret(key: &str) -> bool {
    let names_a_file = key.ends_with("_file") || key.ends_with("_path") || key == "tokens" || key == "max_tokens";
    !names_a_file && ["key", "secret", "password", "passphrase", "token", "kek"].iter().any(|w| key.contains(w))
}

impl de::Error for TreeError {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::new(reason.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("expected {expected}, found {}", kind(&found)))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("expected {expected}"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("no such key; known are {}", list(expected))).below(field.into())
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("expected one of {}", list(expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        let mut error = Self::new("missing");
        error.path.push(field.into());
        error
    }
}

fn kind(found: &Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "true or false",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "a whole number",
        Unexpected::Float(_) => "a number",
        Unexpected::Str(_) | Unexpected::Char(_) => "text",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a table",
        _ => "something else",
    }
}

fn list(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}
