//! The chain of operators' changes: each holds the digest of the one before it, and the store holds
//! the digest of the last.

pub mod archive;

use sha2::{Digest as _, Sha256};

use crate::chain::Digest;

/// Changes of a chain that the store keeps. Older ones are in the [`archive`] of a replica with a
/// trail; without one they are removed.
pub const KEPT: u64 = 10_000;

/// The digest of a change as it is encoded. The encoding includes the digest of the change before
/// it.
#[must_use]
pub fn digest(encoded: &[u8]) -> Digest {
    Digest(Sha256::new().chain_update(b"seks/v1/admin-chain").chain_update(encoded).finalize().into())
}

/// One change, as far as the chain is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its position, from 1.
    pub sequence: u64,
    /// The digest that it has of the one before it; empty in the first.
    pub previous: Vec<u8>,
    /// Its own digest.
    pub digest: Digest,
}

/// What is wrong with a chain. Sequences are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// These changes are missing.
    Gap {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// This change is not the one that was written.
    Changed {
        /// Its sequence.
        sequence: u64,
    },
    /// The newest changes are missing.
    CutTail {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
}

/// The oldest change that must be there when nothing says which: of exports of a version without an
/// archive.
#[must_use]
pub fn oldest_kept(last: u64) -> u64 {
    last.saturating_sub(KEPT - 1).max(1)
}

/// Checks a chain from the change `oldest`, which must be there, to the change `last`, whose digest
/// is `head`. `links` are in order, the oldest first. Those before `oldest` are checked too, as far
/// as they follow each other.
#[must_use]
pub fn verify(links: &[Link], oldest: u64, last: u64, head: Digest) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut next = oldest.max(1);
    let mut before: Option<&Link> = None;
    for link in links {
        if link.sequence > next {
            faults.push(Fault::Gap { from: next, to: link.sequence - 1 });
        } else if let Some(before) = before.filter(|before| before.sequence + 1 == link.sequence)
            && link.previous != before.digest.0
        {
            faults.push(Fault::Changed { sequence: before.sequence });
        }
        next = next.max(link.sequence + 1);
        before = Some(link);
    }
    match before {
        Some(end) if end.sequence == last && end.digest != head => faults.push(Fault::Changed { sequence: last }),
        _ if next <= last => faults.push(Fault::CutTail { from: next, to: last }),
        _ => {}
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(length: u64) -> Vec<Link> {
        let mut links: Vec<Link> = Vec::new();
        for sequence in 1..=length {
            let previous = links.last().map(|link| link.digest.0.to_vec()).unwrap_or_default();
            let digest = digest(&[&previous[..], &sequence.to_be_bytes()].concat());
            links.push(Link { sequence, previous, digest });
        }
        links
    }

    #[test]
    fn each_kind_of_damage_is_found_and_nothing_in_a_whole_chain() {
        let whole = chain(6);
        let head = whole[5].digest;
        assert_eq!(verify(&whole, 1, 6, head), []);
        assert_eq!(verify(&[], 1, 0, Digest([0; 32])), []);
        let mut middle = whole.clone();
        middle.remove(2);
        assert_eq!(verify(&middle, 1, 6, head), [Fault::Gap { from: 3, to: 3 }]);
        assert_eq!(verify(&whole[1..], 1, 6, head), [Fault::Gap { from: 1, to: 1 }]);
        assert_eq!(verify(&whole[..4], 1, 6, head), [Fault::CutTail { from: 5, to: 6 }]);
        assert_eq!(verify(&[], 1, 6, head), [Fault::CutTail { from: 1, to: 6 }]);
        for at in 0..6 {
            let mut changed = whole.clone();
            changed[at].digest = digest(b"another");
            assert_eq!(verify(&changed, 1, 6, head), [Fault::Changed { sequence: at as u64 + 1 }]);
        }
    }

    #[test]
    fn what_is_older_than_must_be_there_may_be_missing_and_is_not_changed_unnoticed() {
        let whole = chain(20);
        let head = whole.last().unwrap().digest;
        assert_eq!(verify(&whole[3..], 4, 20, head), []);
        assert_eq!(verify(&whole[4..], 4, 20, head), [Fault::Gap { from: 4, to: 4 }]);
        // Older ones that are there by chance: with a gap among them, and one that was changed.
        let mut older = whole.clone();
        older.remove(3);
        assert_eq!(verify(&older, 10, 20, head), []);
        older[5].digest = digest(b"another");
        assert_eq!(verify(&older, 10, 20, head), [Fault::Changed { sequence: 7 }]);
        older.remove(12);
        assert_eq!(verify(&older, 10, 20, head), [Fault::Changed { sequence: 7 }, Fault::Gap { from: 14, to: 14 }]);
        assert_eq!((oldest_kept(5), oldest_kept(KEPT + 4)), (1, 5));
    }
}
