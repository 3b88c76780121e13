//! Rewrites URLs in a JSON or event-stream text as it streams.
//!
//! A URL is rewritten where a JSON string, or the data of an event, begins with it. That is what
//! clients follow. Prose that mentions a URL is the upstream's content and stays as it is.
//!
//! Output is the same for every split of the input into chunks. At the end of a chunk only what may
//! still become an origin is held back: at most an origin and a base path, each character of them
//! as an escape. A chunk without an origin goes through as it came, without a copy.

use bytes::{Bytes, BytesMut};

use super::pattern::{Found, OriginPattern};

/// What stands before a URL in the data of an event.
const DATA: &[u8] = b"data:";

/// The line break, [`DATA`] and the space before a URL.
const CONTEXT: usize = 1 + DATA.len() + 1;

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
        let scheme = self.pattern.scheme();
        for colon in memchr::memchr_iter(b':', &text) {
            // Nearly every colon of a JSON text stands between a name and a value.
            if !matches!(text.get(colon + 1), Some(b'/' | b'\\') | None) {
                continue;
            }
            let Some(start) = colon.checked_sub(scheme.len()).filter(|start| *start >= copied) else { continue };
            let has_scheme = text.get(start..colon).is_some_and(|have| have.eq_ignore_ascii_case(scheme));
            if !has_scheme || !self.begins(&text, start) {
                continue;
            }
            match self.pattern.find(text.get(colon + 1..).unwrap_or_default(), last) {
                Found::Nothing => {}
                Found::Partial => {
                    hold = Some(start);
                    break;
                }
                Found::Origin { length, spelling } => {
                    out.reserve(text.len() - copied + self.pattern.replacement(spelling).len());
                    out.extend_from_slice(text.get(copied..start).unwrap_or_default());
                    out.extend_from_slice(self.pattern.replacement(spelling));
                    copied = colon + 1 + length;
                }
            }
        }
        let hold = hold.unwrap_or_else(|| if last { text.len() } else { self.begun_scheme(&text, copied) });
        self.held.extend_from_slice(text.get(hold..).unwrap_or_default());
        self.remember(text.get(..hold).unwrap_or_default());
        if copied == 0 {
            return text.slice(..hold);
        }
        out.extend_from_slice(text.get(copied..hold).unwrap_or_default());
        out.freeze()
    }

    /// Where a scheme begins that the end of `text` cuts off; its length, if none does.
    fn begun_scheme(&self, text: &[u8], copied: usize) -> usize {
        let scheme = self.pattern.scheme();
        let begun = (1..=scheme.len()).rev().filter_map(|length| text.len().checked_sub(length)).find(|start| {
            let cut = text.get(*start..).unwrap_or_default();
            let same = scheme.get(..cut.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(cut));
            *start >= copied && same && self.begins(text, *start)
        });
        begun.unwrap_or(text.len())
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
            assert!(rewriter.held() <= 48, "held: {}", rewriter.held());
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
    fn a_chunk_without_an_origin_is_not_copied() {
        let chunk = Bytes::from_static(b"{\"a\": \"https://other.test/\"}");
        assert_eq!(rewriter(false).push(chunk.clone()).as_ptr(), chunk.as_ptr());
    }

    proptest! {
        #[test]
        fn every_split_gives_the_same(events: bool, parts in prop::collection::vec(prop_oneof![
            Just("\"https://up.test".to_owned()), Just("\"https:\\/\\/up.test".to_owned()), Just("https:".to_owned()),
            Just("\"".to_owned()), Just("//".to_owned()), Just("up.test".to_owned()), Just(":443".to_owned()), Just("/".to_owned()),
            Just("\ndata:".to_owned()), Just(" ".to_owned()), Just("\\u002f".to_owned()), "[a-z:/.@ \\\\]{0,6}",
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
