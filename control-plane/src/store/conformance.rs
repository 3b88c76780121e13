//! The store's contract, as a suite that every implementation must pass: one test for each promise,
//! named after it.
//!
//! [`store_conformance!`](crate::store_conformance) makes the tests. It is given a [`Subject`],
//! which makes fresh stores and knows how to disturb them. A promise is a function here, and a line
//! in the macro: `every_promise_is_in_the_suite` counts them.
#![allow(
    missing_docs, // the name of a promise is the promise
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

pub use self::{changes::*, history::*, watching::*};
use super::{Key, Revision, Store, StoreError, Transaction, Write};

/// What is under test.
pub trait Subject: Send + Sync {
    /// A new store.
    fn fresh(&self) -> BoxFuture<'_, Arc<dyn Store>>;

    /// Another handle on the same store, as another replica has; `store` itself where there can be
    /// only one.
    fn another<'a>(&'a self, store: &'a Arc<dyn Store>) -> BoxFuture<'a, Arc<dyn Store>>;

    /// Drops all history up to the store's current revision.
    fn compact<'a>(&'a self, store: &'a Arc<dyn Store>) -> BoxFuture<'a, ()>;

    /// Whatever happens to such a store every day and must not be noticed: its connections break,
    /// others use up revisions.
    fn disturb<'a>(&'a self, store: &'a Arc<dyn Store>) -> BoxFuture<'a, ()>;
}

/// Makes a test of each promise, with `attributes` on it and a subject of its own, which may be
/// made by an `await`.
#[macro_export]
macro_rules! store_conformance {
    (@tests $attributes:tt $subject:tt $($promise:ident)*) => {
        $($crate::store_conformance! { @test $attributes $subject $promise })*
    };
    (@test [$(#[$attribute:meta])*] [$subject:expr] $promise:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $(#[$attribute])*
        async fn $promise() {
            use $crate::store::conformance;
            let subject = $subject;
            conformance::in_time(stringify!($promise), conformance::$promise(&subject)).await;
        }
    };
    ($subject:expr $(, #[$attribute:meta])* $(,)?) => {
        $crate::store_conformance! {
            @tests [$(#[$attribute])*] [$subject]
            a_new_store_has_an_id_of_its_own
            checks_decide
            all_is_written_at_one_revision_or_nothing
            revisions_grow_and_only_changes_take_one
            a_list_is_sorted_and_ends_with_its_prefix
            a_list_is_one_moment
            concurrent_increments_all_count
            pages_lead_to_the_end_and_no_further
            sizes_are_bounded
            what_was_committed_is_seen_by_every_handle
            a_list_of_the_past_is_what_a_list_was_then
            a_long_list_of_the_past_comes_whole
            a_watch_leads_on_from_a_list_of_the_past
            a_past_that_is_forgotten_is_none
            what_is_yet_to_come_is_an_error
            a_revisions_changes_come_together_and_sorted
            a_watch_starts_in_the_past
            a_long_past_comes_whole
            what_changes_nothing_is_no_event
            nothing_is_missed_or_repeated_whatever_happens
            large_values_pass
            a_watch_of_forgotten_history_says_so
            a_watch_from_a_list_survives_compaction
        }
    };
}

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `work`, and panics when it hangs.
pub async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
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

#[cfg(test)]
mod tests {
    #[test]
    fn every_promise_is_in_the_suite() {
        let sources = [
            include_str!("conformance/changes.rs"),
            include_str!("conformance/history.rs"),
            include_str!("conformance/watching.rs"),
        ];
        let promises = sources.iter().flat_map(|source| source.split("pub async fn ").skip(1));
        let suite = include_str!("conformance.rs");
        for name in promises.filter_map(|rest| rest.split('(').next()) {
            assert!(suite.contains(&format!("            {name}\n")), "`{name}` is not in the suite");
        }
    }
}
