//! Verifies exports: the signature, every file, and every chain, recomputed from the records.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

use data_encoding::{BASE64, HEXLOWER};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::{ChangeLine, FORMAT, FileEntry, FrameLine, MANIFEST, Manifest, RecordLine, SIGNATURE};
use crate::{
    admin::{self, Fault, Link},
    chain::{ChainId, Digest, Head, Predecessor},
    signing::{SigningError, VerifyingKey},
    trail::{ExportedFrame, Finding, KnownHead, Span, verify_frames},
};

/// Longest manifest and longest line.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;
const MAX_LINE_BYTES: u64 = 4 << 20;

/// Why an export cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file that must be there cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The manifest was changed, or another key signed it.
    #[error("{path}: {source}: it was changed, or signed with another key than {key}")]
    Signature {
        /// The manifest.
        path: PathBuf,
        /// The key that was given.
        key: String,
        /// What is wrong.
        source: SigningError,
    },
    /// The manifest is signed, and not of a form that is known here.
    #[error("{path}: not a manifest of format {FORMAT}: use the version of `seks` that wrote it")]
    Format {
        /// The manifest.
        path: PathBuf,
    },
}

/// What is wrong with an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportFinding {
    /// A file is not there.
    FileMissing {
        /// Its name.
        name: String,
    },
    /// A file is not the one that was signed.
    FileChanged {
        /// Its name.
        name: String,
        /// The file whose contents it has, if it is another one of the export.
        has_contents_of: Option<String>,
    },
    /// A file that the manifest does not name: whoever reads `*.zst` reads it as well.
    FileUnknown {
        /// Its name.
        name: String,
    },
    /// A symbolic link: what it leads to can change after it was verified.
    FileIsLink {
        /// Its name.
        name: String,
    },
    /// A chain.
    Chain(Finding),
    /// A chain of admin changes.
    Admin {
        /// A tenant, or `*`.
        chain: String,
        /// What is wrong.
        fault: Fault,
    },
    /// The trail had blocks that could not be read when the export was made.
    UnreadableBlock {
        /// Its number.
        block: u64,
    },
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportVerification {
    /// What is wrong.
    pub findings: Vec<ExportFinding>,
    /// Records that were recomputed.
    pub records: u64,
    /// Chains that they belong to.
    pub chains: u64,
    /// Admin changes that were recomputed.
    pub changes: u64,
    /// What the manifests say. One for each replica.
    pub manifests: Vec<Manifest>,
}

/// Verifies the exports in `directories`, each with a manifest, together: nodes may have handed
/// parts of one chain to several replicas.
///
/// # Errors
/// [`ExportError`] when a manifest is not there or not signed with `key`.
pub fn verify_export(directories: &[PathBuf], key: &VerifyingKey) -> Result<ExportVerification, ExportError> {
    let mut read = Read::default();
    let mut seen = HashSet::new();
    for directory in directories {
        if !seen.insert(directory.canonicalize().unwrap_or_else(|_| directory.clone())) {
            continue; // the same one once more
        }
        let manifest = manifest(directory, key)?;
        read.entries(directory, &manifest);
        read.export(directory, &manifest);
        read.found.manifests.push(manifest);
    }
    Ok(read.finish())
}

fn manifest(directory: &Path, key: &VerifyingKey) -> Result<Manifest, ExportError> {
    let bytes = |name: &str| {
        let path = directory.join(name);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_MANIFEST_BYTES).read_to_end(&mut bytes));
        read.map(|_| bytes).map_err(|source| ExportError::File { path, source })
    };
    let (manifest, signature) = (bytes(MANIFEST)?, bytes(SIGNATURE)?);
    let path = directory.join(MANIFEST);
    if let Err(source) = key.verify(&manifest, &signature) {
        return Err(ExportError::Signature { path, key: key.id(), source });
    }
    let manifest: Option<Manifest> = serde_json::from_slice(&manifest).ok();
    manifest.filter(|manifest| manifest.format == FORMAT).ok_or(ExportError::Format { path })
}

/// What the manifests say of a chain of admin changes.
#[derive(Clone, Copy)]
struct AdminEnd {
    first: u64,
    last: u64,
    digest: Digest,
}

/// What was read of the exports.
#[derive(Default)]
struct Read {
    found: ExportVerification,
    frames: BTreeMap<ChainId, BTreeMap<u64, ExportedFrame>>,
    spans: BTreeMap<ChainId, Span>,
    records: HashMap<(ChainId, u64), Vec<u8>>,
    reported: Vec<KnownHead>,
    links: BTreeMap<String, BTreeMap<u64, Link>>,
    admin_ends: BTreeMap<String, AdminEnd>,
    created_us: u64,
}

impl Read {
    /// Whether everything in the directory that looks like a part of an export is a file that was
    /// signed.
    fn entries(&mut self, directory: &Path, manifest: &Manifest) {
        let is_signed =
            |name: &str| [MANIFEST, SIGNATURE].contains(&name) || manifest.files.iter().any(|file| file.name == name);
        let mut entries: Vec<_> = std::fs::read_dir(directory).into_iter().flatten().flatten().collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_signed(&name) && !name.contains(".json") && !name.ends_with(".zst") {
                continue; // a note, a key
            }
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                self.found.findings.push(ExportFinding::FileIsLink { name });
            } else if !is_signed(&name) {
                self.found.findings.push(ExportFinding::FileUnknown { name });
            }
        }
    }

    fn export(&mut self, directory: &Path, manifest: &Manifest) {
        for file in &manifest.files {
            let path = directory.join(&file.name);
            if file.name.starts_with("records-") {
                self.lines(&path, |read, line: RecordLine| read.record(&line));
            } else if file.name.starts_with("frames.") {
                self.lines(&path, |read, line: FrameLine| read.frame(line));
            } else if file.name.starts_with("admin.") {
                self.lines(&path, |read, line: ChangeLine| read.change(&line));
            }
            self.check_file(directory, file, &manifest.files);
        }
        for chain in &manifest.chains {
            if let (Some(end), Some(before)) = (head(&chain.chain, chain.last, &chain.digest), digest(&chain.before)) {
                self.span(Span { node: chain.node.clone(), first: chain.first, before, end });
            }
        }
        self.reported.extend(manifest.reported.iter().filter_map(|report| {
            let (node, head) = (report.node.clone(), head(&report.chain, report.sequence, &report.digest)?);
            Some(KnownHead { node, head, kept_from: report.kept_from, reported_us: report.reported_us })
        }));
        for chain in &manifest.admin_chains {
            let first = if chain.first == 0 { admin::oldest_kept(chain.sequence) } else { chain.first };
            let digest = digest(&chain.digest).unwrap_or(Digest([0; 32]));
            let end = AdminEnd { first, last: chain.sequence, digest };
            let known = self.admin_ends.entry(chain.chain.clone()).or_insert(end);
            known.first = known.first.min(first);
            if end.last > known.last {
                (known.last, known.digest) = (end.last, end.digest);
            }
        }
        let unreadable =
            manifest.unreadable_blocks.iter().map(|block| ExportFinding::UnreadableBlock { block: *block });
        self.found.findings.extend(unreadable);
        self.created_us = self.created_us.max(manifest.created_us);
    }

    /// A part of a chain. Several replicas may have parts of the same.
    fn span(&mut self, span: Span) {
        let known = self.spans.entry(span.end.chain).or_insert_with(|| span.clone());
        if span.first < known.first {
            (known.first, known.before) = (span.first, span.before);
        }
        if span.end.sequence > known.end.sequence {
            known.end = span.end;
        }
    }

    /// Reads the lines of a file as far as they can be read. Whether it is whole is shown by its
    /// digest.
    fn lines<T: DeserializeOwned>(&mut self, path: &Path, mut each: impl FnMut(&mut Self, T)) {
        let Ok(decoder) = File::open(path).and_then(zstd::stream::read::Decoder::new) else { return };
        let (mut reader, mut line) = (BufReader::new(decoder), Vec::new());
        loop {
            line.clear();
            match reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if let Ok(value) = serde_json::from_slice(&line) {
                each(self, value);
            }
        }
    }

    fn check_file(&mut self, directory: &Path, file: &FileEntry, all: &[FileEntry]) {
        let name = file.name.clone();
        match sha256(&directory.join(&file.name)) {
            Ok(sha256) if sha256 == file.sha256 => {}
            Ok(sha256) => {
                let other = all.iter().find(|other| other.sha256 == sha256).map(|other| other.name.clone());
                self.found.findings.push(ExportFinding::FileChanged { name, has_contents_of: other });
            }
            Err(_) => self.found.findings.push(ExportFinding::FileMissing { name }),
        }
    }

    fn record(&mut self, line: &RecordLine) {
        if let (Ok(chain), Ok(record)) = (line.chain.parse(), BASE64.decode(line.record.as_bytes())) {
            self.found.records += 1;
            self.records.insert((chain, line.sequence), record);
        }
    }

    fn frame(&mut self, line: FrameLine) {
        let (Ok(chain), Some(before), Some(after)) = (line.chain.parse(), digest(&line.before), digest(&line.digest))
        else {
            return;
        };
        let predecessor =
            line.after.and_then(|(chain, sequence)| Some(Predecessor { chain: chain.parse().ok()?, sequence }));
        let frame = ExportedFrame {
            node: line.node,
            after: predecessor,
            first: line.first,
            count: line.count,
            written_us: line.written_us,
            before,
            digest: after,
        };
        self.frames.entry(chain).or_default().insert(line.first, frame);
    }

    fn change(&mut self, line: &ChangeLine) {
        let previous = HEXLOWER.decode(line.previous.as_bytes());
        if let (Ok(previous), Ok(change)) = (previous, BASE64.decode(line.change.as_bytes())) {
            self.found.changes += 1;
            let link = Link { sequence: line.sequence, previous, digest: admin::digest(&change) };
            self.links.entry(line.chain.clone()).or_default().insert(line.sequence, link);
        }
    }

    fn finish(self) -> ExportVerification {
        let Self { mut found, frames, spans, records, reported, mut links, admin_ends, created_us } = self;
        found.chains = spans.len() as u64;
        let chains = verify_frames(&frames, &spans, &records, &reported, created_us);
        found.findings.extend(chains.into_iter().map(ExportFinding::Chain));
        for (chain, AdminEnd { first, last, digest }) in admin_ends {
            let links: Vec<Link> = links.remove(&chain).unwrap_or_default().into_values().collect();
            let faults = admin::verify(&links, first, last, digest);
            found.findings.extend(faults.into_iter().map(|fault| ExportFinding::Admin { chain: chain.clone(), fault }));
        }
        found
    }
}

fn digest(hex: &str) -> Option<Digest> {
    HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok().map(Digest)
}

fn head(chain: &str, sequence: u64, hex: &str) -> Option<Head> {
    Some(Head { chain: chain.parse().ok()?, sequence, digest: digest(hex)? })
}

fn sha256(path: &Path) -> io::Result<String> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(HEXLOWER.encode(&hash.finalize())),
            read => hash.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}
