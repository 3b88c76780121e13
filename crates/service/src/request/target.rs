//! The path. It is sent as the agent wrote it. What servers read in different ways is refused,
//! unless the service says that its server reads it in one (RFC 3986, and the known behaviour of
//! servers).

use std::borrow::Cow;

use http::Method;

use super::{
    normalize::has_dot_segment,
    path_rules::PathRules,
    query::{self, QueryParameter},
    target_error::{TargetError, escape},
};
use crate::Service;

/// The path and query of an upstream request.
///
/// Both are ASCII. The path begins with `/` and has no segment that any server reads as `.` or
/// `..`. Policies see [`Target::path`], and the same bytes are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    path: Cow<'a, str>,
    query: Option<Cow<'a, str>>,
    method_override: Option<Method>,
}

impl<'a> Target<'a> {
    /// Parses `rest`, the agent's path and query after `/api/SERVICE`: `""` or `/…`. The service's
    /// `base_path` is prepended unless the path starts with it. Characters that no URI holds, and
    /// that some clients send nevertheless, are percent-encoded: `[`, `{`, `"`, `|` and their kind,
    /// `ü`, and in the query a `%` that begins no escape.
    ///
    /// # Errors
    /// [`TargetError`]. The request must be refused with `request_invalid`.
    pub fn parse(service: &Service, rest: &'a str) -> Result<Self, TargetError> {
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let path = check_path(path, service.path_rules)?;
        let mut method_override = None;
        let query = match query {
            Some(query) => {
                let query = query::with_escaped_percents(query);
                method_override = query::check_query(&query, service.allow_method_override)?;
                Some(match query {
                    Cow::Borrowed(query) => percent_encoded(query, query::is_plain),
                    Cow::Owned(query) => Cow::Owned(percent_encoded(&query, query::is_plain).into_owned()),
                })
            }
            None => None,
        };
        Ok(Self { path: join_base_path(&service.base_path, path), query, method_override })
    }

    /// The path as it is sent, with the base path and without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The query as it is sent, without `?`. `None` when there is no `?`.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// The query's parameters in order: the bytes to send, and their decoded names.
    pub fn query_parameters(&self) -> impl Iterator<Item = QueryParameter<'_>> {
        query::parameters(self.query.as_deref().unwrap_or_default())
    }

    /// The method that a query parameter asks for instead of the request's, if the service accepts
    /// that.
    #[must_use]
    pub fn method_override(&self) -> Option<&Method> {
        self.method_override.as_ref()
    }
}

/// `rest` without the slash that a base URL's final `/` adds: `//v1/models` is `/v1/models`, and
/// `/v1//models` below the base path `/v1` is `/v1/models`. Unchanged if it names a host, and for a
/// service whose paths may hold empty segments.
#[must_use]
pub fn without_base_slash<'a>(service: &Service, rest: &'a str) -> Cow<'a, str> {
    let doubled = |text: &str| text.starts_with("//") && !text.starts_with("///");
    let base = service.base_path.as_str();
    if service.path_rules.allow(PathRules::EMPTY_SEGMENT) {
        return Cow::Borrowed(rest);
    }
    let rest = if doubled(rest) && !is_network_path(rest) { rest.get(1..).unwrap_or_default() } else { rest };
    match rest.strip_prefix(base) {
        Some(below) if !base.is_empty() && doubled(below) => {
            Cow::Owned([base, below.get(1..).unwrap_or_default()].concat())
        }
        _ => Cow::Borrowed(rest),
    }
}

/// Whether `//…` names a host (`//evil.test/x`): some client was led to write it, and it stays
/// refused.
fn is_network_path(rest: &str) -> bool {
    let Some((host, _)) = rest.get(2..).and_then(|rest| rest.split_once('/')) else { return false };
    let last = host.rsplit_once('.').map_or("", |(_, last)| last);
    host.contains([':', '@', '[', '%'])
        || last.starts_with(|c: char| c.is_ascii_alphabetic())
        || host.parse::<std::net::Ipv4Addr>().is_ok()
}

/// The contract's rule for base paths: both `base_url=".../api/openai"` and `".../api/openai/v1"`
/// work.
fn join_base_path<'a>(base: &str, path: Cow<'a, str>) -> Cow<'a, str> {
    let has_base = path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match (base, &*path) {
        ("", "") => Cow::Borrowed("/"),
        ("", _) => path,
        _ if has_base => path,
        (base, path) => Cow::Owned([base, path].concat()),
    }
}

fn check_path(path: &str, rules: PathRules) -> Result<Cow<'_, str>, TargetError> {
    if path.is_empty() {
        return Ok(Cow::Borrowed(path));
    }
    let segments = path.strip_prefix('/').ok_or(TargetError::NotAbsolute)?;
    if is_plain(segments.as_bytes()) {
        return Ok(Cow::Borrowed(path)); // nearly every path
    }
    check_characters(segments, rules)?;
    // A last empty segment is the path's final `/`. Elsewhere, servers treat empty segments
    // differently. An opted-in `%2F` may be beside another slash
    // (`/sites/https%3A%2F%2Fexample.com%2F/pages`), but must not make a network path of the whole.
    let leads_away = || ["/", "%2F", "%2f", "%5C", "%5c"].iter().any(|slash| segments.starts_with(slash));
    if !rules.allow(PathRules::EMPTY_SEGMENT) && (segments.contains("//") || leads_away()) {
        return Err(TargetError::EmptySegment);
    }
    match has_dot_segment(path) {
        Some(false) => Ok(percent_encoded(path, is_uri_byte)),
        Some(true) => Err(TargetError::DotSegment),
        None => Err(TargetError::NestedEscape),
    }
}

/// Whether nothing in it needs a closer look: unreserved characters and what separates, no empty
/// and no dot segment. In one pass; `false` says nothing.
fn is_plain(segments: &[u8]) -> bool {
    const PLAIN: [bool; 256] = {
        let mut table = [false; 256];
        let mut b = 0;
        #[allow(clippy::indexing_slicing, reason = "in bounds, at compile time")]
        while b < 128 {
            table[b] = is_unreserved(b as u8) || matches!(b as u8, b'/' | b':' | b'@' | b',' | b'=' | b'+');
            b += 1;
        }
        table
    };
    let mut before = b'/';
    for &byte in segments {
        let begins = before == b'/';
        if !PLAIN.get(usize::from(byte)).copied().unwrap_or(false) || (begins && matches!(byte, b'/' | b'.')) {
            return false;
        }
        before = byte;
    }
    true
}

fn check_characters(segments: &str, rules: PathRules) -> Result<(), TargetError> {
    let allowed = |rule, error| if rules.allow(rule) { Ok(()) } else { Err(error) };
    let mut bytes = segments.bytes();
    let mut encoded = Vec::new();
    while let Some(byte) = bytes.next() {
        let (byte, escaped) = if byte == b'%' { (escape(&mut bytes)?, true) } else { (byte, false) };
        // A sequence of UTF-8 may be written with escapes, raw, or partly so. Overlong forms are
        // none.
        if byte >= 0x80 {
            allowed(PathRules::UTF8, TargetError::NonAscii)?;
            encoded.push(byte);
            continue;
        }
        if std::str::from_utf8(&encoded).is_err() {
            return Err(TargetError::NotUtf8);
        }
        encoded.clear();
        match (byte, escaped) {
            (0, _) | (1..=0x1f | 0x7f, false) => return Err(TargetError::Control),
            (1..=0x1f | 0x7f, true) => allowed(PathRules::CONTROL, TargetError::EscapedControl)?,
            (b'/', true) => allowed(PathRules::ENCODED_SLASH, TargetError::EscapedSlash)?,
            (b'\\', true) => allowed(PathRules::BACKSLASH, TargetError::EscapedBackslash)?,
            (b'%', true) => allowed(PathRules::PERCENT, TargetError::EscapedPercent)?,
            (b';', _) => allowed(PathRules::SEMICOLON, TargetError::PathParameter)?,
            (_, false) if !is_uri_byte(byte) && !is_escaped_for_clients(byte) => return Err(TargetError::Character),
            _ => {}
        }
    }
    if std::str::from_utf8(&encoded).is_ok() { Ok(()) } else { Err(TargetError::NotUtf8) }
}

/// The text with every byte percent-encoded for which `is_sent` is false.
pub(super) fn percent_encoded(text: &str, is_sent: impl Fn(u8) -> bool) -> Cow<'_, str> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    if text.bytes().all(&is_sent) {
        return Cow::Borrowed(text);
    }
    let digit = |n: u8| char::from(HEX.get(usize::from(n)).copied().unwrap_or(b'0'));
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if is_sent(byte) {
            out.push(char::from(byte));
        } else {
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    Cow::Owned(out)
}

/// What no path holds raw, but fetch, httpx and curl send so: it means the same escaped and raw.
/// Not `\`, which some servers read as `/`, and not `#`, where others cut.
fn is_escaped_for_clients(byte: u8) -> bool {
    b"[]{}|^\"<>`".contains(&byte)
}

/// What a path holds (RFC 3986, 3.3), and the `%` of an escape.
fn is_uri_byte(byte: u8) -> bool {
    is_unreserved(byte) || b"/:@!$&'()*+,;=%".contains(&byte)
}

/// RFC 3986, 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}
