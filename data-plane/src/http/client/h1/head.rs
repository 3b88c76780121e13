//! Heads: a request's is written, an answer's is read.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use httparse::{ParserConfig, Response, Status};

use super::Lost;
use crate::http::{HeaderList, h1::write_number};

/// Answers with longer heads, or more fields, are not relayed.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_FIELDS: usize = 100;
/// Fields that the node adds to an answer.
const OURS: usize = 2;

/// An answer's head.
#[derive(Debug)]
pub(in crate::http::client) struct Head {
    pub(in crate::http::client) status: StatusCode,
    pub(in crate::http::client) headers: HeaderMap,
    /// The connection ends with the answer.
    pub(super) closes: bool,
    length: Option<u64>,
    chunked: bool,
}

/// How the body behind an answer's head is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    ToEnd,
}

/// Writes a request's head; `length` and `chunked` say what its body is.
pub(super) fn write(
    out: &mut Vec<u8>,
    (method, target, headers): (&Method, &str, &HeaderList),
    length: Option<u64>,
    chunked: bool,
) {
    let room: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    // Not grown while it is written: growing leaves copies of the credential behind.
    out.reserve(target.len() + room + 128);
    for part in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in headers.iter() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    } else if let Some(length) = length {
        out.extend_from_slice(b"content-length: ");
        write_number(out, length);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Takes a head from the beginning of `input`, once it is whole; `scanned` of it was looked at before.
pub(super) fn read(input: &mut BytesMut, scanned: &mut usize) -> Result<Option<Head>, Lost> {
    let Some(len) = find_end(input, *scanned) else {
        *scanned = input.len();
        return if input.len() >= MAX_HEAD_BYTES { Err(Lost::NotHttp) } else { Ok(None) };
    };
    *scanned = 0;
    if len > MAX_HEAD_BYTES {
        return Err(Lost::NotHttp);
    }
    Head::parse(&input.split_to(len).freeze()).map(Some)
}

/// The length up to and including the empty line.
fn find_end(bytes: &[u8], scanned: usize) -> Option<usize> {
    let ends = memchr::memchr_iter(b'\n', bytes.get(scanned..)?).map(|at| at + scanned);
    ends.map(|at| at + 1)
        .find(|end| bytes.get(..end - 1).is_some_and(|before| before.ends_with(b"\n") || before.ends_with(b"\n\r")))
}

impl Head {
    /// `bytes` end with the first empty line. Values are not copied.
    fn parse(bytes: &Bytes) -> Result<Self, Lost> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut response = Response::new(&mut []);
        let parsed = ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut fields);
        if !matches!(parsed, Ok(Status::Complete(len)) if len == bytes.len()) {
            return Err(Lost::NotHttp);
        }
        let status = response.code.and_then(|c| StatusCode::from_u16(c).ok()).ok_or(Lost::NotHttp)?;
        let (mut length, mut chunked, mut close, mut keep) = (None, false, false, false);
        let mut headers = HeaderMap::with_capacity(response.headers.len() + OURS);
        for field in &*response.headers {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Lost::NotHttp)?;
            if name == header::CONTENT_LENGTH {
                let number = number(field.value).ok_or(Lost::NotHttp)?;
                if length.replace(number).is_some() {
                    return Err(Lost::NotHttp);
                }
            } else if name == header::TRANSFER_ENCODING {
                if !field.value.eq_ignore_ascii_case(b"chunked") || std::mem::replace(&mut chunked, true) {
                    return Err(Lost::NotHttp);
                }
            } else if name == header::CONNECTION {
                for option in field.value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    close |= option.eq_ignore_ascii_case(b"close");
                    keep |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value)).map_err(|_| Lost::NotHttp)?;
            headers.append(name, value);
        }
        let old = response.version == Some(0);
        if chunked && (length.is_some() || old) {
            return Err(Lost::NotHttp);
        }
        Ok(Self { status, headers, closes: close || (old && !keep), length, chunked })
    }

    /// Another head follows (1xx, but for the switch to another protocol).
    pub(super) fn is_interim(&self) -> bool {
        self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS
    }

    /// How the body behind it is framed, RFC 9112, section 6.3.
    pub(super) fn framing(&self, method: &Method) -> Framing {
        let none = self.status.is_informational()
            || matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || *method == Method::HEAD;
        match self.length {
            _ if none => Framing::Empty,
            _ if self.chunked => Framing::Chunked,
            None => Framing::ToEnd,
            Some(0) => Framing::Empty,
            Some(length) => Framing::Length(length),
        }
    }
}

/// Decimal digits alone.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0_u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(wire: &str) -> Result<Head, Lost> {
        read(&mut BytesMut::from(wire), &mut 0).map(|head| head.expect("whole"))
    }

    #[test]
    fn an_answer_has_the_body_that_its_head_says() {
        use Framing::{Chunked, Empty, Length, ToEnd};
        let (get, head) = (Method::GET, Method::HEAD);
        for (wire, method, framing, closes) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", &get, Length(12), false),
            ("HTTP/1.1 200\r\ncontent-length:  0 \r\n\r\n", &get, Empty, false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", &get, Chunked, false),
            ("HTTP/1.1 200 OK\r\n\r\n", &get, ToEnd, false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", &head, Empty, false),
            ("HTTP/1.1 204 No\r\n\r\n", &get, Empty, false),
            ("HTTP/1.1 304 No\r\nContent-Length: 12\r\n\r\n", &get, Empty, false),
            ("HTTP/1.1 101 Switch\r\nConnection: Upgrade\r\n\r\n", &get, Empty, false),
            ("HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 1\r\n\r\n", &get, Length(1), true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", &get, Length(1), true),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n", &get, Length(1), false),
            ("HTTP/1.1 200 OK\nContent-Length: 1\n\n", &get, Length(1), false),
        ] {
            let head = parsed(wire).unwrap();
            assert_eq!((head.framing(method), head.closes), (framing, closes), "{wire:?}");
        }
    }

    #[test]
    fn an_answer_that_could_be_read_in_two_ways_is_none() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
        let long = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(70_000));
        for wire in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "\r\n\r\n",
            &many,
            &long,
        ] {
            assert_eq!(parsed(wire).err(), Some(Lost::NotHttp), "{:?}", &wire[..wire.len().min(60)]);
        }
    }

    #[test]
    fn a_head_is_found_however_it_is_split_and_what_follows_it_is_left() {
        let wire = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nbody";
        let (mut input, mut scanned) = (BytesMut::new(), 0);
        for byte in wire.iter().take(wire.len() - 5) {
            input.extend_from_slice(&[*byte]);
            assert!(read(&mut input, &mut scanned).unwrap().is_none());
        }
        input.extend_from_slice(b"\nbody");
        let head = read(&mut input, &mut scanned).unwrap().unwrap();
        assert_eq!(head.headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
        assert_eq!((&input[..], scanned), (&b"body"[..], 0));
        let endless = vec![b'x'; MAX_HEAD_BYTES];
        assert_eq!(read(&mut BytesMut::from(&endless[..]), &mut 0).err(), Some(Lost::NotHttp), "never whole");
    }

    #[test]
    fn a_request_is_written_once_and_in_full() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("host", "up.test"), ("a", "1"), ("a", "2")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let headers = HeaderList::kept_of(headers, 0, |_, _| true);
        for (length, chunked, framing) in [
            (None, false, ""),
            (Some(0), false, "content-length: 0\r\n"),
            (Some(1204), false, "content-length: 1204\r\n"),
            (None, true, "transfer-encoding: chunked\r\n"),
        ] {
            let mut out = Vec::new();
            write(&mut out, (&Method::POST, "/v1/x?y=1", &headers), length, chunked);
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text, format!("POST /v1/x?y=1 HTTP/1.1\r\nhost: up.test\r\na: 1\r\na: 2\r\n{framing}\r\n"));
        }
    }
}
