//! Agents' text, made fit for a record: bounded, without control characters, without tokens.

use std::{borrow::Cow, fmt::Write as _, sync::LazyLock};

use memchr::memmem::Finder;

/// Longest path of a record, in bytes; a longer one is cut and marked.
pub(super) const MAX_PATH: usize = 1024;

/// What every token contains, whatever vendor's shape it was issued in.
const TOKEN: &str = "seks_token_";

/// What every signed JWT begins with: `{"` in base64url.
const JWT: &str = "eyJ";
/// Shorter texts of this form are no JWT: its signature alone has 43 characters.
const MIN_JWT: usize = 64;

/// A path for a record, and whether it was cut.
///
/// Whatever isn't printable ASCII is percent-encoded, so a record can neither break a line, move a
/// terminal's cursor nor turn text around. Where an SDK puts its key into the path, the token is
/// taken out; where one is hidden behind escapes, the whole path is.
pub(super) fn path(path: &str) -> (Cow<'_, str>, bool) {
    static JWT_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(JWT));
    if JWT_FINDER.find(path.as_bytes()).is_some() {
        let masked = mask_jwts(path);
        let (clean, cut) = without_tokens(&masked);
        return (Cow::Owned(clean.into_owned()), cut);
    }
    without_tokens(path)
}

/// A path whose signed JWTs are taken out, whoever they are for.
fn mask_jwts(path: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let (mut clean, mut rest) = (String::with_capacity(path.len()), path);
    while let Some(at) = rest.find(JWT) {
        let (before, from) = rest.split_at(at);
        let (jwt, behind) = from.split_at(from.find(|c| !is_part(c)).unwrap_or(from.len()));
        clean.push_str(before);
        let is_jwt = jwt.len() >= MIN_JWT && jwt.matches('.').count() >= 2;
        clean.push_str(if is_jwt { "eyJ***" } else { jwt });
        rest = behind;
    }
    clean.push_str(rest);
    clean
}

fn without_tokens(path: &str) -> (Cow<'_, str>, bool) {
    static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(TOKEN));
    let plain = path.len() <= MAX_PATH && path.bytes().all(|b| b.is_ascii_graphic() && b != b'%');
    if plain && FINDER.find(path.as_bytes()).is_none() {
        return (Cow::Borrowed(path), false);
    }
    if hides_token(path) {
        return ("(a token in an escaped path)".into(), false);
    }
    let mut clean = String::with_capacity(path.len().min(MAX_PATH));
    let mut rest = path;
    while let Some(at) = rest.find(TOKEN) {
        let (before, token) = rest.split_at(at + TOKEN.len());
        push(before, &mut clean);
        clean.push_str("***");
        rest = token.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if clean.len() > MAX_PATH {
            break;
        }
    }
    push(rest, &mut clean);
    let cut = clean.len() > MAX_PATH;
    clean.truncate(MAX_PATH); // ASCII only by now
    (clean.into(), cut)
}

fn push(text: &str, clean: &mut String) {
    for byte in text.bytes() {
        if clean.len() > MAX_PATH {
            return;
        }
        if byte.is_ascii_graphic() {
            clean.push(char::from(byte));
        } else {
            let _ = write!(clean, "%{byte:02X}"); // to a String
        }
    }
}

/// Whether unescaping the path shows a token that isn't there without.
fn hides_token(path: &str) -> bool {
    if !path.contains('%') {
        return false;
    }
    let mut plain = Vec::with_capacity(path.len());
    let mut bytes = path.as_bytes();
    while let [first, rest @ ..] = bytes {
        let digits = rest.get(..2).filter(|_| *first == b'%').and_then(|d| std::str::from_utf8(d).ok());
        if let Some(byte) = digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            plain.push(byte);
            bytes = rest.get(2..).unwrap_or_default();
        } else {
            plain.push(*first);
            bytes = rest;
        }
    }
    let count = |haystack: &[u8]| memchr::memmem::find_iter(haystack, TOKEN.as_bytes()).count();
    // An escape among the token's own characters leaves the prefix in sight and would cut the token
    // short.
    count(&plain) != count(path.as_bytes()) || escaped_tail(path)
}

fn escaped_tail(path: &str) -> bool {
    path.match_indices(TOKEN).any(|(at, _)| {
        let tail = path.get(at + TOKEN.len()..).unwrap_or_default();
        tail.trim_start_matches(|c: char| c.is_ascii_alphanumeric()).starts_with('%')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_controls_tokens_and_excess() {
        let token = format!("seks_token_{}", "a1B2".repeat(13));
        let long = "/x".repeat(40_000);
        let cases = [
            ("/api/openai/v1/chat", "/api/openai/v1/chat"),
            ("/a\r\nb\x1b[2J\0", "/a%0D%0Ab%1B[2J%00"),
            ("/a\u{202e}b", "/a%E2%80%AEb"),
            (&format!("/api/tg/bot{token}/send"), "/api/tg/botseks_token_***/send"),
            (&format!("/{token}{token}"), "/seks_token_***"),
            (&format!("/%73eks_token_{}", "a".repeat(49)), "(a token in an escaped path)"),
            (&format!("/seks_token_abc%61{}", "a".repeat(46)), "(a token in an escaped path)"),
            ("/100%", "/100%"),
            (&format!("/a/eyJhbGci.{}.{}/b", "a".repeat(30), "b-_".repeat(15)), "/a/eyJ***/b"),
            ("/eyJ.a.b", "/eyJ.a.b"),
        ];
        for (given, want) in cases {
            assert_eq!(path(given), (want.into(), false), "{given:?}");
        }
        assert_eq!((path(&long).0.len(), path(&long).1), (MAX_PATH, true));
    }
}
