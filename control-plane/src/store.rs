//! The store: one total order of changes over one flat map, below one prefix. Two implementations,
//! embedded (redb) and etcd; `conformance` is the suite that both must pass, and so the contract in
//! full.

mod config;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod embedded;
mod etcd;
mod frame;
pub mod key;
mod measured;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};

use self::frame::bare_len;
pub(crate) use self::frame::{Framer, KEY_BYTES, Reason, has_frame, is_framed, strip};
pub(crate) use self::measured::{Measured, StoreMetrics};
pub use self::{
    config::{OpenError, StoreConfig, StoreKind, StoreTlsConfig},
    key::Key,
};

/// Opens the store that `config` names; a store that wasn't there is made.
///
/// # Errors
/// One line for the operator; nothing was written unless the store was made.
pub async fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, OpenError> {
    match config.kind {
        StoreKind::Embedded => Ok(Arc::new(embedded::Embedded::open(config).await?)),
        StoreKind::Etcd => Ok(Arc::new(etcd::Etcd::open(config).await?)),
    }
}

/// Checks what can be checked without the store and without reading a file.
///
/// # Errors
/// [`OpenError::Config`] names the key.
pub fn check(config: &StoreConfig) -> Result<(), OpenError> {
    match config.kind {
        StoreKind::Embedded => config.embedded_path().map(drop),
        StoreKind::Etcd => etcd::check(config),
    }
}

/// Makes the store that `config` names out of `records`, as they stood at `revision` of the store
/// they are from; it has the id `store_id`, and `framer` authenticates them. One that is there is
/// refused, or with `replace` (embedded only) kept beside it. All of it is there in the end, or
/// nothing that [`open`] would take for a store.
///
/// # Errors
/// [`OpenError::Exists`]; of the store.
pub(crate) async fn restore(
    config: &StoreConfig,
    store_id: &str,
    revision: Revision,
    mut records: Vec<(Key, Bytes)>,
    framer: &Framer,
    replace: bool,
) -> Result<(), OpenError> {
    match config.kind {
        StoreKind::Embedded => {
            let (path, store_id) = (config.embedded_path()?, store_id.to_owned());
            let base = revision.saturating_sub(1); // all of them are of this revision
            records.iter_mut().for_each(|(key, value)| *value = framer.frame(key, base, value));
            let restored =
                tokio::task::spawn_blocking(move || embedded::restore(&path, &store_id, revision, &records, replace));
            restored.await.map_err(|e| StoreError::Unavailable(e.to_string()))?
        }
        StoreKind::Etcd => etcd::restore(config, store_id, records, framer).await,
    }
}

/// Whether there is a store for [`open`] to open, rather than to make.
///
/// # Errors
/// Of the store.
pub async fn exists(config: &StoreConfig) -> Result<bool, OpenError> {
    match config.kind {
        StoreKind::Embedded => {
            let path = config.embedded_path()?;
            path.try_exists().map_err(|source| OpenError::File { path: path.display().to_string(), source })
        }
        StoreKind::Etcd => etcd::exists(config).await,
    }
}

/// An id for a new store or epoch: 128 random bits, as hexadecimal.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn fresh_id() -> Result<String, StoreError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|e| StoreError::Unavailable(e.to_string()))?;
    Ok(format!("{:032x}", u128::from_be_bytes(random)))
}

/// The bounds that both stores keep.
pub(crate) fn check_size(transaction: &Transaction) -> Result<(), StoreError> {
    let length = |write: &Write| match write {
        Write::Put(key, value) => key.to_string().len() + bare_len(value),
        Write::Delete(key) => key.to_string().len(),
    };
    let too_long = |write: &Write| matches!(write, Write::Put(_, value) if bare_len(value) > MAX_VALUE_BYTES);
    let operations = transaction.checks.len().max(transaction.writes.len());
    let total: usize = transaction.writes.iter().map(length).sum();
    if operations > MAX_TRANSACTION || total > MAX_TRANSACTION_BYTES || transaction.writes.iter().any(too_long) {
        return Err(StoreError::TooLarge);
    }
    Ok(())
}

/// The newest form of the store's records that this version reads, as its replica's record tells
/// the others. 1: credentials are bound to destinations. 2: records are authenticated, and each
/// tenant says which policies it has.
pub const STORE_FORMAT: u32 = 2;

/// The store's total order: etcd's mod revision; the embedded store counts its own with the same
/// meaning. 0 is before any change.
pub type Revision = u64;

/// A record as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where.
    pub key: Key,
    /// What.
    pub value: Bytes,
    /// The revision that wrote it.
    pub modified: Revision,
}

/// Records of a part of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order of keys.
    pub records: Vec<Record>,
    /// The key path after which the next page begins; `None`: this is the last page.
    pub next: Option<String>,
}

/// One atomic change: all of it is written at one revision, or none.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// What must hold: the key's `modified`, or 0 for "does not exist".
    pub checks: Vec<(Key, Revision)>,
    /// What to do, each key at most once.
    pub writes: Vec<Write>,
}

/// One key's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Create or replace.
    Put(Key, Bytes),
    /// Remove; nothing happens when it isn't there.
    Delete(Key),
}

/// Most writes and checks of one transaction: etcd's default is 128 operations.
pub const MAX_TRANSACTION: usize = 124;
/// Largest value: etcd's default request limit is 1.5 MiB.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;

/// Largest sum of keys and values in one transaction: leaves room for the rest of a request within
/// etcd's limit.
pub const MAX_TRANSACTION_BYTES: usize = 1280 * 1024;

/// All changes of one revision, or the news that history is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// What one revision did. A delete of a key that wasn't there is no event.
    Changes {
        /// Which.
        revision: Revision,
        /// In the order of the keys; a delete has no value.
        changes: Vec<Write>,
    },
    /// Nothing happened up to this revision (a progress note): the watcher may count itself that
    /// far.
    Progress(Revision),
    /// The revision asked for has been compacted: list again.
    Compacted,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A check failed: another writer changed the record, or the caller read an old one.
    #[error("the record has changed since it was read")]
    Conflict,
    /// The store is full: puts are refused, deletes still work.
    #[error("the store is full")]
    Full,
    /// Over [`MAX_TRANSACTION`], [`MAX_VALUE_BYTES`] or [`MAX_TRANSACTION_BYTES`]; nothing was
    /// written.
    #[error("the change is too large for one transaction")]
    TooLarge,
    /// The store does not answer. The write was certainly not made.
    #[error("the store is unreachable: {0}")]
    Unavailable(String),
    /// The answer to a write was lost: it may have been made.
    #[error("the outcome of the write is unknown: {0}")]
    Unknown(String),
    /// The store refuses our identity.
    #[error("the store refuses access: {0}")]
    Denied(String),
    /// It is not the store that was opened: its store id's record is gone, or another.
    #[error("another store is where this one was")]
    Replaced,
    /// What the store holds can't be read.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
}

/// A store. All methods are linearizable unless they say otherwise.
pub trait Store: Send + Sync + 'static {
    /// `"embedded"` or `"etcd"`.
    fn kind(&self) -> &'static str;

    /// Whether no other process can have the store open while this one does. A replica of such a
    /// store is alone: every other that is registered in it has ended.
    fn is_exclusive(&self) -> bool;

    /// The store's id: made once, when the store is first used; a restore makes a new one.
    fn store_id(&self) -> &str;

    /// Whether every record that it gives was written by a control plane, and none was put back.
    fn is_authenticated(&self) -> bool {
        false
    }

    /// The record at `key`.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>>;

    /// Every record below `prefix` (a [`key::prefix`]), in the order of keys, and the revision at
    /// which all of them stood so.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Record>, Revision), StoreError>>;

    /// At most `most` records below `prefix` whose key path is greater than `after`. Each page
    /// shows the store at the time of its own read. A change between two pages may be missed. A
    /// page may have fewer records than `most`, or none, without being the last.
    fn list_page<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
        most: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        Box::pin(async move {
            let (records, _) = self.list(prefix).await?;
            let mut rest = records.into_iter().filter(|record| record.key.to_string().as_str() > after);
            let records: Vec<Record> = rest.by_ref().take(most).collect();
            let next = rest.next().and(records.last()).map(|last| last.key.to_string());
            Ok(Page { records, next })
        })
    }

    /// Every record below `prefix` as it stood at `revision`, in the order of keys; `None` when
    /// that history isn't kept any more. The watch from `revision` leads on from it. A revision
    /// that is yet to come is an error.
    fn list_at<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> BoxFuture<'a, Result<Option<Vec<Record>>, StoreError>>;

    /// Commits `transaction` and returns its revision. A retry inside never doubles a write.
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// Every change after `after` (exclusive) below the store's prefix, in order and without gaps.
    /// The watch reconnects by itself. Only [`WatchEvent::Compacted`] ends it.
    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent>;

    /// Whether the store refuses puts because it is full, as far as this can be determined without
    /// a put. Not linearizable.
    fn is_full(&self) -> BoxFuture<'_, bool>;

    /// The current revision by a linearizable read: at least that of every commit that returned
    /// before the call.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>>;
}
