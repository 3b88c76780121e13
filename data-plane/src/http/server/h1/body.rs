//! A request's body out of its framing: counted, so that the next head is looked for in the right
//! place and nowhere else.

use bytes::{Buf as _, Bytes, BytesMut};

use super::head::{Framing, Violation, is_token};

/// Digits of a chunk's size, zeros in front included: `%016x` writes 16.
const MAX_SIZE_DIGITS: u8 = 32;
/// Longest chunk extension, and longest trailer section: nothing of either is passed on. Trailers
/// are counted.
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

/// What is next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A part of it; whether it was the last.
    Data(Bytes, bool),
    End,
    /// Nothing, until more is read.
    More,
}

/// Position in a chunked body. `size` is what the hexadecimal digits said so far, `line` how long a
/// trailer's line is, `named` whether its colon has come, and `fields` how many trailers came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    Size { size: u64, digits: u8 },
    Extension { size: u64, len: u32 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailer { len: u32, line: u32, named: bool, fields: u16 },
    TrailerLf { len: u32, line: u32, fields: u16 },
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

    /// How much is to come, where that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) => None,
        }
    }

    /// How many trailers have come.
    pub(super) fn trailers(&self) -> u16 {
        match self {
            Self::Chunked(Chunk::Trailer { fields, .. } | Chunk::TrailerLf { fields, .. }) => *fields,
            Self::Length(_) | Self::Chunked(_) => 0,
        }
    }

    /// Whether the bytes that have arrived are well-formed. This is checked before the request is
    /// handled.
    pub(super) fn check(self, bytes: &[u8]) -> Result<(), Violation> {
        match self {
            Self::Length(_) => Ok(()),
            Self::Chunked(mut chunk) => chunk.skip(bytes),
        }
    }

    /// Takes the next part of the body out of `input`.
    pub(super) fn step(&mut self, input: &mut BytesMut) -> Result<Step, Violation> {
        match self {
            Self::Length(0) => Ok(Step::End),
            Self::Length(_) if input.is_empty() => Ok(Step::More),
            Self::Length(left) => {
                let data = take(left, input);
                Ok(Step::Data(data, *left == 0))
            }
            Self::Chunked(chunk) => chunk.take(input),
        }
    }
}

/// Up to `left` bytes.
fn take(left: &mut u64, input: &mut BytesMut) -> Bytes {
    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    *left -= now as u64;
    input.split_to(now).freeze()
}

impl Chunk {
    fn take(&mut self, input: &mut BytesMut) -> Result<Step, Violation> {
        loop {
            match self {
                Self::Data { .. } if input.is_empty() => return Ok(Step::More),
                Self::Data { left } => {
                    let data = take(left, input);
                    if *left == 0 {
                        *self = Self::DataCr;
                    }
                    return Ok(Step::Data(data, false));
                }
                _ => {
                    let Some(&byte) = input.first() else { return Ok(Step::More) };
                    input.advance(1);
                    match self.step(byte)? {
                        Some(next) => *self = next,
                        None => return Ok(Step::End),
                    }
                }
            }
        }
    }

    /// Moves over `bytes`, up to the body's end.
    fn skip(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let Self::Data { left } = *self {
                // The bulk of a body: skipped, not looked at.
                let skip = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                bytes = bytes.get(skip..).unwrap_or_default();
                let left = left - skip as u64;
                *self = if left == 0 { Self::DataCr } else { Self::Data { left } };
                continue;
            }
            bytes = rest;
            match self.step(byte)? {
                Some(next) => *self = next,
                None => break,
            }
        }
        Ok(())
    }

    /// One byte of framing. `None`: the body ended with it.
    fn step(self, byte: u8) -> Result<Option<Self>, Violation> {
        let bad = Err(Violation::Chunk);
        Ok(Some(match (self, byte) {
            (Self::Size { size, digits }, b) if b.is_ascii_hexdigit() => {
                let digit = u64::from(char::from(b).to_digit(16).unwrap_or(0));
                // Beyond any body, and short of overflow: zeros in front count for nothing.
                if size >> 56 != 0 || digits >= MAX_SIZE_DIGITS {
                    return bad;
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
            (Self::SizeLf { size: 0 }, b'\n') => Self::Trailer { len: 0, line: 0, named: false, fields: 0 },
            (Self::SizeLf { size }, b'\n') => Self::Data { left: size },
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size { size: 0, digits: 0 },
            (Self::Trailer { len, line, named, fields }, b'\r') if named || line == 0 => {
                Self::TrailerLf { len, line, fields }
            }
            (Self::Trailer { line: 1.., named: false, len, fields }, b':') => {
                Self::Trailer { len: len + 1, line: 1, named: true, fields }
            }
            (Self::Trailer { named: false, .. }, b) if !is_token(b) => return bad, // a folded line, too
            (Self::Trailer { len, line, named, fields }, b'\t' | 0x20..=0x7e | 0x80..) if len < MAX_TRAILER_BYTES => {
                Self::Trailer { len: len + 1, line: line + 1, named, fields }
            }
            (Self::TrailerLf { line: 0, .. }, b'\n') => return Ok(None),
            (Self::TrailerLf { len, fields, .. }, b'\n') => {
                Self::Trailer { len, line: 0, named: false, fields: fields.saturating_add(1) }
            }
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

    /// What is in `wire`, which comes in pieces: the data, and how much of `wire` is left once it
    /// has ended.
    fn read(mut body: Body, wire: &[u8], piece: usize) -> Result<(Vec<u8>, Option<usize>), Violation> {
        let (mut input, mut data, mut pieces) = (BytesMut::new(), Vec::new(), wire.chunks(piece));
        loop {
            let step = body.step(&mut input)?;
            if let Step::Data(part, _) = &step {
                data.extend_from_slice(part);
            }
            match step {
                Step::Data(_, false) => {}
                Step::End | Step::Data(_, true) => {
                    return Ok((data, Some(input.len() + pieces.map(<[u8]>::len).sum::<usize>())));
                }
                Step::More => match pieces.next() {
                    Some(piece) => input.extend_from_slice(piece),
                    None => return Ok((data, None)),
                },
            }
        }
    }

    #[test]
    fn a_counted_body_ends_at_its_count() {
        for piece in 1..=12 {
            assert_eq!(read(Body::Length(5), b"abcdeGET /", piece), Ok((b"abcde".into(), Some(5))));
        }
        assert_eq!(read(Body::Length(5), b"abc", 2), Ok((b"abc".into(), None)));
        assert_eq!((Body::Length(5).left(), chunked().left()), (Some(5), None));
    }

    #[test]
    fn a_chunked_body_ends_at_its_last_line_however_it_is_split() {
        for (wire, data) in [
            ("0\r\n\r\n", ""),
            ("2\r\nab\r\n0\r\n\r\n", "ab"),
            ("0000000000000002\r\nab\r\n0000000000000000\r\n\r\n", "ab"),
            ("2;a=b\r\nab\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\nY: 2\r\n\r\n", "ab0123456789"),
        ] {
            let whole = [wire.as_bytes(), b"GET / HTTP/1.1"].concat();
            for piece in 1..=whole.len() {
                assert_eq!(read(chunked(), &whole, piece), Ok((data.into(), Some(14))), "{wire:?} by {piece}");
            }
            assert_eq!(read(chunked(), &wire.as_bytes()[..wire.len() - 1], 3).unwrap().1, None);
            assert_eq!(chunked().check(&whole), Ok(()), "what follows it is another's");
        }
    }

    #[test]
    fn trailers_are_counted() {
        for (wire, count) in [("1\r\na\r\n0\r\n\r\n", 0), ("0\r\nX: 1\r\n\r\n", 1), ("0\r\nX: 1\r\nY: \r\n\r\n", 2)] {
            let (mut body, mut input) = (chunked(), BytesMut::from(wire));
            while body.step(&mut input) != Ok(Step::End) {}
            assert_eq!(body.trailers(), count, "{wire:?}");
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
            "1000000000000000\r\nab",
            "000000000000000000000000000000002\r\nab\r\n0\r\n\r\n",
            "0\r\nX: 1\nY: 2\r\n\r\n",
            "0\r\nX: 1\r\n Y: 2\r\n\r\n",
            "0\r\n\0\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\nnocolon\r\n\r\n",
            "0\r\nX : 1\r\n\r\n",
            "0\r\n: 1\r\n\r\n",
            "g\r\n",
            &long,
            &trailer,
        ] {
            let shown = &wire[..wire.len().min(40)];
            assert_eq!(chunked().check(wire.as_bytes()), Err(Violation::Chunk), "{shown:?}");
            for piece in [1, 3, wire.len()] {
                assert_eq!(read(chunked(), wire.as_bytes(), piece), Err(Violation::Chunk), "{shown:?} by {piece}");
            }
        }
    }
}
