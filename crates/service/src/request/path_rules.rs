//! What the paths of a service may hold.

use crate::{ServiceError, invalid};

/// What paths may hold beyond what every server reads alike: the key `allow_in_paths`.
///
/// Whatever is allowed, no segment may read as `.` or `..`, and nothing of a path is changed.
/// Policies are decided on every way in which a server may read it ([`super::normalize`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathRules(u8);

impl PathRules {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// `%2F`, which some servers read as `/`.
    pub const ENCODED_SLASH: Self = Self(1);
    /// Characters beyond ASCII, in UTF-8.
    pub const UTF8: Self = Self(1 << 1);
    /// `%25`, which some servers decode twice.
    pub const PERCENT: Self = Self(1 << 2);
    /// `;`, at which some servers cut a segment.
    pub const SEMICOLON: Self = Self(1 << 3);
    /// `//`, which some servers read as `/`.
    pub const EMPTY_SEGMENT: Self = Self(1 << 4);
    /// `%5C`, which some servers read as `/`.
    pub const BACKSLASH: Self = Self(1 << 5);
    /// `%01` to `%1F` and `%7F`.
    pub const CONTROL: Self = Self(1 << 6);
    /// All of these: any key of an object in S3.
    pub const ANY: Self = Self(0x7f);

    const NAMES: [(&str, Self); 7] = [
        ("utf8", Self::UTF8),
        ("percent", Self::PERCENT),
        ("semicolon", Self::SEMICOLON),
        ("empty_segment", Self::EMPTY_SEGMENT),
        ("backslash", Self::BACKSLASH),
        ("control", Self::CONTROL),
        ("any", Self::ANY),
    ];

    /// Parses the key `allow_in_paths`.
    pub(crate) fn parse(names: &[String]) -> Result<Self, ServiceError> {
        names.iter().try_fold(Self::NONE, |rules, name| {
            let found = Self::NAMES.iter().find(|(known, _)| known == name);
            let (_, rule) = found.ok_or_else(|| {
                let shown: String = name.chars().take(40).flat_map(char::escape_debug).collect();
                let known = Self::NAMES.map(|(known, _)| known).join(", ");
                invalid("allow_in_paths", format!("`{shown}` is not one of {known}"))
            })?;
            Ok(rules.and(*rule))
        })
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `rules` are allowed.
    #[must_use]
    pub const fn allow(self, rules: Self) -> bool {
        self.0 & rules.0 == rules.0
    }
}
