//! Changes, applied to a generation in place.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use seks_lease::rules::{self, Discontinuity, Position};
use seks_protocol::{SessionError, SessionKey};
use seks_service::Service;
use sha2::{Digest as _, Sha256};

use super::{
    Change, Delta,
    entry::{AgentEntry, CredentialEntry, ServiceEntry},
    generation::Generation,
    memory_aad,
    token::RevokedEntry,
};

/// Why a change to the table was refused. The table is as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// It belongs to another epoch of the store.
    #[error("the change is of epoch `{offered}`, the table of `{applied}`")]
    Epoch {
        /// The table's.
        applied: String,
        /// The change's.
        offered: String,
    },
    /// Something before it is missing.
    #[error("the change follows revision {previous}, but {applied} is applied")]
    Gap {
        /// The table's revision.
        applied: u64,
        /// What the change follows.
        previous: u64,
    },
    /// It would take the table back.
    #[error("revision {offered} is before {applied}, which is applied")]
    Backwards {
        /// The table's revision.
        applied: u64,
        /// The change's.
        offered: u64,
    },
    /// A credential could not be sealed to this process's memory.
    #[error("cannot seal a credential in memory")]
    Seal(#[from] SessionError),
}

/// Applies `delta`: all of it or, on an error, nothing.
pub(super) fn apply(table: &Generation, key: &Arc<SessionKey>, delta: Delta) -> Result<(), ApplyError> {
    let held = Position { epoch: table.epoch(), revision: table.revision() };
    rules::check_continuity(held, &delta.epoch, delta.previous, delta.revision).map_err(|found| match found {
        Discontinuity::Epoch => ApplyError::Epoch { applied: held.epoch.to_owned(), offered: delta.epoch.clone() },
        Discontinuity::Gap => ApplyError::Gap { applied: held.revision, previous: delta.previous },
        Discontinuity::Backwards => ApplyError::Backwards { applied: held.revision, offered: delta.revision },
    })?;
    // Everything that can fail comes first.
    let mut steps = delta.changes.into_iter().map(|c| PreparedChange::new(key, c)).collect::<Result<Vec<_>, _>>()?;
    // A delta names each record at most once, so its changes commute: revocations needn't wait.
    if !steps.is_sorted_by_key(|step| !step.narrows()) {
        steps.sort_by_key(|step| !step.narrows());
    }
    steps.into_iter().for_each(|step| step.run(table));
    delta.marks.into_iter().for_each(|mark| table.checksum().mark(mark));
    table.advance(delta.revision);
    Ok(())
}

/// Applies those of `changes` that take rights away.
pub(super) fn narrow(table: &Generation, changes: &[Change]) {
    table.checksum().narrow();
    for change in changes {
        match change {
            Change::Agent { tenant, name, attributes, disabled: true } => {
                let attributes = attributes.clone();
                put_agent(table, tenant, AgentEntry { name: name.clone(), attributes, disabled: true });
            }
            Change::Policies(tenant, None) => remove(table, &Change::RemovePolicies(tenant.clone())),
            other => remove(table, other),
        }
    }
}

/// One change, ready to be applied: its credential is sealed.
pub(super) enum PreparedChange {
    Credential(seks_types::id::TenantName, CredentialEntry),
    Other(Change),
}

impl PreparedChange {
    pub(super) fn new(key: &Arc<SessionKey>, change: Change) -> Result<Self, ApplyError> {
        let Change::Credential { tenant, name, service, version, minted, destination, secret } = change else {
            return Ok(Self::Other(change));
        };
        let aad = memory_aad(&tenant, &name, version);
        let sealed = match secret {
            Some(secret) => key.seal(&aad, &secret)?.into_boxed_slice(),
            None => Box::default(),
        };
        let entry = CredentialEntry {
            tenant: tenant.clone(),
            name,
            service,
            version,
            generation: next_generation(),
            minted,
            destination,
            reported: false.into(),
            sealed,
            aad,
            memory_key: key.clone(),
        };
        Ok(Self::Credential(tenant, entry))
    }

    fn narrows(&self) -> bool {
        match self {
            Self::Credential(_, entry) => entry.sealed.is_empty(),
            Self::Other(change) => change.narrows(),
        }
    }

    pub(super) fn run(self, table: &Generation) {
        match self {
            Self::Credential(tenant, entry) => {
                let directory = table.directory_or_new(&tenant);
                let slot = directory.credential_slot(&entry.name.clone());
                let replaces = !slot.is_empty();
                slot.put(entry);
                if replaces {
                    directory.tenant.changed();
                }
            }
            Self::Other(Change::Tenant(name)) => drop(table.directory_or_new(&name)),
            Self::Other(Change::Agent { tenant, name, attributes, disabled }) => {
                put_agent(table, &tenant, AgentEntry { name, attributes, disabled });
            }
            Self::Other(Change::Service(service)) => put_service(table, *service),
            Self::Other(Change::Policies(tenant, Some(policies))) => {
                table.directory_or_new(&tenant).tenant.put_policies(policies);
            }
            Self::Other(Change::Policies(tenant, None)) => remove(table, &Change::RemovePolicies(tenant)),
            Self::Other(Change::PolicyTexts(tenant, policies)) => {
                table.directory_or_new(&tenant).tenant.compile_policies(policies);
            }
            Self::Other(Change::Token(record)) => table.put_token(*record),
            Self::Other(change) => remove(table, &change),
        }
    }
}

fn put_agent(table: &Generation, tenant: &seks_types::id::TenantName, entry: AgentEntry) {
    let slot = table.directory_or_new(tenant).agent_slot(&entry.name.clone());
    // A new agent has no requests: a tenant that makes thousands of them disturbs none.
    let (replaces, disabled) = (!slot.agent.is_empty(), entry.disabled);
    slot.agent.put(entry);
    if disabled {
        slot.agent.cut();
    }
    if replaces || disabled {
        slot.tenant.changed_for_one();
        slot.waiters.wake_all();
    }
}

fn put_service(table: &Generation, service: Service) {
    table.add_schemes(&service);
    let directory = table.directory_or_new(&service.tenant);
    let slot = directory.service_slot(&service.name.clone());
    let (generation, destination) = (fingerprint(&service), service.destination());
    let before = slot.get();
    let loses_leave = before.as_ref().is_some_and(|before| before.loses_leave(&service));
    let upstream_base = format!("{}{}", service.upstream, service.base_path).into();
    slot.put(ServiceEntry { generation, destination, service, upstream_base });
    if loses_leave {
        slot.cut();
    }
    if before.is_some_and(|before| before.generation != generation) {
        directory.tenant.changed();
    }
}

/// Equal definitions have equal numbers, so that a resync doesn't close every pool. `Debug` writes
/// every field.
fn fingerprint(service: &Service) -> u64 {
    let hash = Sha256::digest(format!("{service:?}"));
    hash.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// Only the removals.
fn remove(table: &Generation, change: &Change) {
    match change {
        Change::RemoveTenant(name) => table.remove_tenant(name),
        Change::RevokeToken { digest, id, tenant, agent, until } => {
            let revoked = RevokedEntry { id: id.clone(), tenant: tenant.clone(), agent: agent.clone(), until: *until };
            table.revoke_token(*digest, revoked);
        }
        Change::RefuseToken { digest, tenant } => table.refuse_token(*digest, tenant),
        Change::RemoveAgent(tenant, name) => {
            if let Some(directory) = table.directory(tenant) {
                let slot = directory.agent_slot(name);
                slot.agent.remove();
                slot.tenant.changed_for_one();
                slot.waiters.wake_all();
            }
        }
        Change::RemoveService(tenant, name) => {
            if let Some(directory) = table.directory(tenant) {
                directory.service_slot(name).remove();
                directory.tenant.changed();
            }
        }
        Change::RemoveCredential(tenant, name) | Change::Credential { tenant, name, secret: None, .. } => {
            if let Some(directory) = table.directory(tenant) {
                directory.credential_slot(name).remove();
                directory.tenant.changed();
            }
        }
        Change::RemovePolicies(tenant) => {
            if let Some(directory) = table.directory(tenant) {
                directory.tenant.remove_policies();
            }
        }
        _ => {}
    }
}
