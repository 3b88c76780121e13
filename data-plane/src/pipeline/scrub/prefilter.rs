//! Skims a body for short windows of what is searched for, several bytes a step (Wu and Manber, 1994).
//!
//! A table says, for every pair of bytes, how far the end of the nearest window can be. On clean text nearly every pair is
//! in no window at all, so one look covers nearly a window's length, whatever the number of windows.

use zeroize::Zeroize as _;

const TABLE: usize = 4096;

/// The windows of one set of needles.
#[derive(Clone)]
pub(super) struct Prefilter {
    /// By pair of bytes: how far the window's end is at least.
    shift: Box<[u8; TABLE]>,
    windows: Vec<Window>,
    /// The shortest window's length: every window is cut to it.
    length: usize,
}

#[derive(Clone)]
struct Window {
    /// Its last `length` bytes, little-endian, case folded away. Comparing one number finds it.
    value: u128,
    needle: usize,
    /// How many bytes before the window its needle may begin.
    back: usize,
}

/// A window that was found.
pub(super) struct Found {
    pub(super) needle: usize,
    /// Where the needle may begin.
    pub(super) from: usize,
    /// Where the window ends.
    pub(super) to: usize,
}

impl Default for Prefilter {
    fn default() -> Self {
        Self { shift: Box::new([0; TABLE]), windows: Vec::with_capacity(32), length: Self::WINDOW }
    }
}

/// Letters without their case, so that hex digits of either look alike; a false alarm costs little.
fn fold(byte: u8) -> u8 {
    byte | (byte & 0x40) >> 1
}

fn slot(a: u8, b: u8) -> usize {
    (usize::from(fold(a)) ^ usize::from(fold(b)) << 4) & (TABLE - 1)
}

impl Prefilter {
    /// Longest window.
    pub(super) const WINDOW: usize = 16;

    /// A window at the beginning of `text`.
    pub(super) fn add(&mut self, text: &[u8], needle: usize, back: usize) {
        let length = text.len().min(Self::WINDOW);
        self.length = self.length.min(length);
        let mut bytes = [0; Self::WINDOW];
        for (to, from) in bytes.iter_mut().zip(text) {
            *to = fold(*from);
        }
        self.windows.push(Window { value: u128::from_le_bytes(bytes), needle, back });
        bytes.zeroize();
    }

    /// Makes the table once all windows are known.
    pub(super) fn prepare(&mut self) {
        let mask = self.mask();
        let most = self.length.saturating_sub(1) as u8; // at most WINDOW
        self.shift.fill(most);
        for window in &mut self.windows {
            window.value &= mask;
            let bytes = window.value.to_le_bytes();
            let pairs = bytes.array_windows::<2>().take(self.length.saturating_sub(1));
            for (at, [a, b]) in pairs.enumerate() {
                if let Some(shift) = self.shift.get_mut(slot(*a, *b)) {
                    *shift = (*shift).min((self.length - 2 - at) as u8);
                }
            }
        }
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
        for window in self.windows.iter().filter(|w| w.value == value) {
            found(Found { needle: window.needle, from: begin.saturating_sub(window.back), to: end });
        }
    }

    pub(super) fn wipe(&mut self) {
        self.windows.iter_mut().for_each(|w| w.value.zeroize());
        self.shift.zeroize();
    }
}
