//! A chain: the records of one process of a node, in order, each frame of them with the digest of
//! all before.

use std::{fmt, str::FromStr};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// Names a chain: 16 random bytes, drawn when a process starts to record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId(pub [u8; 16]);

impl ChainId {
    /// A new one.
    ///
    /// # Errors
    /// When the operating system has no randomness.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        Ok(Self(id))
    }

    /// The chain of these bytes, if there are 16.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ChainId {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| Self::from_bytes(&bytes)).ok_or(())
    }
}

/// The digest of a chain up to some record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(self.0.get(..8).unwrap_or_default()))
    }
}

impl Digest {
    /// The digest before a chain's first record.
    #[must_use]
    pub fn genesis(chain: ChainId) -> Self {
        Self(Sha256::new().chain_update(b"seks/v1/audit-chain").chain_update(chain.0).finalize().into())
    }

    /// The digest after a frame of `count` records, whose first has the sequence `first`. `records`
    /// are its records, each with its length in front.
    #[must_use]
    pub fn after(&self, first: u64, count: u32, records: &[u8]) -> Self {
        let hash = Sha256::new().chain_update(self.0).chain_update(first.to_be_bytes());
        Self(hash.chain_update(count.to_be_bytes()).chain_update(records).finalize().into())
    }
}

/// The head of a chain: its last known record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which chain.
    pub chain: ChainId,
    /// The sequence of its last record; 0: none yet.
    pub sequence: u64,
    /// The digest after that record.
    pub digest: Digest,
}

impl Head {
    /// The head of a chain without records.
    #[must_use]
    pub fn genesis(chain: ChainId) -> Self {
        Self { chain, sequence: 0, digest: Digest::genesis(chain) }
    }
}

/// The chain before a chain, on the same disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// Which.
    pub chain: ChainId,
    /// Its last sequence that was whole on the disk when the next chain began.
    pub sequence: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_depends_on_everything_before_it() {
        let (a, b) = (ChainId([1; 16]), ChainId([2; 16]));
        let one = Digest::genesis(a).after(1, 1, b"x");
        assert_ne!(one, Digest::genesis(b).after(1, 1, b"x"));
        assert_ne!(one, Digest::genesis(a).after(2, 1, b"x"));
        assert_ne!(one, Digest::genesis(a).after(1, 1, b"y"));
        assert_ne!(one.after(2, 1, b"y"), Digest::genesis(a).after(1, 2, b"xy"));
        assert_eq!(a.to_string().parse(), Ok(a));
        assert_eq!("zz".parse::<ChainId>(), Err(()));
    }
}
