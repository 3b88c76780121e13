//! The agents, groups and services that policies name. Cedar's schema knows their types and not
//! which of them exist.

use super::scan::{end_of_line, end_of_string};

/// The type of an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntityKind {
    /// `Seks::Agent`.
    Agent,
    /// `Seks::Group`.
    Group,
    /// `Seks::Service`.
    Service,
}

impl EntityKind {
    /// The noun.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Group => "group",
            Self::Service => "service",
        }
    }
}

/// An entity that a policy names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEntity {
    /// The line in the given text, counted from 1.
    pub line: usize,
    /// Its type.
    pub kind: EntityKind,
    /// Its id, as written.
    pub name: String,
}

/// The entities that a file of policies names, in order, outside of comments.
#[must_use]
pub fn named_entities(text: &str) -> Vec<NamedEntity> {
    let (bytes, mut at, mut found) = (text.as_bytes(), 0, Vec::new());
    while let Some(&byte) = bytes.get(at) {
        at = match byte {
            b'/' if bytes.get(at + 1) == Some(&b'/') => end_of_line(bytes, at),
            b'"' => {
                let (before, end) = (text.get(..at).unwrap_or_default(), end_of_string(bytes, at));
                let name = text.get(at + 1..end.saturating_sub(1)).unwrap_or_default();
                let line = || 1 + before.matches('\n').count();
                found.extend(kind_before(before).map(|kind| NamedEntity { line: line(), kind, name: name.into() }));
                end
            }
            _ => at + 1,
        };
    }
    found
}

fn kind_before(before: &str) -> Option<EntityKind> {
    let path = before.trim_end().strip_suffix("::")?.trim_end();
    let start = path.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |at| at + 1);
    match path.get(start..)? {
        "Agent" => Some(EntityKind::Agent),
        "Group" => Some(EntityKind::Group),
        "Service" => Some(EntityKind::Service),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entities_are_found_outside_of_comments_and_texts() {
        let text = "// Seks::Agent::\"x\"\npermit (principal in Seks::Group::\"g\", action == Seks::Action::\"GET\",
            resource == Seks :: Service :: \"s\") when { context.path == \"Service::\\\"t\\\"\" && principal != Seks::Agent::\"a\" };";
        let found = named_entities(text);
        let found: Vec<_> = found.iter().map(|e| (e.line, e.kind, e.name.as_str())).collect();
        let want = [(2, EntityKind::Group, "g"), (3, EntityKind::Service, "s"), (3, EntityKind::Agent, "a")];
        assert_eq!(found, want);
        assert!(named_entities("Service::\"").iter().all(|e| e.name.is_empty()));
    }
}
