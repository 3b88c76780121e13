//! The method and the name of an MCP message, for policies.
//!
//! MCP servers take JSON-RPC messages by POST. Since 2026-07-28 a request repeats the message's
//! method in `Mcp-Method`, and the name of the tool, the prompt or the resource in `Mcp-Name`, and
//! the two must agree. Servers and gateways may act on either. A policy therefore sees a value only
//! if headers and body agree on it.

use std::{borrow::Cow, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderMap;
use serde::de::{Deserializer as _, Error as _, IgnoredAny, MapAccess, Visitor};

use super::json_names::resembles;
use crate::McpSource;

/// Longest method and longest name, in bytes. URIs of resources are names too.
const MAX_TEXT: usize = 2048;

/// What an MCP message asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct McpCall {
    /// Such as `tools/call`.
    pub method: String,
    /// Of the tool, the prompt or the resource, for the methods that have one.
    pub name: Option<String>,
}

/// The message is a batch or ambiguous, or its headers do not agree with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not one MCP message with headers that agree")]
pub struct UnreadableMcp;

/// The parameter that `Mcp-Name` repeats.
fn name_parameter(method: &str) -> Option<&'static str> {
    match method {
        "tools/call" | "prompts/get" => Some("name"),
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => Some("uri"),
        _ => None,
    }
}

impl McpCall {
    /// Reads a message that [`BodyFacts::from_json`](super::BodyFacts::from_json) accepts. `None`:
    /// it is a response, which asks for nothing.
    ///
    /// # Errors
    /// [`UnreadableMcp`] for a batch, and for a message that two parsers could read in two ways.
    pub fn from_json(body: &[u8]) -> Result<Option<Self>, UnreadableMcp> {
        let mut reader = serde_json::Deserializer::from_slice(body);
        let message = reader.deserialize_map(MessageVisitor).map_err(|_| UnreadableMcp)?;
        let Some(method) = message.method else { return Ok(None) };
        let name = match name_parameter(&method) {
            None => None,
            // A call without a name is not a call of anything: the server refuses it, and so does a
            // policy.
            Some(parameter) => {
                let named = if parameter == "name" { message.name } else { message.uri };
                Some(named.ok_or(UnreadableMcp)?)
            }
        };
        let is_long = |text: &String| text.len() > MAX_TEXT;
        if is_long(&method) || name.as_ref().is_some_and(is_long) {
            return Err(UnreadableMcp);
        }
        Ok(Some(Self { method, name }))
    }

    /// Compares what a body asks for with the request's headers.
    ///
    /// # Errors
    /// [`UnreadableMcp`] when they differ, when a header occurs twice, and when `source` needs
    /// headers that are not there.
    pub fn confirm(call: Option<&Self>, headers: &HeaderMap, source: McpSource) -> Result<(), UnreadableMcp> {
        let (method, name) = (only(headers, "mcp-method")?, only(headers, "mcp-name")?);
        let agrees = match (call, method) {
            (None, None) => name.is_none(),
            (None, Some(_)) => false,
            (Some(_), None) => source == McpSource::HeadersOrBody && name.is_none(),
            (Some(call), Some(method)) => {
                *call.method == *method
                    && match (&call.name, name) {
                        (Some(have), Some(name)) => **have == *decoded(name)?,
                        (None, None) => true,
                        (Some(_), None) | (None, Some(_)) => false,
                    }
            }
        };
        if agrees { Ok(()) } else { Err(UnreadableMcp) }
    }
}

/// The value of a header that occurs at most once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, UnreadableMcp> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(|text| Some(text.trim())).map_err(|_| UnreadableMcp),
        (Some(_), Some(_)) => Err(UnreadableMcp),
    }
}

/// A name as the body has it: names beyond visible ASCII are written `=?base64?…?=`.
fn decoded(name: &str) -> Result<Cow<'_, str>, UnreadableMcp> {
    let Some(encoded) = name.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) else {
        return Ok(Cow::Borrowed(name));
    };
    let bytes = STANDARD.decode(encoded).map_err(|_| UnreadableMcp)?;
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| UnreadableMcp)
}

#[derive(Default)]
struct Message {
    method: Option<String>,
    name: Option<String>,
    uri: Option<String>,
}

struct MessageVisitor;

impl<'de> Visitor<'de> for MessageVisitor {
    type Value = Message;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON-RPC message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Message, A::Error> {
        let (mut message, mut method) = (Message::default(), None);
        // Names at the top level are known to be unique.
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "method" => method = map.next_value::<Option<String>>()?,
                "params" => message = map.next_value_seed(Params)?,
                other if resembles(other, &["method", "params"]) => {
                    return Err(A::Error::custom("a name that resembles another"));
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Message { method, ..message })
    }
}

/// Reads `params`: an object, or `null`.
struct Params;

impl<'de> serde::de::DeserializeSeed<'de> for Params {
    type Value = Message;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Message, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Params {
    type Value = Message;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Message, E> {
        Ok(Message::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Message, A::Error> {
        let mut message = Message::default();
        while let Some(key) = map.next_key::<String>()? {
            let place = match key.as_str() {
                "name" => &mut message.name,
                "uri" => &mut message.uri,
                other if resembles(other, &["name", "uri"]) => {
                    return Err(A::Error::custom("a name that resembles another"));
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if place.replace(map.next_value()?).is_some() {
                return Err(A::Error::custom("a name stands twice"));
            }
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn call(method: &str, name: Option<&str>) -> McpCall {
        McpCall { method: method.into(), name: name.map(Into::into) }
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_message_has_one_method_and_one_name() {
        for (body, want) in [
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_x","arguments":{"name":"y"}}}"#,
                call("tools/call", Some("get_x")),
            ),
            (
                r#"{"params":{"uri":"file:///a","name":"z"},"method":"resources/read"}"#,
                call("resources/read", Some("file:///a")),
            ),
            (r#"{"method":"tools/list"}"#, call("tools/list", None)),
            (r#"{"method":"initialize","params":{"clientInfo":{"name":"x"}}}"#, call("initialize", None)),
            (r#"{"method":"ping","params":null}"#, call("ping", None)),
        ] {
            assert_eq!(McpCall::from_json(body.as_bytes()), Ok(Some(want)), "{body}");
        }
        assert_eq!(McpCall::from_json(br#"{"jsonrpc":"2.0","id":1,"result":{}}"#), Ok(None));
    }

    #[test]
    fn batches_and_ambiguous_messages_are_unreadable() {
        for body in [
            r#"[{"method":"tools/list"}]"#,
            r#"{"method":"tools/call"}"#,
            r#"{"method":"tools/call","params":{}}"#,
            r#"{"method":"tools/call","params":{"name":null}}"#,
            r#"{"method":"tools/call","params":{"name":["a"]}}"#,
            r#"{"method":"tools/call","params":["a"]}"#,
            r#"{"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            r#"{"method":"tools/call","params":{"name":"a","\u006eame":"b"}}"#,
            r#"{"method":"tools/call","params":{"name":"a","Name":"b"}}"#,
            r#"{"method":"tools/call","Method":"ping","params":{"name":"a"}}"#,
            r#"{"method":"tools/call","params":{"name":"a"},"Params":{"name":"b"}}"#,
            r#"{"method":7}"#,
            "",
        ] {
            assert_eq!(McpCall::from_json(body.as_bytes()), Err(UnreadableMcp), "{body}");
        }
        let long = format!(r#"{{"method":"tools/call","params":{{"name":"{}"}}}}"#, "x".repeat(MAX_TEXT + 1));
        assert_eq!(McpCall::from_json(long.as_bytes()), Err(UnreadableMcp));
    }

    #[test]
    fn headers_must_equal_the_body() {
        let (get, list) = (call("tools/call", Some("get_x")), call("tools/list", None));
        let confirm = |call: Option<&McpCall>, fields: &[(&'static str, &str)], source| {
            McpCall::confirm(call, &headers(fields), source).is_ok()
        };
        let both = [McpSource::Headers, McpSource::HeadersOrBody];
        for source in both {
            assert!(confirm(Some(&get), &[("mcp-method", "tools/call"), ("mcp-name", "get_x")], source));
            assert!(confirm(Some(&get), &[("mcp-method", "tools/call"), ("mcp-name", "=?base64?Z2V0X3g=?=")], source));
            assert!(confirm(Some(&list), &[("mcp-method", "tools/list")], source));
            assert!(confirm(None, &[], source), "a response");
            for fields in [
                &[("mcp-method", "tools/call"), ("mcp-name", "delete_x")][..],
                &[("mcp-method", "tools/list"), ("mcp-name", "get_x")],
                &[("mcp-method", "Tools/Call"), ("mcp-name", "get_x")],
                &[("mcp-method", "tools/call")],
                &[("mcp-name", "get_x")],
                &[("mcp-method", "tools/call"), ("mcp-name", "get_x"), ("mcp-name", "get_x")],
                &[("mcp-method", "tools/call"), ("mcp-method", "tools/call"), ("mcp-name", "get_x")],
                &[("mcp-method", "tools/call"), ("mcp-name", "=?base64?!?=")],
                &[("mcp-method", "tools/call"), ("mcp-name", "=?BASE64?Z2V0X3g=?=")],
            ] {
                assert!(!confirm(Some(&get), fields, source), "{fields:?}");
            }
            assert!(!confirm(None, &[("mcp-method", "tools/call")], source));
            assert!(!confirm(Some(&list), &[("mcp-method", "tools/list"), ("mcp-name", "x")], source));
        }
        assert!(!confirm(Some(&get), &[], McpSource::Headers), "required since 2026-07-28");
        assert!(confirm(Some(&get), &[], McpSource::HeadersOrBody));
    }
}
