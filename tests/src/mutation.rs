//! Seeded mutations of bytes: a bounded, repeatable fuzz run inside `cargo test`.

/// Pieces that parsers of HTTP trip over.
const DICTIONARY: [&[u8]; 20] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"\x7f",
    b"\xff",
    b"%2f",
    b"%00",
    b"//",
    b";",
    b",",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nContent-Length: 5",
    b"\r\nConnection: close",
    b"ffffffffffffffffff",
    b"0\r\n\r\n",
];

/// Where a run begins, and how long it is.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// `SEKS_FUZZ_SEED`; default 1.
    pub seed: u64,
    /// Inputs: `SEKS_FUZZ_ROUNDS`, or the test's own number.
    pub rounds: usize,
}

impl Run {
    /// A run of so many rounds, where the environment says nothing else.
    pub fn of(rounds: usize) -> Self {
        let variable = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let asked = variable("SEKS_FUZZ_ROUNDS").and_then(|rounds| usize::try_from(rounds).ok());
        Self { seed: variable("SEKS_FUZZ_SEED").unwrap_or(1), rounds: asked.unwrap_or(rounds) }
    }

    /// The source of the mutations of one round: a failure names the round, and the round alone
    /// repeats it.
    #[must_use]
    pub fn mutator(self, round: usize) -> Mutator {
        Mutator(self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(round as u64))
    }
}

/// SplitMix64, and what it does to bytes.
#[derive(Clone, Debug)]
pub struct Mutator(u64);

impl Mutator {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 where there is none.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// One of these.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..(start + 1 + self.below(16)).min(length)
    }

    /// The same bytes with one to four changes: a bit, a byte, a piece left out, doubled, put in
    /// from the dictionary, or the end cut off.
    pub fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(7) {
                0 => self.change(&mut bytes, |random| 1 << random.below(8)),
                1 => self.change(&mut bytes, |random| random.next() as u8),
                2 => drop(bytes.drain(self.range(bytes.len()))),
                3 => {
                    let piece = bytes[self.range(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
                4 => bytes.truncate(at),
                _ => {
                    let piece = *self.pick(&DICTIONARY);
                    bytes.splice(at..at, piece.iter().copied());
                }
            }
        }
        bytes
    }

    fn change(&mut self, bytes: &mut [u8], mask: impl FnOnce(&mut Self) -> u8) {
        let at = self.below(bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= mask(self);
        }
    }
}
