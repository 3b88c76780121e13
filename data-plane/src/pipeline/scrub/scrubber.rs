//! Scrubs a stream of chunks: what is clean goes through as it came, and only a match that may still be completed is held.

use std::{collections::VecDeque, ops::Range};

use bytes::{Bytes, BytesMut};

use super::{
    matcher::{Matcher, State},
    needles::{Alphabet, Inner, Needles},
    token::{self, Schemes, Token},
};

/// What a hit is overwritten with.
const MASK: u8 = b'*';

/// While something is held, the next chunk is looked at in pieces of this size, until nothing is held any more and the
/// rest can go through without being copied.
const REFILL_BYTES: usize = 256;

/// At the end of a message so much of a match is masked at once: the rest may be in the next message, and nothing is held over.
const MIN_PARTIAL_MATCH: usize = 8;

/// An escaped line break is taken for one within base64 behind so many bytes that fit: they are common in JSON.
const LINE: usize = 8;

/// The state of one stream.
pub(super) struct Scrubber {
    needles: Needles,
    /// One a needle, once one has been followed.
    states: Vec<State>,
    /// A needle has been followed: `states` aren't what they were at the beginning.
    moved: bool,
    /// Held back: the beginning of what may become a match.
    held: BytesMut,
    /// How much of `held` has been searched.
    searched: usize,
    /// How much of `held` has gone on already.
    gone: usize,
    hits: Vec<Range<usize>>,
    found: u32,
}

impl Scrubber {
    pub(super) fn new(needles: Needles) -> Self {
        Self {
            needles,
            states: Vec::new(),
            moved: false,
            held: BytesMut::new(),
            searched: 0,
            gone: 0,
            hits: Vec::new(),
            found: 0,
        }
    }

    /// Occurrences found since this was last asked.
    pub(super) fn take_found(&mut self) -> u32 {
        std::mem::take(&mut self.found)
    }

    /// How many bytes are held back.
    pub(super) fn held(&self) -> usize {
        self.held.len() - self.gone
    }

    /// Takes the next chunk; what can go on is put into `out`.
    pub(super) fn push(&mut self, mut chunk: Bytes, out: &mut VecDeque<Bytes>) {
        while !self.held.is_empty() && !chunk.is_empty() {
            let piece = chunk.split_to(REFILL_BYTES.min(chunk.len()));
            self.held.extend_from_slice(&piece);
            self.search_held(false, out);
        }
        if !chunk.is_empty() {
            let hold = self.search(&chunk, 0, false);
            self.part(chunk, hold, out);
        }
    }

    /// As [`push`](Self::push), but a chunk that is clean as a whole, with nothing held in front of it, is given back to go on
    /// at once: nearly every one is.
    pub(super) fn pass(&mut self, chunk: Bytes, out: &mut VecDeque<Bytes>) -> Option<Bytes> {
        if !self.held.is_empty() || chunk.is_empty() {
            self.push(chunk, out);
            return None;
        }
        let hold = self.search(&chunk, 0, false);
        if hold == chunk.len() && self.hits.is_empty() && self.gone == 0 {
            self.rebase(hold);
            return Some(chunk);
        }
        self.part(chunk, hold, out);
        None
    }

    /// Lets go of a chunk that has been searched, but for what must be held.
    fn part(&mut self, mut chunk: Bytes, hold: usize, out: &mut VecDeque<Bytes>) {
        let rest = chunk.split_off(hold);
        self.held.extend_from_slice(&rest);
        self.searched = rest.len();
        self.emit(chunk, out);
    }

    fn rebase(&mut self, length: usize) {
        if self.moved {
            self.states.iter_mut().for_each(|s| s.rebase(length));
        }
    }

    /// The stream has ended: what was held is no match.
    pub(super) fn finish(&mut self, out: &mut VecDeque<Bytes>) {
        if !self.held.is_empty() {
            self.search_held(true, out);
        }
    }

    /// A text has ended, and the next is another: what was held is no match, and nothing goes on from here.
    pub(super) fn end_text(&mut self, out: &mut VecDeque<Bytes>) {
        self.finish(out);
        self.reset();
    }

    /// A message has ended: what is held goes on, and a match may still be completed by the next message. What is then known of
    /// it is masked, unless that is next to nothing.
    pub(super) fn flush_message(&mut self, out: &mut VecDeque<Bytes>) {
        let length = self.held.len();
        if length == self.gone {
            return;
        }
        let mut piece = BytesMut::from(&self.held[..]);
        self.mask(&mut piece);
        let telling =
            self.states.iter().filter_map(State::live).filter(|begin| length - begin >= MIN_PARTIAL_MATCH).min();
        if let Some(known) = telling.and_then(|begin| piece.get_mut(begin..)) {
            known.fill(MASK);
        }
        out.push_back(piece.split_off(self.gone).freeze());
        self.gone = length;
    }

    /// Scrubs a whole text. Returns what it is to be replaced by, when there is something in it.
    pub(super) fn whole(&mut self, text: &[u8]) -> Option<Vec<u8>> {
        if text.len() < self.needles.inner().prefilter.length() {
            return None;
        }
        self.search(text, 0, true);
        self.reset();
        if self.hits.is_empty() {
            return None;
        }
        let mut text = text.to_vec();
        self.mask(&mut text);
        self.hits.clear();
        Some(text)
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.moved) {
            self.states.fill(State::default());
        }
    }

    fn search_held(&mut self, last: bool, out: &mut VecDeque<Bytes>) {
        let held = std::mem::take(&mut self.held);
        let hold = self.search(&held, self.searched, last);
        self.held = held;
        let free = self.held.split_to(hold).freeze();
        self.searched = self.held.len();
        self.emit(free, out);
    }

    /// `chunk` leaves: what is to be masked in it is, and positions now count from its end.
    fn emit(&mut self, chunk: Bytes, out: &mut VecDeque<Bytes>) {
        let length = chunk.len();
        self.rebase(length);
        if chunk.is_empty() {
            return;
        }
        let gone = std::mem::take(&mut self.gone);
        if gone >= length {
            self.gone = gone - length;
        }
        if self.hits.is_empty() && gone == 0 {
            return out.push_back(chunk);
        }
        let mut chunk = chunk.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        self.mask(&mut chunk);
        self.hits.retain(|h| h.end > length);
        for hit in &mut self.hits {
            *hit = hit.start.saturating_sub(length)..hit.end - length;
        }
        let rest = chunk.split_off(gone.min(length)).freeze();
        if !rest.is_empty() {
            out.push_back(rest);
        }
    }

    /// Counts each hit where it begins, so that one that leaves in two parts counts once.
    fn mask(&mut self, chunk: &mut [u8]) {
        let length = chunk.len();
        for hit in &mut self.hits {
            if let Some(bytes) = chunk.get_mut(hit.start..hit.end.min(length)) {
                bytes.fill(MASK);
            }
        }
    }

    /// Searches `body`, of which everything before `searched` has been searched before. Returns where what must be held
    /// begins.
    fn search(&mut self, body: &[u8], searched: usize, last: bool) -> usize {
        let Self { needles, states, moved, hits, found, .. } = self;
        let inner = needles.inner();
        let known = hits.len();
        let mut search = Search { inner, states, moved, hits, body, last };
        search.continue_live();
        search.windows(searched);
        search.escapes(searched);
        let hold = if last { body.len() } else { search.tail() };
        if hits.len() > known {
            *found += merge(hits, known);
        }
        hold
    }
}

/// Joins hits that overlap: one occurrence is often found in more than one way. Returns how many there are now beyond
/// the `known` ones.
fn merge(hits: &mut Vec<Range<usize>>, known: usize) -> u32 {
    hits.sort_unstable_by_key(|h| (h.start, h.end));
    hits.dedup_by(|next, kept| {
        let overlaps = next.start < kept.end;
        if overlaps {
            kept.end = kept.end.max(next.end);
        }
        overlaps
    });
    u32::try_from(hits.len().saturating_sub(known)).unwrap_or(u32::MAX)
}

/// One look at a buffer.
struct Search<'a> {
    inner: &'a Inner,
    states: &'a mut Vec<State>,
    moved: &'a mut bool,
    hits: &'a mut Vec<Range<usize>>,
    body: &'a [u8],
    last: bool,
}

impl Search<'_> {
    fn follow(&mut self, needle: usize, from: usize, until: usize) {
        if self.states.is_empty() {
            self.states.resize(self.inner.needles.len(), State::default());
        }
        let (Some(n), Some(state)) = (self.inner.needles.get(needle), self.states.get_mut(needle)) else { return };
        if until > state.position || state.live().is_some() {
            *self.moved = true;
            Matcher::new(self.inner, n, self.body, self.last).follow(state, from, until, self.hits);
        }
    }

    /// What was held back in the chunk before.
    fn continue_live(&mut self) {
        if !*self.moved {
            return;
        }
        for needle in 0..self.states.len() {
            if let Some(state) = self.states.get(needle)
                && state.live().is_some()
            {
                let until = state.position + 1;
                self.follow(needle, 0, until);
            }
        }
    }

    fn windows(&mut self, searched: usize) {
        let (inner, body) = (self.inner, self.body);
        inner.prefilter.search(body, searched, |found| self.follow(found.needle, found.from, found.to));
    }

    /// A match that contains an escape begins with none or some raw bytes, and then comes its first escape: that is where it
    /// is noticed. In order, because a needle is read forward only.
    fn escapes(&mut self, searched: usize) {
        let rest = self.body.get(searched..).unwrap_or_default();
        let mut quoted = memchr::memchr_iter(b'=', rest).peekable();
        for at in memchr::memchr3_iter(b'%', b'\\', b'&', rest) {
            while let Some(before) = quoted.next_if(|q| *q < at) {
                self.escape(searched + before);
            }
            self.escape(searched + at);
        }
        quoted.for_each(|at| self.escape(searched + at));
    }

    fn escape(&mut self, at: usize) {
        let rest = self.body.get(at..).unwrap_or_default();
        let scheme = rest.first().map_or(Schemes::NONE, |b| Schemes::introduced_by(*b));
        match token::read(rest, scheme, self.last) {
            Token::Text { length: 1, .. } => {} // no escape
            Token::Text { bytes: [b'\r' | b'\n', ..], .. } => self.noticed(at, scheme, LINE),
            // `-` and `_` are the other alphabet's `+` and `/`.
            Token::Text { bytes: [byte @ (b'-' | b'_'), ..], .. } => self.noticed_unit(at, scheme, byte),
            Token::Text { bytes: [byte, ..], .. } if !self.inner.escaped.contains(byte) => {}
            Token::Text { bytes: [byte, ..], .. } => self.noticed_unit(at, scheme, byte),
            Token::Nothing(_) | Token::Incomplete => self.noticed(at, scheme, 0),
        }
    }

    fn noticed_unit(&mut self, at: usize, scheme: Schemes, byte: u8) {
        let inner = self.inner;
        for (index, needle) in inner.needles.iter().enumerate() {
            if needle.schemes.contains(scheme)
                && !self.has_read(index, at)
                && needle.alphabet.unit(byte).is_some_and(|u| needle.bytes.contains(u))
            {
                let from = self.raw_before(index, at);
                self.follow(index, from, at + 1);
            }
        }
    }

    fn has_read(&self, needle: usize, at: usize) -> bool {
        self.states.get(needle).is_some_and(|s| s.position > at)
    }

    /// An escape that stands for nothing, or may become anything: of interest behind `least` bytes that may be a text's.
    fn noticed(&mut self, at: usize, scheme: Schemes, least: usize) {
        let inner = self.inner;
        for (index, needle) in inner.needles.iter().enumerate() {
            let fits = least == 0 || needle.alphabet == Alphabet::Base64;
            if needle.schemes.contains(scheme) && fits && !self.has_read(index, at) {
                let from = self.raw_before(index, at);
                if at - from >= least {
                    self.follow(index, from, at + 1);
                }
            }
        }
    }

    /// Where the raw bytes that could be the beginning of a match that goes on at `end` begin.
    fn raw_before(&self, needle: usize, end: usize) -> usize {
        let Some(n) = self.inner.needles.get(needle) else { return end };
        let read = self.states.get(needle).map_or(0, |s| s.position);
        let most = match n.alphabet {
            Alphabet::Plain => 4 * n.len(),
            Alphabet::Base64 | Alphabet::Hex => 2 * n.len(),
        };
        let floor = read.max(end.saturating_sub(most + 8)).min(end);
        let before = self.body.get(floor..end).unwrap_or_default();
        let part = |b: &&u8| n.alphabet.unit(**b).is_none_or(|u| n.bytes.contains(u));
        end - before.iter().rev().take_while(part).count()
    }

    /// A match that has begun at the end of the buffer, without an escape and too short for a window: follows it, so that it
    /// is held. Returns where the first of all that must be held begins.
    fn tail(&mut self) -> usize {
        let end = self.body.len();
        for index in 0..self.inner.needles.len() {
            if self.inner.needles.get(index).is_some_and(|n| n.schemes == Schemes::NONE) {
                let from = self.raw_before(index, end);
                if from < end {
                    self.follow(index, from, end);
                }
            }
        }
        if !*self.moved {
            return end;
        }
        self.states.iter().filter_map(State::live).min().unwrap_or(end)
    }
}
