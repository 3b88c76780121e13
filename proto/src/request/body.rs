//! What a policy may know of a body: a few fields of a JSON object that has one reading only.

use std::collections::HashSet;

use http::{HeaderMap, header};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// The fields of a JSON body that policies may look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BodyFacts {
    /// The top level's `model`.
    pub model: Option<String>,
    /// The top level's `stream`.
    pub stream: Option<bool>,
    /// The top level's `max_tokens`.
    pub max_tokens: Option<i64>,
}

impl BodyFacts {
    /// Reads a whole body. `None`: it can't be inspected, which policy takes for a refusal.
    ///
    /// One `Content-Type`, `application/json` in UTF-8; no `Content-Encoding`; and then as [`BodyFacts::from_json`].
    #[must_use]
    pub fn read(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        (is_json(headers) && is_plain(headers)).then(|| Self::from_json(body)).flatten()
    }

    /// Reads JSON. `None` unless it is one object in strict JSON (RFC 8259) of which all parsers give the same reading: no name
    /// twice at the top level, no name that only resembles one of ours, numbers within 64 bits, nested at most 128 deep.
    #[must_use]
    pub fn from_json(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }
}

/// Exactly one header with this name, as text.
fn only(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next()?, values.next());
    if second.is_some() { None } else { first.to_str().ok() }
}

/// `application/json`, with no parameter but `charset=utf-8`. Vendor types (`+json`) are not inspected: what a server makes of
/// them is its own affair.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = only(headers, header::CONTENT_TYPE) else { return false };
    let mut parts = value.split(';').map(str::trim);
    let charset = |p: &str| {
        p.split_once('=').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("charset") && value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        })
    };
    parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"))
        && parts.next().is_none_or(charset)
        && parts.next().is_none()
}

fn is_plain(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::CONTENT_ENCODING)
        || only(headers, header::CONTENT_ENCODING).is_some_and(|v| v.trim().eq_ignore_ascii_case("identity"))
}

impl<'de> Deserialize<'de> for BodyFacts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TopLevel)
    }
}

struct TopLevel;

impl<'de> Visitor<'de> for TopLevel {
    type Value = BodyFacts;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BodyFacts, A::Error> {
        let (mut facts, mut seen) = (BodyFacts::default(), HashSet::new());
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "model" => facts.model = map.next_value()?,
                "stream" => facts.stream = map.next_value()?,
                "max_tokens" => facts.max_tokens = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            if !seen.insert(name) {
                return Err(A::Error::custom("a name stands twice"));
            }
        }
        Ok(facts)
    }
}
