//! Declarative changes: a tenant becomes what a file says.
//!
//! All objects are read, and compared with what is wanted. What differs is written in one
//! transaction if it fits, otherwise in several: services, agents, policies, and deletions last. A
//! repetition goes on where the one before stopped.

mod diff;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use prost::Message;
use seks_policy::{Declarations, ParsedPolicy};
use seks_service::{Service as Checked, is_internal, record_destination};
use seks_types::id::{AgentName, CredentialName, PolicyId, PoolName, ServiceName, TenantName};

pub use self::diff::{Action, ObjectChange, ObjectKind};
use super::{
    Change, Registry, RegistryError,
    agent::check_attributes,
    change::retry_on_conflict,
    delete::list_names,
    limits, now,
    policy::{check_file, check_whole, compiles, declarations_of, to_record},
    pool::named_once,
    record::{Agent, Credential, Policy, PolicySet, Service, Stored},
    service::{check, check_networks},
};
use crate::{
    policy_workers::PolicyRun,
    store::{Key, MAX_TRANSACTION, Revision, StoreError, key::prefix},
};

/// What a tenant is to have.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Services.
    pub services: Vec<Service>,
    /// Agents. One that is disabled stays so, unless `enabled_agents` names it.
    pub agents: Vec<Agent>,
    /// Names of agents.
    pub enabled_agents: Vec<String>,
    /// Texts of policies, each with a name for errors.
    pub policies: Vec<(String, String)>,
    /// References to credentials: name, service and pools.
    pub credentials: Vec<Credential>,
    /// Objects of these kinds that are not named are deleted.
    pub prune: Vec<ObjectKind>,
    /// Objects that would change must not have been written after this revision. 0: any.
    pub revision: Revision,
    /// The caller may give a service with credentials another destination.
    pub may_redirect: bool,
    /// Nothing is written.
    pub is_dry_run: bool,
}

/// A tenant's objects before and after.
#[derive(Clone, Debug, Default)]
pub struct TenantState {
    /// By name.
    pub services: BTreeMap<String, Service>,
    /// By name.
    pub agents: BTreeMap<String, Agent>,
    /// By id.
    pub policies: BTreeMap<String, Policy>,
}

/// What was, or would be, changed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// In the order in which it is written.
    pub changes: Vec<ObjectChange>,
    /// What is worth knowing, and no error.
    pub warnings: Vec<String>,
    /// Of the last write; without one, the revision that everything was read at.
    pub revision: Revision,
    /// The tenant before.
    pub before: TenantState,
    /// The tenant after.
    pub after: TenantState,
}

/// Objects as they are stored, by name.
struct Present {
    services: BTreeMap<String, Stored<Service>>,
    agents: BTreeMap<String, Stored<Agent>>,
    credentials: BTreeMap<String, Stored<Credential>>,
    policies: Vec<Stored<Policy>>,
    set: Stored<PolicySet>,
    revision: Revision,
}

/// One write of the plan, with what it depends on.
struct Step {
    change: Change,
    /// Operations that it adds to a transaction.
    operations: usize,
}

impl Registry {
    /// Makes the tenant what `desired` says. Checks everything before it writes anything.
    ///
    /// # Errors
    /// As the calls that change single objects; [`RegistryError::Conflict`] for objects that were
    /// written after [`Desired::revision`].
    pub(crate) async fn apply_desired(
        &self,
        tenant: &TenantName,
        desired: &Desired,
        run: &PolicyRun<'_>,
    ) -> Result<Outcome, RegistryError> {
        retry_on_conflict(|| self.attempt_desired(tenant, desired, run)).await
    }

    async fn attempt_desired(
        &self,
        tenant: &TenantName,
        desired: &Desired,
        run: &PolicyRun<'_>,
    ) -> Result<Outcome, RegistryError> {
        let parent = self.active_tenant(tenant).await?;
        let present = self.present(tenant).await?;
        if desired.revision > present.revision {
            return Err(RegistryError::conflict(
                format!("the file is of revision {}, and the store is at {}", desired.revision, present.revision),
                "it is of another store, or of before a restore; without `revision` in the file, apply overwrites",
            ));
        }
        let mut plan = Plan::new(tenant, &present);
        plan.revision = desired.revision;
        for service in &desired.services {
            let checked = check(service)?;
            check_networks(&checked, &parent.value)?;
            self.plan_service(&mut plan, service, &checked, desired.may_redirect).await?;
        }
        for agent in &desired.agents {
            plan.agent(agent, desired.enabled_agents.contains(&agent.name))?;
        }
        plan.prune_objects(desired);
        let declared = declarations_of(&plan.after.services.values().cloned().collect::<Vec<_>>())?;
        let parsed = parse_policies(&desired.policies, declared, run).await?;
        plan.policies(&parsed, desired.prune.contains(&ObjectKind::Policy))?;
        let all = plan.stored_policies();
        check_whole(tenant, &all, self.quota(tenant).policies)?;
        if !plan.policy_writes.is_empty() {
            compiles(&all, run).await?;
        }
        for credential in &desired.credentials {
            plan.credential(credential)?;
        }
        plan.check_conflicts()?;
        self.check_quotas(tenant, &plan)?;
        let mut outcome = plan.outcome();
        if !desired.is_dry_run {
            let (steps, deleted) = plan.into_steps()?;
            self.write_steps(&parent, steps, &mut outcome).await?;
            for name in deleted {
                let revision = match name {
                    Deleted::Agent(name) => self.delete_agent(tenant, &name).await,
                    Deleted::Service(name) => self.delete_service(tenant, &name).await,
                };
                outcome.revision = outcome.revision.max(revision?);
            }
        }
        Ok(outcome)
    }

    async fn present(&self, tenant: &TenantName) -> Result<Present, RegistryError> {
        let revision = self.store().revision().await?;
        let (policies, set) = self.load_policies(tenant, |_| false).await?;
        Ok(Present {
            services: by_name(self.load_all(&prefix::kind(tenant, "service")).await?, |s: &Service| &s.name),
            agents: by_name(self.load_all(&prefix::kind(tenant, "agent")).await?, |a: &Agent| &a.name),
            credentials: by_name(self.load_all(&prefix::kind(tenant, "credential")).await?, |c: &Credential| &c.name),
            policies,
            set,
            revision,
        })
    }

    async fn plan_service(
        &self,
        plan: &mut Plan<'_>,
        wanted: &Service,
        checked: &Checked,
        may_redirect: bool,
    ) -> Result<(), RegistryError> {
        let mut service = Service { deleting: false, ..wanted.clone() };
        service.private_networks.clear(); // not the editor's to choose
        service.client_ca_pem.clear(); // ours to make
        service.created_at = now();
        let old = plan.present.services.get(&service.name);
        if let Some(old) = old {
            service.created_at = old.value.created_at;
            service.client_ca_pem.clone_from(&old.value.client_ca_pem);
            if old.value != service {
                self.check_replacement(plan.tenant, &old.value, &service, may_redirect).await?;
                self.warn_of_unbound(plan, &old.value, &service).await?;
            }
        }
        plan.put(ObjectKind::Service, Key::Service(plan.tenant.clone(), checked.name.clone()), old, &service)?;
        plan.after.services.insert(service.name.clone(), service);
        Ok(())
    }

    /// A credential is bound to the destination that it was stored for.
    async fn warn_of_unbound(&self, plan: &mut Plan<'_>, old: &Service, new: &Service) -> Result<(), RegistryError> {
        if record_destination(old).ok() == record_destination(new).ok() {
            return Ok(());
        }
        let credentials = self.credentials_of(plan.tenant, &new.name).await?;
        if !credentials.is_empty() {
            plan.warnings.push(format!(
                "service `{}` gets another destination: unbinds {}; store again, or `seks credential rebind`",
                new.name,
                list_names(&credentials)
            ));
        }
        Ok(())
    }

    fn check_quotas(&self, tenant: &TenantName, plan: &Plan<'_>) -> Result<(), RegistryError> {
        let quota = self.quota(tenant);
        let counts = [
            ("service", plan.after.services.len(), plan.before.services.len(), quota.services),
            ("agent", plan.after.agents.len(), plan.before.agents.len(), quota.agents),
        ];
        match counts.into_iter().find(|(_, after, before, limit)| *after as u64 > *limit && after > before) {
            Some((kind, .., limit)) => Err(RegistryError::Quota { tenant: tenant.to_string(), kind, limit }),
            None => Ok(()),
        }
    }

    async fn write_steps(
        &self,
        parent: &Stored<super::record::Tenant>,
        steps: Vec<Step>,
        outcome: &mut Outcome,
    ) -> Result<(), RegistryError> {
        let mut steps = steps.into_iter().peekable();
        while steps.peek().is_some() {
            // The tenant's own check is one operation.
            let (mut change, mut operations) = (Change::new().check(parent), 1);
            while let Some(step) = steps.next_if(|step| operations + step.operations <= MAX_TRANSACTION) {
                operations += step.operations;
                change = change.and(step.change);
            }
            if operations == 1 {
                return Err(RegistryError::Store(StoreError::TooLarge));
            }
            outcome.revision = self.commit(change).await?;
        }
        Ok(())
    }
}

fn by_name<T>(records: Vec<Stored<T>>, name: impl Fn(&T) -> &String) -> BTreeMap<String, Stored<T>> {
    records.into_iter().map(|record| (name(&record.value).clone(), record)).collect()
}

/// Checks the texts one by one, so that an error names the text that it is in.
async fn parse_policies(
    texts: &[(String, String)],
    declared: Declarations,
    run: &PolicyRun<'_>,
) -> Result<Vec<ParsedPolicy>, RegistryError> {
    if texts.iter().map(|(_, text)| text.len()).sum::<usize>() > limits::POLICY_BYTES {
        return Err(RegistryError::invalid("policies", format!("over {} bytes", limits::POLICY_BYTES)));
    }
    let texts: Arc<[(String, String)]> = texts.into();
    let parse = move || {
        let mut parsed: Vec<ParsedPolicy> = Vec::new();
        for (source, text) in texts.iter() {
            let found = check_file(text, &declared).map_err(|error| in_source(source, error))?;
            for policy in found {
                if parsed.iter().any(|other| other.id == policy.id) {
                    let reason = format!("{source}: @id(\"{}\") is used twice", policy.id);
                    return Err(RegistryError::invalid("policies", reason));
                }
                parsed.push(policy);
            }
        }
        Ok(parsed)
    };
    run.run(parse).await?
}

fn in_source(source: &str, error: RegistryError) -> RegistryError {
    match error {
        RegistryError::Policies(errors) => {
            let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
            RegistryError::invalid("policies", format!("{source}: {}", list.join("; ")))
        }
        RegistryError::Invalid { reason, .. } => RegistryError::invalid("policies", format!("{source}: {reason}")),
        other => other,
    }
}

enum Deleted {
    Agent(AgentName),
    Service(ServiceName),
}

/// The difference between what is there and what is wanted.
struct Plan<'a> {
    tenant: &'a TenantName,
    present: &'a Present,
    revision: Revision,
    before: TenantState,
    after: TenantState,
    changes: Vec<ObjectChange>,
    /// Kind and name of what is wanted.
    named: HashSet<(&'static str, String)>,
    warnings: Vec<String>,
    steps: Vec<Step>,
    policy_writes: Vec<Step>,
    deleted: Vec<Deleted>,
    /// Changed objects that were written after the revision of the file.
    newer: Vec<String>,
}

impl<'a> Plan<'a> {
    fn new(tenant: &'a TenantName, present: &'a Present) -> Self {
        let before = TenantState {
            services: present.services.iter().map(|(name, s)| (name.clone(), s.value.clone())).collect(),
            agents: present.agents.iter().map(|(name, a)| (name.clone(), a.value.clone())).collect(),
            policies: present.policies.iter().map(|p| (p.value.id.clone(), p.value.clone())).collect(),
        };
        Self {
            tenant,
            present,
            revision: 0,
            after: before.clone(),
            before,
            changes: Vec::new(),
            named: HashSet::new(),
            warnings: Vec::new(),
            steps: Vec::new(),
            policy_writes: Vec::new(),
            deleted: Vec::new(),
            newer: Vec::new(),
        }
    }

    /// Writes `value` unless it is there already.
    fn put<T: Message + PartialEq + diff::Describe>(
        &mut self,
        kind: ObjectKind,
        key: Key,
        old: Option<&Stored<T>>,
        value: &T,
    ) -> Result<(), RegistryError> {
        let name = value.name().to_owned();
        if !self.named.insert((kind.noun(), name.clone())) {
            return Err(RegistryError::invalid(kind.field(), format!("{} `{name}` is listed twice", kind.noun())));
        }
        let step = match old {
            Some(old) if old.value == *value => return Ok(()),
            Some(old) => {
                self.note_revision(kind, &name, old.modified);
                self.changes.push(ObjectChange::update(kind, &old.value, value));
                Step { change: Change::new().check(old).put(key, value), operations: 2 }
            }
            None => {
                self.changes.push(ObjectChange::create(kind, value));
                Step { change: Change::new().check_absent(key.clone()).put(key, value), operations: 2 }
            }
        };
        if kind == ObjectKind::Policy {
            self.policy_writes.push(step)
        } else {
            self.steps.push(step)
        }
        Ok(())
    }

    fn note_revision(&mut self, kind: ObjectKind, name: &str, modified: Revision) {
        if self.revision > 0 && modified > self.revision {
            self.newer.push(format!("{} {name} (revision {modified})", kind.noun()));
        }
    }

    fn agent(&mut self, wanted: &Agent, is_enabled: bool) -> Result<(), RegistryError> {
        let name: AgentName = parse_name("agents", &wanted.name)?;
        check_attributes(&wanted.attributes)?;
        let old = self.present.agents.get(&wanted.name);
        if old.is_some_and(|old| old.value.deleting) {
            return Err(RegistryError::being_deleted("agent", &name));
        }
        let agent = Agent {
            tenant: self.tenant.to_string(),
            name: wanted.name.clone(),
            attributes: wanted.attributes.clone(),
            disabled: wanted.disabled || (!is_enabled && old.is_some_and(|old| old.value.disabled)),
            created_at: old.map_or_else(now, |old| old.value.created_at),
            deleting: false,
        };
        self.put(ObjectKind::Agent, Key::Agent(self.tenant.clone(), name), old, &agent)?;
        self.after.agents.insert(agent.name.clone(), agent);
        Ok(())
    }

    /// A reference: the secret itself is never in a file.
    fn credential(&mut self, wanted: &Credential) -> Result<(), RegistryError> {
        let name: CredentialName = parse_name("credentials", &wanted.name)?;
        if !self.after.services.contains_key(&wanted.service) {
            let reason = format!("credential `{name}` is for service `{}`, which is not there", wanted.service);
            return Err(RegistryError::invalid("credentials", reason));
        }
        let Some(old) = self.present.credentials.get(&wanted.name) else {
            if wanted.mint.is_some() {
                return Ok(()); // read from its source and stored afterwards
            }
            let service = &wanted.service;
            self.warnings
                .push(format!("credential `{name}` is not stored: seks credential put {name} --service {service}"));
            return Ok(());
        };
        if old.value.service != wanted.service {
            return Err(RegistryError::conflict(
                format!("credential `{name}` is for service `{}`, not `{}`", old.value.service, wanted.service),
                "store it under another name",
            ));
        }
        let pools = wanted.pools.iter().map(|pool| parse_name("pools", pool)).collect::<Result<Vec<PoolName>, _>>()?;
        let credential = Credential { pools: named_once(&pools)?, ..old.value.clone() };
        self.put(ObjectKind::Credential, Key::Credential(self.tenant.clone(), name), Some(old), &credential)
    }

    fn policies(&mut self, wanted: &[ParsedPolicy], prunes: bool) -> Result<(), RegistryError> {
        for parsed in wanted {
            let key = Key::Policy(self.tenant.clone(), parsed.id.clone());
            let old = self.present.policies.iter().find(|stored| stored.key == key);
            let mut policy = to_record(self.tenant, parsed);
            if let Some(same) = old.filter(|old| old.value.text == policy.text) {
                policy.updated_at = same.value.updated_at;
            }
            self.put(ObjectKind::Policy, key, old, &policy)?;
            self.after.policies.insert(policy.id.clone(), policy);
        }
        // Approvals are no part of a file.
        let is_named = |stored: &Stored<Policy>| wanted.iter().any(|new| new.id.as_str() == stored.value.id);
        let gone = |stored: &&Stored<Policy>| prunes && !stored.value.approval_grant && !is_named(stored);
        for stored in self.present.policies.iter().filter(gone) {
            self.note_revision(ObjectKind::Policy, &stored.value.id, stored.modified);
            self.changes.push(ObjectChange::delete(ObjectKind::Policy, &stored.value.id));
            let change = Change::new().check(stored).delete(stored.key.clone());
            self.policy_writes.push(Step { change, operations: 2 });
            self.after.policies.remove(&stored.value.id);
        }
        Ok(())
    }

    /// Services and agents that are not named. A delete looks at what uses them, and is a change of
    /// its own.
    fn prune_objects(&mut self, desired: &Desired) {
        if desired.prune.contains(&ObjectKind::Agent) {
            let named = |name: &String| desired.agents.iter().any(|agent| agent.name == *name);
            for (name, stored) in self.present.agents.iter().filter(|(name, _)| !named(name)) {
                self.note_revision(ObjectKind::Agent, name, stored.modified);
                self.after.agents.remove(name);
                self.changes.push(ObjectChange::delete(ObjectKind::Agent, name));
                self.deleted.extend(AgentName::try_from(name.as_str()).map(Deleted::Agent));
            }
        }
        if desired.prune.contains(&ObjectKind::Service) {
            let named = |name: &String| desired.services.iter().any(|service| service.name == *name);
            let goes = |name: &String| !named(name) && !is_internal(name);
            for (name, stored) in self.present.services.iter().filter(|(name, _)| goes(name)) {
                self.note_revision(ObjectKind::Service, name, stored.modified);
                self.after.services.remove(name);
                self.changes.push(ObjectChange::delete(ObjectKind::Service, name));
                self.deleted.extend(ServiceName::try_from(name.as_str()).map(Deleted::Service));
            }
        }
        if desired.prune.contains(&ObjectKind::Credential) {
            let named = |name: &String| desired.credentials.iter().any(|credential| credential.name == *name);
            let kept =
                self.present.credentials.iter().filter(|(name, c)| !named(name) && !is_internal(&c.value.service));
            let kept: Vec<String> = kept.map(|(name, _)| name.clone()).collect();
            if !kept.is_empty() {
                self.warnings.push(format!("credentials are never pruned: {} stays", list_names(&kept)));
            }
        }
    }

    fn stored_policies(&self) -> Vec<Stored<Policy>> {
        let stored = |policy: &Policy| {
            let id = PolicyId::try_from(policy.id.as_str()).ok()?;
            Some(Stored { key: Key::Policy(self.tenant.clone(), id), value: policy.clone(), modified: 0 })
        };
        self.after.policies.values().filter_map(stored).collect()
    }

    fn check_conflicts(&self) -> Result<(), RegistryError> {
        if self.newer.is_empty() {
            return Ok(());
        }
        Err(RegistryError::conflict(
            format!("changed after revision {} of the file: {}", self.revision, list_names(&self.newer)),
            "run `seks export` and merge; without `revision` in the file, apply overwrites",
        ))
    }

    fn outcome(&self) -> Outcome {
        let mut changes = self.changes.clone();
        changes.sort_by_key(|change| change.action == Action::Delete); // written last
        Outcome {
            changes,
            warnings: self.warnings.clone(),
            revision: self.present.revision,
            before: self.before.clone(),
            after: self.after.clone(),
        }
    }

    /// What is written, and then deleted. The policies and the record of which they are go
    /// together.
    fn into_steps(mut self) -> Result<(Vec<Step>, Vec<Deleted>), RegistryError> {
        if !self.policy_writes.is_empty() {
            let set = &self.present.set;
            let now = PolicySet::of(self.after.policies.values());
            let first = Step { change: Change::new().check(set).put(set.key.clone(), &now), operations: 2 };
            let all = self.policy_writes.drain(..).fold(first, |all, step| Step {
                change: all.change.and(step.change),
                operations: all.operations + step.operations,
            });
            if all.operations >= MAX_TRANSACTION {
                let most = MAX_TRANSACTION / 2 - 2;
                return Err(RegistryError::invalid("policies", format!("at most {most} policies can change at once")));
            }
            self.steps.push(all);
        }
        Ok((self.steps, self.deleted))
    }
}

fn parse_name<T: TryFrom<String>>(field: &'static str, name: &str) -> Result<T, RegistryError>
where
    T::Error: std::fmt::Display,
{
    T::try_from(name.to_owned()).map_err(|error| RegistryError::invalid(field, format!("`{}`: {error}", short(name))))
}

fn short(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}
