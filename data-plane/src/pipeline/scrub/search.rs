//! One look at a buffer: where a match may begin, and where it goes from there.
//!
//! Every match begins with some raw bytes. Then it is complete, or as long as a window of
//! [`super::prefilter`], or there is an escape, or a byte that stands for nothing
//! ([`super::spaced`]). Each of the three is noticed, and the needle is followed from its first
//! byte. So the matches are those that each needle would have if it was followed through the whole
//! stream, however the stream is cut.

use std::ops::Range;

use super::{
    alphabet::{Alphabet, stands_for_nothing_somewhere},
    matcher::{Matcher, State},
    needles::{Inner, Needle},
    spaced,
    token::{self, Schemes, Token},
};

/// An escaped line break is taken for one within base64 behind so many bytes that fit: they are
/// common in JSON.
const LINE: usize = 8;

/// Longest raw beginning of a match, in bytes for each unit: three may stand for nothing.
const BYTES_A_UNIT: usize = 4;
/// And the indentation of a line.
const INDENT: usize = 64;

/// How far the needles have been followed.
#[derive(Default)]
pub(super) struct Followed {
    /// One a needle for what [`Noticed::Beginning`] says, then one a needle for
    /// [`Noticed::Spaced`]. Empty until one is followed.
    states: Vec<State>,
    /// The end of the last escape, by scheme ([`Schemes::EACH`]): no match begins within it.
    escapes: [usize; 5],
    /// Something above isn't what it was at the beginning.
    moved: bool,
}

/// By what a needle was noticed. Each way goes through a buffer from front to back, so each needs a
/// state of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noticed {
    /// A window, an escape, or the buffer's end.
    Beginning,
    /// A byte that stands for nothing.
    Spaced,
}

impl Followed {
    /// Where matches begin that may yet be completed.
    pub(super) fn live(&self) -> impl Iterator<Item = usize> {
        self.states.iter().filter_map(State::live)
    }

    /// The buffer's first `bytes` bytes are gone.
    pub(super) fn rebase(&mut self, bytes: usize) {
        if self.moved {
            self.states.iter_mut().for_each(|s| s.rebase(bytes));
            self.escapes.iter_mut().for_each(|end| *end = end.saturating_sub(bytes));
        }
    }

    /// Another text begins.
    pub(super) fn reset(&mut self) {
        if std::mem::take(&mut self.moved) {
            self.states.fill(State::default());
            self.escapes = [0; 5];
        }
    }

    fn state(&self, noticed: Noticed, needle: usize) -> Option<&State> {
        self.states.get(self.place(noticed, needle))
    }

    fn place(&self, noticed: Noticed, needle: usize) -> usize {
        if noticed == Noticed::Spaced { self.states.len() / 2 + needle } else { needle }
    }

    /// The end of the last escape of any of `schemes`.
    #[inline]
    fn last_escape(&self, schemes: Schemes) -> usize {
        let mut last = 0;
        for (scheme, end) in Schemes::EACH.into_iter().zip(self.escapes) {
            last = if schemes.contains(scheme) { last.max(end) } else { last };
        }
        last
    }

    #[inline]
    fn escape_ends(&mut self, of: Schemes, at: usize) {
        self.moved = true;
        for (scheme, end) in Schemes::EACH.into_iter().zip(&mut self.escapes) {
            *end = if of.contains(scheme) { at } else { *end };
        }
    }
}

/// One buffer.
pub(super) struct Search<'a> {
    inner: &'a Inner,
    followed: &'a mut Followed,
    hits: &'a mut Vec<Range<usize>>,
    body: &'a [u8],
    last: bool,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        inner: &'a Inner,
        followed: &'a mut Followed,
        hits: &'a mut Vec<Range<usize>>,
        body: &'a [u8],
        last: bool,
    ) -> Self {
        Self { inner, followed, hits, body, last }
    }

    /// Looks at everything behind `searched`. Returns how much has been searched now: up to an
    /// escape that isn't complete.
    pub(super) fn all(&mut self, searched: usize) -> usize {
        self.continue_live();
        self.windows(searched);
        self.spaced(searched);
        self.escapes(searched)
    }

    fn follow(&mut self, noticed: Noticed, needle: usize, from: usize, until: usize) {
        if self.followed.states.is_empty() {
            self.followed.states.resize(2 * self.inner.needles.len(), State::default());
        }
        let place = self.followed.place(noticed, needle);
        let (Some(n), Some(state)) = (self.inner.needles.get(needle), self.followed.states.get_mut(place)) else {
            return;
        };
        if until > state.position || state.live().is_some() {
            self.followed.moved = true;
            Matcher::new(self.inner, n, self.body, self.last).follow(state, from, until, self.hits);
        }
    }

    /// What was held back in the chunk before.
    fn continue_live(&mut self) {
        if !self.followed.moved {
            return;
        }
        for needle in 0..self.inner.needles.len() {
            for noticed in [Noticed::Beginning, Noticed::Spaced] {
                if let Some(state) = self.followed.state(noticed, needle)
                    && state.live().is_some()
                {
                    let until = state.position + 1;
                    self.follow(noticed, needle, 0, until);
                }
            }
        }
    }

    fn windows(&mut self, searched: usize) {
        let (inner, body) = (self.inner, self.body);
        inner.prefilter.search(body, searched, |found| {
            self.follow(Noticed::Beginning, found.needle, found.from, found.to);
        });
    }

    /// A match that contains a byte that stands for nothing, before it is as long as a window.
    fn spaced(&mut self, searched: usize) {
        let (body, prefilter) = (self.body, &self.inner.prefilter);
        spaced::nuls_and_line_breaks(body, searched, |at, nothing| {
            if prefilter.may_go_on(body, at, nothing) {
                self.noticed_spaced(at, false);
            }
        });
        spaced::separators_in_hex(body, searched, |at, nothing| {
            if prefilter.may_go_on(body, at, nothing) {
                self.noticed_spaced(at, true);
            }
        });
    }

    #[cold]
    fn noticed_spaced(&mut self, at: usize, in_hex: bool) {
        let (inner, byte) = (self.inner, self.body.get(at).copied().unwrap_or_default());
        for (index, needle) in inner.needles.iter().enumerate() {
            let fits = needle.schemes == Schemes::NONE && needle.alphabet.unit(byte).is_none();
            if fits && (needle.alphabet == Alphabet::Hex) == in_hex {
                let from = self.raw_before(Noticed::Spaced, index, at);
                if from < at {
                    self.follow(Noticed::Spaced, index, from, at + 1);
                }
            }
        }
    }

    /// A match that contains an escape begins with none or some raw bytes, and then comes its first
    /// escape: that is where it is noticed. In order, because a needle is read forward only.
    /// Returns where the next look begins.
    fn escapes(&mut self, searched: usize) -> usize {
        let rest = self.body.get(searched..).unwrap_or_default();
        let mut incomplete = None;
        let mut quoted = memchr::memchr_iter(b'=', rest).peekable();
        for at in memchr::memchr3_iter(b'%', b'\\', b'&', rest) {
            while let Some(before) = quoted.next_if(|q| *q < at) {
                self.escape(searched + before, &mut incomplete);
            }
            self.escape(searched + at, &mut incomplete);
        }
        quoted.for_each(|at| self.escape(searched + at, &mut incomplete));
        incomplete.unwrap_or(self.body.len())
    }

    fn escape(&mut self, at: usize, incomplete: &mut Option<usize>) {
        let rest = self.body.get(at..).unwrap_or_default();
        let scheme = rest.first().map_or(Schemes::NONE, |b| Schemes::introduced_by(*b));
        if at < self.followed.last_escape(scheme) {
            return; // the second of two backslashes
        }
        let token = token::read(rest, scheme, self.last);
        // Nested ones first: no needle of theirs begins within an escape either.
        if at >= self.followed.last_escape(Schemes::NESTED_ONLY) {
            let nested =
                if token::may_be_nested(token) { token::read(rest, Schemes::NESTED, self.last) } else { token };
            self.read(at, Schemes::NESTED_ONLY, nested, incomplete);
        }
        self.read(at, scheme, token, incomplete);
    }

    /// `token` stands at `at` for needles with `scheme`.
    fn read(&mut self, at: usize, scheme: Schemes, token: Token, incomplete: &mut Option<usize>) {
        match token {
            Token::Text { length: 1, .. } => {} // no escape
            Token::Text { bytes, count, length } => {
                let bytes = bytes.get(..count.into()).unwrap_or_default();
                if bytes.iter().any(|byte| self.is_of_interest(*byte)) {
                    self.noticed(at, scheme, bytes);
                }
                self.followed.escape_ends(scheme, at + length);
            }
            Token::Nothing(length) => {
                self.noticed(at, scheme, b"");
                self.followed.escape_ends(scheme, at + length);
            }
            Token::Incomplete => {
                let _first = incomplete.get_or_insert(at);
                for index in self.needles_with(scheme) {
                    let from = self.raw_before(Noticed::Beginning, index, at);
                    self.follow(Noticed::Beginning, index, from, at + 1);
                }
            }
        }
    }

    fn is_of_interest(&self, byte: u8) -> bool {
        // `-` and `_` are the other alphabet's `+` and `/`.
        self.inner.escaped.contains(byte) || matches!(byte, b'-' | b'_') || stands_for_nothing_somewhere(byte)
    }

    /// Needles that hold an escape of a scheme: of that alone, or over one another.
    fn needles_with(&self, scheme: Schemes) -> impl Iterator<Item = usize> + use<'a> {
        let needles = self.inner.needles.iter().enumerate();
        let reads =
            move |needle: &Needle| needle.schemes.contains(scheme) && needle.schemes.is_nested() == scheme.is_nested();
        needles.filter(move |(_, needle)| reads(needle)).map(|(index, _)| index)
    }

    /// An escape at `at` stands for `bytes`, or for nothing.
    fn noticed(&mut self, at: usize, scheme: Schemes, bytes: &[u8]) {
        let in_base64 = self.may_be_in_base64(at);
        for index in self.needles_with(scheme) {
            let Some(needle) = self.inner.needles.get(index) else { continue };
            let (mut nothing, mut fits) = (true, false);
            for unit in bytes.iter().filter_map(|byte| needle.alphabet.unit(*byte)) {
                nothing = false;
                fits |= needle.bytes.contains(unit);
            }
            let possible = if nothing { in_base64 || needle.alphabet != Alphabet::Base64 } else { fits };
            if possible && self.followed.state(Noticed::Beginning, index).is_none_or(|state| state.position <= at) {
                let from = self.raw_before(Noticed::Beginning, index, at);
                if !nothing || self.may_go_on(needle, from, at) {
                    self.follow(Noticed::Beginning, index, from, at + 1);
                }
            }
        }
    }

    /// Whether the byte before `at` can be one of base64. Most line breaks are behind others.
    fn may_be_in_base64(&self, at: usize) -> bool {
        let before = at.checked_sub(1).and_then(|before| self.body.get(before));
        before.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+/-_\r\n".contains(byte))
    }

    /// Whether an escape that stands for nothing can be in a match: behind bytes of a beginning, or
    /// enough that fit, or others that stand for nothing.
    fn may_go_on(&self, needle: &Needle, from: usize, at: usize) -> bool {
        let raw = self.body.get(from..at).unwrap_or_default();
        let prefilter = &self.inner.prefilter;
        raw.len() >= LINE.min(prefilter.length())
            || (!raw.is_empty() && prefilter.may_end_prefix(self.body, at))
            || raw.iter().any(|byte| needle.alphabet.unit(*byte).is_none())
    }

    /// Where the raw bytes that could be the beginning of a match that goes on at `end` begin.
    fn raw_before(&self, noticed: Noticed, needle: usize, end: usize) -> usize {
        let Some(n) = self.inner.needles.get(needle) else { return end };
        let read = self.followed.state(noticed, needle).map_or(0, |s| s.position);
        let floor = read
            .max(self.followed.last_escape(n.schemes))
            .max(end.saturating_sub(BYTES_A_UNIT * n.len() + INDENT))
            .min(end);
        let before = self.body.get(floor..end).unwrap_or_default();
        let part = |b: &&u8| n.alphabet.unit(**b).is_none_or(|u| n.bytes.contains(u));
        end - before.iter().rev().take_while(part).count()
    }

    /// A match that has begun at the end of the buffer, without an escape and too short for a
    /// window: follows it, so that it is held. Returns where the first of all that must be held
    /// begins.
    pub(super) fn tail(&mut self) -> usize {
        let end = self.body.len();
        let may_be_cut = self.body.last().is_some_and(|last| self.inner.tails.contains(*last));
        for index in 0..if may_be_cut { self.inner.needles.len() } else { 0 } {
            if self.inner.needles.get(index).is_some_and(|n| n.schemes == Schemes::NONE) {
                let from = self.raw_before(Noticed::Beginning, index, end);
                if from < end {
                    self.follow(Noticed::Beginning, index, from, end);
                }
            }
        }
        if !self.followed.moved {
            return end;
        }
        self.followed.live().min().unwrap_or(end)
    }
}
