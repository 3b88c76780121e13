//! Backups: every record of a store at one revision, in one file, and how a new store is made from
//! it.
//!
//! The file contains what the store contains: envelopes, digests and metadata, but no key. Its end
//! is sealed with the key-encryption key. A file that was truncated, changed or written with
//! another key is detected before anything is restored. The restored store is a new store with its
//! own epoch, and every envelope is sealed again to that epoch. No replica serves it until an
//! operator has accepted that it is older than what nodes have seen ([`epoch`](crate::epoch)).

mod file;

use std::{collections::HashMap, path::Path, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use seks_types::{
    destination::Destination,
    id::{CredentialName, TenantName},
};

pub use self::file::{Backup, Head};
use crate::{
    authenticated::{self, Authenticated},
    epoch::Epoch,
    registry::record::{Credential, destination_of},
    seal::{RecordId, SealError, Sealer},
    store::{self, Key, OpenError, Revision, Store, StoreConfig, StoreError, key::prefix},
};

/// Why there is no backup, or no restored store. One line each; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file can't be read or made.
    #[error("`{path}`: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It isn't a whole backup.
    #[error("`{path}` is not a backup that can be restored: {reason}")]
    Unfit {
        /// Which.
        path: String,
        /// What is the matter.
        reason: &'static str,
    },
    /// It was made with another key-encryption key, or is damaged where the key is named.
    #[error("`{path}`: {source}")]
    Seal {
        /// Which.
        path: String,
        /// Why.
        source: SealError,
    },
    /// One of its secrets doesn't open.
    #[error("the sealed record {key:?} does not open: {source}")]
    Record {
        /// Where it stood.
        key: Key,
        /// Why.
        source: SealError,
    },
    /// There is nothing to back up.
    #[error("there is no store")]
    NoStore,
    /// The store can't be opened or made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was written or read.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Records in the file.
    pub records: usize,
    /// The revision at which they stood so.
    pub revision: Revision,
    /// The store's id: that of the backup, or the restored store's own.
    pub store_id: String,
}

/// Writes all of `store` to a new file: the whole file is there in the end, or none.
///
/// # Errors
/// [`BackupError`].
pub async fn create(store: &dyn Store, sealer: &Sealer, out: &Path) -> Result<Summary, BackupError> {
    let epoch = Epoch::read(store, sealer).await.map_err(|source| BackupError::Record { key: Key::Epoch, source })?;
    let (records, revision) = store.list(prefix::ALL).await?;
    let records: Vec<(Key, Bytes)> =
        records.into_iter().filter(|r| is_kept(&r.key)).map(|r| (r.key, r.value)).collect();
    if records.is_empty() {
        return Err(BackupError::NoStore);
    }
    let head = Head::new(store.store_id(), epoch.name(), revision, records.len());
    file::write(out, &head, &records, sealer).await?;
    Ok(Summary { records: records.len(), revision, store_id: head.store_id })
}

/// As [`create`], of the store that `config` names, which is not made when it isn't there.
///
/// # Errors
/// [`BackupError`].
pub async fn create_from(config: &StoreConfig, sealer: &Sealer, out: &Path) -> Result<Summary, BackupError> {
    if !store::exists(config).await? {
        return Err(BackupError::NoStore);
    }
    let records = Authenticated::open(store::open(config).await?, Arc::new(sealer.clone()), 0).await;
    let records = records.map_err(|source| BackupError::Record { key: Key::RecordKey, source })?;
    create(&records, sealer, out).await
}

/// Makes the store that `config` names out of a backup. The store must not be there: with
/// `replace`, an embedded one may, and is kept beside the new one. Killed anywhere, there is the
/// store of before or the restored one.
///
/// # Errors
/// [`BackupError`].
pub async fn restore(
    config: &StoreConfig,
    sealer: &Sealer,
    from: &Path,
    replace: bool,
) -> Result<Summary, BackupError> {
    let Backup { head, records } = file::read(from, sealer).await?;
    let bindings = Bindings::read(&records);
    let store_id = store::fresh_id()?;
    let (framer, bare) = authenticated::for_restored(sealer, &store_id)
        .await
        .map_err(|source| BackupError::Record { key: Key::RecordKey, source })?;
    let count = records.len();
    let mut sealed = Vec::with_capacity(count + 1);
    for (key, value) in records {
        let value = match (RecordId::of(&key, &head.store_id), RecordId::of(&key, &store_id)) {
            (Some(old), Some(new)) => {
                let bound_to = bindings.of(&key);
                sealer.move_to(&old.bound_to(bound_to), &new.bound_to(bound_to), &value).await
            }
            _ => Ok(value),
        };
        match value {
            Ok(value) => sealed.push((key, value)),
            Err(source) => return Err(BackupError::Record { key, source }),
        }
    }
    let record = Epoch::restored(&store_id, &head.epoch);
    let record = sealer.authenticate_record(&RecordId::epoch(&store_id), &record).await;
    sealed.push((Key::Epoch, record.map_err(|source| BackupError::Record { key: Key::Epoch, source })?));
    sealed.retain(|(key, _)| *key != Key::Canary);
    sealed.extend(bare);
    store::restore(config, &store_id, head.revision, sealed, &framer, replace).await?;
    Ok(Summary { records: count, revision: head.revision, store_id })
}

/// What the credentials of a backup are bound to.
struct Bindings(HashMap<(TenantName, CredentialName), Credential>);

impl Bindings {
    fn read(records: &[(Key, Bytes)]) -> Self {
        let credential = |(key, value): &(Key, Bytes)| match key {
            Key::Credential(tenant, name) => {
                Some(((tenant.clone(), name.clone()), Credential::decode(value.clone()).ok()?))
            }
            _ => None,
        };
        Self(records.iter().filter_map(credential).collect())
    }

    /// Of the secret at `key`.
    fn of(&self, key: &Key) -> Option<Destination> {
        let (of, version) = match key {
            Key::Envelope(tenant, name, version) => ((tenant.clone(), name.clone()), Some(*version)),
            Key::MintSecret(tenant, name) => ((tenant.clone(), name.clone()), None),
            _ => return None,
        };
        let credential = self.0.get(&of)?;
        destination_of(credential, version.unwrap_or(credential.version))
    }
}

/// The records of a backup: all except those that belong to one store only, replicas' records, and
/// join tokens, which may have been used since. The key that authenticates records belongs to the
/// store, and a new one is generated.
fn is_kept(key: &Key) -> bool {
    match key {
        Key::StoreId | Key::Epoch | Key::Rotation | Key::RecordKey | Key::Replica(_) | Key::Join(_) => false,
        // The trail beside the restored store continues where it ended, which may be after the
        // backup's heads.
        Key::AuditHead(_) => false,
        Key::AuditKey
        | Key::AuditSigningKey
        | Key::AdminHead(_)
        | Key::AdminArchive(_)
        | Key::AdminChange(..)
        | Key::Authority
        | Key::Canary
        | Key::Operator(_)
        | Key::Node(_)
        | Key::Tenant(_)
        | Key::Agent(..)
        | Key::Service(..)
        | Key::Credential(..)
        | Key::Envelope(..)
        | Key::Mint(..)
        | Key::MintSecret(..)
        | Key::AwsKey(_)
        | Key::Token(..)
        | Key::Tombstone(..)
        | Key::Policy(..)
        | Key::PolicySet(_)
        | Key::LimitWindow(..)
        | Key::Approval(..)
        | Key::ApprovalTurn(_)
        | Key::Request(..) => true,
    }
}
