//! Trace ids: unique, evenly spread (collectors sample by them), and no secret.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter from a random beginning, mixed: no two ids of a process are the same, and a request
/// costs no system call.
pub(super) struct Source {
    process: u64,
    next: AtomicU64,
}

impl Source {
    pub(super) fn new() -> Self {
        let mut bytes = [0; 16];
        if getrandom::fill(&mut bytes).is_err() {
            // Uniqueness is all that is needed, and the time and the process give that on one
            // machine.
            let time = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
            bytes = (time ^ u128::from(std::process::id()).rotate_left(80)).to_le_bytes();
        }
        let bits = u128::from_le_bytes(bytes);
        Self { process: (bits >> 64) as u64, next: AtomicU64::new(bits as u64) }
    }

    pub(super) fn trace(&self) -> [u8; 16] {
        let low = self.word();
        (u128::from(mixed(self.process ^ low)) << 64 | u128::from(low)).to_be_bytes()
    }

    /// Never 0, which W3C trace context takes for "none".
    fn word(&self) -> u64 {
        match mixed(self.next.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed)) {
            0 => mixed(self.next.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed)),
            word => word,
        }
    }
}

/// SplitMix64's finaliser: one to one, and every bit of the input moves every bit of the output.
fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_never_zero() {
        let source = Source::new();
        let traces: HashSet<_> = (0..10_000).map(|_| source.trace()).collect();
        assert_eq!(traces.len(), 10_000);
        assert!(!traces.contains(&[0; 16]) && Source::new().trace() != source.trace());
    }
}
