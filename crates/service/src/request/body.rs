//! The facts of a body that policies may use: a few fields of a JSON object or a form with one
//! interpretation only.

use std::{collections::HashSet, fmt, sync::Arc};

use http::{HeaderMap, HeaderName, header};
use serde::de::{Deserializer as _, Error as _, MapAccess, Visitor};

use super::{
    fields::{BUILT_IN, BodyFields, FoundFields, MemberSeed},
    json_names::resembles,
    mcp::McpCall,
    strict::Strict,
};

/// Deepest nesting of an inspected body. Requests of known APIs stay below 20.
const MAX_DEPTH: usize = 64;
/// Most names at the top level, and most bytes of them. Bodies of known APIs have about 30 names.
/// Bounds the memory of an inspection.
const MAX_NAMES: usize = 1000;
const MAX_NAME_BYTES: usize = 64 * 1024;
/// Longest `model`, in bytes.
pub(super) const MAX_MODEL: usize = 256;

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    /// `application/json`.
    Json,
    /// `application/x-www-form-urlencoded`.
    Form,
}

impl BodyFormat {
    /// The format that a request's headers name. `None` unless there is exactly one `Content-Type`,
    /// in UTF-8, and no `Content-Encoding`: such a body cannot be inspected.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        Self::of_content_type(only(headers, header::CONTENT_TYPE)?).filter(|_| is_plain(headers))
    }

    /// The format that a `Content-Type` names. It has no parameter except `charset=utf-8`. Vendor
    /// types (`+json`) are not inspected, because servers interpret them differently.
    #[must_use]
    pub fn of_content_type(value: &str) -> Option<Self> {
        let mut parts = value.split(';').map(str::trim);
        let charset = |p: &str| {
            p.split_once('=').is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case("charset")
                    && (value.eq_ignore_ascii_case("utf-8") || value.eq_ignore_ascii_case("\"utf-8\""))
            })
        };
        let essence = parts.next()?;
        let format = match essence {
            e if e.eq_ignore_ascii_case("application/json") => Self::Json,
            e if e.eq_ignore_ascii_case("application/x-www-form-urlencoded") => Self::Form,
            _ => return None,
        };
        (parts.next().is_none_or(charset) && parts.next().is_none()).then_some(format)
    }
}

/// The fields of a body that policies may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BodyFacts {
    /// The top-level `model`.
    pub model: Option<String>,
    /// The top-level `stream`.
    pub stream: Option<bool>,
    /// The top-level `max_tokens`.
    pub max_tokens: Option<i64>,
    /// What the message asks for, in requests to MCP servers.
    pub mcp: Option<McpCall>,
    /// The declared fields that policies use.
    pub fields: FoundFields,
}

impl BodyFacts {
    /// Inspects a whole body. `None` when it cannot be inspected. A policy that needs the body then
    /// denies.
    #[must_use]
    pub fn read(format: BodyFormat, body: &[u8], fields: &Arc<BodyFields>) -> Option<Self> {
        match format {
            BodyFormat::Json => Self::read_json(body, fields),
            BodyFormat::Form => Self::read_form(body, fields),
        }
    }

    /// Adds what a message to an MCP server asks for. `None` when that cannot be told for certain.
    #[must_use]
    pub fn with_mcp(self, body: &[u8]) -> Option<Self> {
        McpCall::from_json(body).ok().map(|mcp| Self { mcp, ..self })
    }

    /// [`Self::read`] for JSON without declared fields.
    #[must_use]
    pub fn from_json(body: &[u8]) -> Option<Self> {
        Self::read_json(body, &Arc::default())
    }

    /// Reads JSON, in time linear in its length. `None` unless it is one object in strict JSON (RFC
    /// 8259) that all parsers read alike. No name may occur twice at the top level, with any
    /// escapes. No name may only resemble one of ours (`Model`, `model `). Numbers must fit 64 bits
    /// or a finite double. Nesting is at most 64 deep, with at most 1,000 names at the top level.
    fn read_json(body: &[u8], fields: &Arc<BodyFields>) -> Option<Self> {
        let mut reader = serde_json::Deserializer::from_slice(body);
        let facts = reader.deserialize_map(TopLevel(fields)).ok()?;
        reader.end().ok().map(|()| facts)
    }
}

/// The value of a header that occurs exactly once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next()?, values.next());
    if second.is_some() { None } else { first.to_str().ok() }
}

fn is_plain(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::CONTENT_ENCODING)
        || only(headers, header::CONTENT_ENCODING).is_some_and(|v| v.trim().eq_ignore_ascii_case("identity"))
}

struct TopLevel<'a>(&'a Arc<BodyFields>);

impl<'de> Visitor<'de> for TopLevel<'_> {
    type Value = BodyFacts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BodyFacts, A::Error> {
        let mut facts = BodyFacts { fields: FoundFields::none_of(self.0), ..BodyFacts::default() };
        let (declared, mut seen, mut bytes) = (self.0.root(), HashSet::new(), 0);
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "model" => facts.model = map.next_value()?,
                "stream" => facts.stream = map.next_value()?,
                "max_tokens" => facts.max_tokens = map.next_value()?,
                other if resembles(other, &BUILT_IN) || declared.is_resembled_by(other) => {
                    return Err(A::Error::custom("a name that resembles another"));
                }
                other => match declared.get(other) {
                    Some(kind) => {
                        let depth = MAX_DEPTH - 1;
                        map.next_value_seed(MemberSeed { kind, found: &mut facts.fields, depth })?;
                    }
                    None => map.next_value_seed(Strict { depth: MAX_DEPTH - 1 })?,
                },
            }
            bytes += name.len();
            if !seen.insert(name) {
                return Err(A::Error::custom("a name stands twice"));
            }
            if seen.len() > MAX_NAMES || bytes > MAX_NAME_BYTES {
                return Err(A::Error::custom("too many names"));
            }
        }
        if facts.model.as_ref().is_some_and(|m| m.len() > MAX_MODEL) {
            return Err(A::Error::custom("a model's name that is too long"));
        }
        Ok(facts)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn an_ordinary_request_is_read() {
        let body = br#" {"model":"gpt-4o","messages":[{"role":"user","content":"\u00fc\n"}],"stream":true,"max_tokens":5,"temperature":0.5} "#;
        let facts =
            BodyFacts { model: Some("gpt-4o".into()), stream: Some(true), max_tokens: Some(5), ..BodyFacts::default() };
        assert_eq!(BodyFacts::from_json(body), Some(facts));
        assert_eq!(BodyFacts::from_json(b"{}"), Some(BodyFacts::default()));
        let null = br#"{"model":null,"stream":null,"other":{"model":1,"Model":[]}}"#;
        assert_eq!(BodyFacts::from_json(null), Some(BodyFacts::default()), "other levels are not ours");
        assert_eq!(BodyFacts::from_json(br#"{"\u006dodel":"x"}"#).unwrap().model.as_deref(), Some("x"));
    }

    #[test]
    fn what_two_parsers_could_read_in_two_ways_is_not_inspected() {
        for body in [
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a","\u006dodel":"b"}"#,
            r#"{"model":null,"model":"b"}"#,
            r#"{"x":1,"x":2}"#,
            r#"{"Model":"a"}"#,
            r#"{"model ":"a"}"#,
            r#"{"model\u0000":"a"}"#,
            r#"{"mo\u200bdel":"a"}"#,
            r#"{"\ufeffmodel":"a"}"#,
            r#"{"\u017ftream":true}"#,
            r#"{"max_to\u212aens":1}"#,
            r#"{"MAX_TOKENS":1}"#,
            r#"{"model":5}"#,
            r#"{"model":["a"]}"#,
            r#"{"stream":"true"}"#,
            r#"{"max_tokens":1.5}"#,
            r#"{"max_tokens":1e3}"#,
            r#"{"max_tokens":9223372036854775808}"#,
            r#"{"x":1e400}"#,
            r#"{"x":"\ud800"}"#,
            r#"{"x":1,}"#,
            r#"{"x":NaN}"#,
            r#"{'x':1}"#,
            r#"{"x":01}"#,
            r#"{"x":1}{"x":1}"#,
            r#"{"x":1} x"#,
            "{/* */}",
            "\u{feff}{}",
            "[]",
            "\"x\"",
            "",
            "{",
        ] {
            assert_eq!(BodyFacts::from_json(body.as_bytes()), None, "{body}");
        }
        assert_eq!(BodyFacts::from_json(b"{\"x\":\"\xff\"}"), None);
        assert_eq!(BodyFacts::from_json(b"{\"x\":{\"\xff\":1}}"), None);
        assert_eq!(BodyFacts::from_json(format!(r#"{{"model":"{}"}}"#, "x".repeat(257)).as_bytes()), None);
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| format!(r#"{{"x":{}{}}}"#, "[".repeat(n), "]".repeat(n));
        assert!(BodyFacts::from_json(nested(MAX_DEPTH - 1).as_bytes()).is_some());
        assert_eq!(BodyFacts::from_json(nested(MAX_DEPTH).as_bytes()), None);
        assert_eq!(BodyFacts::from_json(nested(100_000).as_bytes()), None);
        assert_eq!(BodyFacts::from_json("{\"x\":".repeat(100_000).as_bytes()), None);
    }

    #[test]
    fn names_at_the_top_level_are_bounded_and_those_below_are_not_kept() {
        let wide = |n: usize| format!("{{{}}}", (0..n).map(|i| format!("\"k{i}\":1")).collect::<Vec<_>>().join(","));
        assert!(BodyFacts::from_json(wide(MAX_NAMES).as_bytes()).is_some());
        assert_eq!(BodyFacts::from_json(wide(100_000).as_bytes()), None);
        assert_eq!(BodyFacts::from_json(format!("{{\"{}\":1}}", "x".repeat(MAX_NAME_BYTES + 1)).as_bytes()), None);
        assert!(BodyFacts::from_json(format!("{{\"metadata\":{}}}", wide(100_000)).as_bytes()).is_some());
    }

    #[test]
    fn only_plain_json_in_utf_8_is_inspected() {
        let read = |headers: &[(HeaderName, &'static str)]| {
            let map = headers.iter().map(|(n, v)| (n.clone(), HeaderValue::from_static(v))).collect::<HeaderMap>();
            BodyFormat::of(&map) == Some(BodyFormat::Json)
        };
        let typed = |value| read(&[(header::CONTENT_TYPE, value)]);
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
        ] {
            assert!(typed(good), "{good}");
        }
        for bad in [
            "text/plain",
            "application/JSON;charset=utf-7",
            "application/json, text/plain",
            "application/vnd.api+json",
            "multipart/form-data",
            "application/x-www-form-urlencoded",
            "application/json; charset=utf-8; x=y",
            "application/json; boundary=x",
            "",
        ] {
            assert!(!typed(bad), "{bad}");
        }
        let json = (header::CONTENT_TYPE, "application/json");
        assert!(!read(&[]));
        let encoded = |value| read(&[json.clone(), (header::CONTENT_ENCODING, value)]);
        assert!(encoded("identity"));
        for coding in ["gzip", "br", "zstd", "gzip, gzip", "x-unknown", ""] {
            assert!(!encoded(coding), "{coding}");
        }
        let mut twice = HeaderMap::new();
        twice.append(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        twice.append(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        assert_eq!(BodyFormat::of(&twice), None);
        let form = |value| BodyFormat::of_content_type(value) == Some(BodyFormat::Form);
        assert!(form("application/x-www-form-urlencoded") && form("Application/X-WWW-Form-Urlencoded;charset=UTF-8"));
        assert!(!form("application/x-www-form-urlencoded; charset=latin1") && !form("multipart/form-data"));
    }

    #[test]
    fn declared_fields_are_read_and_must_have_their_type() {
        let declared = [("amount", "Long"), ("a.b", "String"), ("price", "decimal"), ("on", "Bool")];
        let fields = Arc::new(BodyFields::parse(declared).unwrap());
        let read = |body: &str| {
            let facts = BodyFacts::read(BodyFormat::Json, body.as_bytes(), &fields)?;
            Some(facts.fields.iter().map(|(path, value)| format!("{path} {value:?}")).collect::<Vec<_>>().join(", "))
        };
        assert_eq!(
            read(r#"{"amount":5,"a":{"b":"x","c":{"b":1}},"price":"1.50","on":true,"z":1}"#).unwrap(),
            r#"a.b String("x"), amount Long(5), on Bool(true), price Decimal("1.50")"#
        );
        assert_eq!(read(r#"{"price":49.99}"#).unwrap(), r#"price Decimal("49.9900")"#);
        assert_eq!(read(r#"{"amount":null,"a":null}"#).unwrap(), "");
        for body in [
            r#"{"amount":"5"}"#,
            r#"{"amount":5.0}"#,
            r#"{"amount":5e0}"#,
            r#"{"amount":18446744073709551615}"#,
            r#"{"amount":[5]}"#,
            r#"{"Amount":5}"#,
            r#"{"amount":1,"amount":2}"#,
            r#"{"a":1}"#,
            r#"{"a":[{"b":"x"}]}"#,
            r#"{"a":{"b":"x","b":"y"}}"#,
            r#"{"a":{"b":"x","B":"y"}}"#,
            r#"{"price":1.00001}"#,
            r#"{"on":1}"#,
        ] {
            assert_eq!(read(body), None, "{body}");
        }
    }
}
