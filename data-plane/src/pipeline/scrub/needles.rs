//! What is searched for: the texts, and the short windows of them by which a body is skimmed.

use std::sync::{Arc, OnceLock};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    alphabet::{Alphabet, ByteSet, MIN_ENCODED, is_blank, is_line_break},
    prefilter::Prefilter,
    spaced,
    token::{self, Schemes},
};

/// Shorter values are not secrets (a user name, a region); to search for them would destroy clean
/// bodies.
pub(crate) const MIN_VALUE: usize = 4;

/// What is searched for in the answer to one request: exactly what was put into it. Cheap to clone;
/// wiped when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Needles {
    inner: Arc<Inner>,
}

#[derive(Default)]
pub(super) struct Inner {
    /// All texts, one after the other.
    texts: Vec<u8>,
    pub(super) needles: Vec<Needle>,
    pub(super) prefilter: Prefilter,
    /// Bytes of any text that is searched for behind escapes.
    pub(super) escaped: ByteSet,
    /// Bytes that may end the beginning of a match without escapes: those of its texts, and those
    /// that stand for nothing.
    pub(super) tails: ByteSet,
    /// The same without differences of case, for names of headers. Made when a name looks like one.
    folded: OnceLock<Needles>,
    /// The same with texts whose line breaks are taken out, where one has any, for lines that a
    /// client joins.
    joined: Option<Needles>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.texts.zeroize();
        self.prefilter.wipe();
    }
}

/// A text and a way of writing it.
pub(super) struct Needle {
    begin: usize,
    end: usize,
    pub(super) alphabet: Alphabet,
    pub(super) schemes: Schemes,
    /// Of the text's bytes.
    pub(super) bytes: ByteSet,
    /// The text holds a byte that introduces an escape of one of the schemes.
    pub(super) has_introducer: bool,
    /// Length of the longest proper prefix that is a suffix, of every prefix (Knuth, Morris,
    /// Pratt). Made when the needle is first looked at closely, which on clean bodies is never.
    borders: OnceLock<Box<[u16]>>,
}

impl Needles {
    /// From the values that were put in: each field of the credential, and what was composed of
    /// them (the `user:password` of Basic before its encoding). Values under [`MIN_VALUE`] bytes
    /// are not searched for.
    pub(crate) fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut searched: Vec<&[u8]> = Vec::with_capacity(4);
        for value in values.into_iter().filter(|v| v.len() >= MIN_VALUE) {
            if !searched.contains(&value) {
                searched.push(value);
            }
        }
        let mut inner = Inner::of(&searched);
        if searched.iter().any(|v| v.iter().any(|b| is_line_break(*b))) {
            let mut flat: Vec<Vec<u8>> =
                searched.iter().map(|v| v.iter().copied().filter(|b| !is_line_break(*b)).collect()).collect();
            let both = searched.iter().copied().chain(flat.iter().map(Vec::as_slice).filter(|v| v.len() >= MIN_VALUE));
            inner.joined = Some(Self { inner: Arc::new(Inner::of(&both.collect::<Vec<_>>())) });
            flat.iter_mut().for_each(|v| v.zeroize());
        }
        Self { inner: Arc::new(inner) }
    }

    /// Bytes of the longest text. 0: there is nothing to search for.
    pub(crate) fn longest(&self) -> usize {
        self.inner.needles.iter().map(Needle::len).max().unwrap_or(0)
    }

    /// For lines that a client joins, without what stands between them.
    pub(super) fn joined(&self) -> Self {
        self.inner.joined.as_ref().unwrap_or(self).clone()
    }

    /// For texts in lower case.
    pub(super) fn folded(&self) -> Self {
        self.inner.folded.get_or_init(|| Self { inner: Arc::new(self.inner.fold()) }).clone()
    }

    /// Whether a name in lower case can hold one of the texts: a window of one is in it, or an
    /// escape. Most names are too short.
    pub(super) fn may_be_in_name(&self, name: &[u8]) -> bool {
        let prefilter = &self.inner.prefilter;
        if name.len() < prefilter.length() {
            return false;
        }
        let mut found = memchr::memchr(b'%', name).is_some() || prefilter.is_in_any_case(name);
        spaced::separators_in_hex(name, 0, |_, _| found = true);
        found
    }

    /// Whether there is nothing to search for.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.inner.needles.is_empty()
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }
}

/// Ways of writing a quote by another, in which no byte introduces an escape: CSV and SQL double
/// it, shells end the quoted text. Empty for nearly every value.
fn requoted(value: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    const WAYS: [(u8, &[u8]); 4] = [(b'"', b"\"\""), (b'\'', b"''"), (b'\'', b"'\"'\"'"), (b'\'', b"'\\''")];
    let ways = WAYS.iter().filter(|(quote, _)| value.contains(quote));
    let write = |(quote, by): &(u8, &[u8])| {
        let mut text = Zeroizing::new(Vec::with_capacity(by.len() * value.len()));
        value.iter().for_each(|b| if b == quote { text.extend_from_slice(by) } else { text.push(*b) });
        text
    };
    ways.map(write).collect()
}

/// What is left of `text` without what may be written between its lines, and the alphabet for it.
fn unfolded(text: &[u8]) -> (Zeroizing<Vec<u8>>, Alphabet) {
    let (mut flat, mut breaks, mut is_indent) = (Zeroizing::new(Vec::with_capacity(text.len())), 0, false);
    for byte in text {
        if is_line_break(*byte) {
            breaks += usize::from(*byte == b'\n');
            is_indent = true;
        } else if !(is_indent && is_blank(*byte)) {
            (breaks, is_indent) = (0, false);
            flat.push(*byte);
        }
        if breaks > 1 {
            return (Zeroizing::new(text.to_vec()), Alphabet::Lines);
        }
    }
    if flat.len() < MIN_VALUE { (Zeroizing::new(text.to_vec()), Alphabet::Lines) } else { (flat, Alphabet::Plain) }
}

impl Inner {
    fn of(values: &[&[u8]]) -> Self {
        let mut inner = Self::default();
        let values = || values.iter().copied();
        // Itself, without escapes and with other quotes; in base64 and in hex.
        let size = |v: &[u8]| {
            let requoted: usize = requoted(v).iter().map(|text| text.len()).sum();
            2 * v.len() + requoted + if v.len() < MIN_ENCODED { 0 } else { v.len() * 2 + 4 * v.len() + 12 }
        };
        inner.texts.reserve_exact(values().map(size).sum()); // never grows: that would leave copies behind
        inner.needles.reserve_exact(values().map(|v| if v.len() < MIN_ENCODED { 6 } else { 14 }).sum());
        for value in values() {
            inner.add(value);
        }
        inner.prefilter.prepare();
        inner
    }

    /// The same texts in lower case. The windows have no case, and are of the same needles.
    fn fold(&self) -> Self {
        let mut folded = Self::default();
        folded.texts = self.texts.to_ascii_lowercase();
        folded.prefilter = self.prefilter.folded();
        for needle in &self.needles {
            folded.needle(needle.begin, needle.end, needle.alphabet, needle.schemes);
        }
        folded
    }

    fn add(&mut self, value: &[u8]) {
        let (text, alphabet) = unfolded(value);
        let plain = self.needles.len();
        let (begin, end) = self.append(&text);
        // Each scheme alone reads exactly what it wrote, whatever the value holds.
        for schemes in [Schemes::NONE, Schemes::BACKSLASH, Schemes::PERCENT, Schemes::HTML, Schemes::QUOTED] {
            self.needle(begin, end, alphabet, schemes);
        }
        self.prefilter.add(&text, plain, alphabet);
        self.add_nested(&text, begin, end, alphabet);
        for text in requoted(&text) {
            let needle = self.needles.len();
            let (begin, end) = self.append(&text);
            self.needle(begin, end, alphabet, Schemes::NONE);
            self.prefilter.add(&text, needle, alphabet);
        }
        if value.len() >= MIN_ENCODED {
            (0..3).for_each(|shift| self.add_base64(value, shift));
            self.add_hex(value);
        }
    }

    /// All schemes together read a mixture, and escapes over one another. They also read what the
    /// text itself holds of them, so that is what is searched for.
    fn add_nested(&mut self, text: &[u8], begin: usize, end: usize, alphabet: Alphabet) {
        if text.iter().all(|b| Schemes::introduced_by(*b) == Schemes::NONE) {
            return self.needle(begin, end, alphabet, Schemes::NESTED);
        }
        let mut unescaped = Zeroizing::new(token::unescaped(text, Schemes::NESTED));
        unescaped.retain(|byte| *byte != 0); // it stands for nothing
        let (text, alphabet) = unfolded(&unescaped);
        let (begin, end) = if text.len() < MIN_VALUE { (begin, end) } else { self.append(&text) };
        self.needle(begin, end, alphabet, Schemes::NESTED);
    }

    /// Returns where the text begins and ends.
    fn append(&mut self, text: &[u8]) -> (usize, usize) {
        let begin = self.texts.len();
        self.texts.extend_from_slice(text);
        (begin, self.texts.len())
    }

    fn needle(&mut self, begin: usize, end: usize, alphabet: Alphabet, schemes: Schemes) {
        let mut bytes = ByteSet::default();
        let text = self.texts.get(begin..end).unwrap_or_default();
        text.iter().for_each(|b| bytes.insert(*b));
        let has_introducer = text.iter().any(|b| schemes.contains(Schemes::introduced_by(*b)));
        if schemes == Schemes::NONE {
            self.tails.join(&alphabet.spellings(bytes));
        } else {
            self.escaped.join(&bytes);
        }
        self.needles.push(Needle { begin, end, alphabet, schemes, bytes, has_introducer, borders: OnceLock::new() });
    }

    /// The characters of base64 that depend on the value alone, when `shift` bytes (modulo 3) stand
    /// before it: whatever stands before and behind, and with padding or without, they are there.
    fn add_base64(&mut self, value: &[u8], shift: usize) {
        let mut padded = Vec::with_capacity(shift + value.len());
        padded.resize(shift, 0);
        padded.extend_from_slice(value);
        let mut encoded = vec![0; padded.len() * 4 / 3 + 4];
        let length = STANDARD_NO_PAD.encode_slice(&padded, &mut encoded).unwrap_or_default(); // fits
        // Of the first group, the characters that hold bits of what stands before; of the last, of
        // what stands behind.
        let first = [0, 2, 3].get(shift).copied().unwrap_or_default();
        let last = if padded.len() % 3 == 0 { length } else { length - 1 };
        let core = encoded.get(first..last).unwrap_or_default();
        let (begin, end) = self.append(core);
        let needle = self.needles.len();
        self.needle(begin, end, Alphabet::Base64, Schemes::NONE);
        self.needle(begin, end, Alphabet::Base64, Schemes::NESTED);
        self.prefilter.add(core, needle, Alphabet::Base64);
        padded.zeroize();
        encoded.zeroize();
    }

    fn add_hex(&mut self, value: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let begin = self.texts.len();
        for byte in value {
            for nibble in [byte >> 4, byte & 15] {
                self.texts.push(DIGITS.get(usize::from(nibble)).copied().unwrap_or_default());
            }
        }
        let end = self.texts.len();
        let needle = self.needles.len();
        self.needle(begin, end, Alphabet::Hex, Schemes::NONE);
        self.needle(begin, end, Alphabet::Hex, Schemes::NESTED);
        self.prefilter.add(self.texts.get(begin..end).unwrap_or_default(), needle, Alphabet::Hex);
    }

    pub(super) fn text(&self, needle: &Needle) -> &[u8] {
        self.texts.get(needle.begin..needle.end).unwrap_or_default()
    }
}

impl Needle {
    pub(super) fn len(&self) -> usize {
        self.end - self.begin
    }

    /// The border of the prefix of length `matched` (1 or more).
    pub(super) fn border(&self, text: &[u8], matched: usize) -> usize {
        if matched <= 8 {
            // Most matches are chance and end after a byte or two: no table for those.
            let prefix = text.get(..matched).unwrap_or_default();
            return (1..matched).rev().find(|k| prefix.ends_with(prefix.get(..*k).unwrap_or_default())).unwrap_or(0);
        }
        let borders = self.borders.get_or_init(|| borders(text));
        matched.checked_sub(1).and_then(|i| borders.get(i)).copied().map_or(0, usize::from)
    }
}

fn borders(text: &[u8]) -> Box<[u16]> {
    let mut borders = vec![0_u16; text.len()].into_boxed_slice();
    let border = |borders: &[u16], at: usize| borders.get(at).copied().map_or(0, usize::from);
    let mut length = 0;
    for at in 1..text.len() {
        while length > 0 && text.get(at) != text.get(length) {
            length = border(&borders, length - 1);
        }
        if text.get(at) == text.get(length) {
            length += 1;
        }
        if let (Some(place), Ok(length)) = (borders.get_mut(at), u16::try_from(length)) {
            *place = length;
        }
    }
    borders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_are_the_bytes_that_stand_for_units_or_nothing() {
        for (alphabet, text) in [
            (Alphabet::Plain, "sk-+/_aB0="),
            (Alphabet::Base64, "ab+/09"),
            (Alphabet::Base64, "xyz"),
            (Alphabet::Hex, "0123456789abcdef"),
            (Alphabet::Hex, "0fa"),
        ] {
            let mut units = ByteSet::default();
            text.bytes().for_each(|byte| units.insert(byte));
            let spellings = alphabet.spellings(units);
            for byte in 0..=u8::MAX {
                let expected = alphabet.unit(byte).is_none_or(|unit| units.contains(unit));
                assert_eq!(spellings.contains(byte), expected, "{alphabet:?} {byte:#x}");
            }
        }
    }
}
