//! Binding credentials to destinations after they were stored: by an owner's word, and once for
//! those of an earlier version.

use seks_types::id::{CredentialName, OperatorName, TenantName};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    credential::{Bound, service_of},
    record::{Credential, Service, Stored, destination_of},
};
use crate::{
    seal::RecordId,
    store::{Key, Revision, key::prefix},
};

/// What a credential was bound to, and is now: origins, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebound {
    /// Before; empty: nothing.
    pub from: String,
    /// Now.
    pub to: String,
}

impl Registry {
    /// Binds a credential to the destination that its service has now, as a new version of the same
    /// secret. `origin`: the service's, as the caller saw it; empty: whatever it is. Writes nothing
    /// when it is bound to that already.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Conflict`] when the service has another origin
    /// than `origin`.
    pub async fn rebind_credential(
        &self,
        tenant: &TenantName,
        name: &CredentialName,
        origin: &str,
        by: &OperatorName,
    ) -> Result<(Credential, Revision, Rebound), RegistryError> {
        retry_on_conflict(|| async {
            let old = self.load_credential(tenant, name).await?;
            let service = self.living_service(tenant, &service_of(&old.value)?).await?;
            let bound_to = Bound::of(&service.value)?;
            if !origin.is_empty() && origin != bound_to.origin {
                let reason = format!("service `{}` goes to {}, not to {origin}", service.value.name, bound_to.origin);
                return Err(RegistryError::conflict(reason, "look at the service before you bind credentials to it"));
            }
            let version = old.value.version;
            let from = old.value.versions.iter().find(|v| v.version == version).map(|v| v.origin.clone());
            let rebound = Rebound { from: from.unwrap_or_default(), to: bound_to.origin.clone() };
            if destination_of(&old.value, version) == Some(bound_to.destination) {
                return Ok((self.described(old.value).await?, old.modified, rebound));
            }
            let mut change = Change::new().check(&service);
            let (mint, mint_key) = (old.value.mint.clone(), Key::MintSecret(tenant.clone(), name.clone()));
            if let Some(envelope) = self.store().get(&mint_key).await? {
                let id = self.mint_secret_id(tenant, name, &old.value);
                let moved = self.sealer.move_to(&id, &id.bound_to(Some(bound_to.destination)), &envelope.value).await?;
                change = change.check_at(mint_key.clone(), envelope.modified).put_bytes(mint_key, moved);
            }
            let kind = mint.map(|mint| mint.kind).unwrap_or_default();
            let (credential, revision) = self.rebound_version(change, (tenant, name), old, bound_to, &kind, by).await?;
            Ok((credential, revision, rebound))
        })
        .await
    }

    /// Binds every credential of an earlier version to the present destination of its service. It
    /// can be interrupted at any point and run again. Returns how many were bound.
    ///
    /// # Errors
    /// From the store; [`RegistryError::Seal`] for an envelope that cannot be opened.
    pub async fn bind_credentials(&self) -> Result<usize, RegistryError> {
        let mut bound = 0;
        for tenant in self.tenants().await? {
            let Ok(tenant) = TenantName::try_from(tenant.name.as_str()) else { continue };
            for credential in self.load_all::<Credential>(&prefix::kind(&tenant, "credential")).await? {
                let Ok(name) = CredentialName::try_from(credential.value.name.as_str()) else { continue };
                let known = |version: u32| destination_of(&credential.value, version).is_some();
                if credential.value.versions.iter().all(|v| known(v.version)) {
                    continue;
                }
                match retry_on_conflict(|| self.bind_versions(&tenant, &name)).await {
                    Ok(()) => bound += 1,
                    Err(error @ RegistryError::Store(_)) => return Err(error),
                    // It was deleted, or it cannot be used anyway. Continue with the others.
                    Err(error) => {
                        tracing::warn!(seks.tenant = %tenant, seks.credential = %name, %error, "a credential can't be bound to its destination")
                    }
                }
            }
        }
        Ok(bound)
    }

    async fn bind_versions(&self, tenant: &TenantName, name: &CredentialName) -> Result<(), RegistryError> {
        let mut old: Stored<Credential> = self.load_credential(tenant, name).await?;
        let service: Stored<Service> = self.load_service(tenant, &service_of(&old.value)?).await?;
        let bound_to = Bound::of(&service.value)?;
        let mut change = Change::new().check(&old).check(&service);
        let mint_key = Key::MintSecret(tenant.clone(), name.clone());
        if let Some(envelope) = self.store().get(&mint_key).await?
            && destination_of(&old.value, old.value.version).is_none()
        {
            let id = self.mint_secret_id(tenant, name, &old.value);
            let moved = self.sealer.move_to(&id, &id.bound_to(Some(bound_to.destination)), &envelope.value).await?;
            change = change.check_at(mint_key.clone(), envelope.modified).put_bytes(mint_key, moved);
        }
        for version in old.value.versions.iter_mut().filter(|version| version.destination.is_empty()) {
            let key = Key::Envelope(tenant.clone(), name.clone(), version.version);
            if let Some(envelope) = self.store().get(&key).await? {
                let id = RecordId::credential(self.store().store_id(), tenant, name, version.version);
                let moved = self.sealer.move_to(&id, &id.bound_to(Some(bound_to.destination)), &envelope.value).await?;
                change = change.check_at(key.clone(), envelope.modified).put_bytes(key, moved);
            }
            version.destination = bound_to.destination.as_bytes().to_vec();
            version.origin.clone_from(&bound_to.origin);
        }
        self.commit(change.put(old.key.clone(), &old.value)).await.map(drop)
    }
}
