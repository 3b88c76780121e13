//! The archive of admin changes: what a replica has taken out of the store, sealed to the audit
//! key, in files that never change.
//!
//! A file is `magic, audit key id, number u64, sealed key`, then batches. A batch is `length u32,
//! CRC-32 u32, contents`; the contents are compressed and sealed under the file's key, with the
//! batch's index as nonce. A process begins a file of its own, so a batch that a kill has torn is
//! the last of its file. Everything here blocks.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};

use crate::{
    disk::{Appender, Disk},
    seal::{AuditKeys, FileKey, KeyId, SEALED_KEY_BYTES, SealError},
    spool::unix_micros,
    varint::{put, put_bytes, take, take_bytes},
};

const MAGIC: &[u8; 8] = b"SEKSADM1";
const BOUND_BYTES: usize = 8 + 8 + 8;
const HEADER_BYTES: usize = BOUND_BYTES + SEALED_KEY_BYTES;
const PREFIX_BYTES: usize = 8;
const AAD: &[u8] = b"seks/v1/admin-archive";
const SUFFIX: &str = ".adm";
/// A file ends when it is larger than this.
const FILE_BYTES: u64 = 4 << 20;
/// Largest batch after decompression. Callers append at most [`MAX_BATCH_BYTES`] of changes.
const MAX_PLAIN_BYTES: usize = 64 << 20;
/// Bytes of changes that are appended together at most.
pub const MAX_BATCH_BYTES: usize = 4 << 20;
/// zstd's level. Changes are few; small files matter more.
const LEVEL: i32 = 6;

/// Bounds of an archive.
#[derive(Clone, Copy, Debug)]
pub struct ArchiveOptions {
    /// Files whose newest change is older are removed.
    pub max_age: Duration,
    /// When there are this many bytes, nothing more is archived, and the changes stay in the store.
    /// Whoever makes many changes must not be able to remove earlier ones that way.
    pub max_bytes: u64,
}

/// Why an archive cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file system.
    #[error("the disk: {0}")]
    Disk(#[from] io::Error),
    /// It has as many bytes as it may have.
    #[error("the archive of admin changes has reached {0} bytes: raise audit.max_bytes")]
    Full(u64),
    /// A file's key.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// A change in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedChange {
    /// Its chain: a tenant, or `*`.
    pub chain: String,
    /// Its position in the chain.
    pub sequence: u64,
    /// The store's transaction that made it.
    pub revision: u64,
    /// When it was made, in Unix microseconds.
    pub at_us: u64,
    /// As the store had it.
    pub encoded: Vec<u8>,
}

/// A file, as far as it is remembered.
#[derive(Clone, Debug, Default)]
struct File {
    bytes: u64,
    /// Of its changes, in Unix microseconds.
    newest_us: u64,
    /// The sequences of each chain: the first and the last.
    chains: BTreeMap<String, (u64, u64)>,
}

/// A part of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// The first sequence.
    pub from: u64,
    /// The first sequence behind it.
    pub before: u64,
    /// Earlier changes are left out, in Unix microseconds.
    pub since_us: u64,
}

/// Files whose changes are all too old: the oldest ones, up to the first that is not.
#[derive(Clone, Debug, Default)]
pub struct Expired {
    files: Vec<u64>,
    /// Of each chain in them, the last sequence.
    pub lasts: BTreeMap<String, u64>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, File>,
    /// Files that cannot be read, and why.
    damaged: BTreeMap<u64, String>,
    next_number: u64,
}

struct Writer {
    number: u64,
    file: Box<dyn Appender>,
    key: FileKey,
    batches: u64,
}

/// An archive in one directory. Only one process may use it.
pub struct Archive {
    disk: Arc<dyn Disk>,
    keys: Arc<AuditKeys>,
    options: ArchiveOptions,
    state: RwLock<State>,
    writer: Mutex<Option<Writer>>,
}

impl Archive {
    /// Opens an archive and reads all of it once.
    ///
    /// # Errors
    /// Of the file system. A file that cannot be read is no error: its changes are missing, and
    /// verification names them.
    pub fn open(disk: Arc<dyn Disk>, keys: Arc<AuditKeys>, options: ArchiveOptions) -> Result<Self, ArchiveError> {
        let mut state = State::default();
        for (name, bytes) in disk.list()? {
            let Some(number) = name.strip_suffix(SUFFIX).and_then(|number| number.parse::<u64>().ok()) else {
                continue;
            };
            state.next_number = state.next_number.max(number + 1);
            match read_file(&*disk, &keys, number) {
                Ok(changes) => {
                    let mut file = File { bytes, ..File::default() };
                    changes.iter().for_each(|change| file.add(change));
                    state.files.insert(number, file);
                }
                Err(error) => {
                    tracing::error!(file = name, %error, "a file of the archive of admin changes cannot be read");
                    state.damaged.insert(number, error.to_string());
                }
            }
        }
        Ok(Self { disk, keys, options, state: RwLock::new(state), writer: Mutex::new(None) })
    }

    /// The sequence of the last change of `chain` that it has; 0: none.
    #[must_use]
    pub fn last(&self, chain: &str) -> u64 {
        let state = self.state.read();
        let lasts = state.files.values().filter_map(|file| file.chains.get(chain)).map(|(_, last)| *last);
        lasts.max().unwrap_or(0)
    }

    /// The first sequence that it has of `chain`.
    #[must_use]
    pub fn first(&self, chain: &str) -> Option<u64> {
        let state = self.state.read();
        state.files.values().filter_map(|file| file.chains.get(chain)).map(|(first, _)| *first).min()
    }

    /// Bytes on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.state.read().files.values().map(|file| file.bytes).sum()
    }

    /// Files that cannot be read, and why.
    #[must_use]
    pub fn damaged(&self) -> Vec<(u64, String)> {
        self.state.read().damaged.iter().map(|(number, why)| (*number, why.clone())).collect()
    }

    /// Appends changes, of each chain in order. They are durable when this returns. At most
    /// [`MAX_BATCH_BYTES`].
    ///
    /// # Errors
    /// [`ArchiveError`]; none of `changes` counts as archived.
    pub fn append(&self, changes: &[ArchivedChange]) -> Result<(), ArchiveError> {
        if changes.is_empty() {
            return Ok(());
        }
        if self.bytes() >= self.options.max_bytes {
            return Err(ArchiveError::Full(self.options.max_bytes));
        }
        let mut current = self.writer.lock();
        let mut writer = match current.take() {
            Some(writer) => writer,
            None => self.begin()?,
        };
        // After a failure the file's end is undefined: the next change begins another file.
        let written = writer.write(changes)?;
        let mut state = self.state.write();
        let file = state.files.entry(writer.number).or_insert(File { bytes: HEADER_BYTES as u64, ..File::default() });
        file.bytes += written;
        changes.iter().for_each(|change| file.add(change));
        if file.bytes < FILE_BYTES {
            *current = Some(writer);
        }
        Ok(())
    }

    fn begin(&self) -> Result<Writer, ArchiveError> {
        let number = {
            let mut state = self.state.write();
            state.next_number += 1;
            state.next_number - 1
        };
        let public = self.keys.public();
        let bound = bound(public.id(), number);
        let (key, sealed) = public.file_key(&bound)?;
        let mut file = self.disk.create(&file_name(number))?;
        file.append(&[&bound[..], &sealed].concat())?;
        Ok(Writer { number, file, key, batches: 0 })
    }

    /// Calls `each` with the changes of `chain` below the sequence `before`, the newest first,
    /// until it returns `false`.
    ///
    /// # Errors
    /// Of the file system. A file that was changed has no changes.
    pub fn read(
        &self,
        chain: &str,
        before: u64,
        each: &mut dyn FnMut(ArchivedChange) -> bool,
    ) -> Result<(), ArchiveError> {
        let with_chain: Vec<u64> = {
            let state = self.state.read();
            let files = state.files.iter().filter(|(_, file)| file.chains.get(chain).is_some_and(|of| of.0 < before));
            files.map(|(number, _)| *number).rev().collect()
        };
        let mut next = before;
        for number in with_chain {
            let changes = match read_file(&*self.disk, &self.keys, number) {
                Ok(changes) => changes,
                Err(ArchiveError::Disk(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                Err(_) => continue, // changed or removed since the start: verification names what is missing
            };
            for change in changes.into_iter().rev().filter(|change| change.chain == chain) {
                // A mover that was killed between the archive and the store has archived twice.
                if change.sequence < next {
                    next = change.sequence;
                    if !each(change) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Calls `each` with the changes of `chain` from the first that was made at `since_us` or later
    /// and has at least the sequence `from`, and up to the sequence `before`, in order.
    ///
    /// # Errors
    /// Of the file system, and what `each` returns. A file that was changed has no changes.
    pub fn read_forward(
        &self,
        chain: &str,
        range: Forward,
        each: &mut dyn FnMut(ArchivedChange) -> io::Result<()>,
    ) -> Result<(), ArchiveError> {
        let files: Vec<(u64, u64, u64)> = {
            let state = self.state.read();
            let with_chain =
                state.files.iter().filter_map(|(number, file)| Some((number, file, file.chains.get(chain)?)));
            with_chain.map(|(number, file, (first, _))| (*number, file.newest_us, *first)).collect()
        };
        let (mut next, mut has_begun) = (range.from, false);
        for (at, (number, newest_us, _)) in files.iter().enumerate() {
            if !has_begun && *newest_us < range.since_us {
                continue;
            }
            // What a later file has again, it has as the store has it now.
            let again = files.iter().skip(at + 1).map(|(_, _, first)| *first).min().unwrap_or(u64::MAX);
            let changes = match read_file(&*self.disk, &self.keys, *number) {
                Ok(changes) => changes,
                Err(ArchiveError::Disk(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                Err(_) => continue,
            };
            for change in changes.into_iter().filter(|change| change.chain == chain) {
                let is_wanted = (next..range.before.min(again)).contains(&change.sequence);
                has_begun |= is_wanted && change.at_us >= range.since_us;
                if is_wanted && has_begun {
                    next = change.sequence + 1;
                    each(change)?;
                }
            }
        }
        Ok(())
    }

    /// What is too old.
    #[must_use]
    pub fn expired(&self) -> Expired {
        let max_age = u64::try_from(self.options.max_age.as_micros()).unwrap_or(u64::MAX);
        let oldest = unix_micros().saturating_sub(max_age);
        let mut expired = Expired::default();
        for (number, file) in self.state.read().files.iter().take_while(|(_, file)| file.newest_us < oldest) {
            expired.files.push(*number);
            for (chain, (_, last)) in &file.chains {
                let known = expired.lasts.entry(chain.clone()).or_insert(*last);
                *known = (*known).max(*last);
            }
        }
        expired
    }

    /// Removes these files. Call it when the store says that their changes may be missing.
    ///
    /// # Errors
    /// Of the file system.
    pub fn remove(&self, expired: &Expired) -> Result<(), ArchiveError> {
        let mut writer = self.writer.lock();
        for number in &expired.files {
            if writer.as_ref().is_some_and(|writer| writer.number == *number) {
                *writer = None;
            }
            self.disk.remove(&file_name(*number))?;
            self.state.write().files.remove(number);
        }
        Ok(())
    }
}

impl File {
    fn add(&mut self, change: &ArchivedChange) {
        self.newest_us = self.newest_us.max(change.at_us);
        let sequence = change.sequence;
        let known = self.chains.entry(change.chain.clone()).or_insert((sequence, sequence));
        *known = (known.0.min(sequence), known.1.max(sequence));
    }
}

impl Writer {
    /// Writes and syncs one batch. Returns its bytes.
    fn write(&mut self, changes: &[ArchivedChange]) -> Result<u64, ArchiveError> {
        let mut plain = Vec::new();
        for ArchivedChange { chain, sequence, revision, at_us, encoded } in changes {
            put_bytes(&mut plain, chain.as_bytes());
            [*sequence, *revision, *at_us].iter().for_each(|number| put(&mut plain, *number));
            put_bytes(&mut plain, encoded);
        }
        let mut contents = Vec::new();
        put(&mut contents, plain.len() as u64);
        contents.extend_from_slice(&zstd::bulk::compress(&plain, LEVEL)?);
        self.key.seal(self.batches, AAD, &mut contents, 0)?;
        let length = u32::try_from(contents.len()).map_err(|_| SealError::Contents)?;
        let crc = crc32fast::hash(&contents);
        let batch = [&length.to_be_bytes()[..], &crc.to_be_bytes(), &contents].concat();
        self.file.append(&batch)?;
        self.file.sync()?;
        self.batches += 1;
        Ok(batch.len() as u64)
    }
}

fn file_name(number: u64) -> String {
    format!("{number:020}{SUFFIX}")
}

fn bound(key: KeyId, number: u64) -> Vec<u8> {
    [&MAGIC[..], &key.0, &number.to_be_bytes()].concat()
}

/// The changes of a file, up to a batch that is not whole.
fn read_file(disk: &dyn Disk, keys: &AuditKeys, number: u64) -> Result<Vec<ArchivedChange>, ArchiveError> {
    let bytes = disk.read_all(&file_name(number))?;
    let Some((head, mut rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(Vec::new()) }; // torn
    let (start, sealed) = head.split_at_checked(BOUND_BYTES).ok_or(SealError::FileKey)?;
    let sealed: &[u8; SEALED_KEY_BYTES] = sealed.try_into().map_err(|_| SealError::FileKey)?;
    let id = start.get(8..16).and_then(|id| id.try_into().ok()).map(KeyId).ok_or(SealError::FileKey)?;
    let key = keys.get(id).ok_or(SealError::Key)?.open(&bound(id, number), sealed)?;
    let mut changes = Vec::new();
    for batch in 0.. {
        let Some((prefix, behind)) = rest.split_first_chunk::<PREFIX_BYTES>() else { break };
        let [length, crc] = prefix.as_chunks::<4>().0 else { break };
        let Some((contents, behind)) = behind.split_at_checked(u32::from_be_bytes(*length) as usize) else { break };
        if crc32fast::hash(contents).to_be_bytes() != *crc {
            break;
        }
        changes.extend(decode(&key.open(batch, AAD, contents)?).ok_or(SealError::Contents)?);
        rest = behind;
    }
    Ok(changes)
}

fn decode(mut contents: &[u8]) -> Option<Vec<ArchivedChange>> {
    let length = usize::try_from(take(&mut contents)?).ok().filter(|length| *length <= MAX_PLAIN_BYTES)?;
    let plain = zstd::bulk::decompress(contents, length).ok()?;
    let (mut rest, mut changes) = (plain.as_slice(), Vec::new());
    while !rest.is_empty() {
        let chain = String::from_utf8(take_bytes(&mut rest)?.to_vec()).ok()?;
        let (sequence, revision, at_us) = (take(&mut rest)?, take(&mut rest)?, take(&mut rest)?);
        let encoded = take_bytes(&mut rest)?.to_vec();
        changes.push(ArchivedChange { chain, sequence, revision, at_us, encoded });
    }
    Some(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{disk::simulated::SimulatedDisk, seal::AuditKeyPair};

    const OPTIONS: ArchiveOptions = ArchiveOptions { max_age: Duration::from_secs(1 << 40), max_bytes: 1 << 30 };

    fn change(chain: &str, sequence: u64) -> ArchivedChange {
        let encoded = format!("{chain} {sequence} of operator eve").into_bytes();
        ArchivedChange { chain: chain.into(), sequence, revision: sequence * 2, at_us: sequence, encoded }
    }

    fn open(disk: &SimulatedDisk, keys: &Arc<AuditKeys>) -> Archive {
        Archive::open(Arc::new(disk.clone()), keys.clone(), OPTIONS).unwrap()
    }

    fn sequences(archive: &Archive, chain: &str, before: u64) -> Vec<u64> {
        let mut found = Vec::new();
        let each = &mut |change: ArchivedChange| {
            assert_eq!(change, super::tests::change(chain, change.sequence));
            found.push(change.sequence);
            true
        };
        archive.read(chain, before, each).unwrap();
        found
    }

    #[test]
    fn changes_come_back_newest_first_whatever_was_torn() {
        let (disk, keys) = (SimulatedDisk::default(), Arc::new(AuditKeyPair::generate().unwrap().alone()));
        let archive = open(&disk, &keys);
        archive.append(&[change("*", 1), change("acme", 1), change("*", 2)]).unwrap();
        archive.append(&[change("*", 3)]).unwrap();
        keys.rotate().unwrap();
        let again = open(&disk.after_power_cut(|_| 0), &keys);
        again.append(&[change("*", 3), change("*", 4)]).unwrap(); // 3 once more, after a kill of the mover
        for archive in [&again, &open(&again_disk(&again), &keys)] {
            assert_eq!((sequences(archive, "*", 5), sequences(archive, "*", 3)), (vec![4, 3, 2, 1], vec![2, 1]));
            let mut forward = Vec::new();
            let range = Forward { from: 2, before: 4, since_us: 0 };
            archive
                .read_forward("*", range, &mut |change| {
                    forward.push(change.sequence);
                    Ok(())
                })
                .unwrap();
            assert_eq!(forward, [2, 3]);
            assert_eq!((sequences(archive, "acme", 9), archive.last("*"), archive.first("*")), (vec![1], 4, Some(1)));
        }
        for (name, _) in disk.list().unwrap() {
            let bytes = disk.read_all(&name).unwrap();
            assert!(!bytes.windows(3).any(|w| w == b"eve"), "{name} is readable");
        }
        // Cut anywhere, whole batches are left, and nothing else is read.
        let name = file_name(0);
        let whole = disk.read_all(&name).unwrap();
        for cut in 0..whole.len() {
            let torn = SimulatedDisk::default();
            let mut file = torn.create(&name).unwrap();
            file.append(&whole[..cut]).unwrap();
            file.sync().unwrap();
            let found = sequences(&open(&torn, &keys), "*", 9);
            assert!([vec![], vec![2, 1]].contains(&found), "cut at {cut}: {found:?}");
        }
    }

    fn again_disk(archive: &Archive) -> SimulatedDisk {
        let disk = SimulatedDisk::default();
        for (name, _) in archive.disk.list().unwrap() {
            let mut file = disk.create(&name).unwrap();
            file.append(&archive.disk.read_all(&name).unwrap()).unwrap();
            file.sync().unwrap();
        }
        disk
    }

    #[test]
    fn a_full_archive_and_a_full_disk_take_nothing_and_lose_nothing() {
        let (disk, keys) = (SimulatedDisk::default(), Arc::new(AuditKeyPair::generate().unwrap().alone()));
        let options = ArchiveOptions { max_bytes: 300, ..OPTIONS };
        let archive = Archive::open(Arc::new(disk.clone()), keys.clone(), options).unwrap();
        let taken = (1..100).take_while(|n| archive.append(&[change("*", *n)]).is_ok()).count() as u64;
        assert!((1..99).contains(&taken));
        assert!(matches!(archive.append(&[change("*", taken + 1)]), Err(ArchiveError::Full(300))));
        assert_eq!(archive.last("*"), taken, "the oldest do not make room");
        let archive = open(&disk, &keys);
        disk.set_room(Some(10));
        assert!(archive.append(&[change("*", taken + 1)]).is_err());
        assert_eq!(archive.last("*"), taken);
        disk.set_room(None);
        archive.append(&[change("*", taken + 1)]).unwrap();
        assert_eq!(sequences(&open(&disk, &keys), "*", 999).len() as u64, taken + 1);
    }

    #[test]
    fn old_files_go_when_they_are_announced() {
        let (disk, keys) = (SimulatedDisk::default(), Arc::new(AuditKeyPair::generate().unwrap().alone()));
        open(&disk, &keys).append(&[change("*", 1), change("*", 2)]).unwrap();
        let recent = ArchivedChange { at_us: unix_micros(), ..change("*", 3) };
        open(&disk, &keys).append(&[recent]).unwrap();
        let options = ArchiveOptions { max_age: Duration::from_secs(3600), ..OPTIONS };
        let archive = Archive::open(Arc::new(disk.clone()), keys, options).unwrap();
        let expired = archive.expired();
        assert_eq!(expired.lasts, BTreeMap::from([("*".into(), 2)]));
        archive.remove(&expired).unwrap();
        assert_eq!((archive.first("*"), archive.last("*"), archive.expired().files.len()), (Some(3), 3, 0));
        assert_eq!(disk.list().unwrap().len(), 1);
    }
}
