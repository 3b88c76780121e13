//! The audit keys: what nodes seal their records to, and what exports are signed with. Each is made
//! once for a store and kept in it as an envelope; the first replica wins.

use seks_audit::{seal::AuditKeyPair, signing::SigningKey};
use seks_types::secret::Secret;

use super::AuthorityError;
use crate::{
    seal::{RecordId, Sealer},
    store::{Key, Store, StoreError, Transaction, Write},
};

/// The store's audit key, which is made when there is none.
///
/// # Errors
/// [`AuthorityError::Damaged`], [`AuthorityError::Seal`], [`AuthorityError::Store`].
pub async fn load_or_create(store: &dyn Store, sealer: &Sealer) -> Result<AuditKeyPair, AuthorityError> {
    let fresh = || AuditKeyPair::generate().ok().map(|key| Secret::new(key.to_bytes().to_vec()));
    let secret = load(store, sealer, Key::AuditKey, RecordId::audit_key(store.store_id()), fresh).await?;
    AuditKeyPair::from_bytes(secret.expose()).map_err(|_| AuthorityError::Damaged)
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
