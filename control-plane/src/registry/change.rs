//! A transaction under construction, and the loop that retries it after a conflict.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use seks_runtime::jitter;

use super::{RegistryError, record::Stored};
use crate::store::{Key, MAX_TRANSACTION, MAX_VALUE_BYTES, Revision, StoreError, Transaction, Write};

/// How often a change is tried before the caller gets a conflict. Each lost round means that the
/// commit of another writer succeeded, so as many writers must have been faster in a row.
const ROUNDS: u32 = 64;

/// Most writes and checks of a change that is made in batches. Leaves room for the record of it in
/// the chain of admin changes.
pub(super) const MAX_BATCH: usize = MAX_TRANSACTION - 4;

/// What must hold, and what to do then.
#[derive(Clone, Default)]
pub(super) struct Change(Transaction);

impl Change {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// `stored` is still as it was read.
    pub(super) fn check<T>(mut self, stored: &Stored<T>) -> Self {
        self.0.checks.push((stored.key.clone(), stored.modified));
        self
    }

    /// Nothing is at `key`.
    pub(super) fn check_absent(self, key: Key) -> Self {
        self.check_at(key, 0)
    }

    /// `key` was last written by `revision`; 0: it doesn't exist.
    pub(super) fn check_at(mut self, key: Key, revision: Revision) -> Self {
        self.0.checks.push((key, revision));
        self
    }

    /// Writes a record.
    pub(super) fn put(self, key: Key, value: &impl Message) -> Self {
        self.put_bytes(key, value.encode_to_vec().into())
    }

    /// Writes bytes.
    pub(super) fn put_bytes(mut self, key: Key, value: Bytes) -> Self {
        self.0.writes.push(Write::Put(key, value));
        self
    }

    /// Removes a record.
    pub(super) fn delete(mut self, key: Key) -> Self {
        self.0.writes.push(Write::Delete(key));
        self
    }

    /// What it does.
    pub(super) fn writes(&self) -> &[Write] {
        &self.0.writes
    }

    /// Whether a full store takes it.
    pub(super) fn only_deletes(&self) -> bool {
        self.0.writes.iter().all(|write| matches!(write, Write::Delete(_)))
    }

    /// Both changes.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.0.checks.extend(other.0.checks);
        self.0.writes.extend(other.0.writes);
        self
    }

    /// Nothing to do.
    pub(super) fn writes_nothing(&self) -> bool {
        self.0.writes.is_empty()
    }

    /// The transaction, when it fits into one.
    pub(super) fn into_transaction(self) -> Result<Transaction, RegistryError> {
        let large = self.0.writes.iter().any(|w| matches!(w, Write::Put(_, value) if value.len() > MAX_VALUE_BYTES));
        if large || self.0.checks.len() > MAX_TRANSACTION || self.0.writes.len() > MAX_TRANSACTION {
            return Err(RegistryError::Store(StoreError::TooLarge));
        }
        Ok(self.0)
    }
}

/// Runs `attempt` until no other writer interferes.
pub(super) async fn retry_on_conflict<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    for round in 0..ROUNDS {
        match attempt().await {
            Err(RegistryError::Store(StoreError::Conflict)) => back_off(round).await,
            decided => return decided,
        }
    }
    Err(RegistryError::Busy)
}

/// Up to 32 ms with full jitter, so that writers that collided once do not continue to collide.
async fn back_off(round: u32) {
    if round > 0 {
        let ceiling = Duration::from_millis(1 << round.min(5));
        tokio::time::sleep(ceiling.mul_f64(jitter::fraction())).await;
    }
}
