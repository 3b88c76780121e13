//! Verification: every chain is recomputed from its records, and compared with what nodes have
//! reported of it.

mod frames;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

pub use self::frames::ExportedFrame;
pub(crate) use self::frames::{Span, verify_frames};

use super::{
    Trail,
    block::{Block, BlockError},
    rows::{ChainPart, FrameRow},
};
use crate::{
    chain::{ChainId, Digest, Head, Predecessor},
    varint::put_bytes,
};

/// Times that go back by less than this are the steps of a clock that is being disciplined.
const CLOCK_TOLERANCE_US: u64 = 1_000_000;
/// A node that has records which the trail lacks for longer than this is named.
const UPLOAD_TOLERANCE_US: u64 = 60_000_000;

/// What a node has last reported of the chain that it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHead {
    /// The node.
    pub node: String,
    /// The end of its chain.
    pub head: Head,
    /// The first sequence of that chain that is still on the node's disk; past the head: none is.
    pub kept_from: u64,
    /// When it was reported, in Unix microseconds.
    pub reported_us: u64,
}

/// What is wrong with a chain or a block. Sequences are inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// These records are not in the trail.
    Gap {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// At least one of these records is not what the node wrote.
    Changed {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// The newest records are missing: the node has written them, and has no copy any more.
    CutTail {
        /// The first that is missing.
        from: u64,
        /// The last that the node has reported.
        to: u64,
    },
    /// The node has records that it does not hand in.
    Silent {
        /// The first.
        from: u64,
        /// The last that it has reported.
        to: u64,
        /// Since when, in Unix microseconds.
        since_us: u64,
    },
    /// Two chains name the same predecessor: the node's disk was copied.
    Cloned {
        /// The other chain.
        other: ChainId,
    },
    /// The node's clock was set back.
    ClockSetBack {
        /// The first record after that.
        sequence: u64,
        /// By how much, in microseconds.
        by_us: u64,
    },
    /// A block's file is gone.
    BlockMissing {
        /// Its number.
        block: u64,
    },
    /// A block's file cannot be read.
    BlockDamaged {
        /// Its number.
        block: u64,
        /// Why.
        why: String,
    },
}

/// A problem, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The node; empty for a block.
    pub node: String,
    /// The chain; absent for a block.
    pub chain: Option<ChainId>,
    /// What is wrong.
    pub problem: Problem,
}

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Records that were recomputed.
    pub records: u64,
    /// Chains that they belong to.
    pub chains: u64,
    /// Blocks that were read.
    pub blocks: u64,
    /// Intents without an outcome: the node died before it knew, or the request is in progress.
    pub open_intents: u64,
    /// Which records of which chains are there.
    pub parts: Vec<VerifiedPart>,
}

/// Consecutive records of a chain that are there. Replicas compare them: each may have parts of one
/// chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPart {
    /// The node that handed them in.
    pub node: String,
    /// The chain before that, on the same disk.
    pub after: Option<ChainId>,
    /// The sequence of the first.
    pub first: u64,
    /// The digest of the chain before it.
    pub before: Digest,
    /// The chain, and its end behind the last.
    pub head: Head,
}

/// A chain while it is followed through the blocks.
struct Followed {
    head: Head,
    written_us: u64,
}

#[derive(Default)]
struct Verifier {
    found: Verification,
    chains: HashMap<ChainId, Followed>,
    parts: BTreeMap<ChainId, Vec<VerifiedPart>>,
    successors: HashMap<ChainId, ChainId>,
    /// What chains say of those before them, and the node.
    predecessors: BTreeMap<ChainId, (String, u64)>,
    /// Blocks that retention has removed: chains may begin in the middle.
    was_pruned: bool,
    /// Only a part of the trail is looked at: of chains that are not in it nothing is known.
    is_part: bool,
}

impl Trail {
    /// Recomputes every chain, and compares with what nodes have reported.
    ///
    /// # Errors
    /// Of the file system.
    pub fn verify(&self, known: &[KnownHead], now_us: u64) -> Result<Verification, BlockError> {
        let (blocks, damaged, rows, number, pruned, open_intents) = {
            let state = self.state.read();
            let rows = state.rows.clone();
            (state.blocks.clone(), state.damaged.clone(), rows, state.number, state.pruned, state.open_intents.len())
        };
        let mut verifier = Verifier { was_pruned: pruned.is_some(), ..Verifier::default() };
        let first = pruned.map_or(0, |pruned| pruned + 1);
        for number in first..number {
            match (blocks.get(&number), damaged.get(&number)) {
                (Some(block), _) => self.verify_block(block, &mut verifier)?,
                (None, Some(why)) => verifier.block(Problem::BlockDamaged { block: number, why: why.clone() }),
                (None, None) => verifier.block(Problem::BlockMissing { block: number }),
            }
        }
        let records: Vec<&[u8]> = rows.records().collect();
        verifier.follow(&rows.parts, &rows.frames, &records);
        verifier.compare(known, now_us);
        let Verifier { mut found, chains, parts, .. } = verifier;
        found.chains = chains.len() as u64;
        found.parts = parts.into_values().flatten().collect();
        found.open_intents = open_intents as u64;
        Ok(found)
    }

    fn verify_block(&self, block: &Arc<Block>, verifier: &mut Verifier) -> Result<(), BlockError> {
        let all: Vec<u32> = (0..block.directory.rows).collect();
        let read = block.frames(&*self.disk).and_then(|frames| Ok((frames, block.records(&*self.disk, &all)?)));
        match read {
            Ok((frames, records)) => {
                let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
                verifier.found.blocks += 1;
                verifier.follow(&block.directory.parts, frames.frames(), &records);
                Ok(())
            }
            Err(BlockError::Disk(error)) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Err(BlockError::Disk(_)) => {
                verifier.block(Problem::BlockMissing { block: block.number });
                Ok(())
            }
            Err(error) => {
                verifier.block(Problem::BlockDamaged { block: block.number, why: error.to_string() });
                Ok(())
            }
        }
    }
}

impl Verifier {
    fn block(&mut self, problem: Problem) {
        self.found.findings.push(Finding { node: String::new(), chain: None, problem });
    }

    fn chain(&mut self, node: &str, chain: ChainId, problem: Problem) {
        self.found.findings.push(Finding { node: node.into(), chain: Some(chain), problem });
    }

    /// Follows the chains through one block's rows.
    fn follow(&mut self, parts: &[ChainPart], frames: &[FrameRow], records: &[&[u8]]) {
        for part in parts {
            self.enter(part, parts);
            // A chain with a gap in it has several parts.
            self.chains.get_mut(&part.chain).into_iter().for_each(|chain| chain.head = part.head);
            self.note(part);
        }
        // Of each part: the digest so far, the sequence that comes next, and the last one that is
        // known to be right.
        let mut digests: Vec<(Digest, u64, u64)> =
            parts.iter().map(|part| (part.before, part.first, part.first - 1)).collect();
        let (mut row, mut bytes) = (0, Vec::new());
        for frame in frames {
            let of_frame = records.get(row..row + frame.count as usize).unwrap_or_default();
            row += frame.count as usize;
            let (Some(part), Some((digest, next, good))) =
                (parts.get(frame.part as usize), digests.get_mut(frame.part as usize))
            else {
                continue;
            };
            self.found.records += u64::from(frame.count);
            if frame.first > *next {
                // A gap inside a part: only in blocks of earlier versions.
                let (from, to) = (*next, frame.first - 1);
                self.chain(&part.node, part.chain, Problem::Gap { from, to });
            }
            bytes.clear();
            of_frame.iter().for_each(|record| put_bytes(&mut bytes, record));
            *digest = digest.after(frame.first, frame.count, &bytes);
            *next = frame.first + u64::from(frame.count);
            let last = *next - 1;
            let expected = part.checkpoints.iter().find(|(sequence, _)| *sequence == last).map(|(_, digest)| *digest);
            let expected = if last == part.head.sequence { Some(part.head.digest) } else { expected };
            if let Some(expected) = expected {
                if expected != *digest {
                    let (from, to) = (*good + 1, last);
                    *digest = expected; // so that a change is reported once
                    self.chain(&part.node, part.chain, Problem::Changed { from, to });
                }
                *good = last;
            }
            let times = self.chains.get_mut(&part.chain).map(|chain| {
                let before = chain.written_us;
                chain.written_us = before.max(frame.written_us);
                before
            });
            if let Some(by_us) = times.map(|before| before.saturating_sub(frame.written_us))
                && by_us > CLOCK_TOLERANCE_US
            {
                self.chain(&part.node, part.chain, Problem::ClockSetBack { sequence: frame.first, by_us });
                self.chains.get_mut(&part.chain).into_iter().for_each(|chain| chain.written_us = frame.written_us);
            }
        }
    }

    /// Notes which records are there.
    fn note(&mut self, part: &ChainPart) {
        let parts = self.parts.entry(part.chain).or_default();
        match parts.last_mut() {
            Some(last) if last.head.sequence + 1 == part.first && last.head.digest == part.before => {
                last.head = part.head;
            }
            _ => parts.push(VerifiedPart {
                node: part.node.clone(),
                after: part.after.map(|after| after.chain),
                first: part.first,
                before: part.before,
                head: part.head,
            }),
        }
    }

    /// A chain goes on, or begins, in a block.
    fn enter(&mut self, part: &ChainPart, beside: &[ChainPart]) {
        let before = self.chains.get(&part.chain).map(|chain| (chain.head, chain.written_us));
        match before {
            Some((head, _)) if part.first > head.sequence + 1 => {
                let (from, to) = (head.sequence + 1, part.first - 1);
                self.chain(&part.node, part.chain, Problem::Gap { from, to });
            }
            Some((head, _)) if part.first <= head.sequence || part.before != head.digest => {
                self.chain(&part.node, part.chain, Problem::Changed { from: part.first, to: part.head.sequence });
            }
            None if part.first > 1 && !self.was_pruned => {
                self.chain(&part.node, part.chain, Problem::Gap { from: 1, to: part.first - 1 });
            }
            None if part.first == 1 && part.before != Digest::genesis(part.chain) => {
                self.chain(&part.node, part.chain, Problem::Changed { from: 1, to: part.head.sequence });
            }
            _ => {}
        }
        if before.is_none() {
            self.begin(part, beside);
        }
    }

    fn begin(&mut self, part: &ChainPart, beside: &[ChainPart]) {
        let mut written_us = 0;
        self.succeed(&part.node, part.chain, part.after);
        if let Some(after) = part.after {
            let before = self.chains.get(&after.chain).map_or(0, |before| before.written_us);
            let here = beside.iter().find(|other| other.chain == after.chain).map_or(0, |other| other.written_us);
            written_us = before.max(here);
        }
        let head = Head { chain: part.chain, sequence: part.first - 1, digest: part.before };
        self.chains.insert(part.chain, Followed { head, written_us });
    }

    /// A chain says which one was before it on the same disk.
    fn succeed(&mut self, node: &str, chain: ChainId, after: Option<Predecessor>) {
        let Some(after) = after else { return };
        if let Some(other) = self.successors.insert(after.chain, chain) {
            self.chain(node, chain, Problem::Cloned { other });
        }
        let said = self.predecessors.entry(after.chain).or_insert_with(|| (node.to_owned(), 0));
        said.1 = said.1.max(after.sequence);
    }

    /// Compares the ends of the chains with what their nodes have reported.
    fn compare(&mut self, known: &[KnownHead], now_us: u64) {
        for (chain, (node, sequence)) in std::mem::take(&mut self.predecessors) {
            let have = self.chains.get(&chain).map(|followed| followed.head.sequence);
            // Of a chain that retention has removed, or that another replica has, nothing is known
            // here.
            if let Some(have) = have.filter(|have| *have < sequence) {
                self.chain(&node, chain, Problem::CutTail { from: have + 1, to: sequence });
            }
        }
        let mut by_chain: BTreeMap<ChainId, Vec<&KnownHead>> = BTreeMap::new();
        known.iter().for_each(|known| by_chain.entry(known.head.chain).or_default().push(known));
        for (chain, reports) in by_chain {
            let Some(newest) = reports.iter().max_by_key(|known| known.head.sequence) else { continue };
            let head = self.chains.get(&chain).map(|followed| followed.head);
            if self.is_part && head.is_none() && newest.kept_from > newest.head.sequence {
                continue; // its records are older than the export, and none waits at the node
            }
            let sequence = head.map_or(0, |head| head.sequence);
            let differs = |known: &&&KnownHead| {
                head.is_some_and(|head| head.sequence == known.head.sequence && head.digest != known.head.digest)
            };
            if reports.iter().any(|known| differs(&known)) {
                self.chain(&newest.node, chain, Problem::Changed { from: sequence, to: sequence });
            }
            let (from, kept_from) = (sequence + 1, newest.kept_from);
            let missing = reports.iter().filter(|known| known.head.sequence > sequence);
            let Some(oldest) = missing.min_by_key(|known| known.reported_us) else { continue };
            let (to, since_us) = (newest.head.sequence, oldest.reported_us);
            if kept_from > from {
                self.chain(&newest.node, chain, Problem::CutTail { from, to: to.min(kept_from - 1) });
            } else if now_us.saturating_sub(since_us) > UPLOAD_TOLERANCE_US {
                self.chain(&newest.node, chain, Problem::Silent { from, to, since_us });
            }
        }
    }
}
