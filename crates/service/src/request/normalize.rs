//! Normalized forms of the texts of a request that an agent chooses the spelling of.
//!
//! Servers treat many spellings of a path, a query name or a model as the same. Policies and denied paths are therefore compared
//! in normalized form too. The functions borrow where a text is normalized already.

use std::borrow::Cow;

/// A path with escapes decoded, letters in lower case and doubled slashes made single (an opted-in `%2F` can make one).
#[must_use]
pub fn normalized_path(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| b == b'%' || b.is_ascii_uppercase()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        let decoded = if c == '%' { escape(rest.as_str()) } else { None };
        if decoded.is_some() {
            rest = rest.as_str().get(2..).unwrap_or_default().chars();
        }
        let c = decoded.unwrap_or(c).to_ascii_lowercase();
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// The ASCII character that the two hexadecimal digits at the start of `rest` encode.
fn escape(rest: &str) -> Option<char> {
    let digits = rest.get(..2)?;
    u8::from_str_radix(digits, 16).ok().filter(u8::is_ascii).map(char::from).filter(|_| !digits.starts_with('+'))
}

/// A query name in lower case. The caller has decoded it.
#[must_use]
pub fn normalized_query_name(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}

/// A model's name in lower case, without surrounding white space.
#[must_use]
pub fn normalized_model(text: &str) -> Cow<'_, str> {
    normalized_query_name(text.trim())
}
