//! The head of an answer, and how its body is framed.

use std::{cell::RefCell, time::SystemTime};

use http::{HeaderMap, StatusCode, header, response::Parts};
use httpdate::HttpDate;

use super::request::ResponseTerms;
use crate::http::h1::write_number;

/// How the body behind a head is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    Empty,
    Length(u64),
    Chunked,
    /// The connection's end ends it.
    ToEnd,
}

/// Writes the head of an answer to a request on these terms, with a body of `length`; `last`:
/// nothing follows it. Gives the body's framing, and whether anything may follow after all.
pub(super) fn write(
    out: &mut Vec<u8>,
    parts: &Parts,
    length: Option<u64>,
    terms: ResponseTerms,
    last: bool,
) -> (Framing, bool) {
    let (status, headers) = (parts.status, &parts.headers);
    let switches = status == StatusCode::SWITCHING_PROTOCOLS || (terms.connect && status.is_success());
    // A counted body can have no trailers.
    let length = length.filter(|_| terms.http10 || !headers.contains_key(header::TRAILER));
    let framing = framing(status, length, terms, switches);
    let last = last || framing == Framing::ToEnd || says_close(headers);
    let room: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    out.reserve(room + 256);
    write_status_line(out, status, terms.http10);
    let describes = framing == Framing::Empty && (terms.head || status == StatusCode::NOT_MODIFIED);
    for (name, value) in headers {
        // Behind HEAD and 304 it speaks of a body that isn't there; elsewhere it is what is framed
        // that counts.
        if name == header::TRANSFER_ENCODING || (name == header::CONTENT_LENGTH && !describes) {
            continue;
        }
        write_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    match framing {
        Framing::Length(n) => write_length(out, n),
        Framing::Chunked => write_field(out, b"transfer-encoding", b"chunked"),
        Framing::Empty if terms.head && !headers.contains_key(header::CONTENT_LENGTH) => {
            length.filter(|n| *n > 0).into_iter().for_each(|n| write_length(out, n));
        }
        Framing::Empty | Framing::ToEnd => {}
    }
    if last && !switches && !says_close(headers) {
        write_field(out, b"connection", b"close");
    } else if terms.http10 && !last {
        write_field(out, b"connection", b"keep-alive");
    }
    if !headers.contains_key(header::DATE) {
        with_date(|date| write_field(out, b"date", date));
    }
    out.extend_from_slice(b"\r\n");
    (framing, last)
}

fn framing(status: StatusCode, length: Option<u64>, terms: ResponseTerms, switches: bool) -> Framing {
    let bodiless = status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    match length {
        _ if terms.head || bodiless || switches => Framing::Empty,
        Some(n) => Framing::Length(n),
        None if terms.http10 => Framing::ToEnd,
        None => Framing::Chunked,
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    headers.get(header::CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

fn write_status_line(out: &mut Vec<u8>, status: StatusCode, http10: bool) {
    out.extend_from_slice(if http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

fn write_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    write_number(out, length);
    out.extend_from_slice(b"\r\n");
}

/// The date, formatted once a second.
fn with_date(write: impl FnOnce(&[u8])) {
    thread_local! {
        static WRITTEN: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    WRITTEN.with_borrow_mut(|(written, date)| {
        if *written != second || date.is_empty() {
            (*written, *date) = (second, HttpDate::from(now).to_string());
        }
        write(date.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Response};

    use super::{super::request::REFUSED, *};

    const PLAIN: ResponseTerms = ResponseTerms { last: false, ..REFUSED };

    fn head(status: u16, fields: &[(&'static str, &'static str)]) -> Parts {
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = StatusCode::from_u16(status).unwrap();
        for (name, value) in fields {
            parts.headers.append(*name, HeaderValue::from_static(value));
        }
        parts
    }

    fn written(parts: &Parts, length: Option<u64>, terms: ResponseTerms) -> (String, Framing, bool) {
        let mut out = Vec::new();
        let (framing, last) = write(&mut out, parts, length, terms, terms.last);
        let text = String::from_utf8(out).unwrap();
        let (text, date) = text.split_once("date: ").unwrap_or((&text, "\r\n\r\n"));
        assert!(date.ends_with("\r\n\r\n") && [4, 33].contains(&date.len()), "{date:?}");
        (text.to_owned(), framing, last)
    }

    #[test]
    fn a_body_is_framed_in_one_way_whatever_the_upstream_said() {
        let parts = head(200, &[("content-length", "7"), ("a", "1"), ("transfer-encoding", "gzip"), ("a", "2")]);
        let both = "a: 1\r\na: 2\r\n";
        let counted = format!("HTTP/1.1 200 OK\r\n{both}content-length: 12\r\n");
        assert_eq!(written(&parts, Some(12), PLAIN), (counted, Framing::Length(12), false));
        let chunked = format!("HTTP/1.1 200 OK\r\n{both}transfer-encoding: chunked\r\n");
        assert_eq!(written(&parts, None, PLAIN), (chunked, Framing::Chunked, false));
        let announced = head(200, &[("trailer", "x-sum")]);
        assert_eq!(written(&announced, Some(12), PLAIN).1, Framing::Chunked, "a counted body has no trailers");
        let http10 = ResponseTerms { http10: true, ..PLAIN };
        let to_end = format!("HTTP/1.0 200 OK\r\n{both}connection: close\r\n");
        assert_eq!(written(&parts, None, http10), (to_end, Framing::ToEnd, true));
        let kept = format!("HTTP/1.0 200 OK\r\n{both}content-length: 0\r\nconnection: keep-alive\r\n");
        assert_eq!(written(&parts, Some(0), http10), (kept, Framing::Length(0), false));
    }

    #[test]
    fn an_answer_without_a_body_has_no_framing() {
        let length = &[("content-length", "7")];
        let asked = ResponseTerms { head: true, ..PLAIN };
        let described = "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n".to_owned();
        assert_eq!(written(&head(200, length), Some(0), asked), (described, Framing::Empty, false));
        let ours = "HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n".to_owned();
        assert_eq!(written(&head(404, &[]), Some(5), asked).0, ours, "what GET would have got");
        assert_eq!(written(&head(200, &[]), None, asked).0, "HTTP/1.1 200 OK\r\n");
        assert_eq!(written(&head(304, length), Some(0), PLAIN).0, "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n");
        assert_eq!(written(&head(204, length), Some(0), PLAIN).0, "HTTP/1.1 204 No Content\r\n");
        let tunnel = ResponseTerms { connect: true, ..PLAIN };
        assert_eq!(written(&head(200, length), Some(0), tunnel), ("HTTP/1.1 200 OK\r\n".into(), Framing::Empty, false));
        assert_eq!(written(&head(407, length), Some(3), tunnel).1, Framing::Length(3));
        let switch = head(101, &[("connection", "Upgrade"), ("upgrade", "websocket")]);
        let text = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n";
        assert_eq!(written(&switch, Some(0), PLAIN).0, text);
    }

    #[test]
    fn the_last_answer_says_so_once() {
        let closing = head(400, &[("connection", "close")]);
        let text = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 2\r\n".to_owned();
        for terms in [PLAIN, REFUSED] {
            assert_eq!(written(&closing, Some(2), terms), (text.clone(), Framing::Length(2), true));
        }
        let told = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n";
        assert_eq!(written(&head(200, &[]), Some(2), REFUSED).0, told);
        let mut dated = Vec::new();
        write(&mut dated, &head(200, &[("date", "then")]), Some(0), PLAIN, false);
        assert_eq!(dated, b"HTTP/1.1 200 OK\r\ndate: then\r\ncontent-length: 0\r\n\r\n", "not doubled");
        assert_eq!(written(&head(299, &[]), Some(0), PLAIN).0, "HTTP/1.1 299 \r\ncontent-length: 0\r\n");
    }
}
