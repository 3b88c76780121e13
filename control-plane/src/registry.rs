//! The registry: the only writer of the store, one file a noun.
//!
//! Every change is one transaction. It checks the revision of each record that it was based on
//! (compare-and-set), and is retried from the start if one of them has changed. A transaction that
//! adds a reference to a record also checks that record's revision, and a delete first marks its
//! record ([`delete`]). Therefore no record refers to one that does not exist.
//!
//! Limits, all checked before anything is written: see [`limits`].

pub mod admin_archive;
mod admin_chain;
mod agent;
mod approval;
pub mod audit_head;
mod aws;
mod bind;
mod change;
mod credential;
mod delete;
mod desired;
mod error;
mod janitor;
mod join;
mod limit_window;
pub mod limits;
mod mint;
mod node;
mod operator;
mod page;
mod policy;
mod pool;
mod quota;
mod quota_config;
pub mod record;
mod replica;
mod service;
mod tenant;
mod tenant_ca;
mod token;
mod trust;

use std::sync::{Arc, OnceLock};

use prost::Message;
use seks_network::address::Networks;

pub use self::{
    admin_chain::{Actor, AdminHead},
    agent::AttributeChange,
    approval::{ApprovalState, Approve, Asked, NewApprovals, RefusedRequest},
    bind::Rebound,
    desired::{Action, Desired, ObjectChange, ObjectKind, Outcome, TenantState},
    error::RegistryError,
    join::{Admission, JoinToken, Joining},
    limit_window::{Budget, Step},
    operator::{EVERYWHERE, fresh_enrolment},
    page::PageRequest,
    quota::UsageSource,
    quota_config::QuotaConfig,
    token::{Issue, Issued},
    trust::{NewTrust, TrustChange, UnknownKeyReports},
};
use self::{change::Change, quota::Quotas, record::Stored};
pub(crate) use self::{
    error::plural,
    mint::{Claim, MintTimes, Mintable},
    policy::{check_file as check_policies, check_length as check_policy_length},
};
use crate::{
    clock::unix_now as now,
    seal::Sealer,
    store::{Key, Store},
};

/// Reads and writes every noun. Cheap to share behind an `Arc`.
pub struct Registry {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    /// The private networks of a new tenant. `seks dev` alone gives any.
    tenant_networks: Networks,
    quotas: OnceLock<Quotas>,
    chain_locks: admin_chain::ChainLocks,
    /// Shared with the registry that the nodes' reports arrive at.
    unknown_keys: Arc<UnknownKeyReports>,
    /// The same.
    new_approvals: Arc<NewApprovals>,
}

impl Registry {
    /// A registry over `store`, sealing with `sealer`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, sealer: Arc<Sealer>) -> Self {
        let (tenant_networks, quotas) = (Networks::default(), OnceLock::new());
        let (chain_locks, unknown_keys) = (admin_chain::ChainLocks::default(), Arc::default());
        Self { store, sealer, tenant_networks, quotas, chain_locks, unknown_keys, new_approvals: Arc::default() }
    }

    /// The same, with private networks for each new tenant.
    #[must_use]
    pub fn with_tenant_networks(self, tenant_networks: Networks) -> Self {
        Self { tenant_networks, ..self }
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The record at `key`, with the revision that a transaction must find there.
    async fn load<T: Message + Default>(&self, key: Key) -> Result<Option<Stored<T>>, RegistryError> {
        match self.store.get(&key).await? {
            None => Ok(None),
            Some(record) => {
                let value =
                    T::decode(record.value).map_err(|_| RegistryError::Corrupt { key: record.key.to_string() })?;
                Ok(Some(Stored { key, value, modified: record.modified }))
            }
        }
    }

    /// Every record below `prefix`, in the order of keys.
    async fn load_all<T: Message + Default>(&self, prefix: &str) -> Result<Vec<Stored<T>>, RegistryError> {
        let (records, _) = self.store.list(prefix).await?;
        let mut all = Vec::with_capacity(records.len());
        for record in records {
            let value = T::decode(record.value).map_err(|_| RegistryError::Corrupt { key: record.key.to_string() })?;
            all.push(Stored { key: record.key, value, modified: record.modified });
        }
        Ok(all)
    }

    /// The values below `prefix`.
    async fn values<T: Message + Default>(&self, prefix: &str) -> Result<Vec<T>, RegistryError> {
        Ok(self.load_all(prefix).await?.into_iter().map(|stored| stored.value).collect())
    }
}

#[cfg(test)]
mod tests;
