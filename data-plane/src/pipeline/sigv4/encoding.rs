//! Escapes and hexadecimal digits as signatures have them.

use std::{borrow::Cow, fmt::Write as _};

pub(super) fn write_hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
}

/// `%XX` decoded; `None` for what is no escape, or no text.
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        out.push(if byte == b'%' { u8::try_from(digit()? << 4 | digit()?).ok()? } else { byte });
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// Everything but unreserved characters and `plain` escaped, with capitals.
pub(super) fn encode(bytes: &[u8], plain: &[u8], out: &mut String) {
    for &b in bytes {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) || plain.contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
}
