//! The upstream's origin as a JSON text spells it.

use bytes::Bytes;

/// Ways to write `/` in a JSON string: as it is, escaped (PHP), as a number (encoders for HTML),
/// and escaped in a JSON text that is itself a string.
const SLASHES: [&[u8]; 4] = [b"/", b"\\/", b"\\u002f", b"\\\\/"];

/// An origin, with the base path that must follow it, and what replaces it.
pub(super) struct OriginPattern {
    /// In lower case, as the rest.
    scheme: &'static [u8],
    host: Box<[u8]>,
    /// With the colon.
    port: Box<[u8]>,
    /// The port is not the scheme's own.
    needs_port: bool,
    base_path: Box<[u8]>,
    /// One for each spelling of [`SLASHES`].
    replacements: [Bytes; SLASHES.len()],
}

/// What stands at a place of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Something else.
    Nothing,
    /// More text decides.
    Partial,
    /// The origin.
    Origin {
        /// How many bytes it has, from the scheme on.
        length: usize,
        /// How its first `/` is spelled.
        spelling: usize,
    },
}

impl OriginPattern {
    /// `port`: whether it must be written, and the port. `replacement` is an origin and a prefix.
    pub(super) fn new(
        scheme: &'static str,
        host: &str,
        (needs_port, port): (bool, u16),
        base_path: &str,
        replacement: &str,
    ) -> Self {
        let spelled = SLASHES.map(|slash| {
            let mut text = Vec::with_capacity(replacement.len() + 32);
            for byte in replacement.bytes() {
                if byte == b'/' { text.extend_from_slice(slash) } else { text.push(byte) }
            }
            Bytes::from(text)
        });
        Self {
            scheme: scheme.as_bytes(),
            host: host.to_ascii_lowercase().into_bytes().into(),
            port: format!(":{port}").into_bytes().into(),
            needs_port,
            base_path: base_path.as_bytes().into(),
            replacements: spelled,
        }
    }

    pub(super) fn scheme(&self) -> &'static [u8] {
        self.scheme
    }

    pub(super) fn replacement(&self, spelling: usize) -> &[u8] {
        self.replacements.get(spelling).map_or(&[], |text| text)
    }

    /// Whether `text` begins with the origin. `last`: nothing follows `text`.
    pub(super) fn find(&self, text: &[u8], last: bool) -> Found {
        let mut reader = Reader { text, at: 0, last };
        match self.read(&mut reader) {
            Ok((length, spelling)) => Found::Origin { length, spelling },
            Err(Mismatch::Partial) => Found::Partial,
            Err(Mismatch::Other) => Found::Nothing,
        }
    }

    fn read(&self, reader: &mut Reader<'_>) -> Result<(usize, usize), Mismatch> {
        reader.escaped_word(self.scheme)?;
        reader.escaped_word(b":")?;
        let spelling = reader.slash()?;
        reader.slash()?;
        reader.escaped_word(&self.host)?;
        if self.needs_port || reader.peek()? == Some(b':') {
            reader.escaped_word(&self.port)?;
        }
        let length = reader.at;
        for byte in &self.base_path {
            match byte {
                b'/' => reader.slash().map(drop)?,
                byte => reader.escaped_word(std::slice::from_ref(byte))?,
            }
        }
        match self.base_path.is_empty() {
            true => reader.end(is_authority)?,
            false => reader.end(is_segment)?,
        }
        Ok((length, spelling))
    }
}

/// A byte that continues a host or a port, and so makes another host.
fn is_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'@' | b'%') || byte >= 0x80
}

/// A byte that continues a path segment, and so makes another path (RFC 3986, 3.3).
fn is_segment(byte: u8) -> bool {
    is_authority(byte)
        || matches!(byte, b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

/// Why a text is not what is looked for.
enum Mismatch {
    /// It may become it.
    Partial,
    Other,
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    last: bool,
}

impl Reader<'_> {
    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn cut(&self) -> Mismatch {
        if self.last { Mismatch::Other } else { Mismatch::Partial }
    }

    /// The next byte; `None` at the end of everything.
    fn peek(&self) -> Result<Option<u8>, Mismatch> {
        match self.rest().first() {
            None if !self.last => Err(Mismatch::Partial),
            next => Ok(next.copied()),
        }
    }

    /// Reads `word`, in any case.
    fn word(&mut self, word: &[u8]) -> Result<(), Mismatch> {
        let rest = self.rest();
        let common = rest.len().min(word.len());
        let same = rest.iter().zip(word).all(|(a, b)| a.eq_ignore_ascii_case(b));
        match (same, common == word.len()) {
            (true, true) => {
                self.at += word.len();
                Ok(())
            }
            (true, false) => Err(self.cut()),
            (false, _) => Err(Mismatch::Other),
        }
    }

    /// Reads `word`, of which any character may be written as a number: encoders that know no ASCII
    /// do (`\u002e`).
    fn escaped_word(&mut self, word: &[u8]) -> Result<(), Mismatch> {
        for wanted in word {
            self.at += match self.rest() {
                [] => return Err(self.cut()),
                [byte, ..] if byte.eq_ignore_ascii_case(wanted) => 1,
                [b'\\'] => return Err(self.cut()),
                [b'\\', b'u', digits @ ..] => match digits.get(..4) {
                    None => return Err(self.cut()),
                    Some(digits) if code(digits).is_some_and(|byte| byte.eq_ignore_ascii_case(wanted)) => 6,
                    Some(_) => return Err(Mismatch::Other),
                },
                _ => return Err(Mismatch::Other),
            };
        }
        Ok(())
    }

    /// Reads a `/`; says how it is spelled.
    fn slash(&mut self) -> Result<usize, Mismatch> {
        let mut mismatch = Mismatch::Other;
        for (spelling, slash) in SLASHES.iter().enumerate() {
            match self.word(slash) {
                Ok(()) => return Ok(spelling),
                Err(Mismatch::Partial) => mismatch = Mismatch::Partial,
                Err(Mismatch::Other) => {}
            }
        }
        Err(mismatch)
    }

    /// Checks that what `goes_on` describes ends here. An escape counts as the character that it
    /// stands for.
    fn end(&self, goes_on: fn(u8) -> bool) -> Result<(), Mismatch> {
        let rest = self.rest();
        let ended = match self.peek()? {
            None => true,
            Some(b'\\') => match rest.get(1..) {
                None | Some([]) => return Err(self.cut()),
                Some([b'u', digits @ ..]) => match digits.get(..4) {
                    None => return Err(self.cut()),
                    Some(digits) => code(digits).is_some_and(|byte| !goes_on(byte)),
                },
                Some(_) => true, // a slash, a quote or a control character
            },
            Some(byte) => !goes_on(byte),
        };
        if ended { Ok(()) } else { Err(Mismatch::Other) }
    }
}

/// Bytes of an escape that stands for one character.
pub(super) const ESCAPE_BYTES: usize = b"\\u0000".len();

/// Whether `text` is the escape of a character, in any case.
pub(super) fn is_escape_of(text: &[u8], wanted: u8) -> bool {
    let escaped = text.strip_prefix(b"\\u").filter(|digits| digits.len() == 4).and_then(code);
    escaped.is_some_and(|byte| byte.eq_ignore_ascii_case(&wanted))
}

/// The character below 256 that four hex digits stand for.
fn code(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u8::from_str_radix(digits.strip_prefix("00")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `behind`: bytes behind the scheme's colon.
    fn origin(scheme: &str, behind: usize, spelling: usize) -> Found {
        Found::Origin { length: scheme.len() + 1 + behind, spelling }
    }

    #[test]
    fn an_origin_is_found_in_every_spelling_and_nothing_else_is() {
        let origin = |behind, spelling| origin("https", behind, spelling);
        let pattern = OriginPattern::new("https", "Up.test", (false, 443), "", "http://node/api/s");
        for (text, found) in [
            ("//up.test/x", origin(9, 0)),
            ("//UP.test:443\"", origin(13, 0)),
            ("\\/\\/up.test\\/x", origin(11, 1)),
            ("\\u002F\\u002fup.test\\u003Fq", origin(19, 2)),
            ("\\\\/\\\\/up.test\\\"", origin(13, 3)),
            ("//up\\u002Etest/x", origin(14, 0)),
            ("//\\u0075p.test/x", origin(14, 0)),
            ("//up\\u002e", Found::Partial),
            ("//up\\u00", Found::Partial),
            ("//up\\u012etest/x", Found::Nothing),
            ("//up\\.test/x", Found::Nothing),
            ("//up.test{/x}", origin(9, 0)),
            ("//up.test?q", origin(9, 0)),
            ("//up.test\\n", origin(9, 0)),
            ("//up.test.evil/", Found::Nothing),
            ("//up.test\\u002eevil/", Found::Nothing),
            ("//up.test@evil/", Found::Nothing),
            ("//up.test\\u0040evil/", Found::Nothing),
            ("//up.test:443@evil/", Found::Nothing),
            ("//up.test:4433/", Found::Nothing),
            ("//up.test:44/", Found::Nothing),
            ("//up.tests/", Found::Nothing),
            ("//up.testé/", Found::Nothing),
            ("//user@up.test/", Found::Nothing),
            ("/up.test/", Found::Nothing),
            ("", Found::Partial),
            ("/", Found::Partial),
            ("\\", Found::Partial),
            ("\\u00", Found::Partial),
            ("//up.te", Found::Partial),
            ("//up.test", Found::Partial),
            ("//up.test:44", Found::Partial),
            ("//up.test:443", Found::Partial),
            ("//up.test\\", Found::Partial),
            ("//up.test\\u00", Found::Partial),
        ] {
            assert_eq!(pattern.find(format!("https:{text}").as_bytes(), false), found, "{text}");
        }
        assert_eq!(pattern.find(b"https://up.test", true), origin(9, 0));
        assert_eq!(pattern.find(b"https://up.tes", true), Found::Nothing);
        for (text, found) in [
            ("https\\u003a\\/\\/up.test\\/x", Found::Origin { length: 22, spelling: 1 }),
            ("\\u0048tt\\u0070s\\u003A//up.test/x", Found::Origin { length: 30, spelling: 0 }),
            ("", Found::Partial),
            ("\\u0068\\u00", Found::Partial),
            ("http\\u0073\\u003", Found::Partial),
            ("\\u0068\\u0074x", Found::Nothing),
            ("https\\u003b//up.test/", Found::Nothing),
        ] {
            assert_eq!(pattern.find(text.as_bytes(), false), found, "{text}");
        }
        assert_eq!(pattern.replacement(1), b"http:\\/\\/node\\/api\\/s");
    }

    #[test]
    fn a_port_of_its_own_and_a_base_path_must_be_there() {
        let origin = |behind, spelling| origin("http", behind, spelling);
        let pattern = OriginPattern::new("http", "[::1]", (true, 8080), "/api/v4", "x");
        for (text, found) in [
            ("//[::1]:8080/api/v4/x", origin(12, 0)),
            ("//[::1]:8080\\/api\\/v4\"", origin(12, 0)),
            ("//[::1]:8080/api/v4?x", origin(12, 0)),
            ("//[::1]:8080/api/v41", Found::Nothing),
            ("//[::1]:8080/group/project", Found::Nothing),
            ("//[::1]/api/v4/x", Found::Nothing),
            ("//[::1]:8080/api/v", Found::Partial),
        ] {
            assert_eq!(pattern.find(format!("http:{text}").as_bytes(), false), found, "{text}");
        }
    }
}
