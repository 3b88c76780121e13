//! The file.
//!
//! | part | what |
//! |---|---|
//! | first line | `SEKS backup 1` |
//! | second line | [`Head`], as JSON |
//! | records | key length u32 LE, value length u32 LE, key, value; in the order of keys |
//! | seal | length u32 LE; an envelope that vouches for the SHA-256 of everything before |

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use bytes::{Buf as _, Bytes};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::BackupError;
use crate::{
    clock::unix_seconds,
    seal::{RecordId, SealError, Sealer},
    store::{Key, Revision},
};

const MAGIC: &[u8] = b"SEKS backup 1\n";
/// The second line is never longer.
const MAX_HEAD_BYTES: usize = 4096;

/// What a person can read of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The id of the store that its envelopes are sealed to.
    #[serde(rename = "epoch")]
    pub store_id: String,
    /// The epoch of that store.
    #[serde(rename = "lifetime")]
    pub epoch: String,
    /// The revision at which the records stood so.
    pub revision: Revision,
    /// Unix seconds.
    pub created_at: u64,
    /// Of the program that wrote it.
    pub version: String,
    /// How many records follow.
    pub records: usize,
}

impl Head {
    pub(super) fn new(store_id: &str, epoch: &str, revision: Revision, records: usize) -> Self {
        Self {
            store_id: store_id.to_owned(),
            epoch: epoch.to_owned(),
            revision,
            created_at: unix_seconds(),
            version: seks_runtime::VERSION.to_owned(),
            records,
        }
    }
}

/// A backup that was found whole.
pub struct Backup {
    /// Its second line.
    pub head: Head,
    /// Its records.
    pub records: Vec<(Key, Bytes)>,
}

/// Writes beside `out` and links it there when it is whole and on the disk.
pub(super) async fn write(
    out: &Path,
    head: &Head,
    records: &[(Key, Bytes)],
    sealer: &Sealer,
) -> Result<(), BackupError> {
    let failed = |source| BackupError::File { path: out.display().to_string(), source };
    let mut draft = out.as_os_str().to_owned();
    draft.push(format!(".new-{}", std::process::id()));
    let draft = Path::new(&draft);
    let written = write_draft(draft, head, records, sealer, out).await;
    let linked = match written {
        Ok(()) => fs::hard_link(draft, out).map_err(failed),
        Err(error) => Err(error),
    };
    if draft.exists() {
        let removed = fs::remove_file(draft).map_err(failed);
        linked.and(removed)?;
    } else {
        linked?;
    }
    let directory = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(failed)
}

async fn write_draft(
    draft: &Path,
    head: &Head,
    records: &[(Key, Bytes)],
    sealer: &Sealer,
    out: &Path,
) -> Result<(), BackupError> {
    let failed = |source| BackupError::File { path: out.display().to_string(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft).map_err(failed)?;
    let mut hashing = Hashing { file: BufWriter::new(file), hash: Sha256::new() };
    write_body(&mut hashing, head, records).map_err(failed)?;
    let Hashing { mut file, hash } = hashing;
    let seal = sealer
        .authenticate_record(&RecordId::backup(&head.store_id), &hash.finalize())
        .await
        .map_err(|source| BackupError::Seal { path: out.display().to_string(), source })?;
    write_part(&mut file, &seal).map_err(failed)?;
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)
}

fn write_body(to: &mut impl Write, head: &Head, records: &[(Key, Bytes)]) -> io::Result<()> {
    to.write_all(MAGIC)?;
    to.write_all(&serde_json::to_vec(head)?)?;
    to.write_all(b"\n")?;
    for (key, value) in records {
        let key = key.to_string();
        to.write_all(&length(key.as_bytes())?)?;
        to.write_all(&length(value)?)?;
        to.write_all(key.as_bytes())?;
        to.write_all(value)?;
    }
    Ok(())
}

fn write_part(to: &mut impl Write, part: &[u8]) -> io::Result<()> {
    to.write_all(&length(part)?)?;
    to.write_all(part)
}

fn length(part: &[u8]) -> io::Result<[u8; 4]> {
    u32::try_from(part.len()).map(u32::to_le_bytes).map_err(io::Error::other)
}

/// Hashes what it writes.
struct Hashing {
    file: BufWriter<File>,
    hash: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Reads a backup, and refuses it unless all of it is as it was written by a holder of the
/// key-encryption key.
pub(super) async fn read(from: &Path, sealer: &Sealer) -> Result<Backup, BackupError> {
    let path = || from.display().to_string();
    let unfit = |reason| BackupError::Unfit { path: path(), reason };
    let bytes = Bytes::from(fs::read(from).map_err(|source| BackupError::File { path: path(), source })?);
    if !bytes.starts_with(MAGIC) {
        return Err(unfit("it does not begin as one"));
    }
    let mut rest = bytes.slice(MAGIC.len()..);
    let end = rest.iter().take(MAX_HEAD_BYTES).position(|b| *b == b'\n').ok_or_else(|| unfit("its head is damaged"))?;
    let head: Head = serde_json::from_slice(&rest.split_to(end)).map_err(|_| unfit("its head is damaged"))?;
    rest.advance(1);
    let mut records = Vec::new();
    for _ in 0..head.records {
        let (key, value) = record(&mut rest).ok_or_else(|| unfit("it is cut short or damaged"))?;
        records.push((key, value));
    }
    let digest = Sha256::digest(bytes.slice(..bytes.len() - rest.len()));
    let length = take_length(&mut rest).ok_or_else(|| unfit("it is cut short"))?;
    if rest.len() != length {
        return Err(unfit(if rest.len() < length { "it is cut short" } else { "something was added to it" }));
    }
    match sealer.verify_record(&RecordId::backup(&head.store_id), &rest).await {
        Ok(sealed) if *sealed == *digest => Ok(Backup { head, records }),
        Ok(_) | Err(SealError::Rejected) => Err(unfit("it was changed or damaged after it was made")),
        Err(source) => Err(BackupError::Seal { path: path(), source }),
    }
}

/// `None` when it isn't there whole, or isn't of a key that this version knows.
fn record(rest: &mut Bytes) -> Option<(Key, Bytes)> {
    let (key, value) = (take_length(rest)?, take_length(rest)?);
    if rest.len() < key.checked_add(value)? {
        return None;
    }
    let key = Key::parse(std::str::from_utf8(&rest.split_to(key)).ok()?)?;
    Some((key, rest.split_to(value)))
}

fn take_length(rest: &mut Bytes) -> Option<usize> {
    usize::try_from(rest.try_get_u32_le().ok()?).ok()
}
