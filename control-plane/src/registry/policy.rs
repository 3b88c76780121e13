//! Policies: applied as files, all or nothing.

use std::sync::Arc;

use seks_proto::{
    id::{PolicyId, TenantName},
    policy::{GRANTED_SERVICES, Policies, PolicyError, parse_file},
};

use super::{
    Change, Registry, RegistryError,
    change::decide,
    limits, now,
    record::{Policy, Stored},
};
use crate::{
    policy_workers::PolicyRun,
    store::{Key, Revision, key::prefix},
};

const KIND: &str = "policy";

/// What a tenant starts with unless it is strict.
pub(super) fn granted_services(tenant: &TenantName) -> Option<(Key, Policy)> {
    let id = PolicyId::try_from("granted-services").ok()?;
    let key = Key::Policy(tenant.clone(), id.clone());
    let (tenant, text) = (tenant.to_string(), GRANTED_SERVICES.to_string());
    Some((key, Policy { tenant, id: id.to_string(), text, updated_at: now() }))
}

impl Registry {
    /// Creates or replaces every policy of a file, by its `@id`; policies that the file doesn't name stay. Writes nothing when
    /// all of them are so already. Cedar's work is done by `run`.
    ///
    /// # Errors
    /// [`RegistryError::Policies`] says all that is wrong with the file; [`RegistryError::Invalid`] for its size.
    pub(crate) async fn apply_policies(
        &self,
        tenant: &TenantName,
        text: Arc<str>,
        run: &PolicyRun<'_>,
    ) -> Result<(Vec<Policy>, Revision), RegistryError> {
        check_length(&text)?; // before it is queued
        let file = run.run(move || check_file(&text)).await??;
        if file.len() > limits::POLICIES_PER_APPLY {
            let reason = format!("at most {} policies in one file", limits::POLICIES_PER_APPLY);
            return Err(RegistryError::invalid("text", reason));
        }
        let file = &file;
        decide(|| async {
            let parent = self.living_tenant(tenant).await?;
            let mut all = self.load_all::<Policy>(&prefix::kind(tenant, KIND)).await?;
            let (mut change, mut applied, mut last) = (Change::new().check(&parent), Vec::new(), 0);
            for (id, text) in file {
                let key = Key::Policy(tenant.clone(), id.clone());
                let mut policy =
                    Policy { tenant: tenant.to_string(), id: id.to_string(), text: text.clone(), updated_at: now() };
                if let Some(old) = all.iter_mut().find(|p| p.key == key) {
                    if old.value.text == *text {
                        last = last.max(old.modified);
                        applied.push(old.value.clone());
                        continue;
                    }
                    change = change.check(old);
                    std::mem::swap(&mut old.value, &mut policy);
                    applied.push(old.value.clone());
                    change = change.put(key, &old.value);
                } else {
                    change = change.check_absent(key.clone()).put(key.clone(), &policy);
                    applied.push(policy.clone());
                    all.push(Stored { key, value: policy, modified: 0 });
                }
            }
            check_whole(tenant, &all, self.quota(tenant).policies)?;
            compiles(&all, run).await?;
            let revision = if change.writes_nothing() { last } else { self.commit(change).await? };
            Ok((applied, revision))
        })
        .await
    }

    /// All policies of a tenant, by id.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] for the tenant.
    pub async fn policies(&self, tenant: &TenantName) -> Result<Vec<Policy>, RegistryError> {
        self.load_tenant(tenant).await?;
        self.values(&prefix::kind(tenant, KIND)).await
    }

    /// One policy.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn policy(&self, tenant: &TenantName, id: &PolicyId) -> Result<Policy, RegistryError> {
        match self.load::<Policy>(Key::Policy(tenant.clone(), id.clone())).await? {
            Some(policy) => Ok(policy.value),
            None => Err(self.missing(tenant, KIND, id.as_str()).await),
        }
    }

    /// Deletes a policy. What it permitted is denied from then on, what it forbade may be permitted.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn delete_policy(&self, tenant: &TenantName, id: &PolicyId) -> Result<Revision, RegistryError> {
        decide(|| async {
            let Some(policy) = self.load::<Policy>(Key::Policy(tenant.clone(), id.clone())).await? else {
                return Err(self.missing(tenant, KIND, id.as_str()).await);
            };
            self.commit(Change::new().check(&policy).delete(policy.key.clone())).await
        })
        .await
    }
}

/// Parses and validates a file of policies without storing it.
///
/// # Errors
/// As [`Registry::apply_policies`].
pub(crate) fn check_file(text: &str) -> Result<Vec<(PolicyId, String)>, RegistryError> {
    check_length(text)?;
    let policies = parse_file(text).map_err(RegistryError::Policies)?;
    if policies.is_empty() {
        return Err(RegistryError::invalid("text", "no policy in it"));
    }
    if let Some((id, _)) = policies.iter().find(|(_, text)| text.len() > limits::ONE_POLICY_BYTES) {
        let reason = format!("policy `{id}` is over {} bytes", limits::ONE_POLICY_BYTES);
        return Err(RegistryError::invalid("text", reason));
    }
    Ok(policies)
}

/// Refuses a file that is too long to be looked at.
pub(crate) fn check_length(text: &str) -> Result<(), RegistryError> {
    if text.len() > limits::POLICY_BYTES {
        return Err(RegistryError::invalid("text", format!("over {} bytes", limits::POLICY_BYTES)));
    }
    Ok(())
}

/// What the tenant would then have must fit.
fn check_whole(tenant: &TenantName, all: &[Stored<Policy>], limit: u64) -> Result<(), RegistryError> {
    if all.len() as u64 > limit {
        return Err(RegistryError::Quota { tenant: tenant.to_string(), kind: KIND, limit });
    }
    if all.iter().map(|p| p.value.text.len()).sum::<usize>() > limits::POLICY_BYTES {
        let reason = format!("all policies of a tenant together are at most {} bytes", limits::POLICY_BYTES);
        return Err(RegistryError::invalid("text", reason));
    }
    Ok(())
}

/// It must compile as a whole, and be cheap to decide by: a node gets all of it or nothing.
async fn compiles(all: &[Stored<Policy>], run: &PolicyRun<'_>) -> Result<(), RegistryError> {
    let values: Vec<Policy> = all.iter().map(|p| p.value.clone()).collect();
    let whole: Result<(), PolicyError> = run.run(move || Policies::compile(&values)?.check_budget()).await?;
    whole.map_err(|error| RegistryError::Policies(vec![error]))
}
