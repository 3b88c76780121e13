//! Finds a secret in bytes, whatever form it has been put into.
//!
//! Two ways at once: the forms that an upstream may answer with are spelled out and searched for
//! ([`forms`]), and the bytes are decoded by each escaping in turn and searched for the plain
//! secret, which finds mixed spellings as well.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};

/// A secret in one form.
#[derive(Clone, Debug)]
pub struct Form {
    /// What the form is called.
    pub name: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

fn form(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Form {
    Form { name: name.into(), bytes: bytes.into() }
}

fn each(secret: &[u8], spell: impl Fn(usize, u8) -> String) -> String {
    secret.iter().enumerate().map(|(i, b)| spell(i, *b)).collect()
}

/// Every form that an answer may hold and that must not reach an agent.
pub fn forms(secret: &str) -> Vec<Form> {
    let bytes = secret.as_bytes();
    let json = serde_json::to_string(secret).unwrap();
    let json = &json[1..json.len() - 1];
    let mut all = vec![
        form("plain", secret),
        form("hex", each(bytes, |_, b| format!("{b:02x}"))),
        form("HEX", each(bytes, |_, b| format!("{b:02X}"))),
        form("hEx", each(bytes, |i, b| if i % 2 == 0 { format!("{b:02x}") } else { format!("{b:02X}") })),
        form("percent, all", each(bytes, |_, b| format!("%{b:02x}"))),
        form("PERCENT, all", each(bytes, |_, b| format!("%{b:02X}"))),
        form("PERCENT, reserved", each(bytes, |_, b| percent_reserved(b, true))),
        form("percent, reserved", each(bytes, |_, b| percent_reserved(b, false))),
        form("json", json),
        form("json with \\/", json.replace('/', "\\/")),
        form("\\u, all", each(bytes, |_, b| format!("\\u{b:04x}"))),
        form("\\U, all", each(bytes, |_, b| format!("\\u{b:04X}"))),
        form("\\u, some", each(bytes, |i, b| if i % 3 == 0 { format!("\\u{b:04x}") } else { json_char(b) })),
        form("html decimal", each(bytes, |_, b| format!("&#{b};"))),
        form("html hex", each(bytes, |_, b| format!("&#x{b:x};"))),
        form("html named", each(bytes, |_, b| html_char(b))),
    ];
    for pad in 0..3 {
        let padded = [&b"xy"[..pad], bytes].concat();
        for (name, engine) in [("base64", &STANDARD), ("base64url", &URL_SAFE)] {
            all.push(form(format!("{name} after {pad}"), engine.encode(&padded)));
        }
        for (name, engine) in [("base64 unpadded", &STANDARD_NO_PAD), ("base64url unpadded", &URL_SAFE_NO_PAD)] {
            all.push(form(format!("{name} after {pad}"), engine.encode(&padded)));
        }
    }
    all
}

fn percent_reserved(byte: u8, upper: bool) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ if upper => format!("%{byte:02X}"),
        _ => format!("%{byte:02x}"),
    }
}

fn json_char(byte: u8) -> String {
    match byte {
        b'"' | b'\\' => format!("\\{}", char::from(byte)),
        _ => char::from(byte).to_string(),
    }
}

fn html_char(byte: u8) -> String {
    match byte {
        b'"' => "&quot;".into(),
        b'&' => "&amp;".into(),
        b'<' => "&lt;".into(),
        b'>' => "&gt;".into(),
        b'\'' => "&#39;".into(),
        _ => char::from(byte).to_string(),
    }
}

/// The name of a form in which `haystack` holds `secret`; `None` when it doesn't.
pub fn find(haystack: &[u8], secret: &str) -> Option<String> {
    Haystack::new(haystack).find(secret)
}

/// Bytes with all their decodings, for looking for many secrets.
pub struct Haystack<'a> {
    bytes: &'a [u8],
    decoded: [(&'static str, Vec<u8>); 5],
}

impl<'a> Haystack<'a> {
    /// Decodes them.
    pub fn new(bytes: &'a [u8]) -> Self {
        let decoded = [
            ("percent-decoded", unescape(bytes, b'%', percent_at)),
            ("json-decoded", unescape(bytes, b'\\', json_at)),
            ("html-decoded", unescape(bytes, b'&', html_at)),
            ("hex-decoded", unhex(bytes)),
            ("utf-16 decoded", bytes.iter().copied().filter(|b| *b != 0).collect()),
        ];
        Self { bytes, decoded }
    }

    /// The name of a form in which they hold `secret`.
    pub fn find(&self, secret: &str) -> Option<String> {
        if let Some(form) = forms(secret).into_iter().find(|f| contains(self.bytes, core_of(f))) {
            return Some(form.name);
        }
        let plain = secret.as_bytes();
        self.decoded.iter().find(|(_, bytes)| contains(bytes, plain)).map(|(name, _)| (*name).into())
    }
}

/// The part of a form that the secret alone determines: base64 at an offset shares its first and
/// last characters with its neighbours.
fn core_of(form: &Form) -> &[u8] {
    let bytes = &form.bytes;
    if !form.name.starts_with("base64") {
        return bytes;
    }
    let start = if form.name.ends_with('0') { 0 } else { 4 };
    let end = bytes.iter().rposition(|b| *b != b'=').map_or(0, |last| last + 1);
    &bytes[start..end - end % 4]
}

/// Whether bytes stand in others.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && memchr::memmem::find(haystack, needle).is_some()
}

/// Replaces every escape that begins with `mark` and that `at` recognises (its value and length) by
/// the byte that it stands for.
fn unescape(text: &[u8], mark: u8, at: impl Fn(&[u8]) -> Option<(u8, usize)>) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some(before) = memchr::memchr(mark, rest) {
        out.extend_from_slice(&rest[..before]);
        rest = &rest[before..];
        let (byte, length) = at(rest).unwrap_or((mark, 1));
        out.push(byte);
        rest = &rest[length..];
    }
    out.extend_from_slice(rest);
    out
}

fn number(digits: Option<&[u8]>, radix: u32) -> Option<u8> {
    u32::from_str_radix(std::str::from_utf8(digits?).ok()?, radix).ok()?.try_into().ok()
}

fn percent_at(rest: &[u8]) -> Option<(u8, usize)> {
    if rest.first() != Some(&b'%') {
        return None;
    }
    Some((number(rest.get(1..3), 16)?, 3))
}

fn json_at(rest: &[u8]) -> Option<(u8, usize)> {
    match rest {
        [b'\\', b'u', ..] => Some((number(rest.get(2..6), 16)?, 6)),
        [b'\\', c @ (b'"' | b'\\' | b'/'), ..] => Some((*c, 2)),
        _ => None,
    }
}

fn html_at(rest: &[u8]) -> Option<(u8, usize)> {
    let named: [(&[u8], u8); 5] =
        [(b"&quot;", b'"'), (b"&amp;", b'&'), (b"&lt;", b'<'), (b"&gt;", b'>'), (b"&apos;", b'\'')];
    if let Some((name, byte)) = named.iter().find(|(name, _)| rest.starts_with(name)) {
        return Some((*byte, name.len()));
    }
    let digits = rest.strip_prefix(b"&#")?;
    let end = digits.iter().take(8).position(|b| *b == b';')?;
    let value = match digits.first()? {
        b'x' | b'X' => number(digits.get(1..end), 16)?,
        _ => number(digits.get(..end), 10)?,
    };
    Some((value, end + 3))
}

/// Every run of hex digits (also with `:`, `-` or space between bytes) as bytes; runs are set apart
/// by a zero.
fn unhex(text: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> = text.iter().copied().filter(|b| !matches!(b, b':' | b'-' | b' ')).collect();
    let mut out = Vec::new();
    for start in 0..2 {
        let pairs = digits[start.min(digits.len())..].chunks_exact(2);
        out.extend(pairs.map(|pair| number(Some(pair), 16).unwrap_or(0)));
        out.push(0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = r#"sk-REAL-9f3c/A+b=Zq"7\Kx-DEADBEEF0123456789"#;

    #[test]
    fn every_form_is_found_amid_other_text() {
        for form in forms(SECRET) {
            let text = [b"before ", form.bytes.as_slice(), b" after"].concat();
            assert!(find(&text, SECRET).is_some(), "{}", form.name);
        }
    }

    #[test]
    fn mixed_spellings_are_found() {
        for text in [
            r#"sk%2dREAL-9f3c%2FA+b=Zq%22%37\Kx-DEADBEEF0123456789"#,
            r#"\u0073k-REAL-9f3c\/A+b=Zq\"7\\Kx-DEADBEEF012345678\u0039"#,
            "s&#107;-REAL-9f3c&#x2f;A+b=Zq&quot;7\\Kx-DEADBEEF0123456789",
        ] {
            assert!(find(text.as_bytes(), SECRET).is_some(), "{text}");
        }
        let colons: Vec<String> = SECRET.bytes().map(|b| format!("{b:02x}")).collect();
        assert!(find(colons.join(":").as_bytes(), SECRET).is_some());
    }

    #[test]
    fn other_text_is_not_taken_for_the_secret() {
        for text in ["", "sk-REAL", &SECRET[1..], "a body without it", &STANDARD.encode("something else entirely here")]
        {
            assert_eq!(find(text.as_bytes(), SECRET), None, "{text}");
        }
    }
}
