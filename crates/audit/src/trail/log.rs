//! The log: what has arrived and is no block yet, as sealed as it came.
//!
//! An entry is `length u32, CRC-32 u32, kind u8, contents`. A segment's entry holds its node and
//! its header; a frame's entry the number of its segment in this log and the frame.

use std::{collections::HashMap, io, sync::Arc};

use crate::{
    chain::ChainId,
    disk::{Appender, Disk},
    frame::{Frame, HEADER_BYTES, SealedFrame, SegmentHeader},
    seal::{AuditKeys, FileKey},
};

const SEGMENT: u8 = 1;
const FRAME: u8 = 2;
const PREFIX_BYTES: usize = 8;

/// The file of a log.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number:020}.log")
}

/// Writes one log.
pub(crate) struct LogWriter {
    file: Box<dyn Appender>,
    /// By the chain and the first sequence of the segment.
    segments: HashMap<(ChainId, u64), u32>,
    buffer: Vec<u8>,
    is_broken: bool,
}

impl LogWriter {
    pub(crate) fn create(disk: &dyn Disk, number: u64) -> io::Result<Self> {
        let file = disk.create(&file_name(number))?;
        Ok(Self { file, segments: HashMap::new(), buffer: Vec::new(), is_broken: false })
    }

    /// Whether a write has failed. Nothing may follow then.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Adds a frame to what [`flush`](Self::flush) writes.
    pub(crate) fn append(&mut self, node: &str, header: &SegmentHeader, frame: &[u8]) {
        let next = self.segments.len() as u32;
        let known = self.segments.get(&(header.chain, header.first)).copied();
        let segment = known.unwrap_or(next);
        if known.is_none() {
            self.segments.insert((header.chain, header.first), next);
            self.entry(SEGMENT, &[&header.encode(), node.as_bytes()]);
        }
        self.entry(FRAME, &[&segment.to_be_bytes(), frame]);
    }

    fn entry(&mut self, kind: u8, contents: &[&[u8]]) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; PREFIX_BYTES]);
        self.buffer.push(kind);
        contents.iter().for_each(|part| self.buffer.extend_from_slice(part));
        let covered = self.buffer.get(start + PREFIX_BYTES..).unwrap_or_default();
        let (length, crc) = ((covered.len() as u32).to_be_bytes(), crc32fast::hash(covered).to_be_bytes());
        if let Some(prefix) = self.buffer.get_mut(start..).and_then(|entry| entry.first_chunk_mut::<PREFIX_BYTES>()) {
            prefix.iter_mut().zip(length.into_iter().chain(crc)).for_each(|(place, byte)| *place = byte);
        }
    }

    /// Writes and syncs what was appended.
    ///
    /// # Errors
    /// Of the file system. The log is broken then.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let written = self.file.append(&self.buffer).and_then(|()| self.file.sync());
        self.is_broken = written.is_err();
        self.buffer.clear();
        written
    }
}

/// Reads a log up to its first entry that is not whole.
pub(crate) struct LogReader<'a> {
    rest: &'a [u8],
    keys: &'a AuditKeys,
    segments: Vec<(Arc<str>, SegmentHeader, FileKey)>,
}

impl<'a> LogReader<'a> {
    pub(crate) fn new(bytes: &'a [u8], keys: &'a AuditKeys) -> Self {
        Self { rest: bytes, keys, segments: Vec::new() }
    }

    /// Bytes behind the last whole entry.
    pub(crate) fn torn(&self) -> usize {
        self.rest.len()
    }

    fn entry(&mut self) -> Option<(u8, &'a [u8])> {
        let (prefix, rest) = self.rest.split_first_chunk::<PREFIX_BYTES>()?;
        let (length, crc) = prefix.split_first_chunk::<4>()?;
        let (covered, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        if crc32fast::hash(covered).to_be_bytes() != *crc {
            return None;
        }
        self.rest = rest;
        covered.split_first().map(|(kind, contents)| (*kind, contents))
    }
}

impl Iterator for LogReader<'_> {
    type Item = (Arc<str>, SegmentHeader, Frame);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.entry()? {
                (SEGMENT, contents) => {
                    let header = SegmentHeader::decode(contents).ok()?;
                    let node = std::str::from_utf8(contents.get(HEADER_BYTES..)?).ok()?;
                    let key = header.open(self.keys).ok()?;
                    self.segments.push((node.into(), header, key));
                }
                (FRAME, contents) => {
                    let (segment, frame) = contents.split_first_chunk::<4>()?;
                    let (node, header, key) = self.segments.get(u32::from_be_bytes(*segment) as usize)?;
                    let frame = SealedFrame::decode(frame).ok()?.open(key).ok()?;
                    return Some((node.clone(), header.clone(), frame));
                }
                _ => return None,
            }
        }
    }
}
