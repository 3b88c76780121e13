//! The trail's files in an S3-compatible bucket, with the directory as a cache of them.
//!
//! Files are sealed to the audit key, so the bucket's owner learns how many there are and nothing
//! of their contents. A file that is not in the directory is read from the bucket: a few small
//! parts by range, otherwise whole, into the directory. The two ends of each block stay in the
//! directory ([`outline`]). The log of the newest records is uploaded every few seconds, so a lost
//! disk costs the records of that time.

mod bucket;
mod config;
mod outline;
#[cfg(test)]
mod tests;
mod upload;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::Path,
    sync::Arc,
    time::Instant,
};

use parking_lot::Mutex;
use seks_audit::disk::{Appender, Directory, Disk};
use tokio::sync::Notify;

pub use self::{
    bucket::Bucket,
    config::{ObjectStorageConfig, ObjectStorageError},
    upload::synchronize_until,
};
use self::{
    outline::{Outline, is_outline},
    upload::claim,
};

/// A file that is being copied from the bucket. A trail that is opened removes what was not
/// finished.
const UNFINISHED: &str = "fetched";
/// The object, and the file, that name who writes below a prefix.
const OWNER: &str = "owner";
/// Parts of a file that are read by range before all of it is copied.
const RANGES: u32 = 4;
/// Largest part that is read by range.
const RANGE_BYTES: u64 = 256 * 1024;

/// Bounds of the directory beside a bucket.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of files that are in the bucket, too.
    pub cache_bytes: u64,
    /// Bytes of files that wait for the bucket.
    pub pending_bytes: u64,
}

/// A file in the directory.
#[derive(Clone, Copy, Default)]
struct Cached {
    bytes: u64,
    /// When it was read last, in reads.
    used: u64,
}

#[derive(Default)]
struct State {
    /// What the bucket has.
    remote: BTreeMap<String, u64>,
    /// Whether the bucket was asked what it has. Otherwise `remote` is what the outlines name.
    is_listed: bool,
    /// What was removed here, and may still be in the bucket.
    removed: BTreeSet<String>,
    /// How often parts were read of files that are not in the directory.
    ranges: HashMap<String, u32>,
    /// Files that the bucket lacks, or has with other contents, with their bytes.
    changed: BTreeMap<String, u64>,
    /// The file that is being sent.
    uploading: Option<String>,
    cached: BTreeMap<String, Cached>,
    reads: u64,
    /// Since when uploads fail.
    failing_since: Option<Instant>,
}

/// A directory whose files are in a bucket, too. Its calls block, and wait for the bucket where a
/// file is not here: they may not be made on a thread of the runtime.
#[derive(Clone)]
pub struct BucketDisk(Arc<Inner>);

struct Inner {
    local: Directory,
    bucket: Bucket,
    /// Who writes here: random, in the directory and in the bucket.
    owner: String,
    bounds: Bounds,
    state: Mutex<State>,
    /// One file is copied at a time.
    fetching: Mutex<()>,
    /// Held while files are removed from the directory.
    evicting: Mutex<()>,
    pending: Notify,
}

impl BucketDisk {
    /// Opens the directory at `path` and asks the bucket what it has. Blocks.
    ///
    /// A directory that was used with the bucket before is opened without the bucket, if it is
    /// away.
    ///
    /// # Errors
    /// Of the directory; of the bucket, if the directory is new. [`io::ErrorKind::AlreadyExists`]:
    /// another process writes below the same prefix.
    pub fn open(path: &Path, local: Directory, bucket: Bucket, bounds: Bounds) -> io::Result<Self> {
        let runtime = bucket.runtime.clone();
        let owner_file = path.join(OWNER);
        let known = std::fs::read_to_string(&owner_file).ok().filter(|owner| !owner.is_empty());
        let claimed = runtime.block_on(async {
            let owner = claim(&bucket, known.clone()).await?;
            Ok::<_, io::Error>((owner, bucket.list().await?))
        });
        let (owner, remote) = match (claimed, known) {
            (Ok((owner, remote)), known) => {
                if known.is_none() {
                    std::fs::write(&owner_file, &owner)?;
                }
                (owner, Some(remote))
            }
            (Err(error), Some(owner)) if error.kind() != io::ErrorKind::AlreadyExists => {
                tracing::error!(%error, "the audit trail's bucket is away: the trail begins with what is on this disk");
                (owner, None)
            }
            (Err(error), _) => return Err(error),
        };
        let mut state = State { is_listed: remote.is_some(), ..State::default() };
        let here: BTreeMap<String, u64> = local.list()?.into_iter().filter(|(name, _)| is_kept(name)).collect();
        let outlines = Outline::list(&local)?;
        if let Some(remote) = &remote {
            let is_unknown = |name: &String| !here.contains_key(name) && !outlines.contains_key(name);
            let blocks = remote.iter().filter(|(name, _)| is_block(name) && is_unknown(name));
            let blocks = blocks.map(|(name, bytes)| (name.clone(), *bytes)).collect();
            for (name, outline) in runtime.block_on(bucket.outlines(blocks))? {
                outline.write(&local, &name)?;
            }
            for gone in outlines.keys().filter(|name| !remote.contains_key(*name)) {
                Outline::remove(&local, gone)?;
            }
        }
        state.remote = remote.unwrap_or(outlines);
        for (name, bytes) in here {
            // A block has one content; the others may have grown or were replaced.
            if !is_block(&name) || state.remote.get(&name) != Some(&bytes) {
                // Without the bucket, nobody knows whether it has the file.
                state.changed.insert(name.clone(), if state.is_listed { bytes } else { 0 });
            }
            state.cached.insert(name, Cached { bytes, used: 0 });
        }
        let (state, fetching, evicting) = (Mutex::new(state), Mutex::new(()), Mutex::new(()));
        let pending = Notify::new();
        pending.notify_one();
        Ok(Self(Arc::new(Inner { local, bucket, owner, bounds, state, fetching, evicting, pending })))
    }

    /// Bytes of files that the bucket lacks.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.0.state.lock().changed.values().sum()
    }

    /// For how long uploads have failed, in seconds. 0: the last one succeeded.
    #[must_use]
    pub fn failing_seconds(&self) -> f64 {
        self.0.state.lock().failing_since.map_or(0.0, |since| since.elapsed().as_secs_f64())
    }
}

/// Files that are uploaded: blocks, logs, the archive of admin changes, and what retention removed.
fn is_kept(name: &str) -> bool {
    is_block(name) || is_log(name) || name.ends_with(".adm") || name == "pruned"
}

fn is_block(name: &str) -> bool {
    name.ends_with(".blk")
}

fn is_log(name: &str) -> bool {
    name.ends_with(".log")
}

impl State {
    fn note_change(&mut self, name: &str, bytes: u64) {
        self.removed.remove(name);
        self.changed.insert(name.to_owned(), bytes);
        self.cached.entry(name.to_owned()).or_default().bytes = bytes;
    }
}

impl Inner {
    /// Removes the files from the directory that were not read for the longest time, while there is
    /// more than the cache may have. Their outlines stay. Nothing waits for the disk meanwhile.
    fn evict(&self) {
        let Some(_turn) = self.evicting.try_lock() else { return };
        for (name, bytes) in self.surplus() {
            let outline = Outline::of_file(&self.local, &name, bytes);
            let written =
                outline.and_then(|outline| outline.map_or(Ok(()), |outline| outline.write(&self.local, &name)));
            match written.and_then(|()| self.local.remove(&name)) {
                Ok(()) => drop(self.state.lock().cached.remove(&name)),
                // Retention has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(file = name, %error, "a cached file of the audit trail cannot be removed");
                }
            }
        }
    }

    /// Uploaded blocks that the cache has no room for, with their bytes.
    fn surplus(&self) -> Vec<(String, u64)> {
        let state = self.state.lock();
        let mut total: u64 = state.cached.values().map(|file| file.bytes).sum();
        if total <= self.bounds.cache_bytes {
            return Vec::new();
        }
        let is_uploaded = |name: &str, file: &Cached| {
            is_block(name) && state.remote.get(name) == Some(&file.bytes) && !state.changed.contains_key(name)
        };
        let uploaded = state.cached.iter().filter(|(name, file)| is_uploaded(name, file));
        let mut oldest: Vec<(u64, &String, u64)> = uploaded.map(|(name, file)| (file.used, name, file.bytes)).collect();
        oldest.sort();
        let mut surplus = Vec::new();
        for (_, name, bytes) in oldest {
            if total <= self.bounds.cache_bytes {
                break;
            }
            total = total.saturating_sub(bytes);
            surplus.push((name.clone(), bytes));
        }
        surplus
    }

    /// Reads a part from the bucket.
    fn read_remote(&self, name: &str, total: u64, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let end = total.min(offset.saturating_add(length as u64));
        if offset >= end {
            return Ok(Vec::new());
        }
        let is_small = {
            let mut state = self.state.lock();
            let ranges = state.ranges.entry(name.to_owned()).or_default();
            *ranges += 1;
            *ranges <= RANGES && end - offset <= RANGE_BYTES
        };
        if is_small {
            return Ok(self.bucket.runtime.block_on(self.bucket.get_range(name, offset, end))?.into());
        }
        let _turn = self.fetching.lock();
        match self.local.read(name, offset, length) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read => return read, // another reader has fetched it
        }
        let contents = self.fetch(name)?;
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(contents.len());
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(contents.get(offset..end).unwrap_or_default().to_vec())
    }

    /// Copies a file from the bucket into the directory. A directory without room is no error: what
    /// was read is returned.
    fn fetch(&self, name: &str) -> io::Result<Vec<u8>> {
        let contents: Vec<u8> = self.bucket.runtime.block_on(self.bucket.get(name))?.into();
        let unfinished = format!("{name}.{UNFINISHED}");
        let copied = self.local.remove(&unfinished).and_then(|()| {
            let mut file = self.local.create(&unfinished)?;
            file.append(&contents)?;
            file.sync()?;
            self.local.rename(&unfinished, name)
        });
        if let Err(error) = copied {
            tracing::warn!(file = name, %error, "a file of the audit trail cannot be cached");
            let _ = self.local.remove(&unfinished);
            return Ok(contents);
        }
        let mut state = self.state.lock();
        let (bytes, used) = (contents.len() as u64, state.reads);
        state.cached.insert(name.to_owned(), Cached { bytes, used });
        state.ranges.remove(name);
        drop(state);
        self.evict();
        Ok(contents)
    }

    fn note_read(&self, name: &str) {
        let mut state = self.state.lock();
        state.reads += 1;
        let used = state.reads;
        state.cached.get_mut(name).into_iter().for_each(|file| file.used = used);
    }

    /// # Errors
    /// [`io::ErrorKind::StorageFull`] while too much waits for the bucket.
    fn check_pending(&self) -> io::Result<()> {
        let pending: u64 = self.state.lock().changed.values().sum();
        if pending <= self.bounds.pending_bytes {
            return Ok(());
        }
        let text = format!(
            "{pending} bytes wait for the bucket, audit.object_storage.pending_bytes is {}: records wait on the nodes",
            self.bounds.pending_bytes
        );
        Err(io::Error::new(io::ErrorKind::StorageFull, text))
    }
}

impl Disk for BucketDisk {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files: BTreeMap<String, u64> = {
            let state = self.0.state.lock();
            state.remote.iter().filter(|(name, _)| is_kept(name)).map(|(name, bytes)| (name.clone(), *bytes)).collect()
        };
        let is_own = |name: &str| name == OWNER || is_outline(name);
        files.extend(self.0.local.list()?.into_iter().filter(|(name, _)| !is_own(name)));
        Ok(files.into_iter().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appender>> {
        if is_log(name) {
            self.0.check_pending()?;
        }
        let file = self.0.local.create(name)?;
        if !is_kept(name) {
            return Ok(file);
        }
        Ok(Box::new(Growing { file, name: name.to_owned(), bytes: 0, disk: self.clone() }))
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.0.note_read(name);
        match self.0.local.read(name, offset, length) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(part) = Outline::read(&self.0.local, name, offset, length) {
                    return Ok(part);
                }
                let total = self.0.state.lock().remote.get(name).copied();
                self.0.read_remote(name, total.ok_or(error)?, offset, length)
            }
            read => read,
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.local.remove(name)?;
        if is_block(name) {
            Outline::remove(&self.0.local, name)?;
        }
        let mut state = self.0.state.lock();
        state.cached.remove(name);
        state.changed.remove(name);
        state.ranges.remove(name);
        let may_be_there = state.remote.remove(name).is_some() || !state.is_listed;
        if is_kept(name) && (may_be_there || state.uploading.as_deref() == Some(name)) {
            state.removed.insert(name.to_owned());
            self.0.pending.notify_one();
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let bytes = self.0.local.length(from)?;
        self.0.local.rename(from, to)?;
        self.0.state.lock().note_change(to, bytes);
        self.0.pending.notify_one();
        Ok(())
    }
}

/// A file that is uploaded again when it has grown.
struct Growing {
    file: Box<dyn Appender>,
    name: String,
    bytes: u64,
    disk: BucketDisk,
}

impl Appender for Growing {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.file.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()?;
        self.disk.0.state.lock().note_change(&self.name, self.bytes);
        if !is_log(&self.name) {
            self.disk.0.pending.notify_one(); // a log is uploaded from time to time
        }
        Ok(())
    }
}
