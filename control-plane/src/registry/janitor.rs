//! Forgetting what has had its time: tokens long expired, tombstones, request ids, join tokens; and
//! finishing the deletion of tenants that a crash interrupted.

use seks_types::id::TenantName;

use super::{
    Change, Registry, RegistryError,
    change::MAX_BATCH,
    limits, now,
    record::{RequestRecord, Token},
};
use crate::store::{Key, Revision, StoreError, key::prefix};

impl Registry {
    /// One round. Any number of replicas may run it at once, because everything is checked before
    /// it is deleted.
    ///
    /// # Errors
    /// From the store. What was done until then remains done, and the next round continues.
    pub async fn purge_expired(&self) -> Result<(), RegistryError> {
        self.forget_join_tokens().await?;
        for tenant in self.tenants().await? {
            let Ok(name) = TenantName::try_from(tenant.name.as_str()) else { continue };
            if tenant.deleting {
                match self.delete_tenant(&name).await {
                    Ok(_) | Err(RegistryError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            let now = now();
            for (kind, kept) in [("token", limits::EXPIRED_TOKEN_SECONDS), ("tombstone", 0)] {
                let mut pages = self.pages(&prefix::kind(&name, kind));
                while let Some(tokens) = pages.next::<Token>().await? {
                    let over = tokens.into_iter().filter(|t| t.value.expires_at.saturating_add(kept) <= now);
                    self.forget(over.map(|t| (t.key, t.modified)).collect()).await?;
                }
            }
            self.forget_ended_approvals(&name).await?;
            let mut pages = self.pages(&prefix::kind(&name, "request"));
            while let Some(requests) = pages.next::<RequestRecord>().await? {
                let over = requests.into_iter().filter(|r| r.value.created_at + limits::REQUEST_SECONDS <= now);
                self.forget(over.map(|r| (r.key, r.modified)).collect()).await?;
            }
        }
        Ok(())
    }

    async fn forget(&self, past: Vec<(Key, Revision)>) -> Result<(), RegistryError> {
        for batch in past.chunks(MAX_BATCH / 2) {
            let change = batch.iter().fold(Change::new(), |change, (key, modified)| {
                change.check_at(key.clone(), *modified).delete(key.clone())
            });
            match self.commit(change).await {
                // Another replica is doing the same. The rest waits for the next round.
                Ok(_) | Err(RegistryError::Store(StoreError::Conflict)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
