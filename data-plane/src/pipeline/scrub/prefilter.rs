//! Skims a body for short windows of what is searched for, several bytes a step (Wu and Manber, 1994).
//!
//! A table says, for every pair of bytes, how far the end of the nearest window can be. On clean text nearly every pair is
//! in no window at all, so one look covers nearly a window's length, whatever the number of windows.
//!
//! A window is the beginning of a needle without anything between its bytes. What stands between them ([`Prefilter::may_end_prefix`])
//! is looked at separately.

use zeroize::Zeroize as _;

use super::{
    needles::{Alphabet, ByteSet},
    spaced::Nothing,
};

const TABLE: usize = 4096;

/// The windows of one set of needles.
#[derive(Clone)]
pub(super) struct Prefilter {
    /// By pair of bytes: how far the window's end is at least.
    shift: Box<[u8; TABLE]>,
    windows: Vec<Window>,
    /// The first byte of each window, case folded away, in every spelling.
    first: ByteSet,
    /// The shortest window's length: every window is cut to it.
    length: usize,
}

#[derive(Clone)]
struct Window {
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
        let windows = Vec::with_capacity(16);
        Self { shift: Box::new([0; TABLE]), windows, first: ByteSet::default(), length: Self::WINDOW }
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
        self.windows.push(Window { value, mask, needle });
        bytes.zeroize();
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

    /// Whether the raw bytes before `end` can be a beginning of a needle that is shorter than the windows: cheap, and seldom wrong.
    #[inline]
    pub(super) fn may_end_prefix(&self, body: &[u8], end: usize) -> bool {
        let before = |bytes: usize| end.checked_sub(bytes).and_then(|at| body.get(at)).copied();
        let Some(last) = before(1) else { return false };
        self.first.contains(fold(last)) || before(2).is_some_and(|byte| self.may_be_in_window(byte, last))
    }

    /// The same where bytes that stand for nothing begin at `end`: the one behind them goes on with the needle, if there is one yet.
    #[inline]
    pub(super) fn may_go_on(&self, body: &[u8], end: usize, nothing: Nothing) -> bool {
        self.may_end_prefix(body, end) && {
            let next = body.get(end..).unwrap_or_default().iter().find(|byte| !nothing(**byte));
            let last = end.checked_sub(1).and_then(|at| body.get(at));
            last.is_some_and(|last| next.is_none_or(|next| self.may_be_in_window(*last, *next)))
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
        if self.windows.is_empty() {
            return;
        }
        let mut end = self.length.max(from + 1);
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
        let begin = end - self.length;
        let mut bytes = [0; Self::WINDOW];
        for (to, from) in bytes.iter_mut().zip(body.get(begin..end).unwrap_or_default()) {
            *to = fold(*from);
        }
        let value = u128::from_le_bytes(bytes);
        for window in self.windows.iter().filter(|w| w.value == value & w.mask) {
            found(Found { needle: window.needle, from: begin, to: end });
        }
    }

    pub(super) fn wipe(&mut self) {
        self.windows.iter_mut().for_each(|w| w.value.zeroize());
        self.shift.zeroize();
        self.first = ByteSet::default();
    }
}
