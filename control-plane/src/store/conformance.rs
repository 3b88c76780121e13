//! The store's contract, as a suite that every implementation must pass. [`run`] is given a [`Subject`], which makes fresh stores
//! and knows how to disturb them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test suite, compiled for tests only"
)]

mod changes;
mod history;
mod watching;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Key, Revision, Store, StoreError, Transaction, Write};

/// What is under test.
pub trait Subject: Send + Sync {
    /// A store that nobody has used.
    fn fresh(&self) -> BoxFuture<'_, Arc<dyn Store>>;

    /// Another handle on the same store, as another replica has; `store` itself where there can be only one.
    fn another<'a>(&'a self, store: &'a Arc<dyn Store>) -> BoxFuture<'a, Arc<dyn Store>>;

    /// Drops all history up to the store's current revision.
    fn compact<'a>(&'a self, store: &'a Arc<dyn Store>) -> BoxFuture<'a, ()>;

    /// Whatever happens to such a store every day and must not be noticed: its connections break, others use up revisions.
    fn disturb<'a>(&'a self, store: &'a Arc<dyn Store>) -> BoxFuture<'a, ()>;
}

/// The whole suite. Panics at the first promise that isn't kept.
pub async fn run(subject: &dyn Subject) {
    changes::run(subject).await;
    watching::run(subject).await;
    history::run(subject).await;
}

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what}: nothing for {:?}", began.elapsed()))
}

fn agent(n: usize) -> Key {
    agent_of("acme", n)
}

fn agent_of(tenant: &str, n: usize) -> Key {
    Key::Agent(tenant.parse().unwrap(), format!("a{n:04}").parse().unwrap())
}

fn put(key: Key, value: impl Into<String>) -> Write {
    Write::Put(key, Bytes::from(value.into()))
}

fn writes(writes: Vec<Write>) -> Transaction {
    Transaction { checks: vec![], writes }
}

fn checked(key: Key, at: Revision, write: Vec<Write>) -> Transaction {
    Transaction { checks: vec![(key, at)], writes: write }
}

async fn read(store: &Arc<dyn Store>, key: &Key) -> Option<(String, Revision)> {
    let record = store.get(key).await.unwrap()?;
    assert_eq!(&record.key, key);
    Some((String::from_utf8(record.value.to_vec()).unwrap(), record.modified))
}

#[track_caller]
fn assert_conflict(outcome: &Result<Revision, StoreError>) {
    assert!(matches!(outcome, Err(StoreError::Conflict)), "{outcome:?}");
}
