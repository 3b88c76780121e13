//! Pools: groups of nodes, by name alone. A node belongs to those that it was enrolled for; a
//! credential that is assigned to pools is sent to their nodes and no others.

use seks_types::id::{CredentialName, PoolName, TenantName};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    limits,
    record::{Credential, Stored},
};
use crate::store::Revision;

impl Registry {
    /// Says which nodes of the tenant may hold a credential: those of `pools`, or all of them where
    /// there is none. No version is made.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Invalid`] with more than [`limits::POOLS`].
    pub async fn assign_credential(
        &self,
        tenant: &TenantName,
        name: &CredentialName,
        pools: &[PoolName],
    ) -> Result<(Credential, Revision), RegistryError> {
        let pools = named_once(pools)?;
        retry_on_conflict(|| async {
            let old: Stored<Credential> = self.load_credential(tenant, name).await?;
            let assigned = Credential { pools: pools.clone(), ..old.value.clone() };
            let revision = self.commit(Change::new().check(&old).put(old.key.clone(), &assigned)).await?;
            Ok((self.described(assigned).await?, revision))
        })
        .await
    }
}

/// As a record has them: each once, sorted.
pub(super) fn named_once(pools: &[PoolName]) -> Result<Vec<String>, RegistryError> {
    let mut names: Vec<String> = pools.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    names.dedup();
    match names.len() <= limits::POOLS {
        true => Ok(names),
        false => Err(RegistryError::invalid("pools", format!("{} at most", limits::POOLS))),
    }
}
