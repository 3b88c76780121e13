//! A node's segments on disk. One thread writes them, and the upload reads them.
//!
//! A process writes only segments that it created. Segments of earlier processes are read to find
//! their end, and are kept until they are uploaded. After a failed write the content of the disk is
//! unknown, so the chain ends and another begins.

mod exporting;

use std::{
    io,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use self::exporting::Exporting;
use crate::{
    chain::{ChainId, Head, Predecessor},
    disk::{Appender, Disk},
    frame::{self, FormatError, Frames, HEADER_BYTES, SegmentHeader},
    seal::{AuditPublicKey, FileKey, SealError},
};

const SUFFIX: &str = ".seg";
/// Names the newest chain that was begun on this disk. A copied disk has it, too.
const CHAIN: &str = "chain";
/// What a segment whose header cannot be read is renamed to.
const DAMAGED: &str = ".damaged";

/// Bounds of a spool.
#[derive(Clone, Copy, Debug)]
pub struct SpoolOptions {
    /// Most bytes on disk. At this size nothing more is accepted.
    pub max_bytes: u64,
    /// Segments that were begun longer ago are removed, uploaded or not.
    pub max_age: Duration,
    /// A segment that has grown to this size is followed by another.
    pub segment_bytes: u64,
    /// Whether records also go to a collector. Segments then stay until it has them, unless there
    /// is no room.
    pub is_exported: bool,
}

impl Default for SpoolOptions {
    fn default() -> Self {
        let max_age = Duration::from_secs(30 * 24 * 3600);
        Self { max_bytes: 1 << 30, max_age, segment_bytes: 8 << 20, is_exported: false }
    }
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The spool holds as much as it may.
    #[error("the spool holds {0} bytes, which is its limit")]
    Full(u64),
    /// The disk refused.
    #[error("the disk: {0}")]
    Disk(#[from] io::Error),
    /// No key for a segment.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No randomness for a chain's id.
    #[error("no randomness")]
    Randomness,
}

/// One segment, as the upload sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its file.
    pub name: String,
    /// The chain of its frames.
    pub chain: ChainId,
    /// The sequence of its first record.
    pub first: u64,
    /// The sequence of its last durable record; `first - 1`: none yet.
    pub last: u64,
    /// Its durable bytes.
    pub bytes: u64,
    /// Unix microseconds.
    pub created_us: u64,
    /// It may still grow.
    pub is_open: bool,
    /// The sequence up to which a replica has it; `first - 1`: nothing.
    pub acknowledged: u64,
    /// The sequence up to which the collector has it; `first - 1`: nothing.
    pub exported: u64,
}

impl SegmentInfo {
    /// Records that no replica has acknowledged to this process.
    fn unacknowledged(&self) -> u64 {
        self.last.saturating_sub(self.acknowledged)
    }
}

/// The segments on disk. Shared by the writer and the upload.
pub struct Segments {
    disk: Arc<dyn Disk>,
    list: Mutex<Vec<SegmentInfo>>,
    /// Signalled when something became durable.
    grown: Notify,
    /// Absent where nothing is exported.
    exporting: Option<Exporting>,
}

impl Segments {
    /// All of them, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<SegmentInfo> {
        self.list.lock().clone()
    }

    /// Bytes on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.list.lock().iter().map(|segment| segment.bytes).sum()
    }

    /// Records on disk that no replica has acknowledged to this process.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.list.lock().iter().map(SegmentInfo::unacknowledged).sum()
    }

    /// Waits until something more is durable. What became durable since the last wait counts.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }

    /// Reads durable bytes of a segment.
    ///
    /// # Errors
    /// Of the file system.
    pub fn read(&self, segment: &SegmentInfo, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(segment.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.disk.read(&segment.name, offset, length.min(left))
    }

    /// A replica has everything of `chain` up to `sequence`. Segments that nobody needs any more
    /// are removed. Returns how many records were not acknowledged before. Blocks.
    pub fn acknowledge(&self, chain: ChainId, sequence: u64) -> u64 {
        let mut records = 0;
        for segment in self.list.lock().iter_mut().filter(|segment| segment.chain == chain) {
            let acknowledged = sequence.min(segment.last).max(segment.acknowledged);
            records += acknowledged - segment.acknowledged;
            segment.acknowledged = acknowledged;
        }
        self.remove_done();
        records
    }

    /// Removes segments that replica and collector have whole.
    fn remove_done(&self) {
        let exporting = self.exporting.as_ref();
        self.remove(|segment| {
            let is_needed = segment.unacknowledged() > 0 || exporting.is_some_and(|exporting| exporting.needs(segment));
            !segment.is_open && segment.last >= segment.first && !is_needed
        });
    }

    /// Removes the oldest segments that a replica has and the collector doesn't, until `bytes` are
    /// free. Records stay recorded. Their spans are lost, and counted.
    fn make_room(&self, bytes: u64) {
        let mut freed = 0;
        let list = self.list();
        let removable = list.iter().filter(|s| !s.is_open && s.unacknowledged() == 0);
        let names: Vec<&String> = removable
            .take_while(|segment| {
                let is_short = freed < bytes;
                freed += segment.bytes;
                is_short
            })
            .map(|segment| &segment.name)
            .collect();
        self.remove(|segment| names.contains(&&segment.name));
    }

    /// Removes segments that were begun before `created_us`. Returns the records in them that no
    /// replica has.
    fn expire(&self, created_us: u64) -> u64 {
        self.remove(|segment| !segment.is_open && segment.created_us < created_us)
    }

    /// Returns the removed records that no replica has.
    fn remove(&self, which: impl Fn(&SegmentInfo) -> bool) -> u64 {
        let removed: Vec<SegmentInfo> = self.list.lock().iter().filter(|s| which(s)).cloned().collect();
        let mut records = 0;
        for segment in removed {
            if let Err(error) = self.disk.remove(&segment.name) {
                tracing::warn!(segment = segment.name, %error, "an audit segment cannot be removed");
                continue;
            }
            self.list.lock().retain(|other| other.name != segment.name);
            records += segment.unacknowledged();
            self.exporting.iter().for_each(|exporting| exporting.forget(&segment));
        }
        records
    }

    /// Segments that are closed and empty.
    fn remove_empty(&self) {
        self.remove(|segment| !segment.is_open && segment.last < segment.first);
    }

    fn wake(&self) {
        self.grown.notify_one();
        self.exporting.iter().for_each(Exporting::wake);
    }

    fn update(&self, name: &str, change: impl FnOnce(&mut SegmentInfo)) {
        if let Some(segment) = self.list.lock().iter_mut().rev().find(|segment| segment.name == name) {
            change(segment);
        }
    }
}

struct OpenSegment {
    name: String,
    file: Box<dyn Appender>,
    key: Arc<FileKey>,
    written: u64,
}

/// Writes a spool. One for each directory.
pub struct SpoolWriter {
    disk: Arc<dyn Disk>,
    segments: Arc<Segments>,
    key: AuditPublicKey,
    options: SpoolOptions,
    after: Option<Predecessor>,
    /// After everything that was written.
    written: Head,
    /// After everything that is durable.
    durable: Head,
    open: Option<OpenSegment>,
    next_number: u64,
    buffer: Vec<u8>,
}

impl SpoolWriter {
    /// Opens a spool, and finds what earlier processes left in it.
    ///
    /// # Errors
    /// [`SpoolError::Disk`] when the directory cannot be read; [`SpoolError::Randomness`].
    pub fn open(disk: Arc<dyn Disk>, key: AuditPublicKey, options: SpoolOptions) -> Result<Self, SpoolError> {
        let (mut list, next_number) = recover(&*disk)?;
        let exporting = options.is_exported.then(|| exporting::load_marks(&*disk, &mut list));
        let named =
            String::from_utf8(disk.read_all(CHAIN).unwrap_or_default()).ok().and_then(|text| text.trim().parse().ok());
        let newest = named.or_else(|| list.last().map(|last| last.chain));
        let after = newest.map(|chain| {
            // 0: a replica has all of it.
            let sequence = list.iter().rev().find(|segment| segment.chain == chain).map_or(0, |last| last.last);
            Predecessor { chain, sequence }
        });
        let chain = ChainId::generate().map_err(|_| SpoolError::Randomness)?;
        let segments = Segments { disk: disk.clone(), list: Mutex::new(list), grown: Notify::new(), exporting };
        segments.remove_empty();
        segments.wake();
        let head = Head::genesis(chain);
        let (segments, buffer) = (Arc::new(segments), Vec::new());
        Ok(Self { disk, segments, key, options, after, written: head, durable: head, open: None, next_number, buffer })
    }

    /// The segments on disk.
    #[must_use]
    pub fn segments(&self) -> &Arc<Segments> {
        &self.segments
    }

    /// The end of the chain on disk.
    #[must_use]
    pub fn durable(&self) -> Head {
        self.durable
    }

    /// Whether something was written and not synced.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.written != self.durable
    }

    /// Fails when `more` bytes go beyond the limit of the disk that the spool may use, and nothing
    /// can be removed.
    ///
    /// # Errors
    /// [`SpoolError::Full`].
    pub fn check_room(&self, more: u64) -> Result<(), SpoolError> {
        let limit = self.options.max_bytes;
        let is_full = || self.segments.bytes() + more > limit;
        if is_full() {
            self.segments.make_room((self.segments.bytes() + more).saturating_sub(limit));
        }
        if is_full() { Err(SpoolError::Full(limit)) } else { Ok(()) }
    }

    /// Writes one frame: `count` records, each with its length in front, of at most
    /// [`frame::MAX_RECORDS_BYTES`] together.
    ///
    /// # Errors
    /// [`SpoolError`]. The chain has ended then if it had unsynced frames, and none of those counts
    /// as recorded.
    pub fn append(&mut self, count: u32, records: &[u8]) -> Result<(), SpoolError> {
        self.try_append(count, records).inspect_err(|_| self.abandon())
    }

    fn try_append(&mut self, count: u32, records: &[u8]) -> Result<(), SpoolError> {
        let now = unix_micros();
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin_segment(now)?,
        };
        self.buffer.clear();
        let written = frame::write_frame(&mut self.buffer, &open.key, &self.written, count, now, records);
        let result = written.map_err(SpoolError::from).and_then(|head| {
            open.file.append(&self.buffer)?;
            open.written += self.buffer.len() as u64;
            Ok(head)
        });
        self.open = Some(open);
        self.written = result?;
        Ok(())
    }

    fn begin_segment(&mut self, now: u64) -> Result<OpenSegment, SpoolError> {
        let first = self.written.sequence + 1;
        if first == 1 {
            self.name_chain()?;
        }
        let (header, key) = SegmentHeader::create(&self.key, self.written.chain, first, now, self.after)?;
        let name = format!("{:020}{SUFFIX}", self.next_number);
        let mut file = self.disk.create(&name)?;
        self.next_number += 1;
        if let Err(error) = file.append(&header.encode()) {
            let _ = self.disk.remove(&name); // a torn header is recognised, too
            return Err(error.into());
        }
        let key = Arc::new(key);
        self.segments.exporting.iter().for_each(|exporting| exporting.keep_key(&name, &key));
        self.segments.list.lock().push(SegmentInfo {
            name: name.clone(),
            chain: self.written.chain,
            first,
            last: first - 1,
            bytes: 0,
            created_us: now,
            is_open: true,
            acknowledged: first - 1,
            exported: first - 1,
        });
        Ok(OpenSegment { name, file, key, written: HEADER_BYTES as u64 })
    }

    fn name_chain(&self) -> Result<(), SpoolError> {
        let new = format!("{CHAIN}.new");
        self.disk.remove(&new)?;
        let mut file = self.disk.create(&new)?;
        file.append(self.written.chain.to_string().as_bytes())?;
        file.sync()?;
        Ok(self.disk.rename(&new, CHAIN)?)
    }

    /// Makes everything written durable, and begins another segment when this one is large enough.
    ///
    /// # Errors
    /// [`SpoolError::Disk`]. What was written since the last success doesn't count as recorded.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if let Err(error) = open.file.sync() {
            self.abandon();
            return Err(error.into());
        }
        self.durable = self.written;
        let (last, bytes) = (self.durable.sequence, open.written);
        let closes = bytes >= self.options.segment_bytes;
        self.segments.update(&open.name, |segment| {
            (segment.last, segment.bytes, segment.is_open) = (last, bytes, !closes);
        });
        if closes {
            self.open = None;
        }
        self.segments.wake();
        Ok(())
    }

    /// Closes the segment and the chain after a failure. A chain without records continues.
    fn abandon(&mut self) {
        if let Some(open) = self.open.take() {
            self.segments.update(&open.name, |segment| segment.is_open = false);
            self.segments.remove_empty();
        }
        if self.durable.sequence == 0 && self.written.sequence == 0 {
            return;
        }
        let Ok(chain) = ChainId::generate() else { return };
        self.after = Some(Predecessor { chain: self.durable.chain, sequence: self.durable.sequence });
        (self.written, self.durable) = (Head::genesis(chain), Head::genesis(chain));
    }

    /// Seals to `key` from the next segment on, which is the next record's. The chain goes on.
    ///
    /// # Errors
    /// As [`sync`](Self::sync). What was written since the last success doesn't count as recorded.
    pub fn seal_to(&mut self, key: AuditPublicKey) -> Result<(), SpoolError> {
        let synced = if self.is_dirty() { self.sync() } else { Ok(()) };
        self.close_segment();
        self.key = key;
        synced
    }

    /// Ends the segment, of which everything is durable.
    fn close_segment(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.segments.update(&open.name, |segment| segment.is_open = false);
        self.segments.wake();
        self.segments.remove_done();
    }

    /// Closes the segment if it was begun longer ago than `age`, so that it can be removed once it
    /// is uploaded, and removes segments beyond the spool's age. Returns how many records were
    /// removed that nobody has acknowledged.
    pub fn tidy(&mut self, age: Duration) -> u64 {
        let now = unix_micros();
        let before = |age: Duration| now.saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
        if !self.is_dirty()
            && let Some(open) = &self.open
            && self.segments.list().iter().any(|s| s.name == open.name && s.created_us < before(age))
        {
            self.close_segment();
        }
        self.segments.expire(before(self.options.max_age))
    }
}

/// Unix microseconds of the machine's wall clock.
#[must_use]
pub fn unix_micros() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// What is on a disk: the segments that can be uploaded, and the number of the next.
fn recover(disk: &dyn Disk) -> Result<(Vec<SegmentInfo>, u64), SpoolError> {
    let (mut list, mut next_number) = (Vec::new(), 0);
    for (name, length) in disk.list()? {
        let number = name.split('.').next().and_then(|number| number.parse::<u64>().ok());
        let Some(number) = number else { continue };
        next_number = next_number.max(number + 1);
        if !name.ends_with(SUFFIX) {
            continue;
        }
        let bytes = disk.read_all(&name)?;
        match SegmentHeader::decode(&bytes) {
            Ok(header) => {
                let mut frames = Frames::of(bytes.get(HEADER_BYTES..).unwrap_or_default());
                let last = frames.by_ref().last().map_or(header.first - 1, |frame| frame.last());
                let torn = frames.rest().len();
                if torn > 0 {
                    tracing::warn!(segment = name, bytes = torn, "the end of an audit segment was not written whole");
                }
                let SegmentHeader { chain, first, created_us, .. } = header;
                let (bytes, nothing) = (length.saturating_sub(torn as u64), first - 1);
                let (acknowledged, exported) = (nothing, nothing);
                let is_open = false;
                list.push(SegmentInfo { name, chain, first, last, bytes, created_us, is_open, acknowledged, exported });
            }
            // The header was never durable, so nothing in the segment was promised.
            Err(FormatError::Torn) if bytes.len() <= HEADER_BYTES => disk.remove(&name)?,
            Err(error) => {
                tracing::error!(segment = name, %error, "an audit segment cannot be read; it is kept aside");
                disk.rename(&name, &name.replace(SUFFIX, DAMAGED))?;
            }
        }
    }
    Ok((list, next_number))
}

#[cfg(test)]
mod tests;
