//! Control-plane replicas: what each says of itself for the others.

use seks_types::id::ReplicaId;

use super::{Change, Registry, RegistryError, record::Replica};
use crate::store::{Key, Revision};

impl Registry {
    /// Writes a replica's record over the one of revision `over`; 0: there is none.
    ///
    /// # Errors
    /// [`StoreError::Conflict`](crate::store::StoreError::Conflict) when it is not the one of that
    /// revision.
    pub async fn put_replica(
        &self,
        id: &ReplicaId,
        record: &Replica,
        over: Revision,
    ) -> Result<Revision, RegistryError> {
        let key = Key::Replica(id.clone());
        self.commit(Change::new().check_at(key.clone(), over).put(key, record)).await
    }

    /// A replica's record, with its revision.
    ///
    /// # Errors
    /// Of the store.
    pub async fn replica(&self, id: &ReplicaId) -> Result<Option<(Replica, Revision)>, RegistryError> {
        Ok(self.load(Key::Replica(id.clone())).await?.map(|stored| (stored.value, stored.modified)))
    }

    /// Forgets a replica whose record is still that of revision `at`.
    ///
    /// # Errors
    /// [`StoreError::Conflict`](crate::store::StoreError::Conflict) when it isn't.
    pub async fn forget_replica(&self, id: &ReplicaId, at: Revision) -> Result<Revision, RegistryError> {
        let key = Key::Replica(id.clone());
        self.commit(Change::new().check_at(key.clone(), at).delete(key)).await
    }
}
