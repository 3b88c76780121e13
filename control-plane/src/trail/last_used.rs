//! When each token was last used, by the records that arrived at this replica: approximate, to the
//! minute, and for people alone.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Tokens that are remembered, some 10 MB. One more forgets the half that was used least recently.
const MAX_TOKENS: usize = 100_000;
/// Microseconds of a minute.
const MINUTE_US: u64 = 60_000_000;

/// The last use of each token, in Unix minutes.
#[derive(Default)]
pub(crate) struct LastUsed(Mutex<HashMap<Box<[u8]>, u32>>);

impl LastUsed {
    /// Notes a request with the token `id` that began at this time.
    pub(super) fn note(&self, id: &[u8], began_us: u64) {
        if id.is_empty() {
            return;
        }
        let minute = u32::try_from(began_us / MINUTE_US).unwrap_or(u32::MAX);
        let mut tokens = self.0.lock();
        if let Some(last) = tokens.get_mut(id) {
            *last = minute.max(*last);
            return;
        }
        if tokens.len() >= MAX_TOKENS {
            let mut minutes: Vec<u32> = tokens.values().copied().collect();
            let (_, median, _) = minutes.select_nth_unstable(MAX_TOKENS / 2);
            let median = *median;
            tokens.retain(|_, last| *last > median);
        }
        tokens.insert(id.into(), minute);
    }

    /// When the token was last used, in Unix seconds; 0: not known.
    pub(crate) fn of(&self, id: &str) -> i64 {
        self.0.lock().get(id.as_bytes()).map_or(0, |minute| i64::from(*minute) * 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_use_counts_and_the_memory_is_bounded() {
        let used = LastUsed::default();
        used.note(b"tok-a", 5 * MINUTE_US + 1);
        used.note(b"tok-a", 3 * MINUTE_US);
        used.note(b"", 9 * MINUTE_US);
        assert_eq!((used.of("tok-a"), used.of("tok-b"), used.of("")), (300, 0, 0));
        for number in 0..MAX_TOKENS as u64 + 10 {
            used.note(&number.to_le_bytes(), number * MINUTE_US);
        }
        assert!(used.0.lock().len() <= MAX_TOKENS);
        assert_eq!(used.of("tok-a"), 0, "the least recently used are forgotten");
    }
}
