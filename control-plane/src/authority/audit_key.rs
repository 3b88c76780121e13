//! The audit keys: what nodes seal their records to, and what exports are signed with. Each is made
//! once for a store and kept in it as an envelope; the first replica wins.

use seks_audit::{
    seal::{AuditKeyPair, AuditKeys, KeyId},
    signing::SigningKey,
};
use seks_types::secret::Secret;

use super::AuthorityError;
use crate::{
    seal::{RecordId, Sealer},
    store::{Key, Store, StoreError, Transaction, Write},
};

/// The store's audit keys. The first is made when there is none.
///
/// # Errors
/// [`AuthorityError::Damaged`], [`AuthorityError::Seal`], [`AuthorityError::Store`].
pub async fn load_or_create(store: &dyn Store, sealer: &Sealer) -> Result<AuditKeys, AuthorityError> {
    let fresh = || AuditKeyPair::generate().ok().map(|key| Secret::new(key.to_bytes().to_vec()));
    let secret = load(store, sealer, Key::AuditKey, RecordId::audit_key(store.store_id()), fresh).await?;
    AuditKeys::from_bytes(secret.expose()).map_err(|_| AuthorityError::Damaged)
}

/// Makes a new audit key the current one, and keeps the earlier ones for the files that are sealed
/// to them. Returns the names of the new key and of the one before. Replicas of a version without
/// rotation refuse to start from then on.
///
/// # Errors
/// As [`load_or_create`].
pub async fn rotate(store: &dyn Store, sealer: &Sealer) -> Result<(KeyId, KeyId), AuthorityError> {
    let id = RecordId::audit_key(store.store_id());
    loop {
        load_or_create(store, sealer).await?;
        let Some(record) = store.get(&Key::AuditKey).await? else { continue };
        let secret = sealer.open(&id, &record.value).await?;
        let keys = AuditKeys::from_bytes(secret.expose()).map_err(|_| AuthorityError::Damaged)?;
        let before = keys.public().id();
        keys.rotate().map_err(|_| AuthorityError::Damaged)?;
        let envelope = sealer.seal(&id, &Secret::new(keys.to_bytes().to_vec())).await?;
        let checks = vec![(Key::AuditKey, record.modified)];
        match store.commit(Transaction { checks, writes: vec![Write::Put(Key::AuditKey, envelope)] }).await {
            Ok(_) => return Ok((keys.public().id(), before)),
            Err(StoreError::Conflict) => {} // another rotation: rotate what it made
            Err(error) => return Err(error.into()),
        }
    }
}

/// The key that signs exports, which is made when there is none.
///
/// # Errors
/// As [`load_or_create`].
pub async fn load_or_create_signing(store: &dyn Store, sealer: &Sealer) -> Result<SigningKey, AuthorityError> {
    let fresh = || SigningKey::generate().ok().map(|key| Secret::new(key.to_bytes().to_vec()));
    let id = RecordId::audit_signing_key(store.store_id());
    let secret = load(store, sealer, Key::AuditSigningKey, id, fresh).await?;
    SigningKey::from_bytes(secret.expose()).map_err(|_| AuthorityError::Damaged)
}

async fn load(
    store: &dyn Store,
    sealer: &Sealer,
    key: Key,
    id: RecordId<'_>,
    fresh: impl Fn() -> Option<Secret>,
) -> Result<Secret, AuthorityError> {
    loop {
        if let Some(record) = store.get(&key).await? {
            return Ok(sealer.open(&id, &record.value).await?);
        }
        let envelope = sealer.seal(&id, &fresh().ok_or(AuthorityError::Damaged)?).await?;
        let write = Transaction { checks: vec![(key.clone(), 0)], writes: vec![Write::Put(key.clone(), envelope)] };
        match store.commit(write).await {
            Ok(_) | Err(StoreError::Conflict) => {} // another replica's first start: read what it wrote
            Err(error) => return Err(error.into()),
        }
    }
}
