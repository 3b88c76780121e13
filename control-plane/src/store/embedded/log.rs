//! The change log: what each revision did, for watchers, and what was there before it, for
//! [`undo`].
//!
//! One entry is its changes one after the other: an operation, `key length u16, key`, and by the
//! operation
//!
//! | operation | | then |
//! |---|---|---|
//! | 0 | deleted, and what it was isn't kept | |
//! | 1 | put, and what it was isn't kept | the value |
//! | 2 | deleted | what it was |
//! | 3 | put where nothing was | the value |
//! | 4 | replaced | the value, what it was |
//!
//! A value is `length u32, bytes`, what a record was `revision u64, value`; all numbers
//! little-endian. A log that is cut short is damage, not an end.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    LogLimits,
    database::{COMPACTED, Fault, LOG, LOG_BYTES, META, counter},
};
use crate::store::{Key, Revision, Write};

const DELETE: u8 = 0;
const PUT: u8 = 1;
const DELETE_OLD: u8 = 2;
const CREATE: u8 = 3;
const REPLACE: u8 = 4;

/// Most that one revision keeps of what was there before it, in bytes: replacing much large data
/// ends what [`undo`] can do, and doesn't fill the log.
const MAX_OLD_BYTES: usize = 64 * 1024;

/// What happened after a revision.
pub(super) enum Since {
    /// All of it, or the first page.
    Changes(Vec<(Revision, Vec<Write>)>),
    /// Part of it is gone.
    Compacted,
}

/// One revision's entry, while it is made.
#[derive(Default)]
pub(super) struct Entry {
    bytes: Vec<u8>,
    old: usize,
}

impl Entry {
    /// Appends one change; `old`: the record that was there, with its revision. Only `path`s that
    /// exist are deleted.
    pub(super) fn add(&mut self, path: &str, value: Option<&[u8]>, old: Option<(Revision, &[u8])>) {
        self.old += old.map_or(0, |(_, old)| old.len());
        let kept = old.filter(|_| self.old <= MAX_OLD_BYTES);
        self.bytes.push(match (value, old, kept) {
            (None, _, Some(_)) => DELETE_OLD,
            (None, ..) => DELETE,
            (Some(_), None, _) => CREATE,
            (Some(_), _, Some(_)) => REPLACE,
            (Some(_), Some(_), None) => PUT,
        });
        self.bytes.extend_from_slice(&(path.len() as u16).to_le_bytes()); // a key is at most some 200 bytes
        self.bytes.extend_from_slice(path.as_bytes());
        value.into_iter().for_each(|value| self.value(value));
        if let Some((revision, value)) = kept {
            self.bytes.extend_from_slice(&revision.to_le_bytes());
            self.value(value);
        }
    }

    fn value(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(&(value.len() as u32).to_le_bytes()); // at most MAX_VALUE_BYTES
        self.bytes.extend_from_slice(value);
    }

    /// Nothing; `None` when there was no change.
    pub(super) fn finish(self) -> Option<Vec<u8>> {
        (!self.bytes.is_empty()).then_some(self.bytes)
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
        changes.push((revision.value(), changed(entry.value())?));
    }
    Ok(Since::Changes(changes))
}

/// What was at each path that has been written since `revision`, as it stood then: the record with
/// its revision, or nothing.
pub(super) type Before = BTreeMap<String, Option<(Revision, Bytes)>>;

/// What has to be put back over the records for them to be as they were at `revision`; `None` when
/// that isn't kept any more.
pub(super) fn undo(tx: &redb::ReadTransaction, revision: Revision) -> Result<Option<Before>, Fault> {
    if revision < counter(&tx.open_table(META)?, COMPACTED)? {
        return Ok(None);
    }
    let mut before = Before::new();
    // Forwards, and what a path was first counts: that is what it was at `revision`.
    for entry in tx.open_table(LOG)?.range(revision.saturating_add(1)..)? {
        for change in Changes(entry?.1.value()) {
            let Change { path, old, .. } = change.ok_or_else(damaged)?;
            match old {
                _ if before.contains_key(path) => {}
                Old::NotKept => return Ok(None),
                Old::Was(revision, value) => {
                    before.insert(path.to_owned(), Some((revision, Bytes::copy_from_slice(value))));
                }
                Old::Nothing => drop(before.insert(path.to_owned(), None)),
            }
        }
    }
    Ok(Some(before))
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

/// What an entry did. Keys that this version doesn't know are left out.
fn changed(entry: &[u8]) -> Result<Vec<Write>, Fault> {
    let mut writes = Vec::new();
    for change in Changes(entry) {
        let Change { path, value, .. } = change.ok_or_else(damaged)?;
        writes.extend(Key::parse(path).map(|key| match value {
            Some(value) => Write::Put(key, Bytes::copy_from_slice(value)),
            None => Write::Delete(key),
        }));
    }
    Ok(writes)
}

fn damaged() -> redb::Error {
    redb::Error::Corrupted("the change log".into())
}

/// One change of an entry.
struct Change<'a> {
    path: &'a str,
    value: Option<&'a [u8]>,
    old: Old<'a>,
}

/// What was there before.
enum Old<'a> {
    Was(Revision, &'a [u8]),
    Nothing,
    NotKept,
}

/// Reads an entry; gives `None` once, and ends, where it is damaged.
struct Changes<'a>(&'a [u8]);

impl<'a> Iterator for Changes<'a> {
    type Item = Option<Change<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let (op, rest) = self.0.split_first()?;
        let read = read(*op, rest);
        self.0 = read.as_ref().map_or(&[], |(_, rest)| rest);
        Some(read.map(|(change, _)| change))
    }
}

fn read(op: u8, rest: &[u8]) -> Option<(Change<'_>, &[u8])> {
    let (length, rest) = rest.split_first_chunk()?;
    let (path, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let path = std::str::from_utf8(path).ok()?;
    let (value, rest) = match op {
        PUT | CREATE | REPLACE => value(rest).map(|(value, rest)| (Some(value), rest))?,
        DELETE | DELETE_OLD => (None, rest),
        _ => return None,
    };
    let (old, rest) = match op {
        DELETE_OLD | REPLACE => {
            let (revision, rest) = rest.split_first_chunk()?;
            let (old, rest) = self::value(rest)?;
            (Old::Was(u64::from_le_bytes(*revision), old), rest)
        }
        CREATE => (Old::Nothing, rest),
        _ => (Old::NotKept, rest),
    };
    Some((Change { path, value, old }, rest))
}

fn value(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = rest.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
}
