//! The path. It is canonical because other forms are refused (RFC 3986, and the known behaviour of
//! servers).

use std::borrow::Cow;

use super::{
    query::{self, QueryParameter},
    target_error::{TargetError, escape},
};
use crate::Service;

/// The path and query of an upstream request.
///
/// The path begins with `/` and is ASCII. It has no dot segment, no empty segment except a last
/// one, and no escape with an alternative spelling. Policies see [`Target::path`], and the same
/// bytes are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    path: Cow<'a, str>,
    query: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Parses `rest`, the agent's path and query after `/api/SERVICE`: `""` or `/…`. The service's
    /// `base_path` is prepended unless the path starts with it.
    ///
    /// # Errors
    /// [`TargetError`]. The request must be refused with `request_invalid`.
    pub fn parse(service: &Service, rest: &'a str) -> Result<Self, TargetError> {
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        check_path(path, service.allow_encoded_slash)?;
        if let Some(query) = query {
            query::check_query(query)?;
        }
        Ok(Self { path: join_base_path(&service.base_path, path), query })
    }

    /// The path as it is sent, with the base path and without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The query as the agent wrote it, without `?`. `None` when there is no `?`.
    #[must_use]
    pub fn query(&self) -> Option<&'a str> {
        self.query
    }

    /// The query's parameters in order: the bytes to send, and their decoded names.
    pub fn query_parameters(&self) -> impl Iterator<Item = QueryParameter<'a>> + use<'a> {
        query::parameters(self.query.unwrap_or_default())
    }
}

/// The contract's rule for base paths: both `base_url=".../api/openai"` and `".../api/openai/v1"`
/// work.
fn join_base_path<'a>(base: &str, path: &'a str) -> Cow<'a, str> {
    let has_base = path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match (base, path) {
        ("", "") => Cow::Borrowed("/"),
        ("", path) => Cow::Borrowed(path),
        (_, path) if has_base => Cow::Borrowed(path),
        (base, path) => Cow::Owned([base, path].concat()),
    }
}

fn check_path(path: &str, allow_encoded_slash: bool) -> Result<(), TargetError> {
    if path.is_empty() {
        return Ok(());
    }
    let segments = path.strip_prefix('/').ok_or(TargetError::NotAbsolute)?;
    if is_plain(segments.as_bytes()) {
        return Ok(()); // nearly every path
    }
    check_characters(segments, allow_encoded_slash)?;
    // A last empty segment is the path's final `/`; anywhere else servers differ in what they make of it. An opted-in `%2F` may
    // stand beside another slash (`/sites/https%3A%2F%2Fexample.com%2F/pages`), but not make a network path of the whole.
    if segments.contains("//")
        || segments.starts_with('/')
        || segments.starts_with("%2F")
        || segments.starts_with("%2f")
    {
        return Err(TargetError::EmptySegment);
    }
    // An escaped dot never gets here, so these are all the spellings; an opted-in `%2F` separates segments too.
    let mut segments = segments.split('/').flat_map(|s| s.split("%2F")).flat_map(|s| s.split("%2f"));
    if segments.any(|segment| matches!(segment, "." | "..")) { Err(TargetError::DotSegment) } else { Ok(()) }
}

/// Whether nothing in it needs a closer look: unreserved characters and what separates, no empty and no dot segment. In one
/// pass; `false` says nothing.
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

fn check_characters(segments: &str, allow_encoded_slash: bool) -> Result<(), TargetError> {
    let mut bytes = segments.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => check_escape(escape(&mut bytes)?, allow_encoded_slash)?,
            b';' => return Err(TargetError::PathParameter),
            b'/' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' => {}
            _ if is_unreserved(byte) => {}
            0x80.. => return Err(TargetError::NonAscii),
            0..=0x1f | 0x7f => return Err(TargetError::Control),
            _ => return Err(TargetError::Character),
        }
    }
    Ok(())
}

/// What an escape may stand for. Reserved characters may be written either way: SDKs do (`encodeURIComponent`), and so a
/// policy is decided on the loosest reading as well (see `seks_policy`).
fn check_escape(byte: u8, allow_encoded_slash: bool) -> Result<(), TargetError> {
    match byte {
        0..=0x1f | 0x7f => Err(TargetError::Control),
        0x80.. => Err(TargetError::NonAscii),
        b'/' if allow_encoded_slash => Ok(()),
        b'/' | b'\\' => Err(TargetError::EscapedSlash),
        b';' => Err(TargetError::PathParameter),
        b'%' => Err(TargetError::NeedlessEscape),
        _ if is_unreserved(byte) => Err(TargetError::NeedlessEscape),
        _ => Ok(()),
    }
}

/// RFC 3986, 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}
