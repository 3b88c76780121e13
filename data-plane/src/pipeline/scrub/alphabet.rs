//! How bytes of a body become units of a searched text, and sets of bytes.

/// Values from here on are searched for in base64, hex and UTF-16 too: of a shorter one these forms
/// are too short not to occur by chance.
pub(super) const MIN_ENCODED: usize = 8;

/// How bytes of a body become units of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// As they are. NUL stands for nothing, which makes UTF-16 and UTF-32 of either order the same
    /// as ASCII. Line breaks stand for nothing: texts are folded (LDIF, header fields, YAML).
    Plain,
    /// As they are, line breaks included; NUL stands for nothing. For texts that contain an empty
    /// line.
    Lines,
    /// `-_` are `+/`; line breaks stand for nothing.
    Base64,
    /// Upper case is lower case; `:`, `-`, blanks and line breaks stand for nothing.
    Hex,
}

/// What an indented line begins with.
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

pub(super) fn is_line_break(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// Bytes that are a unit of no alphabet in some form: behind an escape, they may stand for nothing.
pub(super) fn stands_for_nothing_somewhere(byte: u8) -> bool {
    matches!(byte, 0 | b'\r' | b'\n')
}

impl Alphabet {
    /// The unit that a byte stands for; `None`: it stands for nothing. Blanks behind a line break
    /// stand for nothing, too ([`super::matcher`]).
    pub(super) fn unit(self, byte: u8) -> Option<u8> {
        match (self, byte) {
            (Self::Plain, 0 | b'\r' | b'\n') | (Self::Lines, 0) => None,
            (Self::Base64, b'-') => Some(b'+'),
            (Self::Base64, b'_') => Some(b'/'),
            (Self::Base64, b'\r' | b'\n') => None,
            (Self::Hex, b':' | b'-' | b' ' | b'\t' | b'\r' | b'\n') => None,
            (Self::Hex, _) => Some(byte.to_ascii_lowercase()),
            _ => Some(byte),
        }
    }

    /// The bytes that stand for one of `units` or for nothing.
    pub(super) fn spellings(self, mut units: ByteSet) -> ByteSet {
        let nothing: &[u8] = match self {
            Self::Plain => b"\0\r\n",
            Self::Lines => b"\0",
            Self::Base64 => b"\r\n",
            Self::Hex => b":- \t\r\n",
        };
        let others: &[(u8, u8)] = match self {
            Self::Plain | Self::Lines => &[],
            Self::Base64 => &[(b'+', b'-'), (b'/', b'_')],
            Self::Hex => &[(b'a', b'A'), (b'b', b'B'), (b'c', b'C'), (b'd', b'D'), (b'e', b'E'), (b'f', b'F')],
        };
        for (unit, other) in others {
            if units.contains(*unit) {
                units.insert(*other);
            }
        }
        nothing.iter().for_each(|byte| units.insert(*byte));
        units
    }
}

/// A set of bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct ByteSet([u64; 4]);

impl ByteSet {
    pub(super) fn insert(&mut self, byte: u8) {
        if let Some(word) = self.0.get_mut(usize::from(byte >> 6)) {
            *word |= 1 << (byte & 63);
        }
    }

    pub(super) fn join(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }

    pub(super) fn contains(&self, byte: u8) -> bool {
        self.0.get(usize::from(byte >> 6)).is_some_and(|w| w >> (byte & 63) & 1 == 1)
    }
}
