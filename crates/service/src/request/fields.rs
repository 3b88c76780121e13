//! Fields of request bodies that policies may use, beside `model`, `stream` and `max_tokens`.
//!
//! A service declares them with their types, so that a policy about `context.body.amount` can be
//! checked. A policy keeps the fields that it uses. A node reads exactly these from a body, and
//! refuses a body that two parsers could read in two ways.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::{json_names::folded, strict::Strict};

/// Most fields of a service, and of all policies that apply to one agent and service.
pub const MAX_FIELDS: usize = 64;
/// Most names that a path joins.
const MAX_PATH: usize = 4;
/// Longest name, in bytes.
const MAX_NAME: usize = 64;
/// Longest text that a field may hold, in bytes.
const MAX_TEXT: usize = 1024;
/// Fields that every body has.
pub const BUILT_IN: [&str; 3] = ["model", "stream", "max_tokens"];

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldType {
    /// An integer of 64 bits.
    Long,
    /// Text of at most 1,024 bytes.
    String,
    /// `true` or `false`.
    Bool,
    /// A number with at most four digits after the point, or text that holds one.
    Decimal,
}

impl FieldType {
    /// Its name in Cedar's schema.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Long => "Long",
            Self::String => "String",
            Self::Bool => "Bool",
            Self::Decimal => "decimal",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Long, Self::String, Self::Bool, Self::Decimal].into_iter().find(|kind| kind.name() == name)
    }
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FieldValue {
    /// Of a [`FieldType::Long`].
    Long(i64),
    /// Of a [`FieldType::String`].
    String(String),
    /// Of a [`FieldType::Bool`].
    Bool(bool),
    /// Of a [`FieldType::Decimal`], as Cedar writes it: `12.50`.
    Decimal(String),
}

impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Long(number) => write!(f, "{number}"),
            Self::String(text) => write!(f, "`{text}`"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Decimal(text) => f.write_str(text),
        }
    }
}

impl FieldValue {
    /// A value as a form writes it, in the one spelling that every server reads alike.
    pub(super) fn from_text(kind: FieldType, text: &str) -> Option<Self> {
        match kind {
            FieldType::String => (text.len() <= MAX_TEXT).then(|| Self::String(text.into())),
            FieldType::Bool => matches!(text, "true" | "false").then(|| Self::Bool(text == "true")),
            FieldType::Long => {
                let number: i64 = text.parse().ok()?;
                (number.to_string() == text).then_some(Self::Long(number))
            }
            FieldType::Decimal => decimal(text).map(Self::Decimal),
        }
    }
}

/// A decimal as Cedar writes it. `None` for exponents, signs in front of a positive number and
/// leading zeros, which servers read in different ways, and for more than four digits after the
/// point.
fn decimal(text: &str) -> Option<String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = whole.strip_prefix('-').unwrap_or(whole);
    let canonical = digits == "0" || !digits.starts_with('0');
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    // 922,337,203,685,477.5807 is Cedar's largest decimal.
    let fits = digits.len() <= 14 && fraction.len() <= 4;
    (canonical && fits && all_digits(digits) && all_digits(fraction)).then(|| format!("{whole}.{fraction}"))
}

/// A JSON number as a decimal. `None` when four digits after the point don't hold it.
fn decimal_of_number(number: f64) -> Option<String> {
    let scaled = (number * 1e4).round();
    // Below 2^53 every multiple of 0.0001 that JSON can write has one nearest double, and this is
    // it.
    if !(scaled.abs() < 9e15 && (scaled / 1e4).to_bits() == number.to_bits()) {
        return None;
    }
    decimal(&format!("{number:.4}"))
}

/// Why fields cannot be declared, or cannot be used together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`: {reason}")]
pub struct FieldError {
    /// The field.
    pub path: String,
    /// The problem.
    pub reason: String,
}

/// A set of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BodyFields {
    /// By path.
    types: BTreeMap<String, FieldType>,
    root: Object,
}

/// The fields of one object, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Object(Vec<Member>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Member {
    name: String,
    /// The form in which parsers may take one name for another.
    folded: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// The path's index, in the order of paths.
    Field(usize, FieldType),
    Object(Object),
}

impl BodyFields {
    /// Parses a declaration: paths such as `amount` or `amount.value`, and the names of their
    /// types.
    ///
    /// # Errors
    /// [`FieldError`] names the first path that is not acceptable.
    pub fn parse<'a>(declared: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, FieldError> {
        let mut types = BTreeMap::new();
        for (path, kind) in declared {
            let wrong = |reason: &str| FieldError { path: path.chars().take(200).collect(), reason: reason.into() };
            let names: Vec<&str> = path.split('.').collect();
            let is_name = |name: &&str| {
                (1..=MAX_NAME).contains(&name.len())
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
            };
            if names.len() > MAX_PATH || !names.iter().all(is_name) {
                return Err(wrong("a field is 1 to 4 names of letters, digits, `_` and `-`, joined by `.`"));
            }
            if names.first().is_some_and(|name| BUILT_IN.contains(name)) {
                return Err(wrong("policies know this field without a declaration"));
            }
            let kind = FieldType::parse(kind).ok_or_else(|| wrong("its type is Long, String, Bool or decimal"))?;
            match types.insert(path.to_owned(), kind) {
                Some(other) if other != kind => {
                    return Err(wrong(&format!("declared as {} and as {}", other.name(), kind.name())));
                }
                _ => {}
            }
        }
        if let Some((path, _)) = types.iter().nth(MAX_FIELDS) {
            return Err(FieldError { path: path.clone(), reason: format!("at most {MAX_FIELDS} fields") });
        }
        let mut root = Object::default();
        for (index, (path, kind)) in types.iter().enumerate() {
            root.insert(path, Kind::Field(index, *kind)).map_err(|reason| FieldError { path: path.clone(), reason })?;
        }
        Ok(Self { types, root })
    }

    /// Paths and types, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, FieldType)> {
        self.types.iter().map(|(path, kind)| (path.as_str(), *kind))
    }

    /// Whether there is no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.types.is_empty()
    }

    /// The record type of these fields in Cedar's schema, without its braces: `"amount"?: Long`.
    #[must_use]
    pub fn cedar_attributes(&self) -> String {
        self.root.cedar_attributes()
    }

    pub(super) fn root(&self) -> &Object {
        &self.root
    }

    fn len(&self) -> usize {
        self.types.len()
    }

    /// Whether a parameter of this name, in a query or a form, may be taken for one of the fields.
    #[must_use]
    pub fn may_be_named(&self, parameter: &str) -> bool {
        let name = parameter.split('[').next().unwrap_or_default();
        self.root.resembling(name).is_some()
    }
}

impl Object {
    fn insert(&mut self, path: &str, field: Kind) -> Result<(), String> {
        let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
        let folded = folded(name);
        match (self.0.iter_mut().find(|member| member.folded == folded), rest) {
            (Some(member), _) if member.name != name => Err(format!("too similar to `{}`", member.name)),
            (Some(Member { kind: Kind::Object(object), .. }), Some(rest)) => object.insert(rest, field),
            (Some(_), _) => Err("both a value and an object".into()),
            (None, rest) => {
                let kind = match rest {
                    None => field,
                    Some(rest) => {
                        let mut object = Self::default();
                        object.insert(rest, field)?;
                        Kind::Object(object)
                    }
                };
                self.0.push(Member { name: name.into(), folded, kind });
                Ok(())
            }
        }
    }

    fn cedar_attributes(&self) -> String {
        let one = |member: &Member| match &member.kind {
            Kind::Field(_, kind) => format!("\"{}\"?: {}", member.name, kind.name()),
            Kind::Object(object) => format!("\"{}\"?: {{ {} }}", member.name, object.cedar_attributes()),
        };
        self.0.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    fn member(&self, name: &str) -> Option<&Member> {
        self.0.iter().find(|member| member.name == name)
    }

    /// What `name` is.
    pub(super) fn get(&self, name: &str) -> Option<&Kind> {
        self.member(name).map(|member| &member.kind)
    }

    /// The member that a decoder could take `name` for.
    fn resembling(&self, name: &str) -> Option<&Member> {
        if self.0.is_empty() {
            return None;
        }
        let (plain, parameter) = (folded(name), folded(&name.replace(['.', ' '], "_")));
        self.0.iter().find(|member| member.folded == plain || member.folded == parameter)
    }

    /// Whether some decoder could take `name` for one of the members, and it is none of them.
    pub(super) fn is_resembled_by(&self, name: &str) -> bool {
        self.member(name).is_none() && self.resembling(name).is_some()
    }
}

/// What an inspection found in one body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FoundFields {
    /// Which fields were looked for.
    fields: Arc<BodyFields>,
    /// Their values, in the order of paths. `None`: absent or `null`.
    values: Vec<Option<FieldValue>>,
}

impl FoundFields {
    pub(super) fn none_of(fields: &Arc<BodyFields>) -> Self {
        Self { fields: Arc::clone(fields), values: vec![None; fields.len()] }
    }

    pub(super) fn set(&mut self, index: usize, value: FieldValue) {
        if let Some(place) = self.values.get_mut(index) {
            *place = Some(value);
        }
    }

    pub(super) fn has(&self, index: usize) -> bool {
        self.values.get(index).is_some_and(Option::is_some)
    }

    /// Whether these fields were looked for. Otherwise the body has to be taken for one that was
    /// not inspected.
    #[must_use]
    pub fn cover(&self, fields: &BodyFields) -> bool {
        let known = &self.fields.types;
        std::ptr::eq(&*self.fields, fields) || fields.types.iter().all(|(path, kind)| known.get(path) == Some(kind))
    }

    /// The fields that the body has, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &FieldValue)> {
        let paths = self.fields.types.keys().map(String::as_str);
        paths.zip(&self.values).filter_map(|(path, value)| Some((path, value.as_ref()?)))
    }

    /// Bytes of the texts.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let bytes = |value: &Option<FieldValue>| match value {
            Some(FieldValue::String(text) | FieldValue::Decimal(text)) => text.len(),
            _ => 0,
        };
        self.values.iter().map(bytes).sum::<usize>() + self.values.len() * size_of::<Option<FieldValue>>()
    }
}

/// Reads the value of one member.
pub(super) struct MemberSeed<'a> {
    pub(super) kind: &'a Kind,
    pub(super) found: &'a mut FoundFields,
    pub(super) depth: usize,
}

impl<'de> DeserializeSeed<'de> for MemberSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl MemberSeed<'_> {
    fn value<E: serde::de::Error>(self, value: impl FnOnce(FieldType) -> Option<FieldValue>) -> Result<(), E> {
        let Kind::Field(index, kind) = self.kind else { return Err(E::custom("not an object")) };
        let value = value(*kind).ok_or_else(|| E::custom("a value of another type"))?;
        self.found.set(*index, value);
        Ok(())
    }
}

impl<'de> Visitor<'de> for MemberSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of the declared type")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.value(|kind| (kind == FieldType::Bool).then_some(FieldValue::Bool(value)))
    }
    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.value(|kind| match kind {
            FieldType::Long => Some(FieldValue::Long(value)),
            FieldType::Decimal => decimal(&value.to_string()).map(FieldValue::Decimal),
            FieldType::String | FieldType::Bool => None,
        })
    }
    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => Err(E::custom("a number out of range")),
        }
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.value(|kind| {
            (kind == FieldType::Decimal).then(|| decimal_of_number(value)).flatten().map(FieldValue::Decimal)
        })
    }
    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.value(|kind| match kind {
            FieldType::String => FieldValue::from_text(kind, value),
            FieldType::Decimal => decimal(value).map(FieldValue::Decimal),
            FieldType::Long | FieldType::Bool => None,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Kind::Object(object) = self.kind else { return Err(A::Error::custom("an object")) };
        let depth = self.depth.checked_sub(1).ok_or_else(|| A::Error::custom("nested too deep"))?;
        // Only names that are, or resemble, one of the members can be ambiguous.
        let mut seen: Vec<&str> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            match object.member(&name) {
                Some(member) if seen.contains(&member.name.as_str()) => {
                    return Err(A::Error::custom("a name stands twice"));
                }
                Some(member) => {
                    seen.push(&member.name);
                    map.next_value_seed(MemberSeed { kind: &member.kind, found: &mut *self.found, depth })?;
                }
                None if object.resembling(&name).is_some() => {
                    return Err(A::Error::custom("a name that resembles another"));
                }
                None => map.next_value_seed(Strict { depth })?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(declared: &[(&str, &str)]) -> Result<BodyFields, FieldError> {
        BodyFields::parse(declared.iter().copied())
    }

    #[test]
    fn a_declaration_is_checked() {
        let good = fields(&[("amount", "Long"), ("card.number", "String"), ("card.brand", "String"), ("x-y", "Bool")]);
        assert_eq!(
            good.unwrap().cedar_attributes(),
            r#""amount"?: Long, "card"?: { "brand"?: String, "number"?: String }, "x-y"?: Bool"#
        );
        for (declared, reason) in [
            (&[("", "Long")][..], "1 to 4 names"),
            (&[("a.b.c.d.e", "Long")], "1 to 4 names"),
            (&[("a\" b", "Long")], "1 to 4 names"),
            (&[("model", "String")], "without a declaration"),
            (&[("stream.x", "String")], "without a declaration"),
            (&[("a", "long")], "Long, String, Bool or decimal"),
            (&[("a", "Long"), ("a", "String")], "as Long and as String"),
            (&[("a", "Long"), ("a.b", "Long")], "both a value and an object"),
            (&[("amount", "Long"), ("Amount", "Long")], "too similar"),
        ] {
            let error = fields(declared).unwrap_err().to_string();
            assert!(error.contains(reason), "{declared:?}: {error}");
        }
    }

    #[test]
    fn decimals_have_one_spelling() {
        for (text, want) in [("50", "50.0"), ("12.50", "12.50"), ("-0.0001", "-0.0001"), ("0", "0.0")] {
            assert_eq!(decimal(text).as_deref(), Some(want), "{text}");
        }
        for text in ["", ".", "1.", ".5", "050", "+5", "1e3", "1.00001", "1,5", " 1", "99999999999999999999"] {
            assert_eq!(decimal(text), None, "{text}");
        }
        assert_eq!(decimal_of_number(49.99).as_deref(), Some("49.9900"));
        assert_eq!(decimal_of_number(0.1 + 0.2), None, "0.30000000000000004");
    }
}
