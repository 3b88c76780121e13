//! The query. It is forwarded as it was written, but for characters that no URI holds; policies see
//! its names.

use std::borrow::Cow;

use http::Method;

use super::target_error::{TargetError, escape};
use crate::methods::is_action;

/// One parameter of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryParameter<'a> {
    /// The bytes that are sent: `name=value` or `name`.
    pub raw: &'a str,
    /// The decoded name.
    pub name: Cow<'a, str>,
}

impl<'a> QueryParameter<'a> {
    /// The value as written. Empty when there is none.
    #[must_use]
    pub fn value(&self) -> &'a str {
        self.raw.split_once('=').map_or("", |(_, value)| value)
    }
}

/// The parameters of a query in order, without empty ones (`&&`).
pub(super) fn parameters(query: &str) -> impl Iterator<Item = QueryParameter<'_>> {
    query.split('&').filter(|raw| !raw.is_empty()).map(|raw| QueryParameter { raw, name: decode(raw_name(raw)) })
}

/// Decoded parameter names for policies, with duplicates. Some servers separate parameters by `;`,
/// so names after `;` are included.
pub fn query_names(query: &str) -> impl Iterator<Item = Cow<'_, str>> {
    query.split(['&', ';']).filter(|raw| !raw.is_empty()).map(|raw| decode(raw_name(raw)))
}

fn raw_name(raw: &str) -> &str {
    raw.split_once('=').map_or(raw, |(name, _)| name)
}

/// Form decoding: `+` is a space. [`check_query`] refuses bad escapes and bytes that are not UTF-8.
pub(super) fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => out.extend(escape(&mut bytes)),
            _ => out.push(byte),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// Parameter names by which frameworks override the method (Rails, Symfony, Spring, Laravel,
/// Google's front end, OData). Compared without case and without a bracketed suffix.
const OVERRIDES: &[&str] = &[
    "_method",
    "__method",
    "_http_method",
    "http_method",
    "_httpmethod",
    "httpmethod",
    "$httpmethod",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x_http_method_override",
    "x-httpmethod-override",
    "method_override",
    "_method_override",
];

/// Values of a parameter `method` that override the method (Facebook's Graph API obeys it). Other
/// values are permitted, because many APIs have such a parameter.
const METHODS: &[&str] = &["get", "head", "options", "post", "put", "patch", "delete"];

/// What is sent as it is. `curl` and browsers also write `"<>{}|\^`, a backtick and UTF-8 raw.
pub(super) fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'{' | b'}' | b'|' | b'\\' | b'^' | b'`')
}

/// The query with every `%` as `%25` that begins no escape. WHATWG's URLs leave it as it is
/// (`?discount=50%`), and servers read it so.
pub(super) fn with_escaped_percents(query: &str) -> Cow<'_, str> {
    let begins_escape = |at: usize| escape(&mut query.get(at + 1..).unwrap_or_default().bytes()).is_ok();
    if query.match_indices('%').all(|(at, _)| begins_escape(at)) {
        return Cow::Borrowed(query);
    }
    let mut out = String::with_capacity(query.len() + 16);
    for (at, c) in query.char_indices() {
        out.push(c);
        if c == '%' && !begins_escape(at) {
            out.push_str("25");
        }
    }
    Cow::Owned(out)
}

/// Refuses a query with forbidden characters, or with a parameter that overrides the method. With
/// `may_override` it gives the method that one parameter asks for.
pub(super) fn check_query(query: &str, may_override: bool) -> Result<Option<Method>, TargetError> {
    let mut bytes = query.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' if escape(&mut bytes)? == 0 => return Err(TargetError::Control),
            0..=0x1f | 0x7f => return Err(TargetError::Control),
            b'#' | b' ' => return Err(TargetError::Character),
            _ => {}
        }
    }
    let mut overridden = None;
    for raw in query.split(['&', ';']) {
        let name = decode(raw_name(raw));
        if name.chars().any(char::is_control) {
            return Err(TargetError::Control);
        }
        if overrides_method(&name, raw) {
            if !may_override {
                return Err(TargetError::MethodOverride);
            }
            let value = raw.split_once('=').map_or("", |(_, value)| value);
            let method = overriding_method(value).ok_or(TargetError::MethodOverrideForm)?;
            if overridden.replace(method).is_some() {
                return Err(TargetError::MethodOverrideForm);
            }
        }
    }
    Ok(overridden)
}

/// The method that a value asks for. Servers that obey one read it in upper case (Rack, Symfony).
#[must_use]
pub fn overriding_method(value: &str) -> Option<Method> {
    let upper = value.to_ascii_uppercase();
    Method::from_bytes(upper.as_bytes()).ok().filter(|_| is_action(&upper))
}

pub(super) fn overrides_method(name: &str, raw: &str) -> bool {
    // What stands behind a NUL is nothing to servers in C, and so are a byte order mark and control
    // characters around a name.
    let name = name.split('\0').next().unwrap_or_default();
    let name = name.trim_matches(|c: char| c.is_whitespace() || c.is_control() || c == '\u{feff}');
    // PHP reads a `.` or a `[` without its `]` as `_`.
    let rest = name.strip_prefix(['.', '[']).unwrap_or_default();
    let bare = name.split('[').next().unwrap_or_default().trim();
    if rest.eq_ignore_ascii_case("method") || OVERRIDES.iter().any(|o| bare.eq_ignore_ascii_case(o)) {
        return true;
    }
    let value = || decode(raw.split_once('=').map_or("", |(_, value)| value));
    bare.eq_ignore_ascii_case("method") && METHODS.iter().any(|m| value().trim().eq_ignore_ascii_case(m))
}
