//! KEK rotation: re-wraps every envelope of a store under the active KEK.
//!
//! How to rotate: (1) give every control plane the new KEK in `older`, so that all can open what it
//! wraps; (2) make it the active one everywhere and keep the old one in `older`; (3) run this; (4)
//! once it is done, remove the old KEK.
//!
//! Each envelope says which KEK wraps it, so there is nothing to remember: killed anywhere, it
//! starts over and finds what is left. The record under [`Key::Rotation`] is for people. Each
//! re-wrap is a compare-and-set, so a credential that is replaced or deleted meanwhile stays so.

use serde::{Deserialize, Serialize};

use super::{KekId, RecordId, SealError, Sealer};
use crate::store::{Key, Record, Store, StoreError, Transaction, Write, key::prefix};

/// Envelopes in one transaction: few enough for the store's limit on bytes in all but odd cases,
/// and those go one by one.
const BATCH: usize = 16;

/// What a rotation came to.
#[derive(Debug)]
pub struct Report {
    /// The KEK that everything is wrapped with now.
    pub active: KekId,
    /// Envelopes re-wrapped by this run.
    pub rewrapped: u64,
    /// Envelopes that could not be, and why: the old KEK must be kept for them. Empty: the rotation
    /// is done, no envelope needs another KEK.
    pub left: Vec<(Key, SealError)>,
}

/// The record under [`Key::Rotation`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Id of the KEK that is rotated to.
    pub to: String,
    /// Envelopes re-wrapped so far, by all runs.
    pub rewrapped: u64,
    /// No envelope is left under another KEK.
    pub done: bool,
}

impl Progress {
    /// Reads it; `None` when no rotation was ever begun.
    ///
    /// # Errors
    /// [`SealError::Store`].
    pub async fn read(store: &dyn Store) -> Result<Option<Self>, SealError> {
        let record = store.get(&Key::Rotation).await?;
        Ok(record.and_then(|record| serde_json::from_slice(&record.value).ok()))
    }

    fn write(&self) -> Result<Write, SealError> {
        let json = serde_json::to_vec(self).map_err(|e| StoreError::Corrupt(e.to_string()))?;
        Ok(Write::Put(Key::Rotation, json.into()))
    }
}

/// Re-wraps all that is not under the active KEK. Lists the whole store, twice at least.
///
/// # Errors
/// [`SealError::Store`]; what was re-wrapped by then stays so. What one envelope has wrong is in
/// the report.
pub async fn rotate(sealer: &Sealer, store: &dyn Store) -> Result<Report, SealError> {
    let to = sealer.active().to_string();
    let fresh = Progress { to: to.clone(), rewrapped: 0, done: false };
    let mut progress = Progress::read(store).await?.filter(|progress| progress.to == to).unwrap_or(fresh);
    let before = progress.rewrapped;
    loop {
        let (stale, left) = stale(sealer, store).await?;
        if stale.is_empty() {
            let done = left.is_empty();
            if progress.done != done || before != progress.rewrapped {
                progress.done = done;
                store.commit(Transaction { checks: vec![], writes: vec![progress.write()?] }).await?;
            }
            return Ok(Report { active: sealer.active(), rewrapped: progress.rewrapped - before, left });
        }
        progress.done = false;
        for batch in stale.chunks(BATCH) {
            rewrap(store, batch, &mut progress).await?;
        }
    }
}

/// An envelope, and what it shall be.
struct Stale {
    record: Record,
    rewrapped: bytes::Bytes,
}

/// What is to be done, and what can't be.
async fn stale(sealer: &Sealer, store: &dyn Store) -> Result<(Vec<Stale>, Vec<(Key, SealError)>), SealError> {
    let (mut stale, mut left) = (Vec::new(), Vec::new());
    for record in store.list(prefix::ALL).await?.0 {
        if RecordId::of(&record.key, store.store_id()).is_none() {
            continue;
        }
        match sealer.rewrap(&record.value).await {
            Ok(None) => {}
            Ok(Some(rewrapped)) => stale.push(Stale { record, rewrapped }),
            Err(error) => left.push((record.key, error)),
        }
    }
    Ok((stale, left))
}

/// All of `batch` or, when one of them has changed meanwhile, each for itself; the next pass sees
/// what is left then.
async fn rewrap(store: &dyn Store, batch: &[Stale], progress: &mut Progress) -> Result<(), SealError> {
    let after = Progress { rewrapped: progress.rewrapped + batch.len() as u64, ..progress.clone() };
    let mut change = Transaction { checks: vec![], writes: vec![after.write()?] };
    for Stale { record, rewrapped } in batch {
        change.checks.push((record.key.clone(), record.modified));
        change.writes.push(Write::Put(record.key.clone(), rewrapped.clone()));
    }
    match store.commit(change).await {
        Ok(_) => {
            *progress = after;
            Ok(())
        }
        Err(StoreError::Conflict | StoreError::TooLarge) if batch.len() > 1 => {
            for one in batch {
                Box::pin(rewrap(store, std::slice::from_ref(one), progress)).await?;
            }
            Ok(())
        }
        Err(StoreError::Conflict) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
