//! The frames of a trail, with their records, for exports.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use super::{
    Trail,
    block::BlockError,
    rows::{ChainPart, FrameRow},
};
use crate::{
    chain::{ChainId, Digest, Predecessor},
    varint::put_bytes,
};

/// A frame as the trail has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFrame {
    /// The node that handed it in.
    pub node: String,
    /// Its chain.
    pub chain: ChainId,
    /// The chain before that, on the same disk.
    pub after: Option<Predecessor>,
    /// The sequence of its first record.
    pub first: u64,
    /// When the node wrote it, in Unix microseconds.
    pub written_us: u64,
    /// The digest of the chain before it.
    pub before: Digest,
    /// The digest after it, as the node has it where the trail knows that.
    pub digest: Digest,
    /// Its records.
    pub records: Vec<Vec<u8>>,
}

/// Which part of each chain is wanted: from the first frame that was written in the range to the
/// last.
struct Selection {
    written: Range<u64>,
    begun: HashSet<ChainId>,
    ended: HashSet<ChainId>,
}

impl Selection {
    fn takes(&mut self, chain: ChainId, written_us: u64) -> bool {
        if self.ended.contains(&chain) {
            return false;
        }
        if written_us >= self.written.end {
            self.ended.insert(chain);
            return false;
        }
        // A clock that is set back does not tear a hole into an export.
        self.begun.contains(&chain) || (written_us >= self.written.start && self.begun.insert(chain))
    }
}

impl Trail {
    /// Calls `each` with the frames that were written in a range of time, in the order of arrival,
    /// of each chain without a gap. Returns the numbers of the blocks that cannot be read.
    ///
    /// # Errors
    /// Of the file system, and what `each` returns.
    pub fn export_frames(
        &self,
        written: Range<u64>,
        each: &mut dyn FnMut(StoredFrame) -> std::io::Result<()>,
    ) -> Result<Vec<u64>, BlockError> {
        let (blocks, mut unreadable, rows) = {
            let state = self.state.read();
            (state.blocks.clone(), state.damaged.keys().copied().collect::<Vec<_>>(), state.rows.clone())
        };
        let mut selection = Selection { written, begun: HashSet::new(), ended: HashSet::new() };
        for block in blocks.values() {
            let is_older =
                |part: &ChainPart| part.written_us < selection.written.start && !selection.begun.contains(&part.chain);
            if block.directory.parts.iter().all(is_older) {
                continue;
            }
            let all: Vec<u32> = (0..block.directory.rows).collect();
            match block.frames(&*self.disk).and_then(|table| Ok((table, block.records(&*self.disk, &all)?))) {
                Ok((table, records)) => {
                    emit(&block.directory.parts, table.frames(), records, &mut selection, each)?;
                }
                Err(BlockError::Disk(error)) => return Err(error.into()),
                Err(_) => unreadable.push(block.number),
            }
        }
        let records = rows.records().map(<[u8]>::to_vec).collect();
        emit(&rows.parts, &rows.frames, records, &mut selection, each)?;
        Ok(unreadable)
    }
}

fn emit(
    parts: &[ChainPart],
    frames: &[FrameRow],
    records: Vec<Vec<u8>>,
    selection: &mut Selection,
    each: &mut dyn FnMut(StoredFrame) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut digests: HashMap<u32, Digest> = (0..).zip(parts).map(|(index, part)| (index, part.before)).collect();
    let (mut records, mut bytes) = (records.into_iter(), Vec::new());
    for frame in frames {
        let of_frame: Vec<Vec<u8>> = records.by_ref().take(frame.count as usize).collect();
        let (Some(part), Some(digest)) = (parts.get(frame.part as usize), digests.get_mut(&frame.part)) else {
            continue;
        };
        let before = *digest;
        bytes.clear();
        of_frame.iter().for_each(|record| put_bytes(&mut bytes, record));
        let last = frame.first + u64::from(frame.count) - 1;
        let known = part.checkpoints.iter().find(|(sequence, _)| *sequence == last).map(|(_, digest)| *digest);
        let known = if last == part.head.sequence { Some(part.head.digest) } else { known };
        *digest = known.unwrap_or_else(|| before.after(frame.first, frame.count, &bytes));
        if selection.takes(part.chain, frame.written_us) {
            let (node, chain, after, digest) = (part.node.clone(), part.chain, part.after, *digest);
            let FrameRow { first, written_us, .. } = *frame;
            each(StoredFrame { node, chain, after, first, written_us, before, digest, records: of_frame })?;
        }
    }
    Ok(())
}
