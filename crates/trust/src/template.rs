//! The name of an agent, made from claims.
//!
//! A claim's value is put in as it is. A value that is no part of a name is refused: a replacement
//! such as `-` for `/` would give two subjects one name.

use seks_types::id::AgentName;

/// Most pieces of a template.
const MAX_PIECES: usize = 16;

/// A parsed template: `ci-{environment}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Box<[Piece]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Claim(Box<str>),
}

impl Template {
    /// Parses a template. `None`: a brace without its pair, an empty claim, or text that is no part
    /// of a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let literal = rest.find(['{', '}']).map_or(rest, |at| rest.get(..at).unwrap_or_default());
            if !literal.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
                return None;
            }
            if !literal.is_empty() {
                pieces.push(Piece::Text(literal.into()));
            }
            rest = rest.get(literal.len()..)?;
            if rest.is_empty() {
                break;
            }
            let (claim, after) = rest.strip_prefix('{')?.split_once('}')?;
            if claim.is_empty() || claim.contains('{') {
                return None;
            }
            pieces.push(Piece::Claim(claim.into()));
            rest = after;
        }
        (!pieces.is_empty() && pieces.len() <= MAX_PIECES).then(|| Self(pieces.into()))
    }

    /// The claims that it names.
    pub fn claims(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Claim(claim) => Some(&**claim),
            Piece::Text(_) => None,
        })
    }

    /// The agent's name. `value` gives the one value of a claim. `None`: a claim is missing, or the
    /// result is no name.
    pub fn fill<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> Option<AgentName> {
        let mut name = String::new();
        for piece in &self.0 {
            name.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Claim(claim) => value(claim).filter(|value| !value.is_empty())?,
            });
            if name.len() > 63 {
                return None;
            }
        }
        AgentName::try_from(name).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_put_in_as_it_is_or_not_at_all() {
        let fill = |template: &str, value: &'static str| {
            Template::parse(template).unwrap().fill(|_| Some(value)).map(|name| name.to_string())
        };
        assert_eq!(fill("ci", "").as_deref(), Some("ci"));
        assert_eq!(fill("ci-{env}", "prod").as_deref(), Some("ci-prod"));
        assert_eq!(fill("{/a/b}-{c}", "x").as_deref(), Some("x-x"));
        for value in ["", "Prod", "a/b", "a b", "a_b", "é", "-", "a\0", &*"x".repeat(64).leak()] {
            assert_eq!(fill("ci-{env}", value), None, "{value}");
        }
        assert!(Template::parse("{a}").unwrap().fill(|_| None).is_none());
        for bad in ["", "{", "}", "{}", "a}", "{{a}}", "{a", "A", "a b", "a_b", "{a}é"] {
            assert!(Template::parse(bad).is_none(), "{bad}");
        }
    }
}
