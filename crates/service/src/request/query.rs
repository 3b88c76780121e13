//! The query: sent on byte for byte, its names read for policy.

use std::borrow::Cow;

use super::target_error::{TargetError, escape};

/// One parameter of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryParameter<'a> {
    /// As the agent wrote it, `name=value` or `name`: what is sent on.
    pub raw: &'a str,
    /// Its name, decoded.
    pub name: Cow<'a, str>,
}

impl<'a> QueryParameter<'a> {
    /// The value as written; empty when there is none.
    #[must_use]
    pub fn value(&self) -> &'a str {
        self.raw.split_once('=').map_or("", |(_, value)| value)
    }
}

/// Parameters of a query in order, empty ones (`&&`) left out.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = QueryParameter<'_>> {
    query.split('&').filter(|raw| !raw.is_empty()).map(|raw| QueryParameter { raw, name: decode(raw_name(raw)) })
}

/// Decoded names of a query's parameters, for policy; doubles are left in. Some servers take `;` for `&`, so a name behind
/// one counts too.
pub fn query_names(query: &str) -> impl Iterator<Item = Cow<'_, str>> {
    query.split(['&', ';']).filter(|raw| !raw.is_empty()).map(|raw| decode(raw_name(raw)))
}

fn raw_name(raw: &str) -> &str {
    raw.split_once('=').map_or(raw, |(name, _)| name)
}

/// Form decoding: `+` is a space. Bad escapes and bytes that aren't UTF-8 don't get past [`check_query`].
fn decode(text: &str) -> Cow<'_, str> {
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

/// Names by which frameworks let a query override the method (Rails, Symfony, Spring, Laravel, Google's front end, OData).
/// Compared without case and without what stands in brackets behind them.
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

/// Methods that a parameter named `method` may ask for (Facebook's Graph API obeys it); other values are left alone, because
/// many APIs have a parameter of that name.
const METHODS: &[&str] = &["get", "head", "options", "post", "put", "patch", "delete"];

/// Refuses what may not stand in a query.
pub(super) fn check_query(query: &str) -> Result<(), TargetError> {
    let mut bytes = query.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' if escape(&mut bytes)? == 0 => return Err(TargetError::Control),
            0x80.. => return Err(TargetError::NonAscii),
            0..=0x1f | 0x7f => return Err(TargetError::Control),
            b'#' | b'\\' | b' ' => return Err(TargetError::Character),
            _ => {}
        }
    }
    for raw in query.split(['&', ';']) {
        let name = decode(raw_name(raw));
        if name.chars().any(char::is_control) {
            return Err(TargetError::Control);
        }
        if overrides_method(&name, raw) {
            return Err(TargetError::MethodOverride);
        }
    }
    Ok(())
}

fn overrides_method(name: &str, raw: &str) -> bool {
    let bare = name.split('[').next().unwrap_or_default().trim();
    if OVERRIDES.iter().any(|o| bare.eq_ignore_ascii_case(o)) {
        return true;
    }
    let value = || decode(raw.split_once('=').map_or("", |(_, value)| value));
    bare.eq_ignore_ascii_case("method") && METHODS.iter().any(|m| value().trim().eq_ignore_ascii_case(m))
}
