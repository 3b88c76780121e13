//! Tenants.

use seks_network::address::Networks;
use seks_types::id::TenantName;

use super::{
    Change, Registry, RegistryError,
    change::{MAX_BATCH, retry_on_conflict},
    limits, now, policy,
    record::{PolicySet, Stored, Tenant},
};
use crate::store::{Key, Revision, StoreError, Transaction, key::prefix};

const KIND: &str = "tenant";

impl Registry {
    /// Makes a tenant; unless `strict` it starts with the policy `granted-services`.
    ///
    /// # Errors
    /// [`RegistryError::Exists`], [`RegistryError::Quota`].
    pub async fn create_tenant(&self, name: &TenantName, strict: bool) -> Result<(Tenant, Revision), RegistryError> {
        let private_networks = self.tenant_networks.to_strings();
        let tenant =
            Tenant { name: name.to_string(), created_at: now(), strict, private_networks, ..Tenant::default() };
        if self.store.list(prefix::TENANTS).await?.0.len() >= limits::TENANTS {
            return Err(RegistryError::Quota { tenant: "*".into(), kind: KIND, limit: limits::TENANTS as u64 });
        }
        let change = Self::tenant_birth(Change::new(), name, &tenant);
        match self.commit(change).await {
            Ok(revision) => Ok((tenant, revision)),
            Err(RegistryError::Store(StoreError::Conflict)) => Err(RegistryError::exists(KIND, name)),
            Err(other) => Err(other),
        }
    }

    /// The first tenant of a store, as a transaction for others to add to.
    #[must_use]
    pub(crate) fn first_tenant(name: &TenantName) -> Transaction {
        let tenant = Tenant { name: name.to_string(), created_at: now(), ..Tenant::default() };
        Self::tenant_birth(Change::new(), name, &tenant).into_transaction().unwrap_or_default()
    }

    /// What a new tenant consists of.
    fn tenant_birth(change: Change, name: &TenantName, tenant: &Tenant) -> Change {
        let change = change.check_absent(Key::Tenant(name.clone())).put(Key::Tenant(name.clone()), tenant);
        match policy::granted_services(name) {
            Some((key, policy)) if !tenant.strict => {
                let set = PolicySet::of([&policy]);
                change.put(key, &policy).put(Key::PolicySet(name.clone()), &set)
            }
            _ => change.put(Key::PolicySet(name.clone()), &PolicySet::default()),
        }
    }

    /// Replaces the private networks that the tenant's services may reach. Nodes are sent them with
    /// the services that ask for private upstreams. Writes nothing when they are already so.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn set_private_networks(
        &self,
        name: &TenantName,
        networks: &Networks,
    ) -> Result<(Tenant, Revision), RegistryError> {
        retry_on_conflict(|| async {
            let stored = self.active_tenant(name).await?;
            let tenant = Tenant { private_networks: networks.to_strings(), ..stored.value.clone() };
            if tenant == stored.value {
                return Ok((tenant, stored.modified));
            }
            let change = Change::new().check(&stored).put(stored.key.clone(), &tenant);
            let revision = self.commit(change).await?;
            Ok((tenant, revision))
        })
        .await
    }

    /// Gives every tenant without private networks those of a new tenant: `seks dev`, on data of a
    /// version before.
    ///
    /// # Errors
    /// Of the store.
    pub async fn give_tenant_networks(&self) -> Result<(), RegistryError> {
        for tenant in self.tenants().await?.into_iter().filter(|t| t.private_networks.is_empty() && !t.deleting) {
            if let Ok(name) = TenantName::try_from(tenant.name.as_str()) {
                self.set_private_networks(&name, &self.tenant_networks).await?;
            }
        }
        Ok(())
    }

    /// All tenants, by name.
    ///
    /// # Errors
    /// Of the store.
    pub async fn tenants(&self) -> Result<Vec<Tenant>, RegistryError> {
        self.values(prefix::TENANTS).await
    }

    /// One tenant.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn tenant(&self, name: &TenantName) -> Result<Tenant, RegistryError> {
        Ok(self.load_tenant(name).await?.value)
    }

    pub(super) async fn load_tenant(&self, name: &TenantName) -> Result<Stored<Tenant>, RegistryError> {
        self.load(Key::Tenant(name.clone())).await?.ok_or_else(|| RegistryError::not_found(KIND, name))
    }

    /// The tenant that something is about to be put into: a transaction that checks it can't
    /// outlive the tenant.
    pub(super) async fn active_tenant(&self, name: &TenantName) -> Result<Stored<Tenant>, RegistryError> {
        let tenant = self.load_tenant(name).await?;
        if tenant.value.deleting { Err(RegistryError::being_deleted(KIND, name)) } else { Ok(tenant) }
    }

    /// Deletes a tenant and everything in it, and operators' roles in it: first its tokens, then
    /// the rest, in batches of [`MAX_BATCH`] a revision, the tenant itself last. Nothing can be put
    /// into it meanwhile. Killed half-way it stays marked, its tokens gone or going, and deleting
    /// it again finishes the work. The revision returned is the last.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn delete_tenant(&self, name: &TenantName) -> Result<Revision, RegistryError> {
        retry_on_conflict(|| self.mark_tenant(name)).await?;
        for kind in ["token", "agent", "credential"] {
            self.delete_below(&prefix::kind(name, kind)).await?;
        }
        self.delete_below(&prefix::tenant(name)).await?;
        self.withdraw_roles(name).await?;
        self.commit(Change::new().delete(Key::Tenant(name.clone()))).await
    }

    pub(super) async fn mark_tenant(&self, name: &TenantName) -> Result<(), RegistryError> {
        let mut tenant = self.load_tenant(name).await?;
        if tenant.value.deleting {
            return Ok(());
        }
        tenant.value.deleting = true;
        let key = tenant.key.clone();
        match self.commit(Change::new().check(&tenant).put(key, &tenant.value)).await {
            // A full store takes deletes alone, and to delete is how it gets room again.
            Ok(_) | Err(RegistryError::Store(StoreError::Full)) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Deletes every key below `prefix`; the revision of the last batch, when there was anything.
    pub(super) async fn delete_below(&self, prefix: &str) -> Result<Option<Revision>, RegistryError> {
        let (mut last, mut after) = (None, String::new());
        loop {
            let page = self.store.list_page(prefix, &after, 10 * MAX_BATCH).await?;
            for batch in page.records.chunks(MAX_BATCH) {
                let change = batch.iter().fold(Change::new(), |change, record| change.delete(record.key.clone()));
                last = Some(self.commit(change).await?);
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(last),
            }
        }
    }
}
