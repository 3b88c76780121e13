//! How common servers read the name of a query parameter.
//!
//! PHP, Rack and Rails, Express (`qs`), Spring, ASP.NET, OData and the AWS query protocol read
//! `scope`, `scope[]`, `scope[0]`, `scope.`, ` scope` or `SCOPE` as the same parameter. A policy
//! names one of them. In normalized form, the policy's text is compared by its [canonical
//! form](canonical_name) with every form in which a server may read what the agent sent
//! ([`for_each_interpretation`]).

use std::borrow::Cow;

/// Most prefixes of one nested name (`a[b][c]` has the prefix `a[b]`). Bounds the work for a
/// hostile name.
const MAX_PREFIXES: usize = 8;
/// Most times that a name is decoded again. A proxy in front of a framework is rarely followed by a
/// third decoder.
const MAX_DECODINGS: usize = 3;

/// The form by which a policy's text is compared. Case is folded and escapes are decoded.
/// Surrounding white space and a leading `$` are removed. Nesting is written with dots, without
/// empty and numeric segments: `User[name][]` is `user.name`.
pub(super) fn canonical_name(text: &str) -> Cow<'_, str> {
    if is_unambiguous(text) {
        return Cow::Borrowed(text);
    }
    let decoded = decode_fully(text);
    let joined = segments(&decoded).collect::<Vec<_>>().join(".");
    Cow::Owned(if joined.is_empty() { fold_case(text) } else { joined })
}

/// Calls `each` with every form in which a server may read the decoded name `name`;
/// [`canonical_name`]`(name)` is one of them.
pub(super) fn for_each_interpretation<'a>(name: &'a str, mut each: impl FnMut(Cow<'a, str>)) {
    if is_unambiguous(name) {
        return each(Cow::Borrowed(name));
    }
    each(Cow::Owned(fold_case(name)));
    each(canonical_name(name));
    let decoded = decode_fully(name);
    // Decoders that come before the splitting at `&` find more names in one.
    for one in decoded.split(['&', ';']) {
        let one = one.split('=').next().unwrap_or_default();
        let mut prefix = String::new();
        for segment in segments(one).take(MAX_PREFIXES) {
            if !prefix.is_empty() {
                prefix.push('.');
            }
            prefix.push_str(segment);
            each(Cow::Owned(prefix.clone()));
        }
        // C strings end at a NUL, lines at a line break.
        if let Some((before, _)) = one.split_once(char::is_control) {
            each(canonical_name(before).into_owned().into());
        }
        each(Cow::Owned(php_variable_name(one)));
        // The other way round: a policy that says `user.name` means what PHP calls `user_name`.
        each(canonical_name(&one.replace(['_', ' '], ".")).into_owned().into());
        // Spring's markers of fields and defaults.
        if let Some(field) = one.strip_prefix(['_', '!']) {
            each(canonical_name(field).into_owned().into());
        }
    }
}

/// Whether every server reads this name in the same way.
fn is_unambiguous(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.bytes().all(|b| b.is_ascii_digit())
}

/// Folds case in the way of any server: `ſ` and `K` (Kelvin) become `s` and `k`.
fn fold_case(text: &str) -> String {
    text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// Folds case and decodes up to [`MAX_DECODINGS`] times, without surrounding white space.
fn decode_fully(text: &str) -> String {
    let mut text = fold_case(text);
    for _ in 0..MAX_DECODINGS {
        if !text.contains('%') {
            break;
        }
        text = fold_case(&decode_once(&text));
    }
    trim_ignored(&text).to_owned()
}

fn decode_once(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|d| std::str::from_utf8(d).ok()).filter(|d| !d.starts_with('+'));
        match digits.filter(|_| byte == b'%').and_then(|d| u8::from_str_radix(d, 16).ok()) {
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
    String::from_utf8_lossy(&out).into_owned()
}

/// Removes the characters that some server ignores at the ends of a name.
fn trim_ignored(text: &str) -> &str {
    let invisible = |c: char| matches!(c, '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}' | '\u{ad}');
    let blank = |c: char| c.is_whitespace() || c.is_control() || invisible(c) || c == '+';
    text.trim_matches(blank).trim_start_matches(|c| c == '?' || c == '$' || blank(c))
}

/// The segments of a nested name: `a[b].c`. An index (`a[0]`, `a.1`) and an empty segment (`a[]`,
/// `a.`) name the same parameter.
fn segments(name: &str) -> impl Iterator<Item = &str> {
    let numeric = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    name.split(['[', ']', '.']).map(trim_ignored).filter(move |s| !s.is_empty() && !numeric(s))
}

/// The name of PHP's variable: the text before a closed bracket, with `_` for a space, a dot and an
/// unclosed bracket.
fn php_variable_name(name: &str) -> String {
    let name = match name.split_once('[') {
        Some((before, after)) if after.contains(']') && !before.is_empty() => before,
        _ => name,
    };
    name.trim_start().replace(['.', ' ', '['], "_")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_interpreted_as(sent: &str, policy: &str) -> bool {
        let (wanted, mut found) = (canonical_name(policy), false);
        for_each_interpretation(sent, |interpretation| found |= interpretation == wanted);
        found
    }

    #[test]
    fn a_name_is_read_in_every_spelling_that_a_common_server_takes_for_it() {
        for sent in [
            "scope",
            "SCOPE",
            "Scope[]",
            "scope[",
            "scope]",
            "scope[0]",
            "scope[12][]",
            "scope[a]",
            "scope[a][b]",
            "[scope]",
            "scope.",
            "scope.x",
            "scope.1",
            "scope.member.1",
            " scope",
            "scope ",
            "\u{a0}scope",
            "\u{feff}scope",
            "+scope",
            "%73cope",
            "%2573cope",
            "scope%5b%5d",
            "scope%00",
            "scope\0x",
            "?scope",
            "$scope",
            "_scope",
            "!scope",
            "\u{17f}cope",
            "a&scope=1",
            "a;scope",
            ".scope",
            "scope=",
            "s\u{200b}cope\u{200b}",
        ] {
            let expected = sent != "s\u{200b}cope\u{200b}"; // inside a name it is another name
            assert_eq!(is_interpreted_as(sent, "scope"), expected, "{sent:?}");
        }
        for (sent, policy) in [
            ("user.name", "user_name"),
            ("user name", "user_name"),
            ("user[name", "user_name"),
            ("user_name", "user.name"),
            ("user name", "user.name"),
            ("user.name", "user[name]"),
            ("USER[Name][]", "user.name"),
            ("filter", "$filter"),
            ("scope[3]", "scope[]"),
            ("scope", "scope[]"),
            ("0", "0"),
        ] {
            assert!(is_interpreted_as(sent, policy), "{sent:?} as {policy:?}");
        }
    }

    #[test]
    fn another_name_stays_another() {
        for (sent, policy) in [
            ("scopes", "scope"),
            ("my-scope", "scope"),
            ("scope_id", "scope"),
            ("created[gte]", "created[lte]"),
            ("user", "user.name"),
            ("xscope", "scope"),
            ("1", "2"),
        ] {
            assert!(!is_interpreted_as(sent, policy), "{sent:?} as {policy:?}");
        }
    }

    proptest! {
        #[test]
        fn every_name_reads_as_itself(name in "\\PC{0,12}|[a-zA-Z_.\\[\\]$!%0-9 +?&;=]{0,12}") {
            prop_assert!(is_interpreted_as(&name, &name), "{:?}", canonical_name(&name));
        }

        #[test]
        fn the_number_of_readings_is_bounded(name in "[a.&_\\[]{0,400}") {
            let (mut count, parts) = (0, name.matches('&').count() + 1);
            for_each_interpretation(&name, |_| count += 1);
            prop_assert!(count <= 2 + parts * (MAX_PREFIXES + 4));
        }
    }
}
