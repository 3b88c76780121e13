//! Loads a snapshot: built beside the live table, checked part by part, then swapped in whole or
//! dropped.

use bytes::Bytes;
use prost::Message as _;
use seks_proto::wire;
use seks_protocol::{CHUNK_BYTES, SessionKey};
use sha2::{Digest as _, Sha256};

use super::decode::{DecodeError, EncodedChanges, Names, decode};
use crate::table::{ApplyError, Delta, Staging, Table};

/// Most records of a snapshot: ten million tokens and what belongs to them.
const MAX_RECORDS: u64 = 12_000_000;
/// No token's change is smaller: room is made for so many at most.
const MIN_TOKEN_BYTES: u64 = 64;
/// Most deltas that may wait for a snapshot to be complete, by their size.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;

/// What is wrong with a snapshot. The table stays as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// It says so itself.
    #[error("a snapshot of {count} records in {chunks} chunks is out of bounds")]
    Bounds { count: u64, chunks: u32 },
    /// A chunk is missing, came twice, or is too large.
    #[error("chunk {got} where {expected} was due, or too large")]
    Chunk { got: u32, expected: u32 },
    /// A record can't be understood.
    #[error("in chunk {chunk}: {source}")]
    Record {
        chunk: u32,
        #[source]
        source: DecodeError,
    },
    /// Number or hash don't agree.
    #[error("the snapshot's {0} does not agree")]
    Sum(&'static str),
    /// The deltas in between don't lead on from it, or are too many.
    #[error("deltas do not lead on from the snapshot")]
    Delta,
    /// The table refuses.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// A snapshot that isn't complete.
pub(super) struct SnapshotLoader {
    staging: Staging,
    epoch: String,
    /// What the staging will be at when all that waits is applied.
    revision: u64,
    chunks: u32,
    count: u64,
    next: u32,
    seen: u64,
    hash: Sha256,
    names: Names,
    waiting: Vec<Delta>,
    waiting_bytes: usize,
}

impl SnapshotLoader {
    /// Begins one, when it is within bounds.
    pub(super) fn begin(table: &Table, begin: wire::SnapshotBegin) -> Result<Self, LoadError> {
        let wire::SnapshotBegin { epoch, revision, chunks, count } = begin;
        let bytes = u64::from(chunks) * CHUNK_BYTES as u64;
        // A change takes four bytes at least; who promises more in less is lying about one of them.
        if count > MAX_RECORDS || count > bytes / 4 || (u64::from(chunks) > count && chunks > 0) {
            return Err(LoadError::Bounds { count, chunks });
        }
        let room = usize::try_from(count.min(bytes / MIN_TOKEN_BYTES)).unwrap_or(0);
        Ok(Self {
            staging: table.stage(&epoch, revision, room),
            epoch,
            revision,
            chunks,
            count,
            next: 0,
            seen: 0,
            hash: Sha256::new(),
            names: Names::default(),
            waiting: Vec::new(),
            waiting_bytes: 0,
        })
    }

    pub(super) fn chunk(&mut self, chunk: &wire::Chunk, key: &SessionKey) -> Result<(), LoadError> {
        let wire::Chunk { index, changes } = chunk;
        let wrong = LoadError::Chunk { got: *index, expected: self.next };
        if *index != self.next || *index >= self.chunks {
            return Err(wrong);
        }
        let record = |source| LoadError::Record { chunk: *index, source };
        let decoded = EncodedChanges::decode(Bytes::clone(changes)).map_err(|e| record(e.into()))?.changes;
        if changes.len() > CHUNK_BYTES && decoded.len() != 1 {
            return Err(wrong);
        }
        self.hash.update(changes);
        self.next += 1;
        self.seen += decoded.len() as u64;
        if self.seen > self.count {
            return Err(LoadError::Sum("count"));
        }
        for change in decoded {
            let (change, mark) = decode(change, &self.epoch, key, &mut self.names).map_err(record)?;
            self.staging.put(change)?;
            mark.into_iter().for_each(|mark| self.staging.mark(mark));
        }
        Ok(())
    }

    /// A delta that came between the chunks: applied after all of them.
    pub(super) fn wait(&mut self, delta: Delta, bytes: usize) -> Result<(), LoadError> {
        self.waiting_bytes += bytes + 64;
        if delta.previous != self.revision || *delta.epoch != self.epoch || self.waiting_bytes > MAX_WAITING_BYTES {
            return Err(LoadError::Delta);
        }
        self.revision = delta.revision;
        self.waiting.push(delta);
        Ok(())
    }

    /// The new table, when everything adds up.
    pub(super) fn end(mut self, end: &wire::SnapshotEnd) -> Result<Staging, LoadError> {
        if self.next != self.chunks || self.seen != self.count || end.count != self.count {
            return Err(LoadError::Sum("count"));
        }
        if self.hash.finalize().as_slice() != end.hash {
            return Err(LoadError::Sum("hash"));
        }
        for delta in self.waiting {
            self.staging.apply(delta)?;
        }
        Ok(self.staging)
    }
}
