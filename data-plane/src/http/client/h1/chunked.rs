//! An answer's body out of its chunks. RFC 9112, section 7.1.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::client::UpstreamError;

/// Longest line of a size and its extensions, and longest trailer section.
const MAX_LINE_BYTES: usize = 1024;
const MAX_TRAILER_BYTES: usize = 8 * 1024;
const MAX_TRAILERS: usize = 64;

/// Position in a chunked body.
#[derive(Debug, Default)]
pub(super) enum Chunked {
    /// Before the line of a size.
    #[default]
    Size,
    /// This much of a chunk is left.
    Data(u64),
    /// Before the line end behind a chunk.
    DataEnd,
    /// Behind the last chunk.
    Trailers,
}

/// What is next.
#[derive(Debug)]
pub(super) enum Step {
    Data(Bytes),
    End(Option<HeaderMap>),
    /// Nothing, until more is read.
    More,
}

impl Chunked {
    /// Takes the next part of the body out of `input`.
    pub(super) fn step(&mut self, input: &mut BytesMut) -> Result<Step, UpstreamError> {
        loop {
            match self {
                Self::Size => {
                    let Some(line) = take_line(input, MAX_LINE_BYTES)? else { return Ok(Step::More) };
                    *self = match size(&line)? {
                        0 => Self::Trailers,
                        size => Self::Data(size),
                    };
                }
                Self::Data(_) if input.is_empty() => return Ok(Step::More),
                Self::Data(left) => {
                    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    *left -= now as u64;
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    return Ok(Step::Data(input.split_to(now).freeze()));
                }
                Self::DataEnd if input.len() < 2 => return Ok(Step::More),
                Self::DataEnd => {
                    if !input.starts_with(b"\r\n") {
                        return Err(UpstreamError::BadChunk);
                    }
                    input.advance(2);
                    *self = Self::Size;
                }
                Self::Trailers => return trailers(input),
            }
        }
    }
}

/// A line without its CRLF.
fn take_line(input: &mut BytesMut, most: usize) -> Result<Option<BytesMut>, UpstreamError> {
    let seen = input.get(..input.len().min(most)).unwrap_or_default();
    match memchr::memchr(b'\n', seen) {
        Some(end) => {
            let line = input.split_to(end + 1);
            if line.ends_with(b"\r\n") { Ok(Some(line)) } else { Err(UpstreamError::BadChunk) }
        }
        None if input.len() >= most => Err(UpstreamError::BadChunk),
        None => Ok(None),
    }
}

/// Hexadecimal digits, up to an extension, white space before it, or the line's end.
fn size(line: &[u8]) -> Result<u64, UpstreamError> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (number, rest) = line.split_at_checked(digits).ok_or(UpstreamError::BadChunk)?;
    let rest = rest.strip_suffix(b"\r\n").ok_or(UpstreamError::BadChunk)?;
    let extension = rest.trim_ascii_start();
    let significant = digits - number.iter().take_while(|b| **b == b'0').count();
    // 15 digits: beyond any body, and short of overflow. Zeros in front count for nothing.
    if digits == 0
        || significant > 15
        || !(extension.is_empty() || extension.starts_with(b";"))
        || rest.contains(&b'\r')
    {
        return Err(UpstreamError::BadChunk);
    }
    Ok(number.iter().fold(0, |n, b| n << 4 | u64::from(char::from(*b).to_digit(16).unwrap_or(0))))
}

fn trailers(input: &mut BytesMut) -> Result<Step, UpstreamError> {
    if input.starts_with(b"\r\n") {
        input.advance(2);
        return Ok(Step::End(None));
    }
    let seen = input.get(..input.len().min(MAX_TRAILER_BYTES)).unwrap_or_default();
    let Some(end) = memchr::memmem::find(seen, b"\r\n\r\n") else {
        return if input.len() >= MAX_TRAILER_BYTES { Err(UpstreamError::BadTrailer) } else { Ok(Step::More) };
    };
    let section = input.split_to(end + 4);
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&section, &mut fields) else {
        return Err(UpstreamError::BadTrailer);
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| UpstreamError::BadTrailer)?;
        trailers.append(name, HeaderValue::from_bytes(field.value).map_err(|_| UpstreamError::BadTrailer)?);
    }
    Ok(Step::End(Some(trailers)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in `wire`, which comes in pieces of `piece` bytes: the data, the trailers, and what
    /// is left.
    fn read(wire: &[u8], piece: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), UpstreamError> {
        let (mut chunked, mut input, mut data) = (Chunked::default(), BytesMut::new(), Vec::new());
        let mut pieces = wire.chunks(piece);
        loop {
            match chunked.step(&mut input)? {
                Step::Data(bytes) => data.extend_from_slice(&bytes),
                Step::End(trailers) => {
                    return Ok((data, trailers, input.len() + pieces.map(<[u8]>::len).sum::<usize>()));
                }
                Step::More => input.extend_from_slice(pieces.next().ok_or(UpstreamError::Closed)?),
            }
        }
    }

    #[test]
    fn chunks_come_out_whole_however_they_are_split() {
        for (wire, data) in [
            ("0\r\n\r\n", ""),
            ("2\r\nab\r\n0\r\n\r\n", "ab"),
            ("2;a=b\r\nab\r\n3 ; c\r\ncde\r\n00\r\n\r\n", "abcde"),
            ("A\r\n0123456789\r\n0;last\r\n\r\n", "0123456789"),
        ] {
            for piece in [1, 2, 3, 7, wire.len()] {
                let (read, trailers, left) = read(wire.as_bytes(), piece).unwrap();
                assert_eq!((read, trailers, left), (data.into(), None, 0), "{wire:?} by {piece}");
            }
        }
        assert_eq!(read(b"1\r\na\r\n0\r\n\r\nHTTP/1.1", 64).unwrap().2, 8, "the next answer's are left");
    }

    #[test]
    fn trailers_are_fields() {
        let wire = b"1\r\na\r\n0\r\nX-One: 1\r\nx-two: 2\r\n\r\n";
        for piece in [1, 5, wire.len()] {
            let trailers = read(wire, piece).unwrap().1.unwrap();
            assert_eq!((&trailers["x-one"], &trailers["x-two"]), (&"1".parse().unwrap(), &"2".parse().unwrap()));
        }
    }

    #[test]
    fn what_two_readers_could_take_for_two_bodies_is_no_body() {
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(2000));
        let trailers = format!("0\r\nx: {}\r\n\r\n", "x".repeat(9000));
        for wire in [
            "1\na\n0\n\n",
            "1\r\nab\r\n0\r\n\r\n",
            "g\r\n",
            "\r\n0\r\n\r\n",
            "-1\r\na\r\n0\r\n\r\n",
            "0x1\r\na\r\n0\r\n\r\n",
            "1 2\r\na\r\n0\r\n\r\n",
            "1\r\r\na\r\n0\r\n\r\n",
            "ffffffffffffffff1\r\na",
            "0\r\nno colon\r\n\r\n",
            "0\r\n: x\r\n\r\n",
            &long,
            &trailers,
        ] {
            for piece in [1, wire.len()] {
                let error = read(wire.as_bytes(), piece).err();
                let named = matches!(error, Some(UpstreamError::BadChunk | UpstreamError::BadTrailer));
                assert!(named, "{error:?} {:?}", &wire[..wire.len().min(30)]);
            }
        }
        assert_eq!(read(b"5\r\nabc", 1).err(), Some(UpstreamError::Closed), "cut off");
    }
}
