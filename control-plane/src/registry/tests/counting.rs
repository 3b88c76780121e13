//! A store that counts what it is asked.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use futures_util::{future::BoxFuture, stream::BoxStream};

use crate::store::{Key, Record, Revision, Store, StoreError, Transaction, WatchEvent};

pub(super) struct Counting {
    pub(super) inner: Arc<dyn Store>,
    pub(super) gets: AtomicU64,
    pub(super) lists: AtomicU64,
}

impl Store for Counting {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn is_exclusive(&self) -> bool {
        self.inner.is_exclusive()
    }
    fn store_id(&self) -> &str {
        self.inner.store_id()
    }
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        self.gets.fetch_add(1, Relaxed);
        self.inner.get(key)
    }
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Record>, Revision), StoreError>> {
        self.lists.fetch_add(1, Relaxed);
        self.inner.list(prefix)
    }
    fn list_at<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> BoxFuture<'a, Result<Option<Vec<Record>>, StoreError>> {
        self.lists.fetch_add(1, Relaxed);
        self.inner.list_at(prefix, revision)
    }
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.commit(transaction)
    }
    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent> {
        self.inner.watch(after)
    }
    fn is_full(&self) -> BoxFuture<'_, bool> {
        self.inner.is_full()
    }
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.revision()
    }
}
