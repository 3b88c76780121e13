//! Scrubs a stream of chunks: what is clean goes through as it came, and only a match that may
//! still be completed is held.

use std::{collections::VecDeque, ops::Range};

use bytes::{Bytes, BytesMut};

use super::{
    needles::Needles,
    search::{Followed, Search},
};

/// What a hit is overwritten with.
const MASK: u8 = b'*';

/// While something is held, the next chunk is looked at in pieces of this size, until nothing is
/// held any more and the rest can go through without being copied.
const REFILL_BYTES: usize = 256;

/// At the end of a message so much of a match is masked at once: the rest may be in the next
/// message, and nothing is held over.
const MIN_PARTIAL_MATCH: usize = 8;

/// The state of one stream.
pub(super) struct Scrubber {
    needles: Needles,
    followed: Followed,
    /// Held back: the beginning of what may become a match.
    held: BytesMut,
    /// How much of `held` has been searched.
    searched: usize,
    /// How much of `held` has gone on already.
    gone: usize,
    /// Matches in what hasn't left yet, apart from each other and in order.
    hits: Vec<Range<usize>>,
    /// How many of them, the first ones, are counted in `found`.
    counted: usize,
    found: u32,
}

impl Scrubber {
    pub(super) fn new(needles: Needles) -> Self {
        Self {
            needles,
            followed: Followed::default(),
            held: BytesMut::new(),
            searched: 0,
            gone: 0,
            hits: Vec::new(),
            counted: 0,
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
            let (hold, searched) = self.search(&chunk, 0, false);
            self.part(chunk, hold, searched, out);
        }
    }

    /// As [`push`](Self::push), but a chunk that is clean as a whole, with nothing held in front of
    /// it, is given back to go on at once: nearly every one is.
    pub(super) fn pass(&mut self, chunk: Bytes, out: &mut VecDeque<Bytes>) -> Option<Bytes> {
        if !self.held.is_empty() || chunk.is_empty() {
            self.push(chunk, out);
            return None;
        }
        let (hold, searched) = self.search(&chunk, 0, false);
        if hold == chunk.len() && self.hits.is_empty() && self.gone == 0 {
            self.followed.rebase(hold);
            return Some(chunk);
        }
        self.part(chunk, hold, searched, out);
        None
    }

    /// Lets go of a chunk that has been searched, but for what must be held.
    fn part(&mut self, mut chunk: Bytes, hold: usize, searched: usize, out: &mut VecDeque<Bytes>) {
        let rest = chunk.split_off(hold);
        self.held.extend_from_slice(&rest);
        self.searched = searched - hold;
        self.emit(chunk, out);
    }

    /// The stream has ended: what was held is no match.
    pub(super) fn finish(&mut self, out: &mut VecDeque<Bytes>) {
        if !self.held.is_empty() {
            self.search_held(true, out);
        }
    }

    /// A text has ended, and the next is another: what was held is no match, and nothing goes on
    /// from here.
    pub(super) fn end_text(&mut self, out: &mut VecDeque<Bytes>) {
        self.finish(out);
        self.followed.reset();
    }

    /// A message has ended: what is held goes on, and a match may still be completed by the next
    /// message. What is then known of it is masked, unless that is next to nothing.
    pub(super) fn flush_message(&mut self, out: &mut VecDeque<Bytes>) {
        let length = self.held.len();
        if length == self.gone {
            return;
        }
        let mut piece = BytesMut::from(&self.held[..]);
        self.mask(&mut piece);
        let telling = self.followed.live().filter(|begin| length - begin >= MIN_PARTIAL_MATCH).min();
        if let Some(known) = telling.and_then(|begin| piece.get_mut(begin..)) {
            known.fill(MASK);
        }
        self.count(self.hits.len());
        out.push_back(piece.split_off(self.gone).freeze());
        self.gone = length;
    }

    /// Scrubs a whole text. Returns what it is to be replaced by, when there is something in it.
    pub(super) fn whole(&mut self, text: &[u8]) -> Option<Vec<u8>> {
        if text.len() < self.needles.inner().prefilter.length() {
            return None;
        }
        self.search(text, 0, true);
        self.followed.reset();
        if self.hits.is_empty() {
            return None;
        }
        let mut text = text.to_vec();
        self.mask(&mut text);
        self.count(self.hits.len());
        self.hits.clear();
        self.counted = 0;
        Some(text)
    }

    fn search_held(&mut self, last: bool, out: &mut VecDeque<Bytes>) {
        let held = std::mem::take(&mut self.held);
        let (hold, searched) = self.search(&held, self.searched, last);
        self.held = held;
        let free = self.held.split_to(hold).freeze();
        self.searched = searched - hold;
        self.emit(free, out);
    }

    /// `chunk` leaves: what is to be masked in it is, and positions now count from its end.
    fn emit(&mut self, chunk: Bytes, out: &mut VecDeque<Bytes>) {
        let length = chunk.len();
        self.followed.rebase(length);
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
        let leaving = self.hits.iter().take_while(|h| h.end <= length).count();
        self.count(leaving);
        self.counted -= leaving;
        self.hits.drain(..leaving);
        for hit in &mut self.hits {
            *hit = hit.start.saturating_sub(length)..hit.end - length;
        }
        let rest = chunk.split_off(gone.min(length)).freeze();
        if !rest.is_empty() {
            out.push_back(rest);
        }
    }

    fn mask(&self, chunk: &mut [u8]) {
        let length = chunk.len();
        for hit in &self.hits {
            if let Some(bytes) = chunk.get_mut(hit.start..hit.end.min(length)) {
                bytes.fill(MASK);
            }
        }
    }

    /// Counts the first `hits` matches: those that leave. Until then one found later may join two
    /// of them.
    fn count(&mut self, hits: usize) {
        self.found += u32::try_from(hits.saturating_sub(self.counted)).unwrap_or(u32::MAX);
        self.counted = self.counted.max(hits);
    }

    /// Searches `body`, of which everything before `searched` has been searched before. Returns
    /// where what must be held begins, and how much has been searched now.
    fn search(&mut self, body: &[u8], searched: usize, last: bool) -> (usize, usize) {
        let known = self.hits.len();
        let mut search = Search::new(self.needles.inner(), &mut self.followed, &mut self.hits, body, last);
        let searched = search.all(searched);
        let hold = if last { body.len() } else { search.tail().min(searched) };
        if self.hits.len() > known {
            merge(&mut self.hits);
            self.counted = self.counted.min(self.hits.len());
        }
        (hold, searched)
    }
}

/// Joins hits that overlap: one occurrence is often found in more than one way.
fn merge(hits: &mut Vec<Range<usize>>) {
    hits.sort_unstable_by_key(|h| (h.start, h.end));
    hits.dedup_by(|next, kept| {
        let overlaps = next.start < kept.end;
        if overlaps {
            kept.end = kept.end.max(next.end);
        }
        overlaps
    });
}
