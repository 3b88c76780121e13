//! The embedded store: one redb file on this machine, for one control plane.
//!
//! One thread writes ([`writer`]); it gathers what is waiting into one redb commit, so that one
//! fsync serves many callers. Readers see committed data only. A change log keyed by revision
//! ([`log`]) is what watchers read, so a slow one never misses a change: it reads on where it
//! stopped, or learns that this part of the log is gone.

mod database;
mod log;
mod readers;
mod reserve;
mod restore;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{
    future::BoxFuture,
    stream::{self, BoxStream, StreamExt as _},
};
use tokio::sync::watch;

pub(super) use self::restore::restore;
use self::{
    database::{Database, Fault, META, RECORDS},
    log::{Before, Since},
    readers::{Cost, Readers},
    writer::Writer,
};
use super::{Key, OpenError, Page, Record, Revision, Store, StoreConfig, StoreError, Transaction, WatchEvent, Write};

/// How much history is kept for watchers that come back. Whatever limit is reached first; the
/// newest revision always stays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogLimits {
    /// Default: 100,000: hours of a busy fleet's changes.
    pub(crate) revisions: u64,
    /// Default: 64 MiB, so that large records can't make the file grow without bound.
    pub(crate) bytes: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { revisions: 100_000, bytes: 64 * 1024 * 1024 }
    }
}

/// The embedded store.
pub(crate) struct Embedded {
    readers: Arc<Readers>,
    store_id: String,
    writer: Writer,
    head: watch::Receiver<Revision>,
}

impl Embedded {
    /// Opens or makes the file that `config` names.
    pub(crate) async fn open(config: &StoreConfig) -> Result<Self, OpenError> {
        Self::open_with(config.embedded_path()?, LogLimits::default()).await
    }

    pub(crate) async fn open_with(path: std::path::PathBuf, limits: LogLimits) -> Result<Self, OpenError> {
        let opened = tokio::task::spawn_blocking(move || Database::open(path)).await;
        let (database, state) = opened.map_err(|e| StoreError::Unavailable(e.to_string()))??;
        let database = Arc::new(database);
        let (sender, head) = watch::channel(state.revision);
        let readers = Arc::new(Readers::start(&database)?);
        let writer = Writer::start(database, sender, limits)?;
        Ok(Self { readers, store_id: state.store_id, writer, head })
    }

    async fn read<T, F>(&self, cost: Cost, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&redb::ReadTransaction) -> Result<T, Fault> + Send + 'static,
    {
        self.readers.read(cost, read).await
    }
}

impl Store for Embedded {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    fn store_id(&self) -> &str {
        &self.store_id
    }

    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        let (key, path) = (key.clone(), key.to_string());
        Box::pin(self.read(Cost::Point, move |tx| {
            let found = tx.open_table(RECORDS)?.get(path.as_str())?;
            Ok(found.map(|guard| {
                let (modified, value) = guard.value();
                Record { key, value: Bytes::copy_from_slice(value), modified }
            }))
        }))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Record>, Revision), StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(self.read(Cost::Listing, move |tx| {
            let records = records(tx, &prefix, Before::new())?;
            Ok((records, database::revision(&tx.open_table(META)?)?))
        }))
    }

    fn list_page<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
        most: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        Box::pin(self.read(Cost::Listing, move |tx| page(tx, &prefix, &after, most)))
    }

    fn list_at<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> BoxFuture<'a, Result<Option<Vec<Record>>, StoreError>> {
        let prefix = prefix.to_owned();
        let listed = self.read(Cost::Listing, move |tx| {
            if database::revision(&tx.open_table(META)?)? < revision {
                return Ok(Err(StoreError::Unavailable(format!("revision {revision} is yet to come"))));
            }
            let before = log::undo(tx, revision)?;
            Ok(Ok(before.map(|before| records(tx, &prefix, before)).transpose()?))
        });
        Box::pin(async { listed.await? })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(self.writer.commit(transaction))
    }

    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent> {
        let state = Watch { readers: Arc::clone(&self.readers), head: self.head.clone(), after, ended: false };
        stream::unfold(state, Watch::next).flat_map(stream::iter).boxed()
    }

    fn is_full(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { self.writer.is_full() })
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(self.read(Cost::Point, |tx| database::revision(&tx.open_table(META)?)))
    }
}

/// The records below `prefix`, with what was there `before` instead of what is.
fn records(tx: &redb::ReadTransaction, prefix: &str, before: Before) -> Result<Vec<Record>, Fault> {
    let mut records = Vec::new();
    let mut add = |path: &str, modified: Revision, value: Bytes| {
        records.extend(Key::parse(path).map(|key| Record { key, value, modified }));
    };
    let mut before = before.into_iter().filter(|(path, _)| path.starts_with(prefix)).peekable();
    for entry in tx.open_table(RECORDS)?.range(prefix..)? {
        let (path, guard) = entry?;
        let path = path.value();
        if !path.starts_with(prefix) {
            break;
        }
        let mut replaced = false;
        while let Some((old, was)) = before.next_if(|(old, _)| old.as_str() <= path) {
            replaced = old == path;
            was.into_iter().for_each(|(modified, value)| add(&old, modified, value));
        }
        if !replaced {
            let (modified, value) = guard.value();
            add(path, modified, Bytes::copy_from_slice(value));
        }
    }
    for (old, was) in before {
        was.into_iter().for_each(|(modified, value)| add(&old, modified, value));
    }
    Ok(records)
}

/// At most `most` records below `prefix`, after `after`.
fn page(tx: &redb::ReadTransaction, prefix: &str, after: &str, most: usize) -> Result<Page, Fault> {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let from = if after < prefix { Included(prefix) } else { Excluded(after) };
    let mut page = Page::default();
    let mut last = None;
    for entry in tx.open_table(RECORDS)?.range::<&str>((from, Unbounded))? {
        let (path, guard) = entry?;
        let path = path.value();
        if !path.starts_with(prefix) {
            break;
        }
        if page.records.len() == most {
            page.next = last;
            break;
        }
        let (modified, value) = guard.value();
        let record = |key| Record { key, value: Bytes::copy_from_slice(value), modified };
        page.records.extend(Key::parse(path).map(record));
        last = Some(path.to_owned());
    }
    Ok(page)
}

/// One watcher: reads the log from where it stopped whenever the head has moved.
struct Watch {
    readers: Arc<Readers>,
    head: watch::Receiver<Revision>,
    after: Revision,
    ended: bool,
}

impl Watch {
    /// Revisions read from the log in one go: bounds the memory of a watcher that comes back after
    /// long.
    const PAGE: usize = 256;

    async fn next(mut self) -> Option<(Vec<WatchEvent>, Self)> {
        if self.ended {
            return None;
        }
        loop {
            let after = self.after;
            if self.head.wait_for(|head| *head > after).await.is_err() {
                // The store is closed: nothing will ever happen again, which is not an end that the
                // contract knows.
                drop(self); // and a forgotten watcher must not keep the file locked
                return std::future::pending().await;
            }
            match self.readers.read(Cost::Point, move |tx| log::since(tx, after, Self::PAGE)).await {
                Ok(Since::Compacted) => {
                    self.ended = true;
                    return Some((vec![WatchEvent::Compacted], self));
                }
                Ok(Since::Changes(page)) => {
                    if let Some((last, _)) = page.last() {
                        self.after = *last;
                        return Some((page.into_iter().map(event).collect(), self));
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot read the change log"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await; // the disk fails: go easy on it
        }
    }
}

fn event((revision, changes): (Revision, Vec<Write>)) -> WatchEvent {
    // Keys of a newer version are skipped, but their revision counts.
    if changes.is_empty() { WatchEvent::Progress(revision) } else { WatchEvent::Changes { revision, changes } }
}
