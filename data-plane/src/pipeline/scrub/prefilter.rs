//! Skims a body for short windows of what is searched for, several bytes a step (Wu and Manber,
//! 1994).
//!
//! A table says, for every pair of bytes, how far the end of the nearest window can be. On clean
//! text nearly every pair is in no window at all, so one look covers nearly a window's length,
//! whatever the number of windows.
//!
//! Once as much was searched for the same windows as makes up for the preparation, [`fragments`] do
//! the same 32 bytes a step.
//!
//! A window is the beginning of a needle without anything between its bytes. What stands between
//! them ([`Prefilter::may_end_prefix`]) is looked at separately.

mod fragments;

use std::sync::{
    OnceLock,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use zeroize::Zeroize as _;

use self::fragments::Fragments;
use super::{
    alphabet::{Alphabet, ByteSet},
    spaced::Nothing,
};

const TABLE: usize = 4096;
/// Bytes that are searched by the table before the fragments are prepared, which takes as long as
/// 100 KiB do: windows of a signature are searched for in one answer. Tests use the fragments at
/// once.
const MIN_SEARCHED: usize = if cfg!(test) { 0 } else { 128 * 1024 };
/// Shorter texts, such as values of headers, are always searched by the table.
const MIN_BODY: usize = if cfg!(test) { 0 } else { 128 };

/// Bytes that stand for nothing, within which the next unit is looked for. More than a match holds
/// in a row.
const MOST_NOTHING: usize = 80;

/// The windows of one set of needles.
pub(super) struct Prefilter {
    /// By pair of bytes: how far the window's end is at least.
    shift: Box<[u8; TABLE]>,
    windows: Vec<Window>,
    /// The first byte of each window, case folded away, in every spelling.
    first: ByteSet,
    /// The shortest window's length: every window is cut to it.
    length: usize,
    /// Made on demand. `None` inside: there are none for these windows.
    fragments: OnceLock<Option<Fragments>>,
    /// Bytes that were searched before the fragments were made.
    searched: AtomicUsize,
}

#[derive(Clone)]
struct Window {
    /// Its bytes as they are.
    text: [u8; Prefilter::WINDOW],
    alphabet: Alphabet,
    /// Its first `length` bytes, little-endian, case folded away. Comparing one number finds it.
    value: u128,
    /// The bits of `value` that count: bytes with two spellings ([`spellings`]) are not compared.
    mask: u128,
    needle: usize,
}

/// A window that was found.
pub(super) struct Found {
    pub(super) needle: usize,
    /// Where the needle begins.
    pub(super) from: usize,
    /// Where the window ends.
    pub(super) to: usize,
}

impl Default for Prefilter {
    fn default() -> Self {
        Self {
            shift: Box::new([0; TABLE]),
            windows: Vec::with_capacity(16),
            first: ByteSet::default(),
            length: Self::WINDOW,
            fragments: OnceLock::new(),
            searched: AtomicUsize::new(0),
        }
    }
}

/// Letters without their case, so that hex digits of either look alike; a false alarm costs little.
fn fold(byte: u8) -> u8 {
    byte | (byte & 0x40) >> 1
}

/// The bytes that stand for one byte of a window, when there are two: both alphabets of base64.
fn spellings(alphabet: Alphabet, byte: u8) -> [u8; 2] {
    match (alphabet, byte) {
        (Alphabet::Base64, b'+') => [b'+', b'-'],
        (Alphabet::Base64, b'/') => [b'/', b'_'],
        _ => [byte, byte],
    }
}

fn slot(a: u8, b: u8) -> usize {
    (usize::from(fold(a)) ^ usize::from(fold(b)) << 4) & (TABLE - 1)
}

impl Prefilter {
    /// Longest window.
    pub(super) const WINDOW: usize = 16;

    /// A window at the beginning of `text`.
    pub(super) fn add(&mut self, text: &[u8], needle: usize, alphabet: Alphabet) {
        let length = text.len().min(Self::WINDOW);
        self.length = self.length.min(length);
        let mut text_of_window = [0; Self::WINDOW];
        text_of_window.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
        let (mut bytes, mut mask) = ([0; Self::WINDOW], [0; Self::WINDOW]);
        for ((to, mask), from) in bytes.iter_mut().zip(&mut mask).zip(text) {
            let [one, other] = spellings(alphabet, *from);
            *to = fold(one);
            *mask = if one == other { u8::MAX } else { 0 };
        }
        if let Some(byte) = text.first() {
            spellings(alphabet, *byte).into_iter().for_each(|byte| self.first.insert(fold(byte)));
        }
        let (value, mask) = (u128::from_le_bytes(bytes), u128::from_le_bytes(mask));
        self.windows.push(Window { text: text_of_window, alphabet, value, mask, needle });
        bytes.zeroize();
        text_of_window.zeroize();
    }

    /// The same windows, for texts that have lost their case.
    pub(super) fn folded(&self) -> Self {
        let (fragments, searched) = (OnceLock::from(None), AtomicUsize::new(0));
        let (shift, windows) = (self.shift.clone(), self.windows.clone());
        Self { shift, windows, first: self.first, length: self.length, fragments, searched }
    }

    /// Makes the table once all windows are known.
    pub(super) fn prepare(&mut self) {
        let all = self.mask();
        let most = self.length.saturating_sub(1) as u8; // at most WINDOW
        self.shift.fill(most);
        for window in &mut self.windows {
            let (bytes, masks) = ((window.value & all).to_le_bytes(), window.mask.to_le_bytes());
            // Only base64 has bytes that don't count.
            let of = |byte: u8, mask: u8| if mask == 0 { spellings(Alphabet::Base64, byte) } else { [byte, byte] };
            let pairs = bytes.array_windows::<2>().zip(masks.array_windows::<2>());
            for (at, ([a, b], [a_mask, b_mask])) in pairs.take(self.length.saturating_sub(1)).enumerate() {
                for (a, b) in of(*a, *a_mask).into_iter().flat_map(|a| of(*b, *b_mask).map(|b| (a, b))) {
                    if let Some(shift) = self.shift.get_mut(slot(a, b)) {
                        *shift = (*shift).min((self.length - 2 - at) as u8);
                    }
                }
            }
            window.mask &= all;
            window.value &= window.mask;
        }
    }

    /// Whether the raw bytes before `end` can be a beginning of a needle that is shorter than the
    /// windows: cheap, and seldom wrong.
    #[inline]
    pub(super) fn may_end_prefix(&self, body: &[u8], end: usize) -> bool {
        let before = |bytes: usize| end.checked_sub(bytes).and_then(|at| body.get(at)).copied();
        let Some(last) = before(1) else { return false };
        self.first.contains(fold(last)) || before(2).is_some_and(|byte| self.may_be_in_window(byte, last))
    }

    /// The same where bytes that stand for nothing begin at `end`: the one behind them goes on with
    /// the needle, if there is one yet.
    #[inline]
    pub(super) fn may_go_on(&self, body: &[u8], end: usize, nothing: Nothing) -> bool {
        self.may_end_prefix(body, end) && {
            let behind = body.get(end..).unwrap_or_default().iter().take(MOST_NOTHING);
            let next = behind.copied().find(|byte| !nothing(*byte));
            let last = end.checked_sub(1).and_then(|at| body.get(at));
            last.is_some_and(|last| next.is_none_or(|next| self.may_be_in_window(*last, next)))
        }
    }

    #[inline]
    fn may_be_in_window(&self, a: u8, b: u8) -> bool {
        self.shift.get(slot(a, b)).is_some_and(|shift| usize::from(*shift) + 1 < self.length)
    }

    fn mask(&self) -> u128 {
        u128::MAX >> (8 * (Self::WINDOW - self.length))
    }

    /// The length that every window has.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Calls `found` for every window in `body` that ends behind `from`, in order.
    pub(super) fn search(&self, body: &[u8], from: usize, mut found: impl FnMut(Found)) {
        let end = self.length.max(from + 1);
        let Some(fragments) = self.fragments_for(body.len().saturating_sub(from)) else {
            return self.search_by_table(body, end, found);
        };
        let (hits, behind) = fragments.search(self, body, end);
        for (end, window) in hits {
            self.windows.get(window).into_iter().for_each(|window| found(window.found(end, self.length)));
        }
        self.search_by_table(body, behind, found);
    }

    /// Whether there is a window in a text that may have lost its case.
    pub(super) fn is_in_any_case(&self, text: &[u8]) -> bool {
        let mut is_found = false;
        self.search_by_table(text, self.length, |_| is_found = true);
        is_found
    }

    fn search_by_table(&self, body: &[u8], mut end: usize, mut found: impl FnMut(Found)) {
        if self.windows.is_empty() {
            return;
        }
        while end <= body.len() {
            let shift = match (body.get(end - 2), body.get(end - 1)) {
                (Some(a), Some(b)) => self.shift.get(slot(*a, *b)).copied().unwrap_or_default(),
                _ => return,
            };
            if shift > 0 {
                end += usize::from(shift);
                continue;
            }
            self.compare(body, end, &mut found);
            end += 1;
        }
    }

    fn compare(&self, body: &[u8], end: usize, found: &mut impl FnMut(Found)) {
        let value = folded(body.get(end - self.length..end).unwrap_or_default());
        for window in self.windows.iter().filter(|w| w.value == value & w.mask) {
            found(window.found(end, self.length));
        }
    }

    /// What searches `bytes` more bytes faster than the table.
    #[cfg_attr(test, expect(clippy::absurd_extreme_comparisons, reason = "both bounds are 0 in tests"))]
    fn fragments_for(&self, bytes: usize) -> Option<&Fragments> {
        if bytes < MIN_BODY {
            return None;
        }
        if self.fragments.get().is_none() && self.searched.fetch_add(bytes, Relaxed) < MIN_SEARCHED {
            return None;
        }
        self.fragments.get_or_init(|| Fragments::new(&self.windows, self.length)).as_ref()
    }

    pub(super) fn wipe(&mut self) {
        for window in &mut self.windows {
            window.value.zeroize();
            window.text.zeroize();
        }
        self.shift.zeroize();
        self.first = ByteSet::default();
        self.fragments.take(); // freed memory is wiped
    }
}

impl Window {
    fn found(&self, end: usize, length: usize) -> Found {
        Found { needle: self.needle, from: end - length, to: end }
    }
}

/// Up to [`Prefilter::WINDOW`] bytes as one number, without their case.
fn folded(bytes: &[u8]) -> u128 {
    let mut folded = [0; Prefilter::WINDOW];
    for (to, from) in folded.iter_mut().zip(bytes) {
        *to = fold(*from);
    }
    u128::from_le_bytes(folded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::needles::Needles, *};

    fn by_table(prefilter: &Prefilter, body: &[u8], from: usize) -> Vec<(usize, usize, usize)> {
        all(&prefilter.folded(), body, from)
    }

    /// Without what differs from its window in case alone. Both ways of searching may report it,
    /// and only hex has no case.
    fn exact(prefilter: &Prefilter, body: &[u8], mut found: Vec<(usize, usize, usize)>) -> Vec<(usize, usize, usize)> {
        found.retain(|(needle, from, to)| {
            let window = prefilter.windows.iter().find(|window| window.needle == *needle).unwrap();
            let units = |text: &[u8]| text.iter().map(|b| window.alphabet.unit(*b)).collect::<Vec<_>>();
            units(&body[*from..*to]) == units(&window.text[..to - from])
        });
        found
    }

    fn all(prefilter: &Prefilter, body: &[u8], from: usize) -> Vec<(usize, usize, usize)> {
        let mut found = Vec::new();
        prefilter.search(body, from, |f| found.push((f.needle, f.from, f.to)));
        found
    }

    const SECRET: &str = "sk-REAL-9f3c/A+b>?Zq7Kx";

    /// Pieces of what is searched for, in every form, between other text: most bodies hold none,
    /// hostile ones hold nothing else.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        let hex = SECRET.bytes().map(|b| format!("{b:02X}")).collect::<Vec<_>>();
        let wide: String = SECRET.chars().flat_map(|c| [c, '\0']).collect();
        let coded = |padding: &str| {
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{padding}{SECRET}"))
        };
        let url = coded("xy").replace('+', "-").replace('/', "_");
        let forms = [
            SECRET.to_owned(),
            hex.concat(),
            hex.join(":"),
            hex.concat().to_lowercase(),
            wide,
            coded(""),
            coded("x"),
            url,
        ];
        let piece = prop_oneof![
            2 => proptest::collection::vec(any::<u8>(), 0..40),
            2 => "[a-z0-9 \"{}:,]{0,40}".prop_map(String::into_bytes),
            3 => (prop::sample::select(forms.to_vec()), 0..20_usize, 1..64_usize).prop_map(|(form, from, most)| {
                form.into_bytes().into_iter().skip(from % 4 * from).take(most).collect()
            }),
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn fragments_find_what_the_table_finds(body in body(), from in 0..200_usize) {
            for values in [&[SECRET.as_bytes()][..], &[SECRET.as_bytes(), b"pass"], &[b"a+b/c?d>e"]] {
                let needles = Needles::new(values.iter().copied());
                let prefilter = &needles.inner().prefilter;
                let by_fragments = exact(prefilter, &body, all(prefilter, &body, from));
                prop_assert_eq!(by_fragments, exact(prefilter, &body, by_table(prefilter, &body, from)));
            }
        }
    }

    #[test]
    fn a_body_of_nothing_but_alarms_is_searched_to_its_end() {
        let needles = Needles::new([SECRET.as_bytes()]);
        let prefilter = &needles.inner().prefilter;
        for text in [SECRET.repeat(100), SECRET[..9].repeat(300), SECRET[8..].repeat(300) + SECRET] {
            let found = all(prefilter, text.as_bytes(), 0);
            assert_eq!(found, by_table(prefilter, text.as_bytes(), 0));
        }
        assert!(all(prefilter, SECRET.repeat(100).as_bytes(), 0).len() >= 100);
        assert!(prefilter.fragments.get().is_some_and(Option::is_some), "this processor has no Teddy");
    }
}
