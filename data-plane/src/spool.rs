//! The node's spool of audit records, from when the audit key is known.
//!
//! The control plane's audit key comes with the first `Welcome`, and is kept beside the spool. A
//! node that has it records from its start. Until then, and with control planes that keep no trail,
//! records go to the collector or the log alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::{ArcSwapOption, Guard};
use parking_lot::Mutex;
use seks_audit::{
    disk::{Directory, DirectoryLock},
    recorder::{Recorder, RecorderOptions},
    seal::{AuditPublicKey, SealError},
    spool::{SpoolError, SpoolOptions},
};

use crate::{config::AuditConfig, telemetry::SpoolState};

/// The spool's directory in the node's data directory.
const DIRECTORY: &str = "audit";
/// The file of the audit key in it.
const KEY_FILE: &str = "audit-key";
/// Longest wait for what is queued when the node stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_POLL: Duration = Duration::from_millis(2);

/// Why there is no spool.
#[derive(Debug, thiserror::Error)]
pub enum OpenSpoolError {
    /// The directory.
    #[error("`{path}`: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The key is none.
    #[error("the audit key: {0}")]
    Key(#[from] SealError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// The spool of a node. Cheap to clone.
#[derive(Clone)]
pub struct Spool(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    options: RecorderOptions,
    recorder: ArcSwapOption<Recorder>,
    /// Held while the recorder is replaced.
    current: Mutex<Current>,
    uploaded: AtomicU64,
    exported: AtomicU64,
    refused: AtomicU64,
}

/// The key that records are sealed to, and the right to write them.
#[derive(Default)]
struct Current {
    key: Option<AuditPublicKey>,
    lock: Option<DirectoryLock>,
}

impl Spool {
    /// The spool in `data_dir`. Its records also go to a collector where `is_exported`. Records
    /// from now on if the audit key is known from an earlier run, unless another process still has
    /// the directory. Then it records from [`use_key`](Self::use_key) on. Blocks.
    ///
    /// # Errors
    /// [`OpenSpoolError`].
    pub fn open(data_dir: &Path, config: &AuditConfig, is_exported: bool) -> Result<Self, OpenSpoolError> {
        let (max_bytes, max_age) = (config.spool_bytes, config.spool_age);
        let spool = SpoolOptions { max_bytes, max_age, is_exported, ..SpoolOptions::default() };
        let inner = Inner {
            directory: data_dir.join(DIRECTORY),
            options: RecorderOptions { spool, ..RecorderOptions::default() },
            recorder: ArcSwapOption::empty(),
            current: Mutex::default(),
            uploaded: AtomicU64::new(0),
            exported: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        let opened = Self(Arc::new(inner));
        match fs::read(opened.0.directory.join(KEY_FILE)) {
            Ok(key) => match opened.use_key(&key) {
                Err(OpenSpoolError::Directory { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy => {}
                used => used?,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(OpenSpoolError::Directory { path: opened.0.directory.join(KEY_FILE), source }),
        }
        Ok(opened)
    }

    /// Seals records to `key` from now on. Blocks.
    ///
    /// # Errors
    /// [`OpenSpoolError`]. Records go on as before.
    pub fn use_key(&self, key: &[u8]) -> Result<(), OpenSpoolError> {
        let key = AuditPublicKey::from_bytes(key)?;
        let mut current = self.0.current.lock();
        if current.key.as_ref() == Some(&key) {
            return Ok(());
        }
        let path = &self.0.directory;
        let failed = |source| OpenSpoolError::Directory { path: path.clone(), source };
        let store_key = || {
            let (file, new) = (path.join(KEY_FILE), path.join("audit-key.new"));
            fs::write(&new, key.as_bytes()).and_then(|()| fs::rename(&new, &file)).map_err(failed)
        };
        if let (Some(recorder), Some(_)) = (&*self.recorder(), &current.key)
            && !recorder.has_ended()
        {
            recorder.seal_to(key.clone());
            store_key()?;
            tracing::info!(key = %key.id(), "audit records are sealed to another key");
            current.key = Some(key);
            return Ok(());
        }
        let directory = Directory::open(path).map_err(failed)?;
        if current.lock.is_none() {
            current.lock = Some(directory.lock().map_err(failed)?);
        }
        if let Some(before) = self.0.recorder.swap(None) {
            before.stop();
            let until = Instant::now() + CLOSE_TIMEOUT;
            while !before.has_ended() && Instant::now() < until {
                thread::sleep(CLOSE_POLL); // two must not write the same directory
            }
        }
        let recorder = Recorder::start(Arc::new(directory), key.clone(), self.0.options)?;
        store_key()?;
        tracing::info!(key = %key.id(), "audit records are spooled");
        self.0.recorder.store(Some(Arc::new(recorder)));
        current.key = Some(key);
        Ok(())
    }

    /// What records, once the key is known.
    #[must_use]
    pub fn recorder(&self) -> Guard<Option<Arc<Recorder>>> {
        self.0.recorder.load()
    }

    /// Counts records that a replica has acknowledged.
    pub fn count_uploaded(&self, records: u64) {
        self.0.uploaded.fetch_add(records, Relaxed);
    }

    /// Counts spans of records that a collector has accepted, or refused for good.
    pub fn count_exported(&self, accepted: u64, refused: u64) {
        self.0.exported.fetch_add(accepted, Relaxed);
        self.0.refused.fetch_add(refused, Relaxed);
    }

    /// Records that replicas have acknowledged since the start.
    #[must_use]
    pub fn uploaded(&self) -> u64 {
        self.0.uploaded.load(Relaxed)
    }

    /// What it says of itself.
    #[must_use]
    pub fn state(&self) -> SpoolState {
        let recorder = self.recorder();
        let limit = self.0.options.spool.max_bytes;
        let Some(recorder) = &*recorder else { return SpoolState { limit, ..SpoolState::default() } };
        let (counts, segments) = (recorder.counts(), recorder.segments());
        SpoolState {
            bytes: segments.bytes(),
            limit,
            records: segments.records(),
            queued_bytes: recorder.queued_bytes() as u64,
            dropped: counts.dropped.load(Relaxed),
            recorded: counts.records.load(Relaxed),
            uploaded: self.uploaded(),
            expired: counts.expired.load(Relaxed),
            syncs: counts.syncs.load(Relaxed),
            failures: counts.failures.load(Relaxed),
            export_backlog: segments.export_backlog(),
            export_dropped: segments.export_dropped(),
            spans_exported: self.0.exported.load(Relaxed),
            spans_refused: self.0.refused.load(Relaxed),
        }
    }

    /// Writes what is queued, and records nothing more.
    pub async fn close(&self) {
        let recorder = self.0.recorder.load_full();
        if let Some(recorder) = recorder
            && tokio::time::timeout(CLOSE_TIMEOUT, recorder.close()).await.is_err()
        {
            tracing::error!("the last audit records were not written in time");
        }
    }
}
