//! Verifies frames of an export, with the rules for the trail itself.

use std::collections::{BTreeMap, HashMap};

use super::{CLOCK_TOLERANCE_US, Finding, Followed, KnownHead, Problem, Verifier};
use crate::{
    chain::{ChainId, Digest, Head, Predecessor},
    varint::put_bytes,
};

/// A frame of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedFrame {
    /// The node that recorded it.
    pub node: String,
    /// The chain before its chain, on the same disk.
    pub after: Option<Predecessor>,
    /// The sequence of its first record.
    pub first: u64,
    /// Its records.
    pub count: u32,
    /// When the node wrote it, in Unix microseconds.
    pub written_us: u64,
    /// The digest of the chain before it.
    pub before: Digest,
    /// The digest after it.
    pub digest: Digest,
}

/// The part of a chain that an export has, as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) node: String,
    pub(crate) first: u64,
    /// The digest before that.
    pub(crate) before: Digest,
    pub(crate) end: Head,
}

/// Recomputes chains. `frames` are in the order of their first sequences.
pub(crate) fn verify_frames(
    frames: &BTreeMap<ChainId, BTreeMap<u64, ExportedFrame>>,
    spans: &BTreeMap<ChainId, Span>,
    records: &HashMap<(ChainId, u64), Vec<u8>>,
    reported: &[KnownHead],
    now_us: u64,
) -> Vec<Finding> {
    let mut verifier = Verifier { is_part: true, ..Verifier::default() };
    let empty = BTreeMap::new();
    let mut chains: Vec<(&ChainId, &Span)> = spans.iter().collect();
    // A chain comes after its predecessor, so that their clocks can be compared.
    chains.sort_by_key(|(chain, _)| frames.get(*chain).and_then(|frames| frames.values().next()).map(|f| f.written_us));
    for (chain, Span { node, first, before, end }) in chains {
        let frames = frames.get(chain).unwrap_or(&empty);
        let mut walk = Walk { chain: *chain, node, next: *first, digest: *before, missing: Vec::new() };
        if let Some(first) = frames.values().next() {
            verifier.succeed(node, *chain, first.after);
        }
        for frame in frames.values() {
            walk.frame(frame, records, &mut verifier);
        }
        walk.end(*end, &mut verifier);
        // Reports are compared with what was signed: what is missing of that is known by now.
        let written_us = verifier.chains.get(chain).map_or(0, |followed| followed.written_us);
        verifier.chains.insert(*chain, Followed { head: *end, written_us });
    }
    verifier.compare(reported, now_us);
    verifier.found.findings
}

/// One chain while it is followed.
struct Walk<'a> {
    chain: ChainId,
    node: &'a str,
    next: u64,
    digest: Digest,
    /// Sequences without a record, as ranges.
    missing: Vec<(u64, u64)>,
}

impl Walk<'_> {
    fn frame(&mut self, frame: &ExportedFrame, records: &HashMap<(ChainId, u64), Vec<u8>>, verifier: &mut Verifier) {
        if frame.first > self.next {
            self.miss(self.next, frame.first - 1);
        } else if frame.before != self.digest {
            verifier.chain(self.node, self.chain, Problem::Changed { from: frame.first, to: frame.first });
        }
        let (mut bytes, mut is_whole) = (Vec::new(), true);
        let last = frame.first + u64::from(frame.count) - 1;
        for sequence in frame.first..=last {
            match records.get(&(self.chain, sequence)) {
                Some(record) => put_bytes(&mut bytes, record),
                None => {
                    is_whole = false;
                    self.miss(sequence, sequence);
                }
            }
        }
        if is_whole && frame.before.after(frame.first, frame.count, &bytes) != frame.digest {
            verifier.chain(self.node, self.chain, Problem::Changed { from: frame.first, to: last });
        }
        (self.next, self.digest) = (last + 1, frame.digest);
        self.clock(frame, verifier);
    }

    fn clock(&self, frame: &ExportedFrame, verifier: &mut Verifier) {
        let head = Head { chain: self.chain, sequence: 0, digest: self.digest };
        let followed = verifier.chains.entry(self.chain).or_insert(Followed { head, written_us: 0 });
        let by_us = followed.written_us.saturating_sub(frame.written_us);
        followed.written_us =
            if by_us > CLOCK_TOLERANCE_US { frame.written_us } else { followed.written_us.max(frame.written_us) };
        if by_us > CLOCK_TOLERANCE_US {
            verifier.chain(self.node, self.chain, Problem::ClockSetBack { sequence: frame.first, by_us });
        }
    }

    fn miss(&mut self, from: u64, to: u64) {
        match self.missing.last_mut() {
            Some((_, last)) if *last + 1 == from => *last = to,
            _ => self.missing.push((from, to)),
        }
    }

    fn end(mut self, end: Head, verifier: &mut Verifier) {
        if self.next <= end.sequence {
            self.miss(self.next, end.sequence);
        } else if self.next == end.sequence + 1 && self.digest != end.digest {
            verifier.chain(self.node, self.chain, Problem::Changed { from: end.sequence, to: end.sequence });
        }
        for (from, to) in self.missing {
            let problem = if to == end.sequence { Problem::CutTail { from, to } } else { Problem::Gap { from, to } };
            verifier.chain(self.node, self.chain, problem);
        }
    }
}
