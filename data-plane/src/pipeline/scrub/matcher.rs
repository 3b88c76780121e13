//! Follows one needle through a body, token by token, in time linear in the body whatever the
//! needle (Knuth, Morris, Pratt over units instead of bytes).

use std::ops::Range;

use super::{
    alphabet::{Alphabet, is_blank, is_line_break},
    needles::{Inner, Needle},
    token::{self, Schemes, Token},
};

/// Bytes that stand for nothing between two units, without those of an indentation.
const MOST_SKIPPED: u8 = 3;
/// Blanks with which a line is indented. YAML in YAML and logs of several levels have fewer.
const MOST_INDENT: u8 = 64;

/// How far a needle has been followed. Positions are those of the buffer that is being searched.
#[derive(Clone, Copy, Default)]
pub(super) struct State {
    /// Units of the text that stand before `position`.
    matched: usize,
    /// Where the first of them begins, when there is one.
    begin: usize,
    /// Everything before has been read.
    pub(super) position: usize,
    /// Tokens that stand for nothing since the last unit.
    skipped: u8,
    /// Behind a line break since the last unit: how many blanks have followed it.
    indent: Option<u8>,
    /// An escape begins at `position` and isn't complete.
    cut: bool,
}

impl State {
    /// The first byte that is part of a match which may yet be completed.
    pub(super) fn live(&self) -> Option<usize> {
        if self.matched > 0 { Some(self.begin) } else { self.cut.then_some(self.position) }
    }

    /// The buffer's first `bytes` bytes are gone.
    pub(super) fn rebase(&mut self, bytes: usize) {
        self.begin = self.begin.saturating_sub(bytes);
        self.position = self.position.saturating_sub(bytes);
    }

    fn forget(&mut self) {
        self.matched = 0;
        self.skipped = 0;
        self.indent = None;
    }
}

/// One needle, one buffer.
pub(super) struct Matcher<'a> {
    needle: &'a Needle,
    text: &'a [u8],
    body: &'a [u8],
    last: bool,
}

impl<'a> Matcher<'a> {
    pub(super) fn new(inner: &'a Inner, needle: &'a Needle, body: &'a [u8], last: bool) -> Self {
        Self { needle, text: inner.text(needle), body, last }
    }

    /// Reads from `from` (or from where it has read to) until behind `until` nothing is matched any
    /// more, or to the end of the buffer. Complete matches go to `hits`.
    pub(super) fn follow(&self, state: &mut State, from: usize, until: usize, hits: &mut Vec<Range<usize>>) {
        if state.live().is_none() {
            state.position = state.position.max(from);
        }
        state.cut = false;
        while state.position < self.body.len() {
            if state.matched == 0 && state.position >= until {
                return;
            }
            if state.matched > 0 && state.indent.is_none() && self.go_on(state) > 0 {
                continue;
            }
            match self.token(state.position) {
                Token::Text { bytes: [byte, ..], count: 1, length } => self.unit(state, byte, length, hits),
                Token::Text { bytes, count, length } => {
                    // The bytes of one character: the last of them moves on.
                    for (at, byte) in (1..=count).zip(bytes) {
                        self.unit(state, byte, if at == count { length } else { 0 }, hits);
                    }
                }
                Token::Nothing(length) => self.skip(state, None, length),
                Token::Incomplete => {
                    state.cut = true;
                    return;
                }
            }
        }
    }

    /// Raw bytes that go on with the match, all but its last: the common case, without a token for
    /// each. A byte that equals one of the text's stands for it in every alphabet. Returns how many
    /// there were.
    fn go_on(&self, state: &mut State) -> usize {
        let rest = self.body.get(state.position..).unwrap_or_default();
        let expected = self.text.get(state.matched..self.text.len() - 1).unwrap_or_default();
        let mut count = common_prefix(rest, expected);
        if self.needle.has_introducer {
            let raw = |b: &&u8| !self.needle.schemes.contains(Schemes::introduced_by(**b));
            count = rest.iter().take(count).take_while(raw).count();
        }
        state.matched += count;
        state.position += count;
        if count > 0 {
            state.skipped = 0;
        }
        count
    }

    #[inline]
    fn token(&self, at: usize) -> Token {
        let rest = self.body.get(at..).unwrap_or_default();
        match rest.first() {
            Some(first) if self.needle.schemes == Schemes::NONE => Token::raw(*first),
            _ => token::read(rest, self.needle.schemes, self.last),
        }
    }

    #[inline]
    fn unit(&self, state: &mut State, byte: u8, length: usize, hits: &mut Vec<Range<usize>>) {
        let Some(unit) = self.unit_of(byte, state.indent.is_some()) else {
            return self.skip(state, Some(byte), length);
        };
        while state.matched > 0 && self.text.get(state.matched) != Some(&unit) {
            self.fall_back(state);
        }
        let begin = state.position;
        state.position += length;
        if self.text.get(state.matched) != Some(&unit) {
            return;
        }
        if state.matched == 0 {
            state.begin = begin;
        }
        state.matched += 1;
        state.skipped = 0;
        state.indent = None;
        if state.matched == self.text.len() {
            hits.push(state.begin..state.position);
            // The end of one occurrence may be the beginning of the next: all are found, wherever
            // reading began.
            self.fall_back(state);
        }
    }

    /// To the longest shorter match that ends here: its beginning is found by reading again from
    /// the old one, which costs no more in all than reading once, because it only moves forward.
    fn fall_back(&self, state: &mut State) {
        let border = self.needle.border(self.text, state.matched);
        let mut dropped = state.matched - border;
        state.matched = border;
        let mut behind_break = false;
        while border > 0 && state.begin < state.position {
            let (units, length) = match self.token(state.begin) {
                Token::Text { bytes: [byte, ..], count: 1, length } => {
                    let is_unit = self.unit_of(byte, behind_break).is_some();
                    behind_break = !is_unit && (behind_break || is_line_break(byte));
                    (usize::from(is_unit), length)
                }
                Token::Text { count, length, .. } => (count.into(), length),
                Token::Nothing(length) => (0, length),
                Token::Incomplete => (0, 1),
            };
            if units > dropped || (units > 0 && dropped == 0) {
                break;
            }
            dropped -= units;
            state.begin += length;
        }
    }

    /// The unit that a byte stands for. Blanks behind a line break are the next line's indentation.
    fn unit_of(&self, byte: u8, behind_break: bool) -> Option<u8> {
        let alphabet = self.needle.alphabet;
        let is_indent = behind_break && is_blank(byte) && alphabet != Alphabet::Lines;
        if is_indent { None } else { alphabet.unit(byte) }
    }

    /// A few bytes that stand for nothing may stand between two units: a line break and the next
    /// line's indentation, the NULs of UTF-32. More of them, or an empty line, end a match: else an
    /// event that ends in a unit and two line breaks would be held back.
    ///
    /// `byte`: what was read; `None` for an escape that stands for nothing by itself.
    fn skip(&self, state: &mut State, byte: Option<u8>, length: usize) {
        let at = state.position;
        state.position += length;
        if state.matched == 0 {
            return;
        }
        let is_break = byte.is_some_and(is_line_break);
        let is_done = match state.indent {
            Some(blanks) if !is_break => {
                state.indent = Some(blanks.saturating_add(1));
                blanks >= MOST_INDENT
            }
            indent => {
                let newline = |at: Option<usize>| at.and_then(|at| self.body.get(at)) == Some(&b'\n');
                let is_empty_line = newline(Some(at)) && newline(at.checked_sub(1));
                state.skipped = state.skipped.saturating_add(1);
                state.indent = is_break.then_some(0);
                state.skipped > MOST_SKIPPED || is_empty_line || indent.is_some_and(|blanks| blanks > 0)
            }
        };
        if is_done {
            state.forget();
        }
    }
}

/// How many bytes are the same from the beginning on.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let (a16, b16) = (a.as_chunks::<16>().0, b.as_chunks::<16>().0);
    let whole = 16 * a16.iter().zip(b16).take_while(|(a, b)| a == b).count();
    let (a, b) = (a.get(whole..).unwrap_or_default(), b.get(whole..).unwrap_or_default());
    whole + a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
