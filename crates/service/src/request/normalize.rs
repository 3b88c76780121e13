//! Other forms of the texts of a request that an agent chooses the spelling of.
//!
//! Servers treat many spellings of a path, a query name or a model as the same. Policies and denied
//! paths are therefore compared in other forms too. A path has two:
//!
//! - the **normalized** form, without the differences of spelling: escapes, case, Unicode forms;
//! - the **folded** form, which is the path of a server that also decodes again, reads `\` as `/`,
//!   cuts segments at `;`, joins doubled slashes and ignores dots and spaces at the end of a
//!   segment. There are several when a segment is longer after it is decoded (`/a;%2Fb` is `/a` or
//!   `/a/b`).
//!
//! The functions borrow where a text has the form already.

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization as _;

/// Most times that a path is decoded. A path that would change once more is refused earlier.
pub(super) const MAX_DECODINGS: usize = 4;

/// A path with escapes decoded once, in lower case, with each character in its compatibility
/// decomposition (NFKD) and without invisible characters. Not idempotent: `%2561` is `%61`.
#[must_use]
pub fn normalized_path(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|b| b.is_ascii() && b != b'%' && !b.is_ascii_uppercase()) {
        return Cow::Borrowed(text);
    }
    let mut decoded = decode_once(text);
    if decoded.is_ascii() {
        decoded.make_ascii_lowercase();
        return Cow::Owned(decoded);
    }
    // `ſ` and the Kelvin sign have a lower case of ASCII only by way of their upper case, as `ı`
    // does.
    let plain = decoded.nfkd().filter(|c| !is_invisible(*c));
    let folded = plain.flat_map(char::to_uppercase).flat_map(char::to_lowercase);
    Cow::Owned(folded.nfkd().collect())
}

/// The folded forms of a path as it is sent. Empty if its only one is its normalized form.
#[must_use]
pub fn folded_paths(sent: &str) -> Vec<String> {
    let mut forms = Vec::new();
    if !has_foldable(&normalized_path(sent)) {
        return forms;
    }
    let mut stage = Cow::Borrowed(sent);
    for _ in 0..=MAX_DECODINGS {
        // Where a server cuts depends on what it has decoded by then, and on what separates its
        // segments.
        for separators in [&['/'][..], &['/', '\\']] {
            let form = fold(&decode_fully(&normalized_path(&without_parameters(&stage, separators))));
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
        let next = normalized_path(&stage).into_owned();
        if next == stage {
            break;
        }
        stage = Cow::Owned(next);
    }
    forms
}

/// The text without what follows `;` up to the next separator.
fn without_parameters<'t>(text: &'t str, separators: &[char]) -> Cow<'t, str> {
    if !text.contains(';') {
        return Cow::Borrowed(text);
    }
    let mut cut = false;
    let keep = |c: &char| {
        cut = *c == ';' || (cut && !separators.contains(c));
        !cut
    };
    Cow::Owned(text.chars().filter(keep).collect())
}

/// A decoded path as the laxest server reads it.
fn fold(decoded: &str) -> String {
    let mut out = String::with_capacity(decoded.len());
    let mut ends_with_slash = false;
    for segment in separated(decoded) {
        ends_with_slash = segment.is_empty();
        if !segment.is_empty() {
            out.push('/');
            out.push_str(segment);
        }
    }
    if ends_with_slash {
        out.push('/');
    }
    out
}

/// The folded form of one segment as it is sent, in which an escaped slash separates nothing: for
/// servers that split a path before they decode it.
#[must_use]
pub fn folded_segment(sent: &str) -> String {
    let decoded = decode_fully(&normalized_path(sent)).into_owned();
    let segment = decoded.split(';').next().unwrap_or_default();
    segment.trim_end_matches(|c| c == '.' || is_ignored(c)).to_owned()
}

/// Whether the folded form of a text may differ from it. Such a text in a policy means itself, and
/// is compared with the normalized form only.
#[must_use]
pub fn has_foldable(normalized: &str) -> bool {
    let ignored = |c: char| c == '.' || c == '/' || is_ignored(c);
    normalized.contains(['%', ';', '\\'])
        || normalized.ends_with(|c| c == '.' || is_ignored(c))
        || normalized
            .match_indices('/')
            .skip(usize::from(normalized.starts_with('/')))
            .any(|(at, _)| normalized.get(..at).is_some_and(|before| before.ends_with(ignored)))
}

/// Whether some server reads a segment of the path as `.` or `..`: one that decodes escapes again,
/// cuts segments at `;`, or ignores spaces at their end. `None` when a path would change once more
/// after [`MAX_DECODINGS`].
pub(super) fn has_dot_segment(path: &str) -> Option<bool> {
    let mut text = normalized_path(path);
    for _ in 0..MAX_DECODINGS {
        if separated_raw(&text).any(|segment| matches!(segment.trim_end_matches(is_ignored), "." | "..")) {
            return Some(true);
        }
        if !text.contains('%') {
            return Some(false);
        }
        let next = normalized_path(&text).into_owned();
        if next == text {
            return Some(false);
        }
        text = Cow::Owned(next);
    }
    None
}

fn decode_fully(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for _ in 0..MAX_DECODINGS {
        if !text.contains('%') {
            break;
        }
        text = Cow::Owned(normalized_path(&text).into_owned());
    }
    text
}

/// Segments as a server reads them that cuts them at `;`.
fn separated_raw(path: &str) -> impl Iterator<Item = &str> {
    path.split(['/', '\\']).map(|segment| segment.split(';').next().unwrap_or_default())
}

/// The same without what is ignored at a segment's end.
fn separated(path: &str) -> impl Iterator<Item = &str> {
    separated_raw(path).map(|segment| segment.trim_end_matches(|c| c == '.' || is_ignored(c)))
}

/// What Windows ignores at the end of a name, beside dots, and what programs in C end a text at.
fn is_ignored(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

/// Characters that file systems and users see nothing of.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}')
}

fn decode_once(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        match after.first_chunk::<2>().filter(|_| byte == b'%').and_then(|digits| from_hex(*digits)) {
            Some(decoded) => {
                out.push(decoded);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    match String::from_utf8(out) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

fn from_hex(digits: [u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|b| char::from(b).to_digit(16));
    u8::try_from(high? << 4 | low?).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(path: &str) -> Vec<String> {
        let forms = folded_paths(path);
        if forms.is_empty() { vec![normalized_path(path).into_owned()] } else { forms }
    }

    #[test]
    fn a_normalized_path_has_no_differences_of_spelling() {
        for (path, want) in [
            ("/v1/%61dmin%2Fx", "/v1/admin/x"),
            ("/V1/Admin", "/v1/admin"),
            ("/caf%C3%A9", "/cafe\u{301}"),
            ("/cafe%CC%81", "/cafe\u{301}"),
            ("/CAF%C3%89", "/cafe\u{301}"),
            ("/adm%C4%B1n", "/admin"),
            ("/%EF%BC%8Fadmin", "//admin"),
            ("/ad%E2%80%8Bmin", "/admin"),
            ("/%2561", "/%61"),
            ("/50%25", "/50%"),
            ("/%", "/%"),
            ("/%+1%zz", "/%+1%zz"),
        ] {
            assert_eq!(normalized_path(path), want, "{path}");
        }
    }

    #[test]
    fn a_folded_path_is_what_the_laxest_server_reads() {
        for (path, want) in [
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/", "/"),
            ("//a///b", "/a/b"),
            ("/a//", "/a/"),
            ("/a;x=1/b;y", "/a/b"),
            ("/a/;x", "/a/"),
            ("/a%3Bx/b", "/a/b"),
            ("/a%5Cb", "/a/b"),
            ("/a./b%20/c..", "/a/b/c"),
            ("/a%252Fb", "/a/b"),
            ("/%252561", "/a"),
            ("/A%255CB", "/a/b"),
            ("/a.b/.c", "/a.b/.c"),
        ] {
            assert_eq!(folded(path), [want], "{path}");
        }
        for (path, want) in [
            ("/a;%2Fb", vec!["/a", "/a/b"]),
            ("/a;x%5Cb/c", vec!["/a/c", "/a/b/c"]),
            ("/a%3B%252Fb", vec!["/a", "/a/b"]),
            ("/a%253B%25252Fb", vec!["/a", "/a/b"]),
        ] {
            let mut forms = folded(path);
            forms.sort_by_key(String::len);
            assert_eq!(forms, want, "{path}");
        }
    }

    #[test]
    fn a_folded_path_stays_as_it_is() {
        for path in ["/a/b", "//a", "/a;b/c", "/a%5C%2520", "/..a/b..", "/a. ./b"] {
            for once in folded(path) {
                assert_eq!(fold(&once), once, "{path}");
                assert!(!has_foldable(&once), "{path}: {once}");
            }
        }
    }
}
