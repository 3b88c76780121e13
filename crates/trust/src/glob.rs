//! Globs over claims.
//!
//! `*` stands for any characters except `/` and `:`, which separate the parts of a subject. `**`
//! stands for any characters. `repo:acme/*:ref:refs/heads/main` therefore matches no subject with
//! further parts. `\*` and `\\` stand for themselves.

/// Longest glob, in bytes.
const MAX_BYTES: usize = 512;
/// Most stars. Bounds the work of a match together with the lengths.
const MAX_STARS: usize = 16;

/// A parsed glob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Box<[Part]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Byte(u8),
    Star,
    StarStar,
}

impl Glob {
    /// Parses a glob. `None`: it is empty, too long, has too many stars, or ends in a lone `\`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::with_capacity(text.len());
        let mut bytes = text.bytes().peekable();
        while let Some(byte) = bytes.next() {
            parts.push(match byte {
                b'\\' => Part::Byte(bytes.next().filter(|b| matches!(b, b'*' | b'\\'))?),
                b'*' if bytes.next_if_eq(&b'*').is_some() => Part::StarStar,
                b'*' => Part::Star,
                byte => Part::Byte(byte),
            });
        }
        let stars = parts.iter().filter(|part| !matches!(part, Part::Byte(_))).count();
        let fits = !parts.is_empty() && text.len() <= MAX_BYTES && stars <= MAX_STARS;
        fits.then(|| Self(parts.into()))
    }

    /// Whether it is stars and nothing else.
    #[must_use]
    pub fn matches_anything(&self) -> bool {
        !self.0.iter().any(|part| matches!(part, Part::Byte(_)))
    }

    /// Whether all of `text` matches. Time is the product of the lengths.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        // `reached[n]`: the first n bytes are matched by the parts so far.
        let text = text.as_bytes();
        let mut reached = vec![false; text.len() + 1];
        if let Some(first) = reached.first_mut() {
            *first = true;
        }
        for part in &self.0 {
            let mut previous = false;
            let mut next = Vec::with_capacity(reached.len());
            for (at, was_reached) in reached.iter().enumerate() {
                let before = at.checked_sub(1).and_then(|before| Some((*text.get(before)?, *reached.get(before)?)));
                let now = match (part, before) {
                    (Part::Byte(byte), Some((have, was_reached))) => was_reached && have == *byte,
                    (Part::Byte(_), None) => false,
                    (Part::Star, Some((have, _))) => *was_reached || (previous && !matches!(have, b'/' | b':')),
                    (Part::StarStar, _) => *was_reached || previous,
                    (Part::Star, None) => *was_reached,
                };
                previous = now;
                next.push(now);
            }
            reached = next;
        }
        reached.last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_ends_at_a_separator_and_two_do_not() {
        for (glob, text, is) in [
            ("a", "a", true),
            ("a", "A", false),
            ("a", "aa", false),
            ("a", "", false),
            ("*", "", true),
            ("*", "abc", true),
            ("*", "a/b", false),
            ("*", "a:b", false),
            ("**", "a/b:c", true),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "a/c", false),
            ("a**c", "a/b:c", true),
            ("repo:acme/*:ref:refs/heads/main", "repo:acme/api:ref:refs/heads/main", true),
            ("repo:acme/*:ref:refs/heads/main", "repo:acme/api:ref:refs/heads/main2", false),
            ("repo:acme/*:ref:refs/heads/main", "repo:acme2/api:ref:refs/heads/main", false),
            ("repo:acme/*:ref:refs/heads/main", "repo:acme/x:environment:y:ref:refs/heads/main", false),
            ("repo:acme/*:ref:refs/heads/main", "repo:acme/x/y:ref:refs/heads/main", false),
            ("repo:acme/*:ref:refs/heads/main", "xrepo:acme/api:ref:refs/heads/main", false),
            (r"a\*", "a*", true),
            (r"a\*", "ab", false),
            (r"a\\", r"a\", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("é*", "éx", true),
            ("?", "x", false),
            ("[a]", "a", false),
            (".*", "x", false),
            ("a*", "a\n", true),
        ] {
            assert_eq!(Glob::parse(glob).unwrap().matches(text), is, "{glob} {text}");
        }
        for bad in ["", r"a\", r"\a", &"x".repeat(513), &"a*".repeat(17)] {
            assert!(Glob::parse(bad).is_none(), "{bad}");
        }
        assert!(Glob::parse("***").unwrap().matches_anything());
        assert!(!Glob::parse("a*").unwrap().matches_anything());
    }
}
