//! The audit key: what nodes seal their records to. Made once for a store and kept in it as an envelope; the first replica wins.

use seks_audit::seal::AuditKeyPair;
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
    let id = RecordId::audit_key(store.store_id());
    loop {
        if let Some(record) = store.get(&Key::AuditKey).await? {
            let secret = sealer.open(&id, &record.value).await?;
            return AuditKeyPair::from_bytes(secret.expose()).map_err(|_| AuthorityError::Damaged);
        }
        let key = AuditKeyPair::generate().map_err(|_| AuthorityError::Damaged)?;
        let envelope = sealer.seal(&id, &Secret::new(key.to_bytes().to_vec())).await?;
        let write = Transaction { checks: vec![(Key::AuditKey, 0)], writes: vec![Write::Put(Key::AuditKey, envelope)] };
        match store.commit(write).await {
            Ok(_) => return Ok(key),
            Err(StoreError::Conflict) => {} // another replica's first start: read what it wrote
            Err(error) => return Err(error.into()),
        }
    }
}
