//! One unit of a body under an escaping scheme: a raw byte, or the byte that an escape sequence
//! encodes.

/// A set of escaping schemes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Schemes(u8);

impl Schemes {
    pub(super) const NONE: Self = Self(0);
    /// JSON and C: `\"`, `\/`, `\uXXXX`, `\xXX`.
    pub(super) const BACKSLASH: Self = Self(1);
    /// `%XX`.
    pub(super) const PERCENT: Self = Self(2);
    /// `&quot;`, `&#115;`, `&#x73;`.
    pub(super) const HTML: Self = Self(4);
    /// Quoted-printable: `=XX`, and a line break after `=`.
    pub(super) const QUOTED: Self = Self(8);
    /// All of them mixed.
    pub(super) const ALL: Self = Self(15);
    /// Each by itself.
    pub(super) const EACH: [Self; 4] = [Self::BACKSLASH, Self::PERCENT, Self::HTML, Self::QUOTED];

    pub(super) fn contains(self, scheme: Self) -> bool {
        self.0 & scheme.0 != 0
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The scheme that `byte` introduces an escape of.
    pub(super) fn introduced_by(byte: u8) -> Self {
        match byte {
            b'\\' => Self::BACKSLASH,
            b'%' => Self::PERCENT,
            b'&' => Self::HTML,
            b'=' => Self::QUOTED,
            _ => Self::NONE,
        }
    }
}

/// What stands at the beginning of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// `count` bytes of text, written in `length` bytes of the body.
    Text { bytes: [u8; 4], count: u8, length: usize },
    /// Bytes that stand for nothing.
    Nothing(usize),
    /// The beginning of an escape; what follows decides.
    Incomplete,
}

impl Token {
    pub(super) fn raw(byte: u8) -> Self {
        Self::one(byte, 1)
    }

    fn one(byte: u8, length: usize) -> Self {
        Self::Text { bytes: [byte, 0, 0, 0], count: 1, length }
    }

    fn character(code: u32, length: usize) -> Self {
        // Surrogates stand for no character alone, and no secret holds one.
        let Some(c) = char::from_u32(code) else { return Self::one(0xff, length) };
        let mut bytes = [0; 4];
        let count = c.encode_utf8(&mut bytes).len() as u8; // 1 to 4
        Self::Text { bytes, count, length }
    }
}

/// `text` with its `%XX` read.
pub(super) fn unescaped(text: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while !rest.is_empty() {
        let length = match read(rest, Schemes::PERCENT, true) {
            Token::Text { bytes, count, length } => {
                out.extend_from_slice(bytes.get(..usize::from(count)).unwrap_or_default());
                length
            }
            Token::Nothing(length) => length,
            Token::Incomplete => 1,
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    out
}

/// Reads one token. `last`: nothing will follow `bytes`, so that no escape is left incomplete.
/// Escapes are at most 12 bytes long: the look-ahead is bounded.
pub(super) fn read(bytes: &[u8], schemes: Schemes, last: bool) -> Token {
    let Some((&first, rest)) = bytes.split_first() else { return Token::Incomplete };
    let scheme = Schemes::introduced_by(first);
    if !schemes.contains(scheme) {
        return Token::raw(first);
    }
    let escape = match first {
        b'\\' => backslash(rest),
        b'%' => hex(rest, 2, 1),
        b'&' => entity(rest),
        _ => quoted(rest),
    };
    match escape {
        Escape::Is(token) => token,
        Escape::Cut if !last => Token::Incomplete,
        Escape::Cut | Escape::Not => Token::raw(first),
    }
}

enum Escape {
    Is(Token),
    /// Could be one; the bytes end too early.
    Cut,
    Not,
}

/// Exactly `digits` hex digits after `skipped` bytes of introduction.
fn hex(rest: &[u8], digits: usize, skipped: usize) -> Escape {
    let mut code = 0;
    for at in 0..digits {
        match rest.get(at).map(|b| char::from(*b).to_digit(16)) {
            Some(Some(digit)) => code = code << 4 | digit,
            Some(None) => return Escape::Not,
            None => return Escape::Cut,
        }
    }
    let length = skipped + digits;
    // Two digits are a byte, four a UTF-16 unit.
    Escape::Is(if digits == 2 { Token::one(code as u8, length) } else { Token::character(code, length) })
}

fn backslash(rest: &[u8]) -> Escape {
    let Some((&kind, rest)) = rest.split_first() else { return Escape::Cut };
    match kind {
        b'u' => hex(rest, 4, 2),
        b'x' => hex(rest, 2, 2),
        b'"' | b'\\' | b'/' | b'\'' => Escape::Is(Token::one(kind, 2)),
        b'n' => Escape::Is(Token::one(b'\n', 2)),
        b'r' => Escape::Is(Token::one(b'\r', 2)),
        b't' => Escape::Is(Token::one(b'\t', 2)),
        _ => Escape::Not,
    }
}

fn quoted(rest: &[u8]) -> Escape {
    match rest {
        [b'\n', ..] => Escape::Is(Token::Nothing(2)),
        [b'\r', b'\n', ..] => Escape::Is(Token::Nothing(3)),
        [b'\r'] => Escape::Cut,
        _ => hex(rest, 2, 1),
    }
}

const NAMED: [(&[u8], u8); 13] = [
    (b"quot;", b'"'),
    (b"amp;", b'&'),
    (b"lt;", b'<'),
    (b"gt;", b'>'),
    (b"apos;", b'\''),
    (b"sol;", b'/'),
    (b"bsol;", b'\\'),
    (b"plus;", b'+'),
    (b"equals;", b'='),
    (b"lowbar;", b'_'),
    (b"period;", b'.'),
    (b"colon;", b':'),
    (b"percnt;", b'%'),
];

fn entity(rest: &[u8]) -> Escape {
    match rest.split_first() {
        None => Escape::Cut,
        Some((b'#', number)) => numeric(number),
        Some(_) => {
            let is = |(name, byte): &(&[u8], u8)| {
                rest.starts_with(name).then(|| Escape::Is(Token::one(*byte, 1 + name.len())))
            };
            if let Some(found) = NAMED.iter().find_map(is) {
                return found;
            }
            let cut = rest.len() < 7 && NAMED.iter().any(|(name, _)| name.starts_with(rest));
            if cut { Escape::Cut } else { Escape::Not }
        }
    }
}

/// `&#` and up to 7 digits, or `x` and up to 6, and a semicolon that HTML parsers do without.
fn numeric(rest: &[u8]) -> Escape {
    let (radix, most, digits) = match rest.split_first() {
        None => return Escape::Cut,
        Some((b'x' | b'X', digits)) => (16, 6, digits),
        Some(_) => (10, 7, rest),
    };
    let mut code: u32 = 0;
    let mut count = 0;
    while let Some(digit) = digits.get(count).filter(|_| count < most).and_then(|b| char::from(*b).to_digit(radix)) {
        code = code * radix + digit;
        count += 1;
    }
    let length = 2 + (rest.len() - digits.len()) + count;
    match digits.get(count) {
        None => Escape::Cut,
        Some(_) if count == 0 => Escape::Not,
        Some(b';') => Escape::Is(Token::character(code, length + 1)),
        Some(_) => Escape::Is(Token::character(code, length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str, length: usize) -> Token {
        let mut bytes = [0; 4];
        bytes[..s.len()].copy_from_slice(s.as_bytes());
        Token::Text { bytes, count: s.len() as u8, length }
    }

    #[test]
    fn escapes_stand_for_their_text() {
        let cases: &[(&[u8], &str, usize)] = &[
            (b"a", "a", 1),
            (b"%41b", "A", 3),
            (b"%4a%", "J", 3),
            (b"%4g", "%", 1),
            (b"\\u0041", "A", 6),
            (b"\\u00E9", "é", 6),
            (b"\\x41", "A", 4),
            (b"\\\"", "\"", 2),
            (b"\\/", "/", 2),
            (b"\\K", "\\", 1),
            (b"&quot;x", "\"", 6),
            (b"&#115;", "s", 6),
            (b"&#0000115;", "s", 10),
            (b"&#x73;", "s", 6),
            (b"&#X73 ", "s", 5),
            (b"&cz", "&", 1),
            (b"&#;", "&", 1),
            (b"=3D", "=", 3),
            (b"=zz", "=", 1),
        ];
        for (bytes, want, length) in cases {
            assert_eq!(read(bytes, Schemes::ALL, false), text(want, *length), "{}", bytes.escape_ascii());
        }
        assert_eq!(read(b"=\r\nx", Schemes::ALL, false), Token::Nothing(3));
        assert_eq!(read(b"%41", Schemes::HTML, false), text("%", 1), "of another scheme");
    }

    #[test]
    fn every_cut_of_an_escape_is_incomplete_unless_it_is_the_last() {
        for whole in ["%41", "\\u0041", "\\\"", "&quot;", "&#115;", "&#x73;", "=3D", "=\r\n", "&#1234567", "&#x123456"]
        {
            for cut in 1..whole.len() {
                let bytes = &whole.as_bytes()[..cut];
                assert_eq!(read(bytes, Schemes::ALL, false), Token::Incomplete, "{}", bytes.escape_ascii());
                assert_ne!(read(bytes, Schemes::ALL, true), Token::Incomplete, "{}", bytes.escape_ascii());
            }
        }
        assert_ne!(read(b"&#12345678901234", Schemes::ALL, false), Token::Incomplete, "bounded");
    }
}
