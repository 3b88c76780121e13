//! The change log: what each revision did, for watchers.
//!
//! One entry is its changes one after the other: `1, key length u16, key, value length u32, value` for a put, `0, key length
//! u16, key` for a delete; all numbers little-endian. A log that is cut short is damage, not an end.

use super::{
    LogLimits,
    database::{COMPACTED, Fault, LOG, LOG_BYTES, META, counter},
};
use crate::store::{Key, Revision, Write};
use bytes::Bytes;

const DELETE: u8 = 0;
const PUT: u8 = 1;

/// What happened after a revision.
pub(super) enum Since {
    /// All of it, or the first page.
    Changes(Vec<(Revision, Vec<Write>)>),
    /// Part of it is gone.
    Compacted,
}

/// Appends one change to an entry. Only `path`s that exist are deleted.
pub(super) fn encode(entry: &mut Vec<u8>, path: &str, value: Option<&[u8]>) {
    entry.push(if value.is_some() { PUT } else { DELETE });
    entry.extend_from_slice(&(path.len() as u16).to_le_bytes()); // a key is at most some 200 bytes
    entry.extend_from_slice(path.as_bytes());
    if let Some(value) = value {
        entry.extend_from_slice(&(value.len() as u32).to_le_bytes()); // at most MAX_VALUE_BYTES
        entry.extend_from_slice(value);
    }
}

/// At most `page` revisions after `after`.
pub(super) fn since(tx: &redb::ReadTransaction, after: Revision, page: usize) -> Result<Since, Fault> {
    if after < counter(&tx.open_table(META)?, COMPACTED)? {
        return Ok(Since::Compacted);
    }
    let mut changes = Vec::new();
    for entry in tx.open_table(LOG)?.range(after.saturating_add(1)..)?.take(page) {
        let (revision, entry) = entry?;
        let decoded = decode(entry.value()).ok_or_else(|| redb::Error::Corrupted("the change log".into()))?;
        changes.push((revision.value(), decoded));
    }
    Ok(Since::Changes(changes))
}

/// Puts `entry` at `revision` and drops the oldest beyond the limits.
pub(super) fn append(
    tx: &redb::WriteTransaction,
    revision: Revision,
    entry: &[u8],
    limits: LogLimits,
) -> Result<(), Fault> {
    let (mut log, mut meta) = (tx.open_table(LOG)?, tx.open_table(META)?);
    log.insert(revision, entry)?;
    let mut bytes = counter(&meta, LOG_BYTES)? + entry.len() as u64;
    let mut compacted = counter(&meta, COMPACTED)?;
    while compacted + 1 < revision && (revision - compacted > limits.revisions || bytes > limits.bytes) {
        compacted += 1;
        bytes -= log.remove(compacted)?.map_or(0, |gone| gone.value().len() as u64);
    }
    meta.insert(COMPACTED, compacted)?;
    meta.insert(LOG_BYTES, bytes)?;
    Ok(())
}

/// `None` when the entry is damaged. Keys that this version doesn't know are left out.
fn decode(mut entry: &[u8]) -> Option<Vec<Write>> {
    let mut writes = Vec::new();
    while let Some((op, rest)) = entry.split_first() {
        let (length, rest) = rest.split_first_chunk()?;
        let (path, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        let key = Key::parse(std::str::from_utf8(path).ok()?);
        match *op {
            DELETE => {
                writes.extend(key.map(Write::Delete));
                entry = rest;
            }
            PUT => {
                let (length, rest) = rest.split_first_chunk()?;
                let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
                writes.extend(key.map(|key| Write::Put(key, Bytes::copy_from_slice(value))));
                entry = rest;
            }
            _ => return None,
        }
    }
    Some(writes)
}
