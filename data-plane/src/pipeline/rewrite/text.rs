//! Rewrites URLs in a JSON or event-stream text as it streams.
//!
//! A URL is rewritten where a JSON string, or the data of an event, begins with it. That is what
//! clients follow. Prose that mentions a URL is the upstream's content and stays as it is. So do
//! names of members, which clients look up (link relations of HAL, claims, JSON-LD).
//!
//! Output is the same for every split of the input into chunks. At the end of a chunk only what may
//! still become an origin is held back: at most an origin and a base path, each character of them
//! as an escape, and behind an origin up to [`MAX_NAME`] bytes of its string. A chunk without an
//! origin goes through as it came, without a copy.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::pattern::{ESCAPE_BYTES, Found, OriginPattern, is_escape_of};

/// What stands before a URL in the data of an event.
const DATA: &[u8] = b"data:";

/// The line break, [`DATA`] and the space before a URL.
const CONTEXT: usize = 1 + DATA.len() + 1;

/// Longest rest of a member's name, behind an origin, in bytes.
const MAX_NAME: usize = 1024;

/// The rewriter of one text.
pub(super) struct UrlRewriter {
    pattern: OriginPattern,
    /// The text is an event stream.
    events: bool,
    /// Held back: what may become an origin.
    held: BytesMut,
    /// The last bytes of the text before `held`. Fewer than [`CONTEXT`]: all of them.
    before: Vec<u8>,
}

impl UrlRewriter {
    pub(super) fn new(pattern: OriginPattern, events: bool) -> Self {
        Self { pattern, events, held: BytesMut::new(), before: Vec::with_capacity(2 * CONTEXT) }
    }

    /// How many bytes are held back.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes the next chunk, and gives what can go on.
    pub(super) fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.held.is_empty() {
            return self.rewrite(chunk, false);
        }
        self.held.extend_from_slice(&chunk);
        let text = self.held.split().freeze();
        self.rewrite(text, false)
    }

    /// The text has ended: gives what was held back.
    pub(super) fn finish(&mut self) -> Bytes {
        let text = self.held.split().freeze();
        self.rewrite(text, true)
    }

    /// Gives what was held back as it came, of a text that breaks off.
    pub(super) fn abandon(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    fn rewrite(&mut self, text: Bytes, last: bool) -> Bytes {
        let (mut out, mut copied, mut hold) = (BytesMut::new(), 0, None);
        for colon in colons(&text) {
            // Nearly every colon of a JSON text stands between a name and a value.
            if !matches!(text.get(colon.end), Some(b'/' | b'\\') | None) {
                continue;
            }
            let start = self.scheme_before(&text, colon.start);
            let Some(start) = start.filter(|start| *start >= copied && self.begins(&text, *start)) else { continue };
            match self.find(&text, start, last) {
                Found::Nothing => {}
                Found::Partial => {
                    hold = Some(start);
                    break;
                }
                Found::Origin { length, spelling } => {
                    out.reserve(text.len() - copied + self.pattern.replacement(spelling).len());
                    out.extend_from_slice(text.get(copied..start).unwrap_or_default());
                    out.extend_from_slice(self.pattern.replacement(spelling));
                    copied = start + length;
                }
            }
        }
        let hold = hold.unwrap_or_else(|| if last { text.len() } else { self.begun_url(&text, copied) });
        self.held.extend_from_slice(text.get(hold..).unwrap_or_default());
        self.remember(text.get(..hold).unwrap_or_default());
        if copied == 0 {
            return text.slice(..hold);
        }
        out.extend_from_slice(text.get(copied..hold).unwrap_or_default());
        out.freeze()
    }

    /// What begins at `start`. The name of a member is nothing to be rewritten.
    fn find(&self, text: &[u8], start: usize, last: bool) -> Found {
        let found = self.pattern.find(text.get(start..).unwrap_or_default(), last);
        let Found::Origin { length, .. } = found else { return found };
        if self.byte_before(text, start, 1) != Some(b'"') {
            return found; // the data of an event
        }
        match is_name(text.get(start + length..).unwrap_or_default()) {
            None if !last => Found::Partial,
            Some(true) => Found::Nothing,
            Some(false) | None => found,
        }
    }

    /// Where the scheme begins that ends at `end`. Any character of it may be an escape.
    fn scheme_before(&self, text: &[u8], end: usize) -> Option<usize> {
        self.pattern.scheme().iter().rev().try_fold(end, |at, wanted| {
            let before = text.get(..at)?;
            if before.last().is_some_and(|byte| byte.eq_ignore_ascii_case(wanted)) {
                return Some(at - 1);
            }
            let start = at.checked_sub(ESCAPE_BYTES)?;
            is_escape_of(before.get(start..)?, *wanted).then_some(start)
        })
    }

    /// Where a URL begins that the end of `text` cuts off before its colon ends; the text's length,
    /// if none does.
    fn begun_url(&self, text: &[u8], copied: usize) -> usize {
        let longest = ESCAPE_BYTES * (self.pattern.scheme().len() + 1);
        let first = text.len().saturating_sub(longest).max(copied);
        let is_begun = |start: &usize| {
            let rest = text.get(*start..).unwrap_or_default();
            self.begins(text, *start) && self.pattern.find(rest, false) == Found::Partial
        };
        (first..text.len()).find(is_begun).unwrap_or(text.len())
    }

    /// Whether a URL may begin at `start`: a JSON string does, or the data of an event.
    fn begins(&self, text: &[u8], start: usize) -> bool {
        let previous = self.byte_before(text, start, 1);
        if previous == Some(b'"') {
            return true;
        }
        if !self.events {
            return false;
        }
        let space = usize::from(previous == Some(b' '));
        let is_data = |(at, byte): (usize, &u8)| self.byte_before(text, start, space + 1 + at) == Some(*byte);
        let line = self.byte_before(text, start, space + DATA.len() + 1);
        DATA.iter().rev().enumerate().all(is_data) && line.is_none_or(|byte| matches!(byte, b'\r' | b'\n'))
    }

    /// The byte `distance` before `start`, at most [`CONTEXT`]. `None`: the text begins behind it.
    fn byte_before(&self, text: &[u8], start: usize, distance: usize) -> Option<u8> {
        match start.checked_sub(distance) {
            Some(at) => text.get(at).copied(),
            None => self.before.len().checked_sub(distance - start).and_then(|at| self.before.get(at)).copied(),
        }
    }

    fn remember(&mut self, text: &[u8]) {
        self.before.extend_from_slice(text.get(text.len().saturating_sub(CONTEXT)..).unwrap_or_default());
        self.before.drain(..self.before.len().saturating_sub(CONTEXT));
    }
}

/// Whether the string that goes on with `rest` is the name of a member: a colon follows it, behind
/// one blank at most. `None`: more text decides.
fn is_name(rest: &[u8]) -> Option<bool> {
    let Some(end) = memchr::memchr(b'"', rest.get(..MAX_NAME).unwrap_or(rest)) else {
        return (rest.len() >= MAX_NAME).then_some(false);
    };
    let behind = rest.get(end + 1..).unwrap_or_default();
    behind.strip_prefix(b" ").unwrap_or(behind).first().map(|byte| *byte == b':')
}

/// Where `:` and its escape stand in a text, in order.
fn colons(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut plain = memchr::memchr_iter(b':', text).map(|at| at..at + 1).peekable();
    let escapes = memchr::memmem::find_iter(text, b"\\u003").map(|at| at..at + ESCAPE_BYTES);
    let mut escaped = escapes.filter(|at| is_escape_of(text.get(at.clone()).unwrap_or_default(), b':')).peekable();
    std::iter::from_fn(move || match (plain.peek(), escaped.peek()) {
        (Some(colon), Some(escape)) if escape.start < colon.start => escaped.next(),
        (Some(_), _) => plain.next(),
        (None, _) => escaped.next(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rewriter(events: bool) -> UrlRewriter {
        UrlRewriter::new(OriginPattern::new("https", "up.test", (false, 443), "", "http://node:8300/api/s"), events)
    }

    fn rewritten(events: bool, chunks: &[&[u8]]) -> String {
        let (mut rewriter, mut out) = (rewriter(events), Vec::new());
        for chunk in chunks {
            out.extend_from_slice(&rewriter.push(Bytes::copy_from_slice(chunk)));
            assert!(rewriter.held() <= MAX_NAME + 128, "held: {}", rewriter.held());
        }
        out.extend_from_slice(&rewriter.finish());
        assert_eq!(rewriter.held(), 0);
        String::from_utf8(out).unwrap()
    }

    const JSON: &[(&str, &str)] = &[
        (
            r#"{"url":"https://up.test/a","next":"https://up.test"}"#,
            r#"{"url":"http://node:8300/api/s/a","next":"http://node:8300/api/s"}"#,
        ),
        (r#"{"url":"https:\/\/up.test\/repos\/o"}"#, r#"{"url":"http:\/\/node:8300\/api\/s\/repos\/o"}"#),
        (r#""HTTPS:\u002F\u002fUP.test:443/x""#, r#""http:\u002f\u002fnode:8300\u002fapi\u002fs/x""#),
        (
            r#"["\u0068\u0074\u0074\u0070\u0073\u003a\u002f\u002fup\u002etest\u002fa","https\u003A//up.test/b"]"#,
            r#"["http:\u002f\u002fnode:8300\u002fapi\u002fs\u002fa","http://node:8300/api/s/b"]"#,
        ),
        (
            r#"["http\u003a//up.test/","https\u003b//up.test/","x\u0068ttps://up.test/","a:\u003a"]"#,
            r#"["http\u003a//up.test/","https\u003b//up.test/","x\u0068ttps://up.test/","a:\u003a"]"#,
        ),
        (r#"{"text":"{\"url\":\"https://up.test/a\"}"}"#, r#"{"text":"{\"url\":\"http://node:8300/api/s/a\"}"}"#),
        (
            r#"["https://up.test{/x}","https://up.test?q"]"#,
            r#"["http://node:8300/api/s{/x}","http://node:8300/api/s?q"]"#,
        ),
        (
            r#"{"u":"https://up.test.evil/","v":"https://up.test:8443/"}"#,
            r#"{"u":"https://up.test.evil/","v":"https://up.test:8443/"}"#,
        ),
        (
            r#"["https://user@up.test/","https://up.test@evil/"]"#,
            r#"["https://user@up.test/","https://up.test@evil/"]"#,
        ),
        (
            r#"["see https://up.test/","https://o.test/?u=https://up.test/"]"#,
            r#"["see https://up.test/","https://o.test/?u=https://up.test/"]"#,
        ),
        (
            r#"["http://up.test/","xhttps://up.test/","https://up.tes"]"#,
            r#"["http://up.test/","xhttps://up.test/","https://up.tes"]"#,
        ),
        (
            r#"{"https://up.test/rels/a":{"href":"https://up.test/a"} ,"https://up.test/b" : ["https://up.test/c","https://up.test/d" ]}"#,
            r#"{"https://up.test/rels/a":{"href":"http://node:8300/api/s/a"} ,"https://up.test/b" : ["http://node:8300/api/s/c","http://node:8300/api/s/d" ]}"#,
        ),
        (
            r#"{"text":"{\"https://up.test/a\":\"https://up.test/b\"}"}"#,
            r#"{"text":"{\"https://up.test/a\":\"http://node:8300/api/s/b\"}"}"#,
        ),
        ("data: https://up.test/a\n\n", "data: https://up.test/a\n\n"),
        ("\"https://up.test", "\"http://node:8300/api/s"),
        ("https://up.test/", "https://up.test/"),
        ("", ""),
    ];

    const EVENTS: &[(&str, &str)] = &[
        ("data: https://up.test/a\n\n", "data: http://node:8300/api/s/a\n\n"),
        (
            "data:https://up.test/a\r\rdata: https://up.test",
            "data:http://node:8300/api/s/a\r\rdata: http://node:8300/api/s",
        ),
        (
            "id: 1\r\ndata: {\"a\":\"https:\\/\\/up.test\\/b\"}\r\n\r\n",
            "id: 1\r\ndata: {\"a\":\"http:\\/\\/node:8300\\/api\\/s\\/b\"}\r\n\r\n",
        ),
        ("data: see https://up.test/a\n\n", "data: see https://up.test/a\n\n"),
        ("data:  https://up.test/a\nxdata: https://up.test/", "data:  https://up.test/a\nxdata: https://up.test/"),
        ("id: https://up.test/a\n\n", "id: https://up.test/a\n\n"),
    ];

    #[test]
    fn the_upstreams_urls_lead_to_the_node_whatever_the_split() {
        let all = JSON.iter().map(|case| (false, case)).chain(EVENTS.iter().map(|case| (true, case)));
        for (events, (text, expect)) in all {
            assert_eq!(rewritten(events, &[text.as_bytes()]), *expect);
            for at in 0..text.len() {
                let (a, b) = text.as_bytes().split_at(at);
                assert_eq!(rewritten(events, &[a, b]), *expect, "split at {at}");
            }
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(rewritten(events, &bytes), *expect, "byte by byte");
        }
    }

    #[test]
    fn a_string_is_held_back_to_its_end_and_not_without_bound() {
        let mut rewriter = rewriter(false);
        assert_eq!(rewriter.push(Bytes::from_static(b"[\"https://up.test/a\"")), "[\"");
        assert_eq!(rewriter.push(Bytes::from_static(b",")), "http://node:8300/api/s/a\",");
        let long = format!("\"https://up.test/{}", "x".repeat(MAX_NAME));
        assert_eq!(rewritten(false, &[long.as_bytes(), b"\":1"]).get(..25), Some("\"http://node:8300/api/s/x"));
        let ended = long.replace("xx", "");
        assert!(rewritten(false, &[ended.as_bytes(), b"\"\n"]).starts_with("\"http://node"));
    }

    #[test]
    fn a_chunk_without_an_origin_is_not_copied() {
        let chunk = Bytes::from_static(b"{\"a\": \"https://other.test/\"}");
        assert_eq!(rewriter(false).push(chunk.clone()).as_ptr(), chunk.as_ptr());
    }

    proptest! {
        #[test]
        fn every_split_gives_the_same(events: bool, parts in prop::collection::vec(prop_oneof![
            Just("\"https://up.test".to_owned()), Just("\"https:\\/\\/up.test".to_owned()), Just("https:".to_owned()),
            Just("\"".to_owned()), Just("//".to_owned()), Just("up.test".to_owned()), Just(":443".to_owned()), Just("/".to_owned()),
            Just("\ndata:".to_owned()), Just(" ".to_owned()), Just("\\u002f".to_owned()), Just("\"http\\u0073".to_owned()),
            Just("\\u003a".to_owned()), "[a-z:/.@ \\\\]{0,6}",
        ], 0..14), sizes in prop::collection::vec(1_usize..9, 1..8)) {
            let text = parts.concat();
            let whole = rewritten(events, &[text.as_bytes()]);
            let (mut rest, mut chunks, mut turn) = (text.as_bytes(), Vec::new(), sizes.iter().cycle());
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(rest.len().min(*turn.next().unwrap()));
                chunks.push(chunk);
                rest = after;
            }
            prop_assert_eq!(rewritten(events, &chunks), whole);
        }

        #[test]
        fn a_text_without_the_host_stays(text in "[a-z\":/ .]{0,80}", sizes in prop::collection::vec(1_usize..9, 1..8)) {
            prop_assume!(!text.contains("up.test"));
            let mut at = 0;
            let mut chunks = Vec::new();
            for size in sizes.iter().cycle().take_while(|_| true) {
                if at >= text.len() { break }
                let end = text.len().min(at + size);
                chunks.push(&text.as_bytes()[at..end]);
                at = end;
            }
            prop_assert_eq!(rewritten(false, &chunks), text.clone());
        }
    }
}
