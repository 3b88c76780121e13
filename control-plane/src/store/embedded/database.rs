//! The file: made, opened, locked, and opened again after a failed write.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::RwLock;
use redb::{ReadableDatabase as _, ReadableTable, TableDefinition};
use seks_runtime::private_file::give_to_owner_of;

use crate::store::{Key, OpenError, Revision, StoreError, fresh_id};

/// Key path → the revision that wrote it, and the value.
pub(super) const RECORDS: TableDefinition<'static, &str, (u64, &[u8])> = TableDefinition::new("records");
/// Revision → its changes, as [`super::log`] encodes them.
pub(super) const LOG: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("log");
/// Counters, by the names below.
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

/// Layout of the tables; a newer SEKS may raise it.
const FORMAT: &str = "format";
/// Since 2 the log may say what was there before a change. A store of 1 becomes one of 2 when it is
/// opened.
const FORMAT_VERSION: u64 = 2;
/// The newest revision.
pub(super) const REVISION: &str = "revision";
/// The newest revision that the log no longer has.
pub(super) const COMPACTED: &str = "compacted";
/// Length of all values in the log.
pub(super) const LOG_BYTES: &str = "log_bytes";

/// redb's default is 1 GiB. The whole table of a large fleet fits in this, and the page cache has
/// the rest.
const CACHE_BYTES: usize = 64 * 1024 * 1024;
/// How long a second process waits for the first one to close the file. A restart overlaps for
/// moments.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Any error of redb: it has six types for them, and one that all convert into.
#[derive(Debug)]
pub(super) struct Fault(pub(super) redb::Error);

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl Fault {
    /// The disk, or our share of it, is full.
    pub(super) fn is_full(&self) -> bool {
        matches!(&self.0, redb::Error::Io(e)
            if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge))
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        if fault.is_full() {
            return Self::Full;
        }
        match fault.0 {
            redb::Error::Corrupted(reason) => Self::Corrupt(reason),
            redb::Error::Io(e) if e.kind() == ErrorKind::InvalidData => Self::Corrupt(e.to_string()),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// What an open store begins with.
pub(super) struct State {
    pub(super) store_id: String,
    pub(super) revision: Revision,
}

/// The open file. redb refuses all work after one failed write; [`reopen`](Self::reopen) makes a
/// new start.
pub(super) struct Database {
    path: PathBuf,
    open: RwLock<Option<redb::Database>>,
}

impl Database {
    /// Opens `path`; makes it first when it isn't there.
    pub(super) fn open(path: PathBuf) -> Result<(Self, State), OpenError> {
        let shown = path.display().to_string();
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => create(&path)?,
            Err(source) => return Err(OpenError::File { path: shown, source }),
        }
        let deadline = Instant::now() + LOCK_WAIT;
        let db = loop {
            match open_file(&path) {
                Err(redb::DatabaseError::DatabaseAlreadyOpen) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                opened => break opened.map_err(|e| open_error(&path, e))?,
            }
        };
        let not_ours = |reason: &str| OpenError::NotAStore { path: shown.clone(), reason: reason.into() };
        let state = state(&db).map_err(|fault| match fault.0 {
            redb::Error::TableDoesNotExist(_) | redb::Error::TableTypeMismatch { .. } => {
                not_ours("its tables are not ours")
            }
            other => StoreError::from(Fault(other)).into(),
        })?;
        let state = state.ok_or_else(|| not_ours("it is of another format version"))?;
        upgrade(&db).map_err(StoreError::from)?;
        Ok((Self { path, open: RwLock::new(Some(db)) }, state))
    }

    /// Runs `work` on the open file.
    pub(super) fn with<T>(&self, work: impl FnOnce(&redb::Database) -> Result<T, Fault>) -> Result<T, StoreError> {
        match self.open.read().as_ref() {
            Some(db) => work(db).map_err(StoreError::from),
            None => {
                Err(StoreError::Unavailable("the store's file could not be opened again after a failed write".into()))
            }
        }
    }

    /// As [`with`](Self::with), for the writer, who wants to see the fault itself.
    pub(super) fn write<T>(&self, work: impl FnOnce(&redb::Database) -> Result<T, Fault>) -> Option<Result<T, Fault>> {
        self.open.read().as_ref().map(work)
    }

    /// Closes the file and opens it again, with what was last committed.
    pub(super) fn reopen(&self) -> Result<(), StoreError> {
        let mut open = self.open.write();
        *open = None; // lets go of the lock first
        *open = Some(open_file(&self.path).map_err(|e| StoreError::from(Fault::from(e)))?);
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn open_file(path: &Path) -> Result<redb::Database, redb::DatabaseError> {
    redb::Builder::new().set_cache_size(CACHE_BYTES).open(path)
}

/// Creates a complete store beside `path` and links it there. An interruption leaves no partial
/// store. Of two processes that do this at once, one succeeds.
fn create(path: &Path) -> Result<(), OpenError> {
    let file_error = |source| OpenError::File { path: path.display().to_string(), source };
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_directory(directory).map_err(file_error)?;
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let store_id = fresh_id()?;
    let linked = write_new(&draft, path, &store_id, 1, &[]).and_then(|()| match std::fs::hard_link(&draft, path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(file_error(e)),
        _ => Ok(()),
    });
    let removed = std::fs::remove_file(&draft).map_err(file_error);
    linked.and(removed).and_then(|()| File::open(directory).and_then(|dir| dir.sync_all()).map_err(file_error))
}

pub(super) fn make_directory(directory: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Writes a store to `draft`, which is going to be at `path`: with these records, all of
/// `revision`.
pub(super) fn write_new(
    draft: &Path,
    path: &Path,
    store_id: &str,
    revision: Revision,
    records: &[(Key, Bytes)],
) -> Result<(), OpenError> {
    let file_error = |source| OpenError::File { path: path.display().to_string(), source };
    let directory = draft.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = std::fs::remove_file(draft); // what a crash left
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft);
    let made = made.and_then(|file| give_to_owner_of(directory, &file)).map_err(file_error);
    made.and_then(|()| initialise(draft, store_id, revision, records).map_err(|fault| open_fault(path, fault)))
}

/// Opens every table once, or reads would fail, and gives the store its id.
fn initialise(path: &Path, store_id: &str, revision: Revision, records: &[(Key, Bytes)]) -> Result<(), Fault> {
    let db = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path)?;
    let tx = db.begin_write()?;
    {
        let mut table = tx.open_table(RECORDS)?;
        table.insert(Key::StoreId.to_string().as_str(), (revision, store_id.as_bytes()))?;
        for (key, value) in records {
            table.insert(key.to_string().as_str(), (revision, &value[..]))?;
        }
        tx.open_table(LOG)?;
        let mut meta = tx.open_table(META)?;
        meta.insert(FORMAT, FORMAT_VERSION)?;
        meta.insert(REVISION, revision)?;
        meta.insert(COMPACTED, revision)?; // what it begins with is not in the log
        meta.insert(LOG_BYTES, 0)?;
    }
    tx.commit()?;
    Ok(())
}

/// `None`: another format version.
fn state(db: &redb::Database) -> Result<Option<State>, Fault> {
    let tx = db.begin_read()?;
    let meta = tx.open_table(META)?;
    if !(1..=FORMAT_VERSION).contains(&counter(&meta, FORMAT)?) {
        return Ok(None);
    }
    let store_id = tx.open_table(RECORDS)?.get(Key::StoreId.to_string().as_str())?;
    let store_id = store_id.ok_or_else(|| redb::Error::Corrupted("the store_id is missing".into()))?;
    let store_id = String::from_utf8_lossy(store_id.value().1).into_owned();
    Ok(Some(State { store_id, revision: revision(&meta)? }))
}

/// Before anything of this version is written: an older one must not read it.
fn upgrade(db: &redb::Database) -> Result<(), Fault> {
    if counter(&db.begin_read()?.open_table(META)?, FORMAT)? == FORMAT_VERSION {
        return Ok(());
    }
    let tx = db.begin_write()?;
    tx.open_table(META)?.insert(FORMAT, FORMAT_VERSION)?;
    Ok(tx.commit()?)
}

/// The newest revision.
pub(super) fn revision(meta: &impl ReadableTable<&'static str, u64>) -> Result<Revision, Fault> {
    counter(meta, REVISION)
}

/// A counter of [`META`].
pub(super) fn counter(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, Fault> {
    let value = meta.get(name)?.map(|guard| guard.value());
    Ok(value.ok_or_else(|| redb::Error::Corrupted(format!("the counter `{name}` is missing")))?)
}

fn open_error(path: &Path, error: redb::DatabaseError) -> OpenError {
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path.display().to_string()),
        other => open_fault(path, other.into()),
    }
}

fn open_fault(path: &Path, fault: Fault) -> OpenError {
    let path = path.display().to_string();
    match fault.0 {
        redb::Error::Io(e) if e.kind() == ErrorKind::InvalidData => {
            OpenError::NotAStore { path, reason: "it is not a redb file".into() }
        }
        redb::Error::Io(source) => OpenError::File { path, source },
        redb::Error::UpgradeRequired(version) => {
            OpenError::NotAStore { path, reason: format!("redb file format {version}") }
        }
        redb::Error::Corrupted(reason) => OpenError::NotAStore { path, reason },
        other => StoreError::Unavailable(other.to_string()).into(),
    }
}
