//! Exports: records, chains and admin changes in files, with a signed manifest. They are verified
//! without the control plane.
//!
//! `records-NNNNNN.jsonl.zst` has one JSON object a record, with the record's own bytes in
//! `record`. `frames.jsonl.zst` has the frames of the chains, `admin.jsonl.zst` the admin changes.
//! `manifest.json` names every file with its SHA-256, and the ends of all chains. `manifest.sig` is
//! an Ed25519 signature over `manifest.json`.

mod verify;
mod writer;

use serde::{Deserialize, Serialize};

pub use self::{
    verify::{ExportError, ExportFinding, ExportVerification, verify_export},
    writer::{ExportWriter, Piece},
};

/// The manifest's file.
pub const MANIFEST: &str = "manifest.json";
/// The manifest's signature.
pub const SIGNATURE: &str = "manifest.sig";
/// The form of exports that this version writes and reads.
pub const FORMAT: u32 = 1;

/// What an export consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The id of the key that signed it.
    pub key: String,
    /// The replica whose trail it is of.
    pub replica: String,
    /// When it was made, in Unix microseconds.
    pub created_us: u64,
    /// Frames written at this time or later are in it, in Unix microseconds.
    pub since_us: u64,
    /// Frames written before this time are in it; absent: up to the time of the export.
    pub until_us: Option<u64>,
    /// Whose records are in it; absent: everybody's. Of one tenant there are records and no chains.
    pub tenant: Option<String>,
    /// How many records.
    pub records: u64,
    /// How many admin changes.
    pub changes: u64,
    /// The files, in the order in which they were written.
    pub files: Vec<FileEntry>,
    /// The part of each chain that is in it.
    pub chains: Vec<ChainEntry>,
    /// What nodes have reported of their chains; empty with `until_us`.
    pub reported: Vec<ReportEntry>,
    /// The chains of admin changes.
    pub admin_chains: Vec<AdminChainEntry>,
    /// Blocks of the trail that could not be read.
    pub unreadable_blocks: Vec<u64>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name.
    pub name: String,
    /// In hexadecimal.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
    /// Its lines, when it is decompressed.
    pub lines: u64,
}

/// A part of a chain. Digests and ids are in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainEntry {
    /// The node that recorded it.
    pub node: String,
    /// The chain.
    pub chain: String,
    /// The first sequence.
    pub first: u64,
    /// The digest before that.
    pub before: String,
    /// The last sequence.
    pub last: u64,
    /// The digest after that.
    pub digest: String,
}

/// What a node has reported of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportEntry {
    /// The node.
    pub node: String,
    /// The chain.
    pub chain: String,
    /// The last sequence on the node's disk.
    pub sequence: u64,
    /// The digest after that.
    pub digest: String,
    /// The first sequence that was still on the node's disk.
    pub kept_from: u64,
    /// When, in Unix microseconds.
    pub reported_us: u64,
}

/// A chain of admin changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminChainEntry {
    /// A tenant, or `*`.
    pub chain: String,
    /// The sequence of its last change.
    pub sequence: u64,
    /// The digest of that.
    pub digest: String,
    /// The sequence of its first change in the export; 0: the form of a version that kept 10,000.
    #[serde(default)]
    pub first: u64,
}

/// A line of `frames.jsonl.zst`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameLine {
    /// The node that recorded it.
    pub node: String,
    /// The chain.
    pub chain: String,
    /// The chain before that on the same disk, and its last sequence.
    pub after: Option<(String, u64)>,
    /// The sequence of its first record.
    pub first: u64,
    /// Its records.
    pub count: u32,
    /// When the node wrote it, in Unix microseconds.
    pub written_us: u64,
    /// The digest of the chain before it.
    pub before: String,
    /// The digest after it.
    pub digest: String,
}

/// What `verify` reads of a line of `records-NNNNNN.jsonl.zst`. The line has more, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordLine {
    /// The chain.
    pub chain: String,
    /// The sequence in it.
    pub sequence: u64,
    /// The record, byte for byte, in base64.
    pub record: String,
}

/// What `verify` reads of a line of `admin.jsonl.zst`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeLine {
    /// A tenant, or `*`.
    pub chain: String,
    /// The position in the chain.
    pub sequence: u64,
    /// The digest of the change before it, in hexadecimal; empty: it is the first.
    pub previous: String,
    /// The change as it is stored, in base64.
    pub change: String,
}
