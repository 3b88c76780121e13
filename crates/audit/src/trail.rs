//! The control plane's trail: what nodes have handed in, checked, kept for a set time, and
//! searched.
//!
//! What arrives goes into a log, as sealed as it came, and is acknowledged when the log is synced.
//! Rows collect in memory and become a [`block`] when there are enough. A log and its block have
//! the same number, so a start rebuilds from the log what had not become a block. Everything here
//! blocks: callers use threads of their own.

pub(crate) mod block;
mod column;
mod directory;
mod frames;
mod log;
mod rows;
mod search;
#[cfg(test)]
mod tests;
mod value_sets;
mod verify;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use zeroize::Zeroizing;

pub(crate) use self::verify::{Span, verify_frames};
use self::{
    block::Block,
    directory::IntentLists,
    log::{LogReader, LogWriter},
    rows::{Facts, Rows},
};
pub use self::{
    block::{BlockError, layout},
    frames::StoredFrame,
    search::{Entry, Page, Position, Query, Test},
    verify::{ExportedFrame, Finding, KnownHead, Problem, Verification, VerifiedPart},
};
use crate::{
    chain::{ChainId, Digest, Head},
    disk::Disk,
    frame::{FormatError, Frame, SealedFrame, SegmentHeader},
    record::Kind,
    seal::{AuditKeys, AuditPublicKey, FileKey},
    spool::unix_micros,
};

/// Names the newest block that retention has removed.
const PRUNED: &str = "pruned";

/// Bytes of records at which a block is made, however few they are.
const MAX_ROW_BYTES: usize = 64 << 20;

/// Bounds of a trail.
#[derive(Clone, Copy, Debug)]
pub struct TrailOptions {
    /// Blocks whose newest record is older are removed.
    pub max_age: Duration,
    /// The oldest blocks are removed while there are more bytes than this.
    pub max_bytes: u64,
    /// Records in a block.
    pub block_rows: usize,
}

impl Default for TrailOptions {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(90 * 24 * 3600), max_bytes: 20 << 30, block_rows: 32_768 }
    }
}

/// Why a trail cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum TrailError {
    /// The file system.
    #[error("the disk: {0}")]
    Disk(#[from] io::Error),
    /// A block could not be made.
    #[error("a block: {0}")]
    Block(#[from] BlockError),
}

/// Why a frame was not taken.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// It is no frame of its segment.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Another node has handed in records of this chain.
    #[error("the chain {0} is another node's")]
    OtherNode(ChainId),
    /// The trail has other records with these sequences.
    #[error("the chain {chain} has other records from sequence {first}: a copy of the spool was changed")]
    Forked {
        /// The chain.
        chain: ChainId,
        /// The first sequence of the frame.
        first: u64,
    },
    /// The trail could not be written.
    #[error(transparent)]
    Trail(#[from] TrailError),
}

/// A segment that the trail can read.
pub struct OpenedSegment {
    pub(crate) header: SegmentHeader,
    key: FileKey,
}

impl OpenedSegment {
    /// The chain of its frames.
    #[must_use]
    pub fn chain(&self) -> ChainId {
        self.header.chain
    }
}

/// A frame that has arrived, decrypted.
pub struct Arrival {
    node: Arc<str>,
    segment: Arc<OpenedSegment>,
    sealed: bytes::Bytes,
    frame: Frame,
    /// The head of its chain after it. Computed once: it hashes all of the frame.
    after: Head,
}

impl Arrival {
    /// Its chain.
    #[must_use]
    pub fn chain(&self) -> ChainId {
        self.segment.header.chain
    }

    /// The node that hands it in.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The sequence of its last record.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.frame.first + u64::from(self.frame.count) - 1
    }

    /// Its records, in order.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        self.frame.records()
    }
}

/// What the trail knows of a chain.
#[derive(Clone, Debug)]
struct ChainState {
    node: Arc<str>,
    head: Head,
}

/// What searches see. Everything in it is durable.
#[derive(Default)]
struct State {
    blocks: BTreeMap<u64, Arc<Block>>,
    /// Blocks that cannot be read, and why.
    damaged: BTreeMap<u64, String>,
    /// Rows that are no block yet. Their number is the next block's. Shared while they are made a
    /// block or verified, and copied only if one is appended meanwhile.
    rows: Arc<Rows>,
    number: u64,
    chains: HashMap<ChainId, ChainState>,
    /// Request ids of intents without an outcome.
    open_intents: HashSet<[u8; 16]>,
    /// Of those, the ones in `rows`.
    intents_here: HashSet<[u8; 16]>,
    /// Outcomes in `rows` of intents in blocks.
    late_outcomes: Vec<[u8; 16]>,
    /// Everything up to this block was removed by retention.
    pruned: Option<u64>,
}

/// A trail in one directory. Only one process may use it.
pub struct Trail {
    disk: Arc<dyn Disk>,
    keys: Arc<AuditKeys>,
    options: TrailOptions,
    state: RwLock<State>,
    log: Mutex<Option<LogWriter>>,
}

/// Sizes of a trail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrailSize {
    /// Records.
    pub records: u64,
    /// Bytes of blocks.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
    /// Intents without an outcome.
    pub open_intents: u64,
}

impl Trail {
    /// Opens a trail and reads its directories and its log.
    ///
    /// # Errors
    /// [`TrailError`]. A block that cannot be read is no error: [`verify`](Self::verify) names it.
    pub fn open(
        disk: Arc<dyn Disk>,
        keys: impl Into<Arc<AuditKeys>>,
        options: TrailOptions,
    ) -> Result<Self, TrailError> {
        let keys = keys.into();
        let mut state = State::default();
        let (mut logs, mut numbers) = (Vec::new(), Vec::new());
        for (name, length) in disk.list()? {
            let Some((number, kind)) = name.split_once('.') else {
                if name == PRUNED {
                    let text = String::from_utf8(disk.read_all(&name)?).unwrap_or_default();
                    state.pruned = text.trim().parse().ok();
                }
                continue;
            };
            let Ok(number) = number.parse::<u64>() else { continue };
            match kind {
                "blk" => numbers.push((number, length)),
                "log" => logs.push(number),
                _ => disk.remove(&name)?, // a block that was not finished
            }
        }
        for (number, length) in numbers {
            match Block::open(&*disk, number, length, &keys) {
                Ok(block) => state.add_block(Arc::new(block)),
                Err(error) => {
                    tracing::error!(block = number, %error, "a block of the audit trail cannot be read");
                    state.damaged.insert(number, error.to_string());
                }
            }
            state.number = state.number.max(number + 1);
        }
        state.number = state.number.max(state.pruned.map_or(0, |pruned| pruned + 1));
        let trail = Self { disk, keys, options, state: RwLock::new(state), log: Mutex::new(None) };
        for number in logs {
            trail.replay(number)?;
        }
        // A log that was left behind is older than the blocks.
        let mut state = trail.state.write();
        state.number = state.number.max(state.blocks.last_key_value().map_or(0, |(newest, _)| newest + 1));
        drop(state);
        Ok(trail)
    }

    /// Takes in a log that had not become a block, and makes one of it.
    fn replay(&self, number: u64) -> Result<(), TrailError> {
        let is_done = |state: &State| {
            let is_pruned = state.pruned.is_some_and(|pruned| number <= pruned);
            is_pruned || state.blocks.contains_key(&number) || state.damaged.contains_key(&number)
        };
        if !is_done(&self.state.read()) {
            self.state.write().number = number;
            let bytes = self.disk.read_all(&log::file_name(number))?;
            let mut entries = LogReader::new(&bytes, &self.keys);
            for (node, segment, frame) in entries.by_ref() {
                let after = frame.head(segment.chain);
                self.state.write().push(&node, &segment, &frame, after);
            }
            if entries.torn() > 0 {
                tracing::warn!(
                    log = number,
                    bytes = entries.torn(),
                    "the end of the trail's log was not written whole"
                );
            }
            self.seal_block()?;
        }
        Ok(self.disk.remove(&log::file_name(number))?)
    }

    /// The public half of its current key, for nodes.
    #[must_use]
    pub fn public_key(&self) -> AuditPublicKey {
        self.keys.public()
    }

    /// Its keys.
    #[must_use]
    pub fn keys(&self) -> &Arc<AuditKeys> {
        &self.keys
    }

    /// Reads a segment's header.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn open_segment(&self, header: &[u8]) -> Result<OpenedSegment, FormatError> {
        let header = SegmentHeader::decode(header)?;
        let key = header.open(&self.keys)?;
        Ok(OpenedSegment { header, key })
    }

    /// The key of the segment that `header` begins, for `node`, if the trail knows the segment's
    /// chain as that node's.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn segment_key(&self, node: &str, header: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, FormatError> {
        let header = SegmentHeader::decode(header)?;
        if self.heads(node, &[header.chain]).is_empty() {
            return Ok(None);
        }
        header.open_bytes(&self.keys).map(Some)
    }

    /// Decrypts a frame that `node` has handed in.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn open_frame(
        node: &Arc<str>,
        segment: &Arc<OpenedSegment>,
        sealed: bytes::Bytes,
    ) -> Result<Arrival, FormatError> {
        let frame = SealedFrame::decode(&sealed)?.open(&segment.key)?;
        let after = frame.head(segment.header.chain);
        Ok(Arrival { node: node.clone(), segment: segment.clone(), sealed, frame, after })
    }

    /// The ends of those of `chains` that the trail has of `node`.
    #[must_use]
    pub fn heads(&self, node: &str, chains: &[ChainId]) -> Vec<Head> {
        let state = self.state.read();
        let known = chains.iter().filter_map(|chain| state.chains.get(chain));
        known.filter(|known| *known.node == *node).map(|known| known.head).collect()
    }

    /// Takes frames in, each once. When this returns, those with an `Ok` are durable, and the head
    /// is what the trail has of their chain.
    pub fn ingest(&self, arrivals: &[Arrival]) -> Vec<Result<Head, IngestError>> {
        let mut log = self.log.lock();
        let (mut results, mut news) = (Vec::with_capacity(arrivals.len()), Vec::new());
        let mut heads: HashMap<ChainId, Head> = HashMap::new();
        for arrival in arrivals {
            let result = self.check(arrival, &heads);
            if let Ok((head, is_new)) = &result {
                heads.insert(head.chain, *head);
                if *is_new {
                    news.push(arrival);
                }
            }
            results.push(result.map(|(head, _)| head));
        }
        if news.is_empty() {
            return results;
        }
        if let Err(error) = self.write(&mut log, &news) {
            tracing::error!(%error, "the audit trail cannot be written");
            let text = error.to_string();
            let failed = || IngestError::Trail(TrailError::Disk(io::Error::other(text.clone())));
            // Duplicates fail with the others: their heads may name what was not written.
            return arrivals.iter().map(|_| Err(failed())).collect();
        }
        results
    }

    /// Whether an arrival is new, and the head of its chain after it.
    fn check(&self, arrival: &Arrival, heads: &HashMap<ChainId, Head>) -> Result<(Head, bool), IngestError> {
        let (chain, frame) = (arrival.segment.header.chain, &arrival.frame);
        let (after, state) = (arrival.after, self.state.read());
        let known = state.chains.get(&chain);
        if known.is_some_and(|known| *known.node != *arrival.node) {
            return Err(IngestError::OtherNode(chain));
        }
        let Some(head) = heads.get(&chain).copied().or_else(|| known.map(|known| known.head)) else {
            let is_genesis = frame.first > 1 || frame.before == Digest::genesis(chain);
            return if is_genesis { Ok((after, true)) } else { Err(IngestError::Forked { chain, first: 1 }) };
        };
        let forked = || IngestError::Forked { chain, first: frame.first };
        if after.sequence <= head.sequence {
            let differs = after.sequence == head.sequence && after.digest != head.digest;
            return if differs { Err(forked()) } else { Ok((head, false)) };
        }
        // A part of it is here: frames never change, so it is not of this chain.
        if frame.first <= head.sequence || (frame.first == head.sequence + 1 && frame.before != head.digest) {
            return Err(forked());
        }
        Ok((after, true))
    }

    fn write(&self, log: &mut Option<LogWriter>, news: &[&Arrival]) -> Result<(), TrailError> {
        let writer = match log {
            Some(writer) if !writer.is_broken() => writer,
            _ => {
                // The log's end is undefined, or a block was due and could not be written. What the
                // log holds is in memory, and has to be in a block before the log goes.
                self.seal_block()?;
                let number = self.state.read().number;
                log.insert(LogWriter::create(&*self.disk, number)?)
            }
        };
        for arrival in news {
            writer.append(&arrival.node, &arrival.segment.header, &arrival.sealed);
        }
        writer.flush()?;
        let mut state = self.state.write();
        for arrival in news {
            state.push(&arrival.node, &arrival.segment.header, &arrival.frame, arrival.after);
        }
        let is_full = state.rows.len() >= self.options.block_rows || state.rows.bytes_len() >= MAX_ROW_BYTES;
        drop(state);
        if is_full {
            *log = None;
            // What is durable stays in the log, so a failure here costs nothing but the next
            // attempt.
            if let Err(error) = self.seal_block() {
                tracing::error!(%error, "a block of the audit trail cannot be written");
            }
        }
        Ok(())
    }

    /// Makes a block of the rows in memory, and removes their log. The next rows go into the next.
    fn seal_block(&self) -> Result<(), TrailError> {
        let (number, rows, intents) = {
            let state = self.state.read();
            let open = state.intents_here.iter().copied().collect();
            (state.number, state.rows.clone(), IntentLists { open, late: state.late_outcomes.clone() })
        };
        if rows.len() > 0 {
            let bytes = block::encode(number, &rows, intents, &self.keys.public())?;
            let unfinished = format!("{number:020}.new");
            self.disk.remove(&unfinished)?;
            let mut file = self.disk.create(&unfinished)?;
            file.append(&bytes)?;
            file.sync()?;
            self.disk.rename(&unfinished, &block::file_name(number))?;
            let block = Block::open(&*self.disk, number, bytes.len() as u64, &self.keys)?;
            let mut state = self.state.write();
            state.blocks.insert(number, Arc::new(block));
            (state.rows, state.number) = (Arc::new(Rows::with_room_of(&rows)), number + 1);
            state.late_outcomes.clear();
            state.intents_here.clear();
        }
        self.disk.remove(&log::file_name(number))?;
        self.retain()
    }

    /// Removes blocks that are too old, and the oldest while there are too many bytes.
    ///
    /// # Errors
    /// Of the file system.
    pub fn retain(&self) -> Result<(), TrailError> {
        let max_age = u64::try_from(self.options.max_age.as_micros()).unwrap_or(u64::MAX);
        let oldest = unix_micros().saturating_sub(max_age);
        loop {
            let state = self.state.read();
            let bytes: u64 = state.blocks.values().map(|block| block.bytes).sum();
            let Some((number, block)) = state.blocks.first_key_value().map(|(n, b)| (*n, b.clone())) else {
                return Ok(());
            };
            if bytes <= self.options.max_bytes && block.directory.max_us >= oldest {
                return Ok(());
            }
            drop(state);
            let (new, pruned) = (format!("{PRUNED}.new"), number.to_string());
            self.disk.remove(&new)?;
            let mut file = self.disk.create(&new)?;
            file.append(pruned.as_bytes())?;
            file.sync()?;
            self.disk.rename(&new, PRUNED)?;
            self.disk.remove(&block::file_name(number))?;
            let mut state = self.state.write();
            state.blocks.remove(&number);
            state.pruned = Some(number);
            block.directory.intents.open.iter().for_each(|id| {
                state.open_intents.remove(id);
            });
        }
    }

    /// The position of its newest record.
    #[must_use]
    pub fn end(&self) -> Position {
        let state = self.state.read();
        match state.rows.len().checked_sub(1) {
            Some(row) => Position { block: state.number, row: row as u32 },
            None => Position { block: state.number.saturating_sub(1), row: u32::MAX },
        }
    }

    /// When the oldest request in a block began, in Unix microseconds.
    #[must_use]
    pub fn oldest_us(&self) -> Option<u64> {
        self.state.read().blocks.values().map(|block| block.directory.min_us).min()
    }

    /// Its sizes.
    #[must_use]
    pub fn size(&self) -> TrailSize {
        let state = self.state.read();
        let in_blocks: u64 = state.blocks.values().map(|block| u64::from(block.directory.rows)).sum();
        TrailSize {
            records: in_blocks + state.rows.len() as u64,
            bytes: state.blocks.values().map(|block| block.bytes).sum(),
            blocks: state.blocks.len() as u64,
            open_intents: state.open_intents.len() as u64,
        }
    }
}

impl State {
    /// Appends a durable frame. `after` is the head of its chain after it.
    fn push(&mut self, node: &Arc<str>, header: &SegmentHeader, frame: &Frame, after: Head) {
        for record in frame.records() {
            let facts = Facts::of(record);
            if facts.kind == Kind::Intent as u64 {
                self.open_intents.insert(facts.request_id);
                self.intents_here.insert(facts.request_id);
            } else if facts.kind == Kind::Outcome as u64
                && self.open_intents.remove(&facts.request_id)
                && !self.intents_here.remove(&facts.request_id)
            {
                self.late_outcomes.push(facts.request_id);
            }
        }
        Arc::make_mut(&mut self.rows).push(node, (after, header.after), frame);
        let state = ChainState { node: node.clone(), head: after };
        self.chains.insert(header.chain, state);
    }

    fn add_block(&mut self, block: Arc<Block>) {
        for part in &block.directory.parts {
            let state = ChainState { node: part.node.as_str().into(), head: part.head };
            self.chains.insert(part.chain, state);
        }
        for id in &block.directory.intents.late {
            self.open_intents.remove(id);
        }
        self.open_intents.extend(&block.directory.intents.open);
        self.blocks.insert(block.number, block);
    }
}
