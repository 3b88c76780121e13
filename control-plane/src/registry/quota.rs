//! How much a tenant may have.
//!
//! What it has is known from the store's watch, so that a check costs no listing. It is there to
//! bound, not to count: calls at the same time may pass a quota by one each, and each replica sees
//! the others' changes a moment later.

use seks_types::id::TenantName;

use super::{
    Change, QuotaConfig, Registry, RegistryError,
    change::retry_on_conflict,
    record::{Operator, Quota, Tenant, Usage},
};
use crate::store::{Revision, key::prefix};

/// Request ids that are remembered, for each token that a tenant may have.
const REQUESTS_PER_TOKEN: u64 = 4;

/// What each tenant has, as this replica's watch has brought it.
pub trait UsageSource: Send + Sync {
    /// What `tenant` has, and the quotas that were set for it. `None`: nothing is known of it yet.
    fn usage(&self, tenant: &TenantName) -> Option<(Usage, Quota)>;
}

/// Where quotas and usage come from. Without it (for tools) the defaults hold, and what a tenant
/// has is listed.
pub(super) struct Quotas {
    source: Box<dyn UsageSource>,
    config: QuotaConfig,
}

impl Registry {
    /// Takes usage from `source` from now on, and quotas from `config` where none are set for a
    /// tenant. The first call counts.
    pub fn set_usage(&self, source: Box<dyn UsageSource>, config: QuotaConfig) {
        let _ = self.quotas.set(Quotas { source, config }); // set before: nothing changes
    }

    /// What `tenant` may have and do: what was set for it, else as configured.
    #[must_use]
    pub fn quota(&self, tenant: &TenantName) -> Quota {
        let config = self.quotas.get().map(|quotas| quotas.config).unwrap_or_default();
        let own = self.quotas.get().and_then(|quotas| quotas.source.usage(tenant)).map(|(_, own)| own);
        effective(config, &own.unwrap_or_default())
    }

    /// What `tenant` has, operators not included. Zeros before anything is known of it.
    #[must_use]
    pub fn usage(&self, tenant: &TenantName) -> Usage {
        self.quotas.get().and_then(|quotas| quotas.source.usage(tenant)).map(|(usage, _)| usage).unwrap_or_default()
    }

    /// Refuses when a tenant has as many of `kind` as it may.
    pub(super) async fn check_quota(
        &self,
        tenant: &TenantName,
        kind: &'static str,
        _default: usize,
    ) -> Result<(), RegistryError> {
        let limit = part(&self.quota(tenant), kind);
        let used = match self.quotas.get() {
            Some(_) => used(&self.usage(tenant), kind),
            None => {
                let most = usize::try_from(limit).unwrap_or(usize::MAX);
                self.store.list_page(&prefix::kind(tenant, kind), "", most).await?.records.len() as u64
            }
        };
        refuse_over(tenant, kind, used, limit)
    }

    /// Refuses a request id beyond what is remembered.
    pub(super) fn check_requests(&self, tenant: &TenantName) -> Result<(), RegistryError> {
        let limit = self.quota(tenant).tokens.saturating_mul(REQUESTS_PER_TOKEN);
        refuse_over(tenant, "request id", self.usage(tenant).requests, limit)
    }

    /// Whether nodes shall go on telling a revoked token from an unknown one. There may be as many
    /// of those as tokens: beyond it a revocation leaves nothing behind.
    pub(super) fn keeps_tombstone(&self, tenant: &TenantName) -> bool {
        self.usage(tenant).revoked < self.quota(tenant).tokens
    }

    /// Refuses roles in tenants that have as many operators as they may. `all`: every operator.
    pub(super) fn check_operators(&self, operator: &Operator, all: &[Operator]) -> Result<(), RegistryError> {
        for role in &operator.roles {
            let Ok(tenant) = TenantName::try_from(role.tenant.as_str()) else { continue }; // everywhere
            let there = |other: &&Operator| other.roles.iter().any(|r| r.tenant == role.tenant);
            let used = all.iter().filter(there).count() as u64;
            refuse_over(&tenant, "operator", used, self.quota(&tenant).operators)?;
        }
        Ok(())
    }

    /// Sets the quotas of a tenant; what is 0 stays as it was, or with `reset` is as configured.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn set_quota(
        &self,
        tenant: &TenantName,
        quota: Quota,
        reset: bool,
    ) -> Result<(Tenant, Revision), RegistryError> {
        retry_on_conflict(|| async {
            let mut stored = self.active_tenant(tenant).await?;
            let before = stored.value.quota.filter(|_| !reset).unwrap_or_default();
            let quota = over(quota, before);
            stored.value.quota = (quota != Quota::default()).then_some(quota);
            let change = Change::new().check(&stored).put(stored.key.clone(), &stored.value);
            let revision = self.commit(change).await?;
            Ok((stored.value, revision))
        })
        .await
    }
}

/// What is set, and as configured where it is 0.
fn effective(config: QuotaConfig, own: &Quota) -> Quota {
    let QuotaConfig { tokens, agents, services, credentials, policies, operators, writes_per_second, write_burst } =
        config;
    let config = Quota { tokens, agents, services, credentials, policies, operators, writes_per_second, write_burst };
    over(*own, config)
}

/// `own`, and what `below` says where it is 0.
fn over(own: Quota, below: Quota) -> Quota {
    fn or<N: Default + PartialEq>(own: N, below: N) -> N {
        if own == N::default() { below } else { own }
    }
    Quota {
        tokens: or(own.tokens, below.tokens),
        agents: or(own.agents, below.agents),
        services: or(own.services, below.services),
        credentials: or(own.credentials, below.credentials),
        policies: or(own.policies, below.policies),
        operators: or(own.operators, below.operators),
        writes_per_second: or(own.writes_per_second, below.writes_per_second),
        write_burst: or(own.write_burst, below.write_burst),
    }
}

fn refuse_over(tenant: &TenantName, kind: &'static str, used: u64, limit: u64) -> Result<(), RegistryError> {
    if used < limit {
        return Ok(());
    }
    Err(RegistryError::Quota { tenant: tenant.to_string(), kind, limit })
}

fn part(quota: &Quota, kind: &str) -> u64 {
    match kind {
        "token" => quota.tokens,
        "agent" => quota.agents,
        "service" => quota.services,
        "credential" => quota.credentials,
        "policy" => quota.policies,
        _ => u64::MAX,
    }
}

fn used(usage: &Usage, kind: &str) -> u64 {
    match kind {
        "token" => usage.tokens,
        "agent" => usage.agents,
        "service" => usage.services,
        "credential" => usage.credentials,
        "policy" => usage.policies,
        _ => 0,
    }
}
