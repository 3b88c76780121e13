//! The key `inject` of a service file.

use std::{collections::BTreeMap, fmt};

use seks_proto::wire::{
    AwsSigV4, Injection,
    injection::{NamedValue, Site, site::At},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::sigv4;

/// Where the real key is injected. In a file, `"bearer"` or a table of one or more of: `header =
/// NAME` with an optional `value`, `headers = { NAME = VALUE, … }`, `basic = "USER:PASSWORD"`,
/// `query = { NAME = VALUE, … }`, `path = "/PREFIX"`. Values are templates over the credential's
/// fields: `Bot {key}`.
///
/// `aws_sigv4 = { service = NAME, region = NAME }` excludes all others: requests are signed with
/// the key. The region may be left out when the upstream's host names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inject(InjectTable);

const BEARER: &str = "Bearer {key}";
const KEY: &str = "{key}";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct InjectTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    basic: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    query: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aws_sigv4: Option<SigningSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SigningSpec {
    service: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    region: String,
}

impl Inject {
    /// `Authorization: Bearer {key}`.
    #[must_use]
    pub fn bearer() -> Self {
        Self(InjectTable { header: Some("Authorization".into()), value: Some(BEARER.into()), ..InjectTable::default() })
    }

    fn is_bearer(&self) -> bool {
        *self == Self::bearer() // exactly equal, so that it parses to the same value again
    }

    /// The wire form, with headers first.
    pub(super) fn to_wire(&self) -> Injection {
        let signed = self.0.aws_sigv4.clone();
        Injection {
            sites: self.sites(),
            aws_sigv4: signed.map(|SigningSpec { service, region }| AwsSigV4 { service, region }),
        }
    }

    fn sites(&self) -> Vec<Site> {
        let table = &self.0;
        let named = |(name, value): (&String, &String)| NamedValue { name: name.clone(), value: value.clone() };
        let single =
            table.header.iter().map(|name| (name.clone(), table.value.clone().unwrap_or_else(|| KEY.to_owned())));
        let single = single.map(|(name, value)| At::Header(NamedValue { name, value }));
        let headers = table.headers.iter().map(named).map(At::Header);
        let query = table.query.iter().map(named).map(At::Query);
        let basic = table.basic.iter().cloned().map(At::Basic);
        let path = table.path.iter().cloned().map(At::Path);
        single.chain(headers).chain(basic).chain(query).chain(path).map(|at| Site { at: Some(at) }).collect()
    }

    /// The inverse of `to_wire`.
    pub(super) fn from_wire(injection: &Injection) -> Self {
        let signed = |s: &AwsSigV4| SigningSpec { service: s.service.clone(), region: s.region.clone() };
        let mut table = InjectTable { aws_sigv4: injection.aws_sigv4.as_ref().map(signed), ..InjectTable::default() };
        let sites = || injection.sites.iter().filter_map(|s| s.at.as_ref());
        let named = sites().filter_map(|at| if let At::Header(h) = at { Some(h) } else { None });
        // In the order of `sites`: the one that is named alone comes first, the others by name.
        let first =
            named.clone().next().filter(|_| named.clone().count() == 1 || !named.clone().is_sorted_by_key(|h| &h.name));
        if let Some(NamedValue { name, value }) = first {
            table.header = Some(name.clone());
            table.value = (value != KEY).then(|| value.clone());
        }
        for at in sites() {
            match at {
                At::Header(h) if first.is_some_and(|first| std::ptr::eq(first, h)) => {}
                At::Header(h) => drop(table.headers.insert(h.name.clone(), h.value.clone())),
                At::Query(q) => drop(table.query.insert(q.name.clone(), q.value.clone())),
                At::Basic(template) => table.basic = Some(template.clone()),
                At::Path(template) => table.path = Some(template.clone()),
            }
        }
        Self(table)
    }
}

/// The `{names}` in a service's injection, in order of first appearance. Signed services have fixed
/// names.
pub(super) fn field_names(injection: &Injection) -> Vec<String> {
    if injection.aws_sigv4.is_some() {
        return sigv4::FIELDS.map(String::from).into();
    }
    let mut fields: Vec<String> = Vec::new();
    for at in injection.sites.iter().filter_map(|s| s.at.as_ref()) {
        let mut rest = match at {
            At::Header(named) | At::Query(named) => named.value.as_str(),
            At::Basic(template) | At::Path(template) => template,
        };
        while let Some((name, after)) = rest.split_once('{').and_then(|(_, after)| after.split_once('}')) {
            if !fields.iter().any(|f| f == name) {
                fields.push(name.into());
            }
            rest = after;
        }
    }
    fields
}

impl Serialize for Inject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_bearer() { serializer.serialize_str("bearer") } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Inject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrTable)
    }
}

/// Replaces `#[serde(untagged)]`, whose errors do not say what was wrong.
struct WordOrTable;

impl<'de> Visitor<'de> for WordOrTable {
    type Value = Inject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("inject: \"bearer\" or a table of header, headers, basic, query, path, aws_sigv4")
    }

    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Inject, E> {
        if word == "bearer" {
            Ok(Inject::bearer())
        } else {
            Err(E::custom(
                "inject: the only word is \"bearer\"; for the rest write a table such as { header = \"X-Key\" }",
            ))
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Inject, A::Error> {
        let table = InjectTable::deserialize(MapAccessDeserializer::new(map))?;
        if table.value.is_some() && table.header.is_none() {
            return Err(A::Error::custom("inject: `value` needs `header`"));
        }
        if table == InjectTable::default() {
            return Err(A::Error::custom(
                "inject: expected at least one of header, headers, basic, query, path, aws_sigv4",
            ));
        }
        Ok(Inject(table))
    }
}
