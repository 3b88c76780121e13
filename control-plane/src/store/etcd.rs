//! The store in etcd, for any number of replicas.
//!
//! The client library is a thin stub over the API. What it leaves to its user is here: failover
//! between endpoints ([`link`]), retries that never double a write ([`commit`]), a watch that
//! resumes without gaps ([`watch`]), errors told apart by code and message ([`failure`]). Every
//! value carries the stamp of the attempt that wrote it ([`stamp`]).

mod client_config;
mod commit;
mod failure;
mod link;
mod restore;
mod stamp;
mod watch;

use bytes::Bytes;
use etcd_client::{GetOptions, GetResponse, KeyValue, SortOrder, SortTarget};
use futures_util::{
    future::BoxFuture,
    stream::{BoxStream, StreamExt as _},
};

pub(super) use self::{client_config::check, restore::restore};
use self::{failure::Failure, link::Link};
use super::{
    Key, OpenError, Page, Record, Revision, Store, StoreConfig, StoreError, Transaction, WatchEvent, Write, fresh_id,
};

/// Records fetched at once: a list is made of pages, all at one revision.
const PAGE: i64 = 512;

/// A store in etcd.
pub(super) struct Etcd {
    link: Link,
    store_id: String,
    /// The revision that gave it its id; it never changes in one store.
    named: Revision,
}

/// Whether the prefix holds a store.
pub(super) async fn exists(config: &StoreConfig) -> Result<bool, OpenError> {
    let etcd = Etcd { link: client_config::link(config)?, store_id: String::new(), named: 0 };
    Ok(etcd.get(&Key::StoreId).await?.is_some())
}

impl Etcd {
    /// Connects, and gives the store its id when it is new.
    pub(super) async fn open(config: &StoreConfig) -> Result<Self, OpenError> {
        let mut etcd = Self { link: client_config::link(config)?, store_id: String::new(), named: 0 };
        loop {
            if let Some(record) = etcd.get(&Key::StoreId).await? {
                if record.value.starts_with(restore::UNFINISHED) {
                    return Err(OpenError::Unfinished);
                }
                etcd.named = record.modified;
                etcd.store_id = String::from_utf8_lossy(&record.value).into_owned();
                watch::lay_by_pulse(&etcd.link).await;
                return Ok(etcd);
            }
            let store_id = fresh_id()?;
            let write = Transaction {
                checks: vec![(Key::StoreId, 0)],
                writes: vec![Write::Put(Key::StoreId, store_id.into())],
            };
            match etcd.commit(write).await {
                Ok(_) | Err(StoreError::Conflict) => {} // of two replicas that start at once one names it
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// One range request; `None` when its revision was compacted.
    async fn range(&self, from: Vec<u8>, options: GetOptions) -> Result<Option<GetResponse>, StoreError> {
        let (from, options) = (&from, &options);
        let read =
            self.link.read(|client| async move { link::kv(&client).get(from.clone(), Some(options.clone())).await });
        match read.await {
            Ok(response) => Ok(Some(response)),
            Err(Failure::Compacted) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// All pages at one revision: `at`, or that of the first where it is 0; `None` when that was
    /// compacted.
    async fn list_once(&self, prefix: &str, mut at: i64) -> Result<Option<(Vec<Record>, Revision)>, StoreError> {
        let start = self.link.path(prefix);
        let end = range_end(start.as_bytes());
        let (mut records, mut from) = (Vec::new(), start.into_bytes());
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(PAGE)
                .with_sort(SortTarget::Key, SortOrder::Ascend)
                .with_revision(at);
            let Some(mut page) = self.range(from, options).await? else { return Ok(None) };
            if at == 0 {
                at = page.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            let (more, kvs) = (page.more(), page.take_kvs());
            from = kvs.last().map(|kv| [kv.key(), b"\0"].concat()).unwrap_or_default();
            for kv in kvs {
                records.extend(self.record(kv)?);
            }
            if !more || from.is_empty() {
                return Ok(Some((records, revision(at))));
            }
        }
    }

    /// `None` for a key that this version doesn't know.
    fn record(&self, kv: KeyValue) -> Result<Option<Record>, StoreError> {
        let modified = revision(kv.mod_revision());
        let (path, value) = kv.into_key_value();
        let Some(key) = self.link.parse(&path) else { return Ok(None) };
        Ok(Some(Record { key, value: stamp::payload(Bytes::from(value)), modified }))
    }
}

impl Store for Etcd {
    fn kind(&self) -> &'static str {
        "etcd"
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    fn store_id(&self) -> &str {
        &self.store_id
    }

    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(async move {
            let mut found = self.range(self.link.path(&key.to_string()).into_bytes(), GetOptions::new()).await?;
            match found.as_mut().and_then(|found| found.take_kvs().pop()) {
                Some(kv) => self.record(kv),
                None => Ok(None),
            }
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Record>, Revision), StoreError>> {
        Box::pin(async move {
            loop {
                if let Some(listed) = self.list_once(prefix, 0).await? {
                    return Ok(listed);
                }
            }
        })
    }

    fn list_page<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
        most: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        Box::pin(async move {
            let start = self.link.path(prefix);
            let end = range_end(start.as_bytes());
            let from = match after < prefix {
                true => start.into_bytes(),
                false => [self.link.path(after).as_bytes(), b"\0"].concat(),
            };
            let options = GetOptions::new()
                .with_range(end)
                .with_limit(i64::try_from(most).unwrap_or(i64::MAX))
                .with_sort(SortTarget::Key, SortOrder::Ascend);
            let Some(mut found) = self.range(from, options).await? else {
                return Err(StoreError::Unavailable("the present was compacted".into()));
            };
            let (more, kvs) = (found.more(), found.take_kvs());
            let last = match kvs.last().filter(|_| more) {
                Some(kv) => Some(self.link.relative(kv.key())?.to_owned()),
                None => None,
            };
            let mut records = Vec::with_capacity(kvs.len());
            for kv in kvs {
                records.extend(self.record(kv)?);
            }
            Ok(Page { records, next: last })
        })
    }

    fn list_at<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> BoxFuture<'a, Result<Option<Vec<Record>>, StoreError>> {
        Box::pin(async move {
            let at = i64::try_from(revision).unwrap_or(i64::MAX);
            if at == 0 {
                return Ok(None); // before any change; to etcd it would be the present
            }
            Ok(self.list_once(prefix, at).await?.map(|(records, _)| records))
        })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(commit::commit(&self.link, transaction))
    }

    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent> {
        watch::watch(self.link.clone(), after).boxed()
    }

    /// As the endpoint in use sees it: the alarm NOSPACE is in force until an operator disarms it.
    fn is_full(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            let status = self.link.once(|client| async move { client.maintenance_client().status().await });
            let full = |error: &String| error.contains("NOSPACE") || error.contains("database space exceeded");
            status.await.is_ok_and(|status| status.errors().iter().any(full))
        })
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            // Linearizable, as all reads are unless one asks for less.
            let path = self.link.path(&Key::StoreId.to_string()).into_bytes();
            let response = self.range(path, GetOptions::new().with_keys_only()).await?;
            let Some(response) = response else { return Err(StoreError::Corrupt("it has no revision".into())) };
            let named = response.kvs().first().map(|kv| revision(kv.mod_revision()));
            if named != Some(self.named) {
                return Err(StoreError::Replaced);
            }
            Ok(response.header().map_or(0, |header| revision(header.revision())))
        })
    }
}

fn revision(theirs: i64) -> Revision {
    Revision::try_from(theirs).unwrap_or_default()
}

/// The first key after all that begin with `prefix`.
fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    vec![0] // in etcd: to the end
}
