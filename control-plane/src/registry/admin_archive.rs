//! What replicas have taken out of the store of the chains of admin changes.
//!
//! A replica with a trail copies every change to its archive ([`seks_audit::admin::archive`]). Only
//! then does the store give up a change, and only the oldest ones beyond [`KEPT`].

use futures_util::future::try_join_all;
use prost::Message as _;
use seks_audit::admin::{KEPT, archive::ArchivedChange};
use seks_proto::wire::AdminChange;

use super::{Change, Registry, RegistryError, change::retry_on_conflict, record::Stored};
use crate::store::{Key, key::AdminChainName};

/// Changes that are removed in one transaction. Each is a write.
const REMOVED: u64 = 100;
/// Changes that are read at the same time.
const READS: u64 = 32;
/// Changes that are read for one batch of the archive. Each has at most 8 KiB.
pub const BATCH: u64 = 256;
/// Replicas that are remembered for a chain: those of the last months.
const MAX_HOLDERS: usize = 64;

/// Where the changes of a chain are.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AdminArchive {
    /// The oldest that the store has.
    #[prost(uint64, tag = "1")]
    pub kept_from: u64,
    /// Who has which of them.
    #[prost(message, repeated, tag = "2")]
    pub holders: Vec<Holder>,
}

/// A replica that has changes of a chain in its archive, without a gap.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Holder {
    /// Its name.
    #[prost(string, tag = "1")]
    pub replica: String,
    /// The first sequence that it has.
    #[prost(uint64, tag = "2")]
    pub first: u64,
    /// The last one; less than `first`: it has none yet.
    #[prost(uint64, tag = "3")]
    pub last: u64,
}

impl AdminArchive {
    /// What a replica has.
    #[must_use]
    pub fn holder(&self, replica: &str) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.replica == replica)
    }

    /// The oldest change that `replica` must have, be it in the store or in its archive.
    #[must_use]
    pub fn oldest_at(&self, replica: &str) -> u64 {
        let own = self.holder(replica).filter(|own| own.last + 1 >= self.kept_from);
        own.map_or(self.kept_from, |own| own.first.min(self.kept_from))
    }

    fn holder_mut(&mut self, replica: &str) -> &mut Holder {
        let at = self.holders.iter().position(|holder| holder.replica == replica).unwrap_or_else(|| {
            let (first, last) = (self.kept_from, self.kept_from.saturating_sub(1));
            self.holders.push(Holder { replica: replica.into(), first, last });
            let surplus = self.holders.len().saturating_sub(MAX_HOLDERS);
            self.holders.drain(..surplus);
            self.holders.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "a position in this list")]
        &mut self.holders[at]
    }
}

/// The oldest change that a store without an archive has.
pub(super) fn oldest_without_archive(last: u64) -> u64 {
    last.saturating_sub(KEPT - 1).max(1)
}

impl Registry {
    /// Where the changes of `chain` are; `None`: no replica has archived any, and the oldest go
    /// when there are more than [`KEPT`].
    ///
    /// # Errors
    /// Of the store.
    pub async fn admin_archive(&self, chain: &AdminChainName) -> Result<Option<AdminArchive>, RegistryError> {
        Ok(self.load::<AdminArchive>(Key::AdminArchive(chain.clone())).await?.map(|stored| stored.value))
    }

    /// From now on the store gives up no change of `chain` that is in no archive. Returns what
    /// `replica` has.
    ///
    /// # Errors
    /// Of the store.
    pub async fn begin_admin_archive(&self, chain: &AdminChainName, replica: &str) -> Result<Holder, RegistryError> {
        self.update_admin_archive(chain, |archive| archive.holder_mut(replica).clone()).await
    }

    /// The changes behind `after`, up to `last` and at most [`BATCH`], in order.
    ///
    /// # Errors
    /// Of the store.
    pub async fn admin_changes_after(
        &self,
        chain: &AdminChainName,
        after: u64,
        last: u64,
    ) -> Result<Vec<ArchivedChange>, RegistryError> {
        let (name, mut changes) = (chain.to_string(), Vec::new());
        let mut next = after + 1;
        let end = last.min(after + BATCH) + 1;
        while next < end {
            let keys: Vec<Key> =
                (next..end.min(next + READS)).map(|sequence| Key::AdminChange(chain.clone(), sequence)).collect();
            next += keys.len() as u64;
            for record in try_join_all(keys.iter().map(|key| self.store.get(key))).await? {
                let Some(record) = record else { continue }; // removed from the store by hand: `verify` names it
                let Key::AdminChange(_, sequence) = record.key else { continue };
                let at_us = AdminChange::decode(record.value.clone()).unwrap_or_default().at_us;
                let (chain, encoded) = (name.clone(), record.value.to_vec());
                changes.push(ArchivedChange { chain, sequence, revision: record.modified, at_us, encoded });
            }
        }
        Ok(changes)
    }

    /// Notes that `replica` has the changes up to `last` on its disk, and removes from the store
    /// what is beyond [`KEPT`] and in an archive.
    ///
    /// # Errors
    /// Of the store.
    pub async fn note_admin_archive(
        &self,
        chain: &AdminChainName,
        replica: &str,
        last: u64,
    ) -> Result<(), RegistryError> {
        self.update_admin_archive(chain, |archive| {
            let kept_from = archive.kept_from;
            let own = archive.holder_mut(replica);
            if own.last + 1 < kept_from {
                own.first = kept_from; // others have archived and removed what lies between
            }
            own.last = last.max(own.last);
        })
        .await?;
        loop {
            let head = self.load_admin_head(chain).await?.value.sequence;
            let is_done = self
                .update_admin_archive(chain, |archive| {
                    let removable = oldest_without_archive(head).min(last + 1);
                    let to = removable.min(archive.kept_from + REMOVED).max(archive.kept_from);
                    archive.kept_from = to;
                    to >= removable
                })
                .await?;
            if is_done {
                return Ok(());
            }
        }
    }

    /// Notes that `replica` is about to remove the changes up to `last` because of their age.
    ///
    /// # Errors
    /// Of the store.
    pub async fn note_admin_retention(
        &self,
        chain: &AdminChainName,
        replica: &str,
        last: u64,
    ) -> Result<(), RegistryError> {
        self.update_admin_archive(chain, |archive| {
            let own = archive.holder_mut(replica);
            own.first = own.first.max(last + 1);
        })
        .await
    }

    /// Changes the record, and removes the changes from the store that it says are not there any
    /// more, in one transaction.
    async fn update_admin_archive<T>(
        &self,
        chain: &AdminChainName,
        update: impl Fn(&mut AdminArchive) -> T,
    ) -> Result<T, RegistryError> {
        let key = Key::AdminArchive(chain.clone());
        let head = self.load_admin_head(chain).await?.value.sequence;
        // Of a chain that no replica archives, the oldest changes may be gone, first ones first.
        let has_first = self.store.get(&Key::AdminChange(chain.clone(), 1)).await?.is_some();
        let oldest = if has_first { 1 } else { oldest_without_archive(head) };
        retry_on_conflict(async || {
            let stored = self.load::<AdminArchive>(key.clone()).await?;
            let is_new = stored.is_none();
            let value = AdminArchive { kept_from: oldest, holders: Vec::new() };
            let mut stored = stored.unwrap_or(Stored { key: key.clone(), value, modified: 0 });
            let before = stored.value.clone();
            let result = update(&mut stored.value);
            if !is_new && stored.value == before {
                return Ok(result);
            }
            let mut change = Change::new().check(&stored).put(key.clone(), &stored.value);
            for sequence in before.kept_from..stored.value.kept_from {
                change = change.delete(Key::AdminChange(chain.clone(), sequence));
            }
            self.store.commit(change.into_transaction()?).await?;
            Ok(result)
        })
        .await
    }
}
