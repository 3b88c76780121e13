//! The merged sources as a tree that serde reads. Each value holds its origin.
//!
//! A variable's name does not show where its section ends (`SEKS_PROXY_TLS_CERT_FILE`), and its
//! text has no type. Both are known when serde asks for a struct with given fields, and for a value
//! of a given type.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, IntoDeserializer, MapAccess, Unexpected, Visitor, value::SeqDeserializer},
    forward_to_deserialize_any,
};

use super::{
    Origin,
    environment::{self, Variable},
};

pub(super) struct ConfigValue {
    kind: ValueKind,
    origin: Origin,
    /// Variables for keys below this value.
    pub(super) variables: Vec<Variable>,
}

enum ValueKind {
    Table(BTreeMap<String, ConfigValue>),
    List(Vec<ConfigValue>),
    Scalar(toml::Value),
    /// A variable's text, which is parsed as the requested type.
    Text(String),
}

impl ConfigValue {
    pub(super) fn empty() -> Self {
        Self { kind: ValueKind::Table(BTreeMap::new()), origin: Origin::Absent, variables: Vec::new() }
    }

    pub(super) fn from_table(table: toml::Table, origin: &Origin) -> Self {
        Self::from_toml(toml::Value::Table(table), origin)
    }

    fn from_toml(value: toml::Value, origin: &Origin) -> Self {
        let value = match value {
            toml::Value::Table(t) => {
                ValueKind::Table(t.into_iter().map(|(k, v)| (k, Self::from_toml(v, origin))).collect())
            }
            toml::Value::Array(a) => ValueKind::List(a.into_iter().map(|v| Self::from_toml(v, origin)).collect()),
            scalar => ValueKind::Scalar(scalar),
        };
        Self { kind: value, origin: origin.clone(), variables: Vec::new() }
    }

    /// Merges `stronger` over `self`: tables key by key, other values as a whole.
    pub(super) fn merge(&mut self, stronger: Self) {
        match (&mut self.kind, stronger.kind) {
            (ValueKind::Table(mine), ValueKind::Table(theirs)) => {
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

    /// Passes each variable to the field that it names. The longest name wins (`tls_cert` before
    /// `tls`).
    fn assign_variables(&mut self, fields: &[&str]) -> Result<(), ValueError> {
        let entries = std::mem::take(&mut self.variables);
        for entry in entries {
            let below = |f: &&&str| environment::strip_field(&entry.rest, f).is_some();
            let Some(field) = fields.iter().filter(below).max_by_key(|f| f.len()) else {
                // At the root it names a section of the other plane. Below, it is an error in a
                // section of this one.
                if self.is_root() {
                    continue;
                }
                return Err(ValueError::new(format!("no such key; known are {}", quoted_list(fields)))
                    .with_origin(Origin::Environment(entry.name)));
            };
            let rest = environment::strip_field(&entry.rest, field).unwrap_or_default().to_owned();
            self.assign_to_field(field, Variable { rest, ..entry });
        }
        Ok(())
    }

    fn is_root(&self) -> bool {
        self.origin == Origin::Absent
    }

    fn assign_to_field(&mut self, field: &str, entry: Variable) {
        let ValueKind::Table(table) = &mut self.kind else { return };
        let origin = Origin::Environment(entry.name.clone());
        if entry.rest.is_empty() {
            if table.get(field).is_none_or(|n| n.origin != Origin::CommandLine) {
                let node = Self { kind: ValueKind::Text(entry.value), origin, variables: Vec::new() };
                table.insert(field.into(), node);
            }
            return;
        }
        let empty = || Self { kind: ValueKind::Table(BTreeMap::new()), origin, variables: Vec::new() };
        table.entry(field.into()).or_insert_with(empty).variables.push(entry);
    }

    /// For maps and untyped values: the variable's name in lower case is the key.
    fn assign_variables_by_name(&mut self) {
        for entry in std::mem::take(&mut self.variables) {
            let field = entry.rest.to_ascii_lowercase();
            self.assign_to_field(&field, Variable { rest: String::new(), ..entry });
        }
    }

    fn visit_any<'de, V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, ValueError> {
        self.assign_variables_by_name();
        let origin = self.origin;
        let result = match self.kind {
            ValueKind::Table(table) => return visitor.visit_map(TableAccess::new(table)),
            ValueKind::List(list) => return visitor.visit_seq(SeqDeserializer::new(list.into_iter())),
            ValueKind::Scalar(toml::Value::Boolean(b)) => visitor.visit_bool(b),
            ValueKind::Scalar(toml::Value::Integer(i)) => visitor.visit_i64(i),
            ValueKind::Scalar(toml::Value::Float(f)) => visitor.visit_f64(f),
            ValueKind::Scalar(toml::Value::String(s)) => visitor.visit_string(s),
            ValueKind::Scalar(other) => visitor.visit_string(other.to_string()),
            ValueKind::Text(text) => match text.parse::<toml::Value>() {
                Ok(toml::Value::Boolean(b)) => visitor.visit_bool(b),
                Ok(toml::Value::Integer(i)) => visitor.visit_i64(i),
                Ok(array @ toml::Value::Array(_)) => return Self::from_toml(array, &origin).visit_any(visitor),
                _ => visitor.visit_string(text),
            },
        };
        result.map_err(|e: ValueError| e.with_origin(origin))
    }

    /// Parses a variable's text as the requested number or flag.
    fn visit_text<'de, V, T>(
        self,
        visitor: V,
        kind: &str,
        visit: fn(V, T) -> Result<V::Value, ValueError>,
    ) -> Result<V::Value, ValueError>
    where
        V: Visitor<'de>,
        T: std::str::FromStr,
    {
        match &self.kind {
            ValueKind::Text(text) => match text.trim().parse() {
                Ok(value) => visit(visitor, value).map_err(|e| e.with_origin(self.origin)),
                Err(_) => Err(ValueError::new(format!("expected {kind}")).with_origin(self.origin)),
            },
            _ => self.visit_any(visitor),
        }
    }
}

impl IntoDeserializer<'_, ValueError> for ConfigValue {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $kind:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
            self.visit_text(visitor, $kind, V::$visit)
        }
    )*};
}

impl<'de> Deserializer<'de> for ConfigValue {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
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

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_newtype_struct(self)
    }

    /// A variable holds a list as TOML (`["a", "b"]`) or separated by commas (`a,b`).
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        let ValueKind::Text(text) = &self.kind else { return self.visit_any(visitor) };
        let items = match text.parse::<toml::Value>() {
            Ok(array @ toml::Value::Array(_)) => return Self::from_toml(array, &self.origin).visit_any(visitor),
            _ => text.split(',').map(str::trim).filter(|s| !s.is_empty()),
        };
        let node =
            |s: &str| Self { kind: ValueKind::Text(s.into()), origin: self.origin.clone(), variables: Vec::new() };
        visitor.visit_seq(SeqDeserializer::new(items.map(node)))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        self.assign_variables(fields)?;
        self.visit_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        let origin = self.origin.clone();
        match self.kind {
            ValueKind::Scalar(toml::Value::String(s)) | ValueKind::Text(s) => {
                let text: de::value::StringDeserializer<ValueError> = s.into_deserializer();
                text.deserialize_enum(name, variants, visitor).map_err(|e| e.with_origin(origin))
            }
            _ => Err(ValueError::new(format!("expected one of {}", quoted_list(variants))).with_origin(origin)),
        }
    }

    forward_to_deserialize_any! { i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct map identifier ignored_any }
}

struct TableAccess {
    entries: std::collections::btree_map::IntoIter<String, ConfigValue>,
    next: Option<(String, ConfigValue)>,
}

impl TableAccess {
    fn new(table: BTreeMap<String, ConfigValue>) -> Self {
        Self { entries: table.into_iter(), next: None }
    }
}

impl<'de> MapAccess<'de> for TableAccess {
    type Error = ValueError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ValueError> {
        let Some((key, node)) = self.entries.next() else { return Ok(None) };
        let text: de::value::StringDeserializer<ValueError> = key.clone().into_deserializer();
        let value = seed.deserialize(text).map_err(|e| e.with_origin(node.origin.clone()))?;
        self.next = Some((key, node));
        Ok(Some(value))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ValueError> {
        let (key, node) = self.next.take().ok_or_else(|| ValueError::new("a value without a key"))?;
        let origin = node.origin.clone();
        seed.deserialize(node).map_err(|e| e.with_origin(origin).within_key(key))
    }
}

/// An error on its way up to the root. The callers add the key's path and the value's origin.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct ValueError {
    pub(super) origin: Origin,
    pub(super) path: Vec<String>,
    pub(super) reason: String,
}

impl ValueError {
    fn new(reason: impl Into<String>) -> Self {
        Self { origin: Origin::Absent, path: Vec::new(), reason: reason.into() }
    }

    fn with_origin(mut self, origin: Origin) -> Self {
        if self.origin == Origin::Absent {
            self.origin = origin;
        }
        self
    }

    fn within_key(mut self, key: String) -> Self {
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

impl de::Error for ValueError {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::new(reason.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("expected {expected}, found {}", type_name(&found)))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("expected {expected}"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("no such key; known are {}", quoted_list(expected))).within_key(field.into())
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("expected one of {}", quoted_list(expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        let mut error = Self::new("missing");
        error.path.push(field.into());
        error
    }
}

fn type_name(found: &Unexpected<'_>) -> &'static str {
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

fn quoted_list(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}
