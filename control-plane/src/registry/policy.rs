//! Policies: applied as files, all or nothing.

use std::sync::Arc;

use seks_policy::{Declarations, GRANTED_SERVICES, ParsedPolicy, Policies, PolicyError, parse_file_with};
use seks_service::request::BodyFields;
use seks_types::id::{PolicyId, TenantName};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    limits, now,
    record::{Policy, PolicySet, Service, Stored},
};
use crate::{
    policy_workers::PolicyRun,
    store::{Key, Revision, StoreError, key::prefix},
};

const KIND: &str = "policy";

/// What a tenant starts with unless it is strict.
pub(super) fn granted_services(tenant: &TenantName) -> Option<(Key, Policy)> {
    let id = PolicyId::try_from("granted-services").ok()?;
    let key = Key::Policy(tenant.clone(), id.clone());
    let (tenant, text) = (tenant.to_string(), GRANTED_SERVICES.to_string());
    Some((key, Policy { tenant, id: id.to_string(), text, updated_at: now(), ..Policy::default() }))
}

/// Reads of a tenant's policies while others commit, before the caller is told that it is busy.
const LOAD_ROUNDS: usize = 8;

impl Registry {
    /// What the tenant's services declare for policies. Read whether or not a policy uses it: to
    /// find out, the policy must be parsed, and only the policy workers do that.
    ///
    /// # Errors
    /// The store's; [`RegistryError::Invalid`] for services that declare one body field with two
    /// types.
    pub(crate) async fn declarations(&self, tenant: &TenantName) -> Result<Declarations, RegistryError> {
        declarations_of(&self.services(tenant).await?)
    }

    /// Creates or replaces every policy of a file, by its `@id`; policies that the file doesn't
    /// name stay. Writes nothing when all of them are so already. Cedar's work is done by `run`.
    ///
    /// # Errors
    /// [`RegistryError::Policies`] says all that is wrong with the file; [`RegistryError::Invalid`]
    /// for its size.
    pub(crate) async fn apply_policies(
        &self,
        tenant: &TenantName,
        text: Arc<str>,
        run: &PolicyRun<'_>,
    ) -> Result<(Vec<Policy>, Revision), RegistryError> {
        check_length(&text)?; // before it is queued
        let declared = self.declarations(tenant).await?;
        let file = run.run(move || check_file(&text, &declared)).await??;
        if file.len() > limits::POLICIES_PER_APPLY {
            let reason = format!("at most {} policies in one file", limits::POLICIES_PER_APPLY);
            return Err(RegistryError::invalid("text", reason));
        }
        let file = &file;
        retry_on_conflict(|| async {
            let parent = self.active_tenant(tenant).await?;
            let (mut all, set) = self.load_policies(tenant, |id| file.iter().any(|new| new.id.as_str() == id)).await?;
            let (mut change, mut applied, mut last) = (Change::new().check(&parent), Vec::new(), 0);
            for parsed in file {
                let key = Key::Policy(tenant.clone(), parsed.id.clone());
                let mut policy = to_record(tenant, parsed);
                if let Some(old) = all.iter_mut().find(|p| p.key == key) {
                    if old.value.text == policy.text {
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
            let now = PolicySet::of(all.iter().map(|stored| &stored.value));
            if now != set.value {
                change = change.check(&set).put(set.key.clone(), &now);
            }
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

    /// Deletes a policy. What it permitted is denied from then on, what it forbade may be
    /// permitted.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn delete_policy(&self, tenant: &TenantName, id: &PolicyId) -> Result<Revision, RegistryError> {
        retry_on_conflict(|| async {
            let Some(policy) = self.load::<Policy>(Key::Policy(tenant.clone(), id.clone())).await? else {
                return Err(self.missing(tenant, KIND, id.as_str()).await);
            };
            if policy.value.approval_grant {
                return self.revoke_approval(tenant, id).await;
            }
            let (all, set) = self.load_policies(tenant, |other| other == id.as_str()).await?;
            let left = PolicySet::of(all.iter().filter(|p| p.key != policy.key).map(|stored| &stored.value));
            let change = Change::new().check(&policy).check(&set);
            self.commit(change.delete(policy.key.clone()).put(set.key.clone(), &left)).await
        })
        .await
    }

    /// The policies of a tenant, and the record that lists them. If the two differ in a policy that
    /// is not in `about`, another writer has changed the store, and the stored policies must not be
    /// taken for the intended ones.
    ///
    /// The two reads are of two revisions. A commit between them makes them differ, too, and it
    /// changes the list. Both are then read again.
    pub(super) async fn load_policies(
        &self,
        tenant: &TenantName,
        about: impl Fn(&str) -> bool,
    ) -> Result<(Vec<Stored<Policy>>, Stored<PolicySet>), RegistryError> {
        let key = Key::PolicySet(tenant.clone());
        let mut set = self.load::<PolicySet>(key.clone()).await?;
        for _ in 0..LOAD_ROUNDS {
            let all = self.load_all::<Policy>(&prefix::kind(tenant, KIND)).await?;
            let unlisted = self.unlisted(set.as_ref(), &all, &about);
            if unlisted.is_empty() {
                return Ok((all, set.unwrap_or(Stored { key, value: PolicySet::default(), modified: 0 })));
            }
            let newest = self.load::<PolicySet>(key.clone()).await?;
            if newest.as_ref().map(|set| set.modified) == set.as_ref().map(|set| set.modified) {
                return Err(tampered(tenant, unlisted.into_iter()));
            }
            set = newest;
        }
        Err(StoreError::Conflict.into())
    }

    /// Ids of the policies that differ from `set`, without those in `about`.
    fn unlisted(
        &self,
        set: Option<&Stored<PolicySet>>,
        all: &[Stored<Policy>],
        about: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let now = PolicySet::of(all.iter().map(|stored| &stored.value));
        match set {
            Some(set) => set.value.differs_in(&now).into_iter().filter(|id| !about(id)).collect(),
            None if self.store().is_authenticated() && !all.iter().all(|policy| about(&policy.value.id)) => {
                now.policies.iter().map(|policy| policy.id.clone()).collect()
            }
            None => Vec::new(),
        }
    }

    /// Writes down which policies each tenant has, where that was never done. Returns of how many.
    ///
    /// # Errors
    /// Of the store.
    pub async fn write_policy_sets(&self) -> Result<usize, RegistryError> {
        let mut written = 0;
        for tenant in self.tenants().await? {
            let Ok(name) = TenantName::try_from(tenant.name.as_str()) else { continue };
            let key = Key::PolicySet(name.clone());
            if tenant.deleting || self.store().get(&key).await?.is_some() {
                continue;
            }
            let all = self.values::<Policy>(&prefix::kind(&name, KIND)).await?;
            let change = Change::new().check_absent(key.clone()).put(key, &PolicySet::of(&all));
            match self.commit(change).await {
                Ok(_) => written += 1,
                // Another operator has just applied policies and updated the list.
                Err(RegistryError::Store(StoreError::Conflict)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }
}

fn tampered(tenant: &TenantName, ids: impl Iterator<Item = String>) -> RegistryError {
    let ids: Vec<String> = ids.map(|id| format!("`{id}`")).take(10).collect();
    RegistryError::conflict(
        format!(
            "policies of tenant `{tenant}` were changed in the store by something else, and nothing is permitted in it: {}",
            ids.join(", ")
        ),
        "apply a file that holds all of these, or delete them one by one",
    )
}

pub(super) fn to_record(tenant: &TenantName, parsed: &ParsedPolicy) -> Policy {
    let (tenant, id, text) = (tenant.to_string(), parsed.id.to_string(), parsed.text.clone());
    Policy { tenant, id, text, updated_at: now(), ..Policy::default() }
}

/// What services declare for policies.
///
/// # Errors
/// [`RegistryError::Invalid`] when they declare one body field with two types.
pub(super) fn declarations_of(services: &[Service]) -> Result<Declarations, RegistryError> {
    let methods = services.iter().flat_map(|service| &service.methods);
    let fields = services.iter().flat_map(|service| &service.body_fields);
    Ok(Declarations {
        methods: methods.map(|method| method.split(':').next().unwrap_or_default().to_owned()).collect(),
        body_fields: BodyFields::parse(fields.map(|(path, kind)| (path.as_str(), kind.as_str())))
            .map_err(|error| RegistryError::invalid("body_fields", format!("{error}, by services of this tenant")))?,
    })
}

/// Parses and validates a file of policies without storing it. `declared` is what
/// [`Registry::declarations`] returns.
///
/// # Errors
/// As [`Registry::apply_policies`].
pub(crate) fn check_file(text: &str, declared: &Declarations) -> Result<Vec<ParsedPolicy>, RegistryError> {
    check_length(text)?;
    let policies = parse_file_with(text, declared).map_err(RegistryError::Policies)?;
    if policies.is_empty() {
        return Err(RegistryError::invalid("text", "no policy in it"));
    }
    if let Some(ParsedPolicy { id, .. }) = policies.iter().find(|p| p.text.len() > limits::ONE_POLICY_BYTES) {
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
pub(super) fn check_whole(tenant: &TenantName, all: &[Stored<Policy>], limit: u64) -> Result<(), RegistryError> {
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
pub(super) async fn compiles(all: &[Stored<Policy>], run: &PolicyRun<'_>) -> Result<(), RegistryError> {
    let values: Vec<Policy> = all.iter().map(|p| p.value.clone()).collect();
    let whole: Result<(), PolicyError> = run.run(move || Policies::compile(&values)?.check_budget()).await?;
    whole.map_err(|error| RegistryError::Policies(vec![error]))
}
