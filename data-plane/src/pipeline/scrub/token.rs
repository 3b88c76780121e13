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
    /// All of them mixed, and up to [`LEVELS`] of them over one another: JSON in JSON, a URL in a
    /// URL's query, JSON in an HTML attribute.
    pub(super) const NESTED: Self = Self(31);
    /// Each by itself, then [`Self::NESTED`].
    pub(super) const EACH: [Self; 5] = [Self::BACKSLASH, Self::PERCENT, Self::HTML, Self::QUOTED, Self::NESTED_ONLY];

    /// What tells [`Self::NESTED`] from a mixture.
    pub(super) const NESTED_ONLY: Self = Self(16);

    pub(super) fn contains(self, scheme: Self) -> bool {
        self.0 & scheme.0 != 0
    }

    pub(super) fn is_nested(self) -> bool {
        self.contains(Self::NESTED_ONLY)
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

    /// The same, of another length than its own.
    fn of_length(self, length_of: impl Fn(usize) -> usize) -> Self {
        match self {
            Self::Text { bytes, count, length } => Self::Text { bytes, count, length: length_of(length) },
            Self::Nothing(length) => Self::Nothing(length_of(length)),
            Self::Incomplete => Self::Incomplete,
        }
    }

    fn character(code: u32, length: usize) -> Self {
        // Surrogates stand for no character alone, and no secret holds one.
        let Some(c) = char::from_u32(code) else { return Self::one(0xff, length) };
        let mut bytes = [0; 4];
        let count = c.encode_utf8(&mut bytes).len() as u8; // 1 to 4
        Self::Text { bytes, count, length }
    }
}

/// `text` with its escapes of `schemes` read.
pub(super) fn unescaped(text: &[u8], schemes: Schemes) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while !rest.is_empty() {
        let length = match read(rest, schemes, true) {
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

/// Escapes over one another that are read: three that were written, and two that the text itself
/// looks like ([`unescaped`]).
const LEVELS: u8 = 5;

/// Most bytes of an escape behind its first.
const MOST_BYTES: usize = 12;

/// Reads one token. `last`: nothing will follow `bytes`, so that no escape is left incomplete.
/// An escape has at most [`MOST_BYTES`] behind its first, which may be escapes of the level below:
/// the look-ahead is bounded.
pub(super) fn read(bytes: &[u8], schemes: Schemes, last: bool) -> Token {
    let Some((&first, rest)) = bytes.split_first() else { return Token::Incomplete };
    if !schemes.contains(Schemes::introduced_by(first)) {
        return Token::raw(first);
    }
    if schemes.is_nested() {
        return read_nested(bytes, LEVELS, last);
    }
    match escape(first, rest) {
        Escape::Is(token) => token,
        Escape::Cut if !last => Token::Incomplete,
        Escape::Cut | Escape::Not => Token::raw(first),
    }
}

/// Whether a token that [`read`] has read in one scheme can be another in [`Schemes::NESTED`].
pub(super) fn may_be_nested(token: Token) -> bool {
    match token {
        Token::Text { bytes: [byte, ..], count: 1, .. } => Schemes::introduced_by(byte) != Schemes::NONE,
        Token::Text { .. } | Token::Nothing(_) => false,
        Token::Incomplete => true,
    }
}

/// Reads one token of a text whose tokens of `levels - 1` are its bytes.
fn read_nested(bytes: &[u8], levels: u8, last: bool) -> Token {
    let Some(&raw) = bytes.first() else { return Token::Incomplete };
    if levels == 0 || Schemes::introduced_by(raw) == Schemes::NONE {
        return Token::raw(raw);
    }
    let first = read_nested(bytes, levels - 1, last);
    let Token::Text { bytes: [introducer, ..], count: 1, length } = first else { return first };
    if Schemes::introduced_by(introducer) == Schemes::NONE {
        return first;
    }
    let mut end = length;
    // Of the level below: bytes, and where each ends.
    let (mut text, mut ends) = ([0; MOST_BYTES], [0; MOST_BYTES]);
    for count in 0..=MOST_BYTES {
        match escape(introducer, text.get(..count).unwrap_or_default()) {
            Escape::Not => return first,
            Escape::Is(token) => {
                return token
                    .of_length(|length| length.checked_sub(2).and_then(|at| ends.get(at)).copied().unwrap_or(end));
            }
            Escape::Cut => {}
        }
        let rest = bytes.get(end..).unwrap_or_default();
        let (byte, length) = match read_nested(rest, levels - 1, last) {
            Token::Text { bytes: [byte, ..], count: 1, length } => (byte, length),
            // Of no escape.
            Token::Text { length, .. } | Token::Nothing(length) => (u8::MAX, length),
            Token::Incomplete if last => return first,
            Token::Incomplete => return Token::Incomplete,
        };
        end += length;
        if let (Some(place), Some(place_of_end)) = (text.get_mut(count), ends.get_mut(count)) {
            (*place, *place_of_end) = (byte, end);
        }
    }
    first
}

fn escape(introducer: u8, rest: &[u8]) -> Escape {
    match introducer {
        b'\\' => backslash(rest),
        b'%' => hex(rest, 2, 1),
        b'&' => entity(rest),
        _ => quoted(rest),
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
        b'0'..=b'3' => octal(kind, rest),
        b'\n' => Escape::Is(Token::Nothing(2)), // a line goes on: C, shells, JSON5
        b'\r' => match rest.first() {
            None => Escape::Cut,
            Some(b'\n') => Escape::Is(Token::Nothing(3)),
            Some(_) => Escape::Not,
        },
        // Of JSON, and of shells, Ruby, SQL and Markdown.
        _ if kind.is_ascii_punctuation() => Escape::Is(Token::one(kind, 2)),
        b'n' => Escape::Is(Token::one(b'\n', 2)),
        b'r' => Escape::Is(Token::one(b'\r', 2)),
        b't' => Escape::Is(Token::one(b'\t', 2)),
        _ => Escape::Not,
    }
}

/// `\057`: three octal digits, of which `first` is one.
fn octal(first: u8, rest: &[u8]) -> Escape {
    let mut code = first - b'0';
    for at in 0..2 {
        match rest.get(at) {
            Some(digit @ b'0'..=b'7') => code = code << 3 | (digit - b'0'),
            Some(_) => return Escape::Not,
            None => return Escape::Cut,
        }
    }
    Escape::Is(Token::one(code, 4))
}

fn quoted(rest: &[u8]) -> Escape {
    match rest {
        [b'\n', ..] => Escape::Is(Token::Nothing(2)),
        [b'\r', b'\n', ..] => Escape::Is(Token::Nothing(3)),
        [b'\r'] => Escape::Cut,
        _ => hex(rest, 2, 1),
    }
}

/// HTML's names of ASCII characters
/// (<https://html.spec.whatwg.org/multipage/named-characters.html>), without the long ones.
const NAMED: [(&[u8], u8); 43] = [
    (b"quot;", b'"'),
    (b"QUOT;", b'"'),
    (b"amp;", b'&'),
    (b"AMP;", b'&'),
    (b"lt;", b'<'),
    (b"LT;", b'<'),
    (b"gt;", b'>'),
    (b"GT;", b'>'),
    (b"apos;", b'\''),
    (b"sol;", b'/'),
    (b"bsol;", b'\\'),
    (b"plus;", b'+'),
    (b"equals;", b'='),
    (b"lowbar;", b'_'),
    (b"UnderBar;", b'_'),
    (b"period;", b'.'),
    (b"colon;", b':'),
    (b"percnt;", b'%'),
    (b"num;", b'#'),
    (b"excl;", b'!'),
    (b"dollar;", b'$'),
    (b"ast;", b'*'),
    (b"midast;", b'*'),
    (b"lpar;", b'('),
    (b"rpar;", b')'),
    (b"comma;", b','),
    (b"semi;", b';'),
    (b"quest;", b'?'),
    (b"commat;", b'@'),
    (b"lsqb;", b'['),
    (b"lbrack;", b'['),
    (b"rsqb;", b']'),
    (b"rbrack;", b']'),
    (b"Hat;", b'^'),
    (b"grave;", b'`'),
    (b"lcub;", b'{'),
    (b"lbrace;", b'{'),
    (b"rcub;", b'}'),
    (b"rbrace;", b'}'),
    (b"verbar;", b'|'),
    (b"vert;", b'|'),
    (b"NewLine;", b'\n'),
    (b"Tab;", b'\t'),
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
            let cut = NAMED.iter().any(|(name, _)| name.starts_with(rest));
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
            (b"=3Dx", "=", 3),
            (b"=zz", "=", 1),
            (b"\\057x", "/", 4),
            (b"\\05x", "\\", 1),
            (b"\\-", "-", 2),
            (b"\\\\\"x", "\"", 3),
            (b"\\\\\\\"x", "\"", 4),
            (b"\\\\u002Bx", "+", 7),
            (b"\\&quot;x", "\"", 7),
            (b"%252Bx", "+", 5),
            (b"%25252Bx", "+", 7),
            (b"%2525252Bx", "+", 9),
            (b"&amp;lt;x", "<", 8),
            (b"&amp;amp;x", "&", 9),
            (b"%26quot%3Bx", "\"", 10),
            (b"%26quot;x", "\"", 8),
            (b"\\u0025\\u0032Bx", "+", 13),
        ];
        for (bytes, want, length) in cases {
            assert_eq!(read(bytes, Schemes::NESTED, false), text(want, *length), "{}", bytes.escape_ascii());
        }
        assert_eq!(read(b"=\r\nx", Schemes::NESTED, false), Token::Nothing(3));
        assert_eq!(read(b"%41", Schemes::HTML, false), text("%", 1), "of another scheme");
    }

    #[test]
    fn every_cut_of_an_escape_is_incomplete_unless_it_is_the_last() {
        for whole in ["%41", "\\u0041", "\\\"", "&quot;", "&#115;", "&#x73;", "=3D", "=\r\n", "&#1234567", "&#x123456"]
        {
            for cut in 1..whole.len() {
                let bytes = &whole.as_bytes()[..cut];
                assert_eq!(read(bytes, Schemes::NESTED, false), Token::Incomplete, "{}", bytes.escape_ascii());
                assert_ne!(read(bytes, Schemes::NESTED, true), Token::Incomplete, "{}", bytes.escape_ascii());
            }
        }
        assert_ne!(read(b"&#12345678901234", Schemes::NESTED, false), Token::Incomplete, "bounded");
    }
}
