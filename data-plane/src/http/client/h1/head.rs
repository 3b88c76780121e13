//! Heads: a request's is written, an answer's is read.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use httparse::{ParserConfig, Response, Status};

use crate::http::{
    client::{UpstreamError, request::RequestHead},
    h1::write_number,
};

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
pub(super) fn write(out: &mut Vec<u8>, head: &RequestHead, length: Option<u64>, chunked: bool) {
    let RequestHead { method, target, headers } = head;
    let room: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    // Not grown while it is written: growing leaves copies of the credential behind.
    out.reserve(target.len() + room + 128);
    for part in [method.as_str(), " ", target.as_str(), " HTTP/1.1\r\n"] {
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

/// Takes a head from the beginning of `input`, once it is whole; `scanned` of it was looked at
/// before.
pub(super) fn read(input: &mut BytesMut, scanned: &mut usize) -> Result<Option<Head>, UpstreamError> {
    let Some(len) = find_end(input, *scanned) else {
        if *scanned < VERSION.len() && !may_be_http(input) {
            return Err(UpstreamError::BadStatusLine); // SSH, SMTP, TLS, HTTP/2: it need not end
        }
        *scanned = input.len();
        return if input.len() >= MAX_HEAD_BYTES { Err(too_large(input)) } else { Ok(None) };
    };
    *scanned = 0;
    if len > MAX_HEAD_BYTES {
        return Err(too_large(input));
    }
    Head::parse(&input.split_to(len).freeze()).map(Some)
}

/// The length up to and including the empty line.
fn find_end(bytes: &[u8], scanned: usize) -> Option<usize> {
    let ends = memchr::memchr_iter(b'\n', bytes.get(scanned..)?).map(|at| at + scanned);
    ends.map(|at| at + 1)
        .find(|end| bytes.get(..end - 1).is_some_and(|before| before.ends_with(b"\n") || before.ends_with(b"\n\r")))
}

/// What every head begins with, behind empty lines.
const VERSION: &[u8] = b"HTTP/1.";

/// Whether a head can begin so.
fn may_be_http(input: &[u8]) -> bool {
    let line_breaks = input.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let begins = input.get(line_breaks..).unwrap_or_default();
    begins.iter().zip(VERSION).all(|(byte, expected)| byte == expected)
}

/// What a head without an end is: one that is too large, or no HTTP at all.
fn too_large(input: &[u8]) -> UpstreamError {
    if may_be_http(input) { UpstreamError::HeadTooLarge } else { UpstreamError::BadStatusLine }
}

/// Tolerant where no reader can take one message for two, as RFC 9112 has it for clients (2.2, 4,
/// 5.1, 5.2): several blanks in the status line, a bare LF, a blank before a colon, a value over
/// several lines. Fields that frame the body are read strictly.
fn parser() -> ParserConfig {
    let mut parser = ParserConfig::default();
    parser
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    parser
}

/// The fields that say where a message ends, as far as they have been read.
#[derive(Default)]
struct FramingFields {
    length: Option<u64>,
    chunked: bool,
    /// `Transfer-Encoding: identity`, which RFC 7230 took out: the body is as it would be without,
    /// and nothing follows it.
    identity: bool,
    close: bool,
    keep: bool,
}

impl FramingFields {
    /// Reads one. `false`: the same length once more, which is not kept.
    fn read(&mut self, name: &HeaderName, value: &[u8]) -> Result<bool, UpstreamError> {
        if *name == header::CONTENT_LENGTH {
            let number = one_number(value)?;
            return match self.length.replace(number) {
                Some(other) if other != number => Err(UpstreamError::ConflictingLengths),
                other => Ok(other.is_none()),
            };
        }
        if *name == header::TRANSFER_ENCODING {
            let seen = match value {
                value if value.eq_ignore_ascii_case(b"chunked") => &mut self.chunked,
                value if value.eq_ignore_ascii_case(b"identity") => &mut self.identity,
                _ => return Err(UpstreamError::TransferCoding),
            };
            if std::mem::replace(seen, true) || (self.chunked && self.identity) {
                return Err(UpstreamError::TransferCoding);
            }
            return Ok(true);
        }
        for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep |= option.eq_ignore_ascii_case(b"keep-alive");
        }
        Ok(true)
    }
}

/// Whether there is one length, in digits and nothing else: then it can stay as it is.
fn is_plain_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let (Some(length), None) = (lengths.next(), lengths.next()) else { return false };
    let digits = length.as_bytes();
    digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || !digits.starts_with(b"0"))
}

impl Head {
    /// `bytes` end with the first empty line. Values are not copied.
    fn parse(bytes: &Bytes) -> Result<Self, UpstreamError> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut response = Response::new(&mut []);
        match parser().parse_response_with_uninit_headers(&mut response, bytes, &mut fields) {
            Ok(Status::Complete(len)) if len == bytes.len() => {}
            Ok(_) => return Err(UpstreamError::BadStatusLine),
            Err(error) => return Err(malformed(error)),
        }
        let status = response.code.and_then(|c| StatusCode::from_u16(c).ok()).ok_or(UpstreamError::BadStatusLine)?;
        let mut framing = FramingFields::default();
        let mut headers = HeaderMap::with_capacity(response.headers.len() + OURS);
        for field in &*response.headers {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| UpstreamError::BadField)?;
            if matches!(name, header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::CONNECTION) {
                if !is_one_plain_line(bytes, field) {
                    return Err(UpstreamError::BadFramingField);
                }
                if !framing.read(&name, field.value)? {
                    continue;
                }
            }
            headers.append(name, value(bytes, field.value)?);
        }
        let FramingFields { length, chunked, identity, close, keep } = framing;
        let old = response.version == Some(0);
        match (chunked, length) {
            (true, Some(_)) => return Err(UpstreamError::LengthAndChunked),
            (true, None) if old => return Err(UpstreamError::ChunkedInHttp10),
            // However it was written: a list of equal numbers is one number.
            (_, Some(length)) if !is_plain_length(&headers) => {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
            (_, Some(_)) => {}
            (_, None) => {}
        }
        Ok(Self { status, headers, closes: close || identity || (old && !keep), length, chunked })
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

/// The rule that a head breaks.
fn malformed(error: httparse::Error) -> UpstreamError {
    use httparse::Error as E;
    match error {
        E::TooManyHeaders => UpstreamError::TooManyFields,
        E::HeaderName | E::HeaderValue => UpstreamError::BadField,
        E::NewLine | E::Status | E::Token | E::Version => UpstreamError::BadStatusLine,
    }
}

/// Whether a field is one line, with the colon right behind its name.
fn is_one_plain_line(head: &[u8], field: &httparse::Header<'_>) -> bool {
    let end_of = |part: &[u8]| part.as_ptr().addr() - head.as_ptr().addr() + part.len();
    let behind_name = head.get(end_of(field.name.as_bytes())..end_of(field.value)).unwrap_or_default();
    behind_name.starts_with(b":") && memchr::memchr2(b'\r', b'\n', behind_name).is_none()
}

/// A value: as it came, or with a blank for each line end in it (RFC 9112, 5.2).
fn value(head: &Bytes, value: &[u8]) -> Result<HeaderValue, UpstreamError> {
    let value = if memchr::memchr2(b'\r', b'\n', value).is_none() {
        HeaderValue::from_maybe_shared(head.slice_ref(value))
    } else {
        let lines = value.split(|b| matches!(b, b'\r' | b'\n')).map(<[u8]>::trim_ascii).filter(|l| !l.is_empty());
        HeaderValue::from_maybe_shared(Bytes::from(lines.collect::<Vec<_>>().join(&b' ')))
    };
    value.map_err(|_| UpstreamError::BadField)
}

/// One number, or a list of equal ones (RFC 9110, 8.6).
pub(in crate::http::client) fn one_number(list: &[u8]) -> Result<u64, UpstreamError> {
    let mut numbers = list.split(|b| *b == b',').map(|digits| number(digits.trim_ascii()));
    let first = numbers.next().flatten().ok_or(UpstreamError::BadLength)?;
    for other in numbers {
        if other.ok_or(UpstreamError::BadLength)? != first {
            return Err(UpstreamError::ConflictingLengths);
        }
    }
    Ok(first)
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
    use crate::http::HeaderList;

    fn parsed(wire: &str) -> Result<Head, UpstreamError> {
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
            ("\r\nHTTP/1.1  200  OK\r\nContent-Length: 1\r\n\r\n", &get, Length(1), false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n", &get, Length(2), false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2, 2 ,2\r\n\r\n", &get, Length(2), false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED \r\n\r\n", &get, Chunked, false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", &get, ToEnd, true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n", &get, Length(2), true),
            ("HTTP/1.1 200 OK\r\nServer : x\r\nA: b\r\n Content-Length: 9\r\n\r\n", &get, ToEnd, false),
        ] {
            let head = parsed(wire).unwrap();
            assert_eq!((head.framing(method), head.closes), (framing, closes), "{wire:?}");
        }
    }

    #[test]
    fn an_answer_that_could_be_read_in_two_ways_is_none_and_the_rule_is_named() {
        use UpstreamError as E;
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
        let long = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(70_000));
        for (wire, error) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", E::LengthAndChunked),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", E::ConflictingLengths),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n", E::ConflictingLengths),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1,\r\n\r\n", E::BadLength),
            ("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n", E::BadLength),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0x1\r\n\r\n", E::BadLength),
            ("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", E::BadLength),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n", E::BadLength),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", E::TransferCoding),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", E::TransferCoding),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", E::TransferCoding),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", E::ChunkedInHttp10),
            ("HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n", E::BadFramingField),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding\t: chunked\r\n\r\n", E::BadFramingField),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n chunked\r\n\r\n", E::BadFramingField),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n 2\r\n\r\n", E::BadFramingField),
            ("HTTP/1.1 200 OK\r\n A: b\r\n\r\n", E::BadField),
            ("HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", E::BadField),
            ("HTTP/1.1 200 OK\r\nA b: c\r\n\r\n", E::BadField),
            ("HTTP/1.1 200 OK\r\n: c\r\n\r\n", E::BadField),
            ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", E::BadField),
            ("HTTP/2.0 200 OK\r\n\r\n", E::BadStatusLine),
            ("HTTP/1.1 20 OK\r\n\r\n", E::BadStatusLine),
            ("SSH-2.0-OpenSSH\r\n\r\n", E::BadStatusLine),
            ("ICY 200 OK\r\n\r\n", E::BadStatusLine),
            ("\r\n\r\n", E::BadStatusLine),
            (&many, E::TooManyFields),
            (&long, E::HeadTooLarge),
        ] {
            assert_eq!(parsed(wire).err(), Some(error), "{:?}", &wire[..wire.len().min(80)]);
        }
    }

    #[test]
    fn old_spellings_of_fields_are_read_as_the_rfc_says() {
        let wire = "HTTP/1.1 200\r\nServer : x\r\nA: one\r\n\ttwo \r\n  three\r\nB:\r\n four\r\nC: d\u{e9}\r\n\
                    Content-Length: 2, 2\r\n\r\n";
        let headers = parsed(wire).unwrap().headers;
        let text = |name| String::from_utf8_lossy(headers[name].as_bytes()).into_owned();
        assert_eq!(
            ["server", "a", "b", "c", "content-length"].map(text),
            ["x", "one two three", "four", "d\u{e9}", "2"]
        );
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
        assert_eq!(
            read(&mut BytesMut::from(&endless[..]), &mut 0).err(),
            Some(UpstreamError::BadStatusLine),
            "never whole"
        );
    }

    #[test]
    fn a_request_is_written_once_and_in_full() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("host", "up.test"), ("a", "1"), ("a", "2")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let headers = HeaderList::kept_of(headers, 0, |_, _| true);
        let head = RequestHead { method: Method::POST, target: "/v1/x?y=1".into(), headers };
        for (length, chunked, framing) in [
            (None, false, ""),
            (Some(0), false, "content-length: 0\r\n"),
            (Some(1204), false, "content-length: 1204\r\n"),
            (None, true, "transfer-encoding: chunked\r\n"),
        ] {
            let mut out = Vec::new();
            write(&mut out, &head, length, chunked);
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text, format!("POST /v1/x?y=1 HTTP/1.1\r\nhost: up.test\r\na: 1\r\na: 2\r\n{framing}\r\n"));
        }
    }
}
