//! MCP's `endpoint` event, with which a server over HTTP and SSE says where messages are to be
//! posted (MCP 2024-11-05).
//!
//! It is the first event of the stream. Clients act on an event only when it has ended, so that it
//! is held until then delays nothing. Comments before it, which keep a connection alive, and
//! everything behind it go through as they came.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::urls::Urls;

/// A longer first event is not an endpoint.
const MAX_HELD: usize = 8 * 1024;

/// May stand before the first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Rewrites the URL of the first event of a stream.
pub(super) struct EndpointEvent {
    urls: Urls,
    held: BytesMut,
    done: bool,
}

impl EndpointEvent {
    pub(super) fn new(urls: Urls) -> Self {
        Self { urls, held: BytesMut::new(), done: false }
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes the next chunk, and gives what can go on.
    pub(super) fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.done {
            return chunk;
        }
        self.held.extend_from_slice(&chunk);
        let first = first_event(&self.held);
        if let FirstEvent::Incomplete { begins } = first
            && self.held.len() - begins <= MAX_HELD
        {
            return self.held.split_to(begins).freeze();
        }
        self.done = true;
        let text = self.held.split().freeze();
        match first {
            FirstEvent::Endpoint(url) => self.rewrite(&text, url).unwrap_or(text),
            FirstEvent::Incomplete { .. } | FirstEvent::Other => text,
        }
    }

    /// The stream has ended or broken off: gives what was held back. An event that did not end is
    /// none.
    pub(super) fn finish(&mut self) -> Bytes {
        self.done = true;
        self.held.split().freeze()
    }

    fn rewrite(&self, text: &[u8], url: Range<usize>) -> Option<Bytes> {
        let (before, after) = (text.get(..url.start)?, text.get(url.end..)?);
        let url = self.urls.reference(std::str::from_utf8(text.get(url)?).ok()?)?;
        Some([before, url.as_bytes(), after].concat().into())
    }
}

enum FirstEvent {
    /// More text is needed from where it begins: behind the comments.
    Incomplete {
        begins: usize,
    },
    /// With the place of its URL.
    Endpoint(Range<usize>),
    Other,
}

/// Reads the first event that has a field. Comments may stand before it.
fn first_event(text: &[u8]) -> FirstEvent {
    let mut at = if text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    let (mut begins, mut has_field) = (0, false);
    let (mut is_endpoint, mut data, mut lines) = (false, 0..0, 0);
    while let Some(length) = memchr::memchr2(b'\r', b'\n', text.get(at..).unwrap_or_default()) {
        let end = at + length;
        let next = match (text.get(end), text.get(end + 1)) {
            (Some(b'\r'), Some(b'\n')) => end + 2,
            (Some(b'\r'), None) => break, // a line feed may follow
            _ => end + 1,
        };
        let line = text.get(at..end).unwrap_or_default();
        let (name, value) = match memchr::memchr(b':', line) {
            Some(colon) => {
                let value = line.get(colon + 1..).unwrap_or_default();
                (line.get(..colon).unwrap_or_default(), value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &b""[..]),
        };
        match name {
            b"" if line.is_empty() && has_field => {
                return if is_endpoint && lines == 1 { FirstEvent::Endpoint(data) } else { FirstEvent::Other };
            }
            b"" => {} // a comment, or nothing yet
            b"event" => is_endpoint = value == b"endpoint",
            b"data" => (data, lines) = (end - value.len()..end, lines + 1),
            _ => {}
        }
        has_field |= !name.is_empty();
        at = next;
        if !has_field {
            begins = at;
        }
    }
    FirstEvent::Incomplete { begins }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(chunks: &[&[u8]]) -> String {
        let urls = Urls::new(true, "up.test", 443, "http://node:8300".into(), "/api/mcp".into());
        let (mut endpoint, mut out) = (EndpointEvent::new(urls), Vec::new());
        for chunk in chunks {
            out.extend_from_slice(&endpoint.push(Bytes::copy_from_slice(chunk)));
        }
        out.extend_from_slice(&endpoint.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_endpoint_leads_to_the_node_whatever_the_split() {
        for (text, expect) in [
            (
                "event: endpoint\ndata: /messages/?session_id=1\n\n",
                "event: endpoint\ndata: /api/mcp/messages/?session_id=1\n\n",
            ),
            (
                "event:endpoint\r\ndata:/m\r\n\r\nevent: message\r\ndata: /m\r\n\r\n",
                "event:endpoint\r\ndata:/api/mcp/m\r\n\r\nevent: message\r\ndata: /m\r\n\r\n",
            ),
            (
                ": ping\n\ndata: https://up.test/m\nevent: endpoint\n\n",
                ": ping\n\ndata: http://node:8300/api/mcp/m\nevent: endpoint\n\n",
            ),
            (
                "\u{feff}event: endpoint\rdata: /m\r\rdata: x\r\r",
                "\u{feff}event: endpoint\rdata: /api/mcp/m\r\rdata: x\r\r",
            ),
            ("event: endpoint\ndata: messages/1\n\n", "event: endpoint\ndata: messages/1\n\n"),
            ("event: endpoint\ndata: https://other.test/m\n\n", "event: endpoint\ndata: https://other.test/m\n\n"),
            (
                "event: message\ndata: /m\n\nevent: endpoint\ndata: /m\n\n",
                "event: message\ndata: /m\n\nevent: endpoint\ndata: /m\n\n",
            ),
            ("event: endpoint\ndata: /a\ndata: /b\n\n", "event: endpoint\ndata: /a\ndata: /b\n\n"),
            ("event: endpoint\ndata: /a\n", "event: endpoint\ndata: /a\n"),
            ("data: {\"a\":1}\n\n", "data: {\"a\":1}\n\n"),
            ("", ""),
        ] {
            assert_eq!(rewritten(&[text.as_bytes()]), expect);
            for at in 0..text.len() {
                let (a, b) = text.as_bytes().split_at(at);
                assert_eq!(rewritten(&[a, b]), expect, "split at {at}");
            }
        }
    }

    #[test]
    fn comments_that_keep_a_connection_alive_are_not_held() {
        let urls = Urls::new(true, "up.test", 443, "http://node".into(), "/api/s".into());
        let mut endpoint = EndpointEvent::new(urls);
        assert_eq!(endpoint.push(Bytes::from_static(b": ping\n\n: pi")), ": ping\n\n");
        assert_eq!(endpoint.push(Bytes::from_static(b"ng\n\nevent: endpoint\n")), ": ping\n\n");
        assert_eq!(endpoint.push(Bytes::from_static(b"data: /m\n\n")), "event: endpoint\ndata: /api/s/m\n\n");
    }

    #[test]
    fn a_long_first_event_is_held_no_longer() {
        let urls = Urls::new(true, "up.test", 443, "http://node".into(), String::new());
        let mut endpoint = EndpointEvent::new(urls);
        assert!(endpoint.push(Bytes::from(vec![b'x'; MAX_HELD])).is_empty());
        assert_eq!(endpoint.push(Bytes::from_static(b"y")).len(), MAX_HELD + 1);
        let chunk = Bytes::from_static(b"z");
        assert_eq!((endpoint.push(chunk.clone()).as_ptr(), endpoint.held()), (chunk.as_ptr(), 0));
    }
}
