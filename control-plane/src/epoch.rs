//! Whether the store is the one that was last seen, and not an older copy of it.
//!
//! Nodes know a store's history by its epoch. The first epoch is the store's id. When an operator
//! accepts a rollback, a new epoch begins, and the earlier ones are recorded as superseded. Within
//! one epoch revisions only grow. Each replica and each node keeps the highest revision that it has
//! seen outside of the store ([`HighWaterMark`]). A store below it, or of an epoch that doesn't
//! supersede it, is refused. So a restored backup, or an old copy of the data, makes no revoked
//! token valid before an operator has accepted it.

mod high_water_mark;

use serde::{Deserialize, Serialize};

pub use self::high_water_mark::{HighWaterMark, HighWaterMarkError, HighWaterMarkFile};
use crate::{
    clock::unix_seconds,
    seal::{RecordId, SealError, Sealer},
    store::{self, Key, Revision, Store, StoreError, Transaction, Write},
};

/// Superseded epochs that are kept.
const MAX_SUPERSEDED: usize = 64;

/// The record at [`Key::Epoch`]. It is sealed, so a writer to the store cannot accept the store's
/// rollback.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EpochRecord {
    /// The epoch's id.
    name: String,
    /// Epochs that this one supersedes; newest first.
    superseded: Vec<String>,
    /// The epoch of the backup that was restored, until an operator accepts it.
    restored_from: Option<String>,
    /// Why it was accepted.
    reason: String,
    /// When, in unix seconds.
    accepted_at: u64,
}

/// The epoch of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch(EpochRecord);

/// The store is older than what was seen of it.
#[derive(Debug, thiserror::Error)]
pub enum WentBack {
    /// A backup was restored.
    #[error("it was restored from a backup, and what was revoked since then is valid again")]
    Restored,
    /// Its records are as an earlier version left them.
    #[error("its records are not authenticated, and were before")]
    Unauthenticated,
    /// The same epoch, at an earlier revision.
    #[error("it is at revision {now}, and was at {seen} before")]
    Revision {
        /// The store's revision.
        now: Revision,
        /// The highest that was seen.
        seen: Revision,
    },
    /// An epoch that does not supersede the one that was seen.
    #[error("its epoch is `{now}`, and what was seen before is `{seen}` at revision {revision}")]
    Epoch {
        /// The store's.
        now: String,
        /// What was seen.
        seen: String,
        /// Up to there.
        revision: Revision,
    },
}

impl Epoch {
    /// That of `store`.
    ///
    /// # Errors
    /// Of the store; a record that doesn't open or isn't one.
    pub async fn read(store: &dyn Store, sealer: &Sealer) -> Result<Self, SealError> {
        Ok(Self::load(store, sealer).await?.0)
    }

    async fn load(store: &dyn Store, sealer: &Sealer) -> Result<(Self, Revision), SealError> {
        let Some(record) = store.get(&Key::Epoch).await? else {
            return Ok((Self(EpochRecord { name: store.store_id().to_owned(), ..EpochRecord::default() }), 0));
        };
        let json = sealer.verify_record(&RecordId::epoch(store.store_id()), &record.value).await?;
        let epoch = serde_json::from_slice(&json).map_err(|_| SealError::Malformed("not the record of an epoch"))?;
        Ok((Self(epoch), record.modified))
    }

    /// The record of a store that was restored from a backup of the epoch `from`, to be sealed.
    pub(crate) fn restored(store_id: &str, from: &str) -> Vec<u8> {
        let record =
            EpochRecord { name: store_id.to_owned(), restored_from: Some(from.to_owned()), ..EpochRecord::default() };
        serde_json::to_vec(&record).unwrap_or_default()
    }

    /// The name by which nodes know it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The epochs that it supersedes.
    #[must_use]
    pub fn superseded(&self) -> &[String] {
        &self.0.superseded
    }

    /// Whether a process that has seen `mark` may continue with the store at `revision`.
    ///
    /// # Errors
    /// [`WentBack`].
    pub fn check(&self, revision: Revision, mark: Option<&HighWaterMark>) -> Result<(), WentBack> {
        if self.0.restored_from.is_some() {
            return Err(WentBack::Restored);
        }
        match mark {
            Some(mark) if mark.epoch == self.0.name && mark.revision > revision => {
                Err(WentBack::Revision { now: revision, seen: mark.revision })
            }
            Some(mark) if mark.epoch != self.0.name && !self.0.superseded.contains(&mark.epoch) => {
                let (now, seen) = (self.0.name.clone(), mark.epoch.clone());
                Err(WentBack::Epoch { now, seen, revision: mark.revision })
            }
            _ => Ok(()),
        }
    }

    /// Begins a new epoch of `store` that supersedes this one. It is based on what `mark` has seen
    /// and on the backup that was restored. Every node then loads its table again, and accepts the
    /// older store.
    ///
    /// # Errors
    /// From the store, and from sealing.
    pub async fn accept(
        store: &dyn Store,
        sealer: &Sealer,
        mark: Option<&HighWaterMark>,
        reason: &str,
    ) -> Result<Self, SealError> {
        loop {
            let (Self(old), modified) = Self::load(store, sealer).await?;
            let seen = mark.map(|mark| mark.epoch.clone());
            let mut superseded: Vec<String> = Vec::new();
            for name in std::iter::once(old.name).chain(seen).chain(old.restored_from).chain(old.superseded) {
                if !superseded.contains(&name) && superseded.len() < MAX_SUPERSEDED {
                    superseded.push(name);
                }
            }
            let accepted_at = unix_seconds();
            let name = store::fresh_id()?;
            let record = EpochRecord { name, superseded, restored_from: None, reason: reason.to_owned(), accepted_at };
            let json = serde_json::to_vec(&record).map_err(|e| StoreError::Corrupt(e.to_string()))?;
            let envelope = sealer.authenticate_record(&RecordId::epoch(store.store_id()), &json).await?;
            let writes = vec![Write::Put(Key::Epoch, envelope)];
            match store.commit(Transaction { checks: vec![(Key::Epoch, modified)], writes }).await {
                Ok(_) => return Ok(Self(record)),
                Err(StoreError::Conflict) => {} // somebody else accepts as well: theirs is superseded by ours
                Err(error) => return Err(error.into()),
            }
        }
    }
}
