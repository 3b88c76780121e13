//! Server-sent events whose `data:` lines join to the credential.
//!
//! A client joins the `data:` lines of one event (HTML, 9.2.6), so a credential that an upstream
//! splits over them is whole again at the agent, and no line holds it. What stands behind the
//! colons of an event's `data:` lines is searched here as one text; field names, line ends,
//! comments and other fields between them stand for nothing. A hit is masked where its bytes stand.
//!
//! Nothing is held but the beginning of a match that the event's next line may complete. An event
//! that has ended is held no longer.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};

use super::{Needles, scrubber::Scrubber};

/// Most bytes that are held, lines between the parts of a match included. Beyond it what is known
/// of a match is masked, and goes on.
const MAX_HELD: usize = 64 * 1024;

/// The field whose values are joined.
const DATA: &[u8] = b"data";
/// May stand before the first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Where in a line the stream is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// So many bytes of a byte order mark have come, and nothing else.
    Start(usize),
    /// So many bytes of the field's name have come.
    Name(usize),
    /// Behind the colon, before the first byte that isn't a blank.
    Blank,
    /// In the value.
    Value,
    /// In a line that holds no data.
    Other,
}

/// What waits, in order.
enum Piece {
    /// As it came.
    Between(Bytes),
    /// So many bytes of values, which the scrubber has.
    Value(usize),
}

/// Scrubs the events of one stream.
pub(super) struct Events {
    joined: Scrubber,
    place: Place,
    after_cr: bool,
    /// A line of an event has come, and not its end.
    in_event: bool,
    waiting: VecDeque<Piece>,
    held: usize,
    clean: VecDeque<Bytes>,
}

/// Whether a client may read a body as events. Some read every body so that they asked for as a
/// stream, so a body that doesn't say what it is, or says that it is text, counts.
pub(super) fn may_be_events(headers: &HeaderMap) -> bool {
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter().peekable();
    let text = |kind: &http::HeaderValue| {
        let kind = kind.as_bytes().to_ascii_lowercase();
        memchr::memmem::find(&kind, b"event-stream").is_some() || kind.starts_with(b"text/plain")
    };
    kinds.peek().is_none() || kinds.any(text)
}

impl Events {
    pub(super) fn new(needles: &Needles) -> Self {
        Self {
            joined: Scrubber::new(needles.joined()),
            place: Place::Start(0),
            after_cr: false,
            in_event: false,
            waiting: VecDeque::new(),
            held: 0,
            clean: VecDeque::new(),
        }
    }

    /// Occurrences found since this was last asked.
    pub(super) fn take_found(&mut self) -> u32 {
        self.joined.take_found()
    }

    /// How many bytes are held back.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Takes the next chunk; what can go on is put into `out`.
    pub(super) fn push(&mut self, chunk: Bytes, out: &mut VecDeque<Bytes>) {
        if self.passes_whole(&chunk) {
            return out.push_back(chunk);
        }
        let mut clean = BytesMut::with_capacity(self.held + chunk.len());
        let mut at = 0;
        while let Some(rest) = chunk.get(at..).filter(|rest| !rest.is_empty()) {
            let (length, value) = self.step(rest);
            // What is known of a match is masked at the same byte, however the stream is cut.
            let length = length.min(MAX_HELD + 1 - self.held);
            let piece = chunk.slice(at..at + length);
            at += length;
            self.held += length;
            if value {
                self.waiting.push_back(Piece::Value(length));
                self.joined.push(piece, &mut self.clean);
            } else {
                self.waiting.push_back(Piece::Between(piece));
            }
            if self.has_ended() {
                self.joined.end_text(&mut self.clean);
            } else if self.held > MAX_HELD {
                self.joined.flush_message(&mut self.clean);
            }
            self.drain(&mut clean);
        }
        if !clean.is_empty() {
            out.push_back(clean.freeze());
        }
    }

    /// The stream has ended: what was held is no match.
    pub(super) fn finish(&mut self, out: &mut VecDeque<Bytes>) {
        if self.held > 0 {
            let mut clean = BytesMut::with_capacity(self.held);
            self.joined.end_text(&mut self.clean);
            self.drain(&mut clean);
            out.push_back(clean.freeze());
        }
    }

    /// The stream broke off: what was held goes on, but for what is known of a match.
    pub(super) fn break_off(&mut self, out: &mut VecDeque<Bytes>) {
        if self.held > 0 {
            let mut clean = BytesMut::with_capacity(self.held);
            self.joined.flush_message(&mut self.clean);
            self.drain(&mut clean);
            out.push_back(clean.freeze());
        }
    }

    /// Whether a chunk is whole events of one data line each, behind the end of an event, as nearly
    /// every chunk is. Each line of it has been searched by itself.
    fn passes_whole(&mut self, chunk: &[u8]) -> bool {
        let fresh = self.held == 0 && !self.in_event && self.place == Place::Name(0);
        if !fresh || !chunk.ends_with(b"\n\n") || memchr::memchr(b'\r', chunk).is_some() {
            return false;
        }
        let mut lines = 0;
        for line in chunk.split(|b| *b == b'\n') {
            // Together with the line's end, it is a soft line break of quoted-printable: alone, it
            // isn't.
            if line.ends_with(b"=") {
                return false;
            }
            lines = if line.is_empty() { 0 } else { lines + usize::from(line.starts_with(DATA)) };
            if lines > 1 {
                return false;
            }
        }
        self.after_cr = false;
        true
    }

    /// Reads on to the next change of place. How many bytes that took, and whether they are a
    /// value's.
    fn step(&mut self, rest: &[u8]) -> (usize, bool) {
        let first = rest.first().copied().unwrap_or_default();
        if std::mem::take(&mut self.after_cr) && first == b'\n' {
            return (1, false); // the second byte of a line end
        }
        if let Place::Start(seen) = self.place {
            if BYTE_ORDER_MARK.get(seen) == Some(&first) {
                self.place = if seen + 1 == BYTE_ORDER_MARK.len() { Place::Name(0) } else { Place::Start(seen + 1) };
                return (1, false);
            }
            self.place = if seen == 0 { Place::Name(0) } else { Place::Other };
        }
        if matches!(first, b'\r' | b'\n') {
            self.end_line(first);
            return (1, false);
        }
        match self.place {
            Place::Name(seen) if DATA.get(seen) == Some(&first) => {
                self.place = Place::Name(seen + 1);
                (1, false)
            }
            Place::Name(seen) if seen == DATA.len() && first == b':' => {
                self.place = Place::Blank;
                (1, false)
            }
            Place::Blank if matches!(first, b' ' | b'\t') => (1, false),
            Place::Blank | Place::Value => {
                self.place = Place::Value;
                (line_length(rest), true)
            }
            Place::Start(_) | Place::Name(_) | Place::Other => {
                self.place = Place::Other;
                (line_length(rest), false)
            }
        }
    }

    fn end_line(&mut self, end: u8) {
        self.after_cr = end == b'\r';
        self.in_event = self.place != Place::Name(0); // an empty line ends the event
        self.place = Place::Name(0);
    }

    fn has_ended(&self) -> bool {
        !self.in_event && self.place == Place::Name(0)
    }

    /// Moves what can go on to `out`, in the order in which it came.
    fn drain(&mut self, out: &mut BytesMut) {
        let before = out.len();
        while let Some(piece) = self.waiting.pop_front() {
            match piece {
                Piece::Between(bytes) => out.extend_from_slice(&bytes),
                Piece::Value(length) => {
                    let left = self.take_clean(length, out);
                    if left > 0 {
                        self.waiting.push_front(Piece::Value(left));
                        break;
                    }
                }
            }
        }
        self.held -= out.len() - before;
    }

    /// Moves up to `length` scrubbed bytes to `out`; how many are missing.
    fn take_clean(&mut self, mut length: usize, out: &mut BytesMut) -> usize {
        while length > 0
            && let Some(front) = self.clean.front_mut()
        {
            let part = front.split_to(length.min(front.len()));
            length -= part.len();
            out.extend_from_slice(&part);
            if front.is_empty() {
                self.clean.pop_front();
            }
        }
        length
    }
}

/// Bytes up to the end of the line, or all.
fn line_length(rest: &[u8]) -> usize {
    memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len())
}
