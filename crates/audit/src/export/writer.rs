//! Writes an export, piece by piece: nothing of it waits in memory for its end but the manifest.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
};

use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{AdminChainEntry, ChainEntry, FORMAT, FileEntry, FrameLine, MANIFEST, Manifest, ReportEntry, SIGNATURE};
use crate::{
    chain::ChainId,
    signing::SigningKey,
    trail::{KnownHead, StoredFrame},
};

/// Records in one file.
const RECORDS_PER_FILE: u64 = 100_000;
/// Compressed bytes that are handed on together.
const PIECE_BYTES: usize = 256 * 1024;
const LEVEL: i32 = 3;

/// A part of a file. Pieces of one file follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The file's name.
    pub file: String,
    /// Bytes to append.
    pub data: Vec<u8>,
}

type Sink<'a> = &'a mut (dyn FnMut(Piece) -> io::Result<()> + Send);

/// A file that is being written.
struct Lines {
    name: String,
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    sha256: Sha256,
    bytes: u64,
    lines: u64,
}

impl Lines {
    fn begin(name: String) -> io::Result<Self> {
        let encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
        Ok(Self { name, encoder, sha256: Sha256::new(), bytes: 0, lines: 0 })
    }

    fn line(&mut self, line: &impl serde::Serialize, sink: Sink<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.encoder, line)?;
        self.encoder.write_all(b"\n")?;
        self.lines += 1;
        if self.encoder.get_ref().len() >= PIECE_BYTES {
            let data = std::mem::take(self.encoder.get_mut());
            self.hand_on(data, sink)?;
        }
        Ok(())
    }

    fn hand_on(&mut self, data: Vec<u8>, sink: Sink<'_>) -> io::Result<()> {
        self.sha256.update(&data);
        self.bytes += data.len() as u64;
        sink(Piece { file: self.name.clone(), data })
    }

    fn end(mut self, sink: Sink<'_>) -> io::Result<FileEntry> {
        self.encoder.do_finish()?;
        let data = std::mem::take(self.encoder.get_mut());
        self.hand_on(data, sink)?;
        let Self { name, sha256, bytes, lines, .. } = self;
        Ok(FileEntry { name, sha256: HEXLOWER.encode(&sha256.finalize()), bytes, lines })
    }
}

/// Writes an export.
pub struct ExportWriter<'a> {
    manifest: Manifest,
    sink: Sink<'a>,
    records: Option<Lines>,
    frames: Lines,
    changes: Lines,
    chains: BTreeMap<ChainId, ChainEntry>,
}

impl<'a> ExportWriter<'a> {
    /// An export without anything. `manifest` says what it is of.
    ///
    /// # Errors
    /// Of the sink.
    pub fn new(manifest: Manifest, sink: Sink<'a>) -> io::Result<Self> {
        let (frames, changes) = (Lines::begin("frames.jsonl.zst".into())?, Lines::begin("admin.jsonl.zst".into())?);
        Ok(Self { manifest, sink, records: None, frames, changes, chains: BTreeMap::new() })
    }

    /// Adds a record. `view` is what people read of it.
    ///
    /// # Errors
    /// Of the sink.
    pub fn record(&mut self, mut view: Map<String, Value>, record: &[u8]) -> io::Result<()> {
        view.insert("record".into(), BASE64.encode(record).into());
        if self.records.as_ref().is_some_and(|lines| lines.lines >= RECORDS_PER_FILE) {
            self.end_records()?;
        }
        let lines = match &mut self.records {
            Some(lines) => lines,
            none => {
                let number = self.manifest.files.len() + 1;
                none.insert(Lines::begin(format!("records-{number:06}.jsonl.zst"))?)
            }
        };
        self.manifest.records += 1;
        lines.line(&view, self.sink)
    }

    fn end_records(&mut self) -> io::Result<()> {
        if let Some(lines) = self.records.take() {
            let file = lines.end(self.sink)?;
            self.manifest.files.push(file);
        }
        Ok(())
    }

    /// Adds a frame, whose records are added on their own. Frames of a chain come in order.
    ///
    /// # Errors
    /// Of the sink.
    pub fn frame(&mut self, frame: &StoredFrame) -> io::Result<()> {
        let count = frame.records.len() as u32;
        let (before, digest) = (HEXLOWER.encode(&frame.before.0), HEXLOWER.encode(&frame.digest.0));
        let entry = self.chains.entry(frame.chain).or_insert_with(|| ChainEntry {
            node: frame.node.clone(),
            chain: frame.chain.to_string(),
            first: frame.first,
            before: before.clone(),
            last: 0,
            digest: String::new(),
        });
        entry.last = frame.first + u64::from(count) - 1;
        entry.digest.clone_from(&digest);
        let line = FrameLine {
            node: frame.node.clone(),
            chain: frame.chain.to_string(),
            after: frame.after.map(|after| (after.chain.to_string(), after.sequence)),
            first: frame.first,
            count,
            written_us: frame.written_us,
            before,
            digest,
        };
        self.frames.line(&line, self.sink)
    }

    /// Adds an admin change. `view` is what people read of it; `previous` is the digest that it has
    /// of the one before it.
    ///
    /// # Errors
    /// Of the sink.
    pub fn change(&mut self, mut view: Map<String, Value>, previous: &[u8], change: &[u8]) -> io::Result<()> {
        view.insert("previous".into(), HEXLOWER.encode(previous).into());
        view.insert("change".into(), BASE64.encode(change).into());
        self.manifest.changes += 1;
        self.changes.line(&view, self.sink)
    }

    /// Names a chain of admin changes.
    pub fn admin_chain(&mut self, chain: &str, (first, sequence): (u64, u64), digest: &[u8]) {
        let (chain, digest) = (chain.to_owned(), HEXLOWER.encode(digest));
        self.manifest.admin_chains.push(AdminChainEntry { chain, sequence, digest, first });
    }

    /// Notes what nodes have reported of their chains.
    pub fn reported(&mut self, known: &[KnownHead]) {
        self.manifest.reported.extend(known.iter().map(|known| ReportEntry {
            node: known.node.clone(),
            chain: known.head.chain.to_string(),
            sequence: known.head.sequence,
            digest: HEXLOWER.encode(&known.head.digest.0),
            kept_from: known.kept_from,
            reported_us: known.reported_us,
        }));
    }

    /// Ends the files, and writes the manifest and its signature.
    ///
    /// # Errors
    /// Of the sink.
    pub fn finish(mut self, unreadable_blocks: Vec<u64>, key: &SigningKey) -> io::Result<Manifest> {
        self.end_records()?;
        let Self { mut manifest, sink, frames, changes, chains, .. } = self;
        manifest.files.push(frames.end(&mut *sink)?);
        manifest.files.push(changes.end(&mut *sink)?);
        manifest.chains = chains.into_values().collect();
        (manifest.format, manifest.key, manifest.unreadable_blocks) = (FORMAT, key.public().id(), unreadable_blocks);
        let data = serde_json::to_vec_pretty(&manifest)?;
        let signature = key.sign(&data);
        sink(Piece { file: MANIFEST.into(), data })?;
        sink(Piece { file: SIGNATURE.into(), data: signature })?;
        Ok(manifest)
    }
}
