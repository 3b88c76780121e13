//! The checksum of a table. Two sides can compare a million records by 32 bytes.
//!
//! The checksum does not depend on the order of records, and each change updates it at a constant
//! cost. It finds records that a fault lost or doubled. It gives no protection against chosen
//! records and needs none, because both sides hold the contents of one store.

use seks_types::token::Digest;
use sha2::{Digest as _, Sha256};

/// Length of an encoded checksum.
pub const BYTES: usize = 32;

/// The sum of any number of records. Each is a SHA-256 in four lanes, which are added without carry
/// between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableChecksum([u64; 4]);

impl TableChecksum {
    /// The checksum of one record, as it is encoded for every node.
    #[must_use]
    pub fn of_record(encoded: &[u8]) -> Self {
        Self::from_bytes(&Sha256::digest(encoded).into())
    }

    /// The checksum of one token. A token's grants never change, so its presence is all there is to
    /// compare. Its digest is a hash.
    #[must_use]
    pub fn of_token(digest: &Digest) -> Self {
        Self::from_bytes(&digest.0)
    }

    /// The checksum of one version of a credential. Its ciphertext differs for each node and is not
    /// included.
    #[must_use]
    pub fn of_credential(tenant: &str, name: &str, service: &str, version: u32) -> Self {
        let mut hash = Sha256::new();
        for part in ["credential", tenant, name, service] {
            hash.update(part);
            hash.update([0]); // names can't hold one
        }
        hash.update(version.to_be_bytes());
        Self::from_bytes(&hash.finalize().into())
    }

    /// The inverse of [`to_bytes`](Self::to_bytes).
    #[must_use]
    pub fn from_bytes(bytes: &[u8; BYTES]) -> Self {
        let mut lanes = [0; 4];
        for (lane, part) in lanes.iter_mut().zip(bytes.chunks_exact(8)) {
            *lane = part.first_chunk().map_or(0, |part| u64::from_be_bytes(*part));
        }
        Self(lanes)
    }

    /// The encoding in messages.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|lane| lane.to_be_bytes()).collect()
    }

    /// The checksum with the records of `more` added.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        self.zip(more, u64::wrapping_add)
    }

    /// The checksum with the records of `less` removed.
    #[must_use]
    pub fn minus(self, less: Self) -> Self {
        self.zip(less, u64::wrapping_sub)
    }

    fn zip(mut self, other: Self, with: fn(u64, u64) -> u64) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(lane, other)| *lane = with(*lane, other));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_depends_on_the_records_and_not_on_their_order() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|r| TableChecksum::of_record(r));
        assert_eq!(a.plus(b).plus(c), c.plus(a).plus(b));
        assert_eq!(a.plus(b).plus(c).minus(b), a.plus(c));
        assert_ne!(a.plus(b), a.plus(c));
        assert_ne!(a.plus(a), TableChecksum::default(), "twice is not never");
        assert_eq!(a.minus(a), TableChecksum::default());
    }

    #[test]
    fn it_travels_as_bytes() {
        let sum = TableChecksum::of_credential("t", "n", "s", 7).plus(TableChecksum::of_token(&Digest::of(b"x")));
        let bytes: [u8; BYTES] = sum.to_bytes().try_into().unwrap();
        assert_eq!(TableChecksum::from_bytes(&bytes), sum);
        assert_ne!(TableChecksum::of_credential("t", "n", "s", 8), TableChecksum::of_credential("t", "n", "s", 7));
        assert_ne!(TableChecksum::of_credential("t", "ns", "", 7), TableChecksum::of_credential("t", "n", "s", 7));
    }
}
