//! Where a request's body ends: counted, so that the next head is looked for in the right place and nowhere else.

use super::head::{Framing, Violation};

/// Longest chunk extension, and longest trailer section: nothing of either is passed on.
const MAX_EXTENSION_BYTES: u32 = 1024;
const MAX_TRAILER_BYTES: u32 = 8 * 1024;

/// Position in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Bytes left of a counted body.
    Length(u64),
    /// Position in a chunked one.
    Chunked(Chunk),
}

/// Position in a chunked body. `size` is what the hexadecimal digits said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    Size { size: u64, digits: u8 },
    Extension { size: u64, len: u32 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailer { len: u32, line: u32 },
    TrailerLf { len: u32, line: u32 },
}

impl Body {
    /// The body behind a head; `None` when there is none.
    pub(super) fn behind(framing: Framing) -> Option<Self> {
        match framing {
            Framing::Empty => None,
            Framing::Length(n) => Some(Self::Length(n)),
            Framing::Chunked => Some(Self::Chunked(Chunk::Size { size: 0, digits: 0 })),
        }
    }

    /// Moves over `bytes`. Says how many belong to the body and whether it ended there.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<(usize, bool), Violation> {
        match self {
            Self::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                Ok((taken, *left == 0))
            }
            Self::Chunked(chunk) => chunk.advance(bytes),
        }
    }
}

impl Chunk {
    fn advance(&mut self, bytes: &[u8]) -> Result<(usize, bool), Violation> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let Self::Data { left } = *self {
                // The bulk of a body: skipped, not looked at.
                let skip = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += skip;
                let left = left - skip as u64;
                *self = if left == 0 { Self::DataCr } else { Self::Data { left } };
                continue;
            }
            at += 1;
            match self.step(byte)? {
                Some(next) => *self = next,
                None => return Ok((at, true)),
            }
        }
        Ok((at, false))
    }

    /// One byte of framing. `None`: the body ended with it.
    fn step(self, byte: u8) -> Result<Option<Self>, Violation> {
        let bad = Err(Violation::Chunk);
        Ok(Some(match (self, byte) {
            (Self::Size { size, digits }, b) if b.is_ascii_hexdigit() => {
                let digit = u64::from(char::from(b).to_digit(16).unwrap_or(0));
                if digits >= 15 {
                    return bad; // beyond any body, and short of overflow
                }
                Self::Size { size: size << 4 | digit, digits: digits + 1 }
            }
            (Self::Size { digits: 0, .. }, _) => return bad,
            (Self::Size { size, .. }, b'\r') => Self::SizeLf { size },
            (Self::Size { size, .. }, b';') => Self::Extension { size, len: 0 },
            (Self::Extension { size, .. }, b'\r') => Self::SizeLf { size },
            (Self::Extension { size, len }, b'\t' | 0x20..=0x7e | 0x80..) if len < MAX_EXTENSION_BYTES => {
                Self::Extension { size, len: len + 1 }
            }
            (Self::SizeLf { size: 0 }, b'\n') => Self::Trailer { len: 0, line: 0 },
            (Self::SizeLf { size }, b'\n') => Self::Data { left: size },
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size { size: 0, digits: 0 },
            (Self::Trailer { len, line }, b'\r') => Self::TrailerLf { len, line },
            (Self::Trailer { line: 0, .. }, b' ' | b'\t') => return bad, // a folded line
            (Self::Trailer { len, line }, b'\t' | 0x20..=0x7e | 0x80..) if len < MAX_TRAILER_BYTES => {
                Self::Trailer { len: len + 1, line: line + 1 }
            }
            (Self::TrailerLf { line: 0, .. }, b'\n') => return Ok(None),
            (Self::TrailerLf { len, .. }, b'\n') => Self::Trailer { len, line: 0 },
            _ => return bad,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunked() -> Body {
        Body::Chunked(Chunk::Size { size: 0, digits: 0 })
    }

    #[test]
    fn a_counted_body_ends_at_its_count() {
        let mut body = Body::Length(5);
        assert_eq!(body.advance(b"abc"), Ok((3, false)));
        assert_eq!(body.advance(b"deGET /"), Ok((2, true)));
    }

    #[test]
    fn a_chunked_body_ends_at_its_last_line_however_it_is_split() {
        for wire in
            ["0\r\n\r\n", "2\r\nab\r\n0\r\n\r\n", "2;a=b\r\nab\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\nY: 2\r\n\r\n"]
        {
            let whole = [wire.as_bytes(), b"GET / HTTP/1.1"].concat();
            assert_eq!(chunked().advance(&whole), Ok((wire.len(), true)), "{wire:?}");
            for cut in 0..wire.len() {
                let mut body = chunked();
                assert_eq!(body.advance(&whole[..cut]), Ok((cut, false)), "{wire:?} at {cut}");
                assert_eq!(body.advance(&whole[cut..]), Ok((wire.len() - cut, true)), "{wire:?} at {cut}");
            }
        }
    }

    #[test]
    fn chunks_that_two_servers_could_read_in_two_ways_are_refused() {
        let long = format!("2;{}\r\nab\r\n0\r\n\r\n", "a".repeat(20 * 1024));
        let trailer = format!("0\r\nX: {}\r\n\r\n", "a".repeat(20 * 1024));
        for wire in [
            "2\r\nab\n0\r\n\r\n",
            "2 \r\nab\r\n0\r\n\r\n",
            " 2\r\nab\r\n0\r\n\r\n",
            "2\nab\n0\n\n",
            "+2\r\nab\r\n0\r\n\r\n",
            "0x2\r\nab\r\n0\r\n\r\n",
            "\r\nab\r\n0\r\n\r\n",
            "2\r\nabc\r\n0\r\n\r\n",
            "2\r\nab0\r\n\r\n",
            "2;a\nb\r\nab\r\n0\r\n\r\n",
            "2;a\0b\r\nab\r\n0\r\n\r\n",
            "fffffffffffffffff\r\nab",
            "0\r\nX: 1\nY: 2\r\n\r\n",
            "0\r\nX: 1\r\n Y: 2\r\n\r\n",
            "0\r\n\0\r\n\r\n",
            "g\r\n",
            &long,
            &trailer,
        ] {
            assert_eq!(chunked().advance(wire.as_bytes()), Err(Violation::Chunk), "{:?}", &wire[..wire.len().min(40)]);
        }
    }
}
