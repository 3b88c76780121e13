//! A store that authenticates every record. A writer to the store below can delete records, and
//! nothing more.
//!
//! Each value has a frame with a tag under a key of its own (`store::frame`). The key is sealed in
//! the store ([`key`]). The [`guard`] detects a record that was put back later. A record that fails
//! verification counts as deleted: readers do not get it, watchers see a deletion, a creation
//! replaces it, and it is removed. Each such record is logged as an error and counted.
//!
//! Four records have no frame: the store's id, which is read first; the sealed canary and the
//! sealed key, which are needed to verify frames; and the sealed authority.

mod guard;
mod key;
mod read;
mod upgrade;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use futures_util::{
    future::BoxFuture,
    stream::{BoxStream, StreamExt as _},
};
use prometheus::{IntCounterVec, Opts, core::Collector};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::guard::{Guard, WINDOW};
use crate::{
    seal::{SealError, Sealer},
    store::{
        Framer, Key, Measured, Page, Reason, Record, Revision, Store, StoreError, StoreMetrics, Transaction,
        WatchEvent, Write, check_size,
    },
};

/// See the module. Follows the store below until it is dropped.
pub struct Authenticated {
    inner: Arc<Inner>,
    _stop_when_dropped: DropGuard,
}

struct Inner {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    key: key::RecordKey,
    framer: Framer,
    /// Records without a frame don't verify any more.
    complete: AtomicBool,
    /// The revision since which that is so: what was before can't be checked.
    since: AtomicU64,
    guard: Arc<Guard>,
    /// No other process can write to the store while it is open.
    exclusive: bool,
    /// The newest revision that is known.
    known: AtomicU64,
    /// What was last known of the store, outside of it.
    seen: Revision,
    alarms: IntCounterVec,
    requests: StoreMetrics,
}

impl Authenticated {
    /// Opens or creates the sealed key of `store`, verifies every record, and follows the store's
    /// changes. `seen` is the highest revision that is known outside of the store; 0 if none is.
    ///
    /// # Errors
    /// [`SealError`], for example if the key is missing from a store that had one.
    pub async fn open(store: Arc<dyn Store>, sealer: Arc<Sealer>, seen: Revision) -> Result<Self, SealError> {
        let requests = StoreMetrics::new().map_err(|e| StoreError::Unavailable(e.to_string()))?;
        let store: Arc<dyn Store> = Arc::new(Measured::new(store, requests.clone()));
        let opened = key::open(store.as_ref(), &sealer).await?;
        let opts = Opts::new(
            "seks_store_unauthenticated_records_total",
            "Records of the store that did not verify and count as deleted: unframed, forged, stale or replayed",
        );
        let alarms = IntCounterVec::new(opts, &["reason"]).map_err(|e| StoreError::Unavailable(e.to_string()))?;
        for reason in [Reason::Unframed, Reason::Forged, Reason::Stale, Reason::Replayed] {
            drop(alarms.with_label_values(&[reason.as_str()]));
        }
        let inner = Arc::new(Inner {
            framer: Framer::new(opened.key.bytes(), store.store_id()),
            key: opened.key,
            complete: opened.complete.is_some().into(),
            since: opened.complete.unwrap_or_default().into(),
            guard: Arc::new(Guard::new()),
            exclusive: store.is_exclusive(),
            known: AtomicU64::new(0),
            seen,
            alarms,
            requests,
            sealer,
            store,
        });
        let stop = CancellationToken::new();
        let after = inner.begin().await?;
        if !inner.exclusive {
            let (follower, stopped) = (Arc::clone(&inner), stop.clone());
            tokio::spawn(async move { stopped.run_until_cancelled(follower.follow(after)).await });
        }
        Ok(Self { inner, _stop_when_dropped: stop.drop_guard() })
    }

    /// Whether records of an earlier version, which have no frame, don't verify any more.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.inner.complete.load(Relaxed)
    }

    /// Frames every record of an earlier version. From then on, records without a frame are
    /// refused. Every replica must be able to read frames before this runs. It can be interrupted
    /// at any point and run again. Returns the number of records that it framed.
    ///
    /// # Errors
    /// From the store, and from sealing.
    pub async fn upgrade(&self) -> Result<usize, SealError> {
        self.inner.upgrade().await
    }

    /// How many records did not verify since it was opened.
    #[must_use]
    pub fn unauthenticated(&self) -> u64 {
        let reasons = [Reason::Unframed, Reason::Forged, Reason::Stale, Reason::Replayed];
        reasons.iter().map(|reason| self.inner.alarms.with_label_values(&[reason.as_str()]).get()).sum()
    }

    /// What to register with the process's metrics.
    #[must_use]
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        let mut collectors = self.inner.requests.collectors();
        collectors.push(Box::new(self.inner.alarms.clone()));
        collectors
    }
}

impl Store for Authenticated {
    fn kind(&self) -> &'static str {
        self.inner.store.kind()
    }

    fn is_exclusive(&self) -> bool {
        self.inner.store.is_exclusive()
    }

    fn store_id(&self) -> &str {
        self.inner.store.store_id()
    }

    fn is_authenticated(&self) -> bool {
        self.is_complete()
    }

    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(async move {
            match self.inner.store.get(key).await? {
                Some(record) => Ok(self.inner.admit(vec![record]).await?.pop()),
                None => Ok(None),
            }
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Record>, Revision), StoreError>> {
        Box::pin(async move {
            let (records, revision) = self.inner.store.list(prefix).await?;
            Ok((self.inner.admit(records).await?, revision))
        })
    }

    fn list_page<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
        most: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        Box::pin(async move {
            let Page { records, next } = self.inner.store.list_page(prefix, after, most).await?;
            Ok(Page { records: self.inner.admit(records).await?, next })
        })
    }

    fn list_at<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> BoxFuture<'a, Result<Option<Vec<Record>>, StoreError>> {
        Box::pin(async move {
            if revision < self.inner.since.load(Relaxed) {
                return Ok(None); // records had no frames then
            }
            match self.inner.store.list_at(prefix, revision).await? {
                Some(records) => Ok(Some(self.inner.admit(records).await?)),
                None => Ok(None),
            }
        })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(self.inner.commit(transaction))
    }

    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent> {
        // Not the store: a forgotten watcher must not keep its file locked.
        let (guard, exclusive) = (Arc::clone(&self.inner.guard), self.inner.exclusive);
        let events = self.inner.store.watch(after);
        events.then(move |event| read::admit_event(Arc::clone(&guard), exclusive, event)).boxed()
    }

    fn is_full(&self) -> BoxFuture<'_, bool> {
        self.inner.store.is_full()
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.store.revision()
    }
}

impl Inner {
    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        check_size(&transaction)?;
        let Transaction { mut checks, mut writes } = transaction;
        // A creation replaces what does not verify: to everybody it isn't there.
        for (key, at) in checks.iter_mut().filter(|(_, at)| *at == 0) {
            *at = self.guard.bad_at(key).unwrap_or(0);
        }
        if writes.iter().all(|write| matches!(write, Write::Delete(_))) {
            // A full store takes deletes, and may take nothing else: nothing is read for them.
            let revision = self.store.commit(Transaction { checks, writes }).await?;
            self.known.fetch_max(revision, Relaxed);
            return Ok(revision);
        }
        loop {
            let base = checks.iter().map(|(_, at)| *at).max().unwrap_or_default().max(self.base().await?);
            let framed = writes.iter().map(|write| self.frame(base, write)).collect();
            let revision = self.store.commit(Transaction { checks, writes: framed }).await?;
            self.known.fetch_max(revision, Relaxed);
            if revision.saturating_sub(base) <= WINDOW {
                return Ok(revision);
            }
            // Other writers made so many changes meanwhile that readers would reject this record as
            // old. It is written again.
            writes.retain(|write| matches!(write, Write::Put(..)));
            checks = writes.iter().map(|write| (key_of(write).clone(), revision)).collect();
        }
    }

    /// A revision that is not before any that a commit has returned, here or elsewhere.
    async fn base(&self) -> Result<Revision, StoreError> {
        if self.exclusive { Ok(self.known.load(Relaxed)) } else { self.store.revision().await }
    }

    fn frame(&self, base: Revision, write: &Write) -> Write {
        match write {
            Write::Put(key, value) => Write::Put(key.clone(), self.framer.frame(key, base, value)),
            delete @ Write::Delete(_) => delete.clone(),
        }
    }

    /// Says that a record doesn't verify, and removes it.
    async fn condemn(&self, found: Vec<(Key, Revision, Reason)>) {
        for (key, revision, reason) in found {
            self.alarms.with_label_values(&[reason.as_str()]).inc();
            tracing::error!(
                ?key,
                revision,
                reason = reason.as_str(),
                "a record of the store was not written by a control plane: it counts as deleted, and is removed"
            );
            let removal =
                Transaction { checks: vec![(key.clone(), revision)], writes: vec![Write::Delete(key.clone())] };
            match self.store.commit(removal).await {
                Ok(removed) => {
                    self.known.fetch_max(removed, Relaxed);
                    if self.exclusive {
                        self.guard.take(removed, [(key, None)]); // nobody follows the store for us
                    }
                }
                Err(StoreError::Conflict) => {} // another replica was faster, or it is overwritten
                Err(error) => tracing::warn!(?key, %error, "a record that does not verify can't be removed"),
            }
        }
    }
}

fn key_of(write: &Write) -> &Key {
    match write {
        Write::Put(key, _) | Write::Delete(key) => key,
    }
}

/// For the store `store_id` that is restored from a backup: the framer of its records, and the
/// records that have no frame.
///
/// # Errors
/// From sealing.
pub(crate) async fn for_restored(sealer: &Sealer, store_id: &str) -> Result<(Framer, Vec<(Key, Bytes)>), SealError> {
    let key = key::RecordKey::fresh()?;
    let sealed = vec![
        (Key::RecordKey, key.seal(sealer, store_id, Some(0)).await?),
        (Key::Canary, sealer.canary(store_id, true).await?),
    ];
    Ok((Framer::new(key.bytes(), store_id), sealed))
}

#[cfg(test)]
mod tests;
