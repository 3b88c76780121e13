//! Store records in, table changes out: what the nodes must know, kept as it will be sent.
//!
//! The materialised table is normalised as the store is: a change to an agent is one record,
//! however many tokens it has. Each record is kept encoded, so that a snapshot is a concatenation
//! and a delta is encoded once for all streams. Credentials are kept as the store's envelopes: they
//! are opened for one stream, and sealed to it, at the moment of sending.

mod encode;
mod tenant;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use seks_proto::wire::{self, change::Change, remove::What};
use seks_runtime::memory_release::records_deleted;
use seks_types::id::{AgentName, CredentialName, PolicyId, ServiceName, TenantName, TokenId};

use self::{
    encode::{agent, decode, encode, is_disabled, named, revoked},
    tenant::Tenant,
};
use crate::{
    changefeed::{
        change::{CredentialChange, TableChange},
        checksum::{Checksum, ChecksumDelta},
    },
    store::{Key, Record, Write},
};

/// Everything that nodes may be told.
#[derive(Default)]
pub(crate) struct MaterializedTable {
    tenants: HashMap<TenantName, Tenant>,
    tokens: usize,
    /// Each tenant says which policies it has: where these are others, nothing is permitted in it.
    authenticated: bool,
}

/// What an event touched; each is compiled once, when all of the event is in.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum DirtyKey {
    Tenant(TenantName),
    Agent(TenantName, AgentName),
    Service(TenantName, ServiceName),
    Credential(TenantName, CredentialName),
    Policies(TenantName),
}

/// What an event means to nodes.
#[derive(Default)]
pub(crate) struct CompiledChanges {
    /// What they must be told, revocations first.
    pub(crate) changes: Vec<TableChange>,
    /// By what each tenant's records add up to something else.
    pub(crate) checksum_deltas: Vec<ChecksumDelta>,
}

/// What nodes must be told of an event.
#[derive(Default)]
struct ChangeSet {
    dirty: BTreeSet<DirtyKey>,
    changes: Vec<TableChange>,
    /// Digests that records lost, and the changes that revoke them.
    revoked: Vec<(Vec<u8>, TableChange)>,
    /// Old secrets that work for a while beside the new ones ([`wire::Token::replaced_by`]): they
    /// are not revoked.
    kept: Vec<(TokenId, Vec<u8>)>,
}

impl MaterializedTable {
    /// The table of a whole listing. What can't be read is left out, and logged: one damaged record
    /// must not take the fleet down. `authenticated`: as the store says of itself.
    pub(crate) fn load(records: Vec<Record>, authenticated: bool) -> Self {
        let mut all = Self { authenticated, ..Self::default() };
        for record in records {
            all.write(Write::Put(record.key, record.value), &mut ChangeSet::default());
        }
        all
    }

    /// What the store says of itself now.
    pub(crate) fn set_authenticated(&mut self, authenticated: bool) {
        if self.authenticated != authenticated {
            self.authenticated = authenticated;
            self.tenants.values_mut().for_each(|tenant| tenant.set_authenticated(authenticated));
        }
    }

    /// Tokens that nodes honour.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// What a tenant has, and the quotas that are set for it.
    pub(crate) fn usage(&self, tenant: &TenantName) -> Option<(wire::Usage, wire::Quota)> {
        self.tenants.get(tenant).map(|tenant| (tenant.usage(), tenant.quota))
    }

    /// The pools whose nodes are sent a credential; `None`: no node is.
    pub(crate) fn assigned(&self, tenant: &TenantName, name: &CredentialName) -> Option<Arc<[String]>> {
        let active = self.tenants.get(tenant).filter(|t| t.active)?;
        let credential = active.credential(tenant, name).filter(|credential| !credential.is_unbound());
        credential.map(|credential| credential.pools)
    }

    /// Whether a tenant has a policy of this id, and this agent.
    pub(crate) fn has_limit(&self, tenant: &TenantName, id: &PolicyId, agent: Option<&AgentName>) -> bool {
        self.tenants.get(tenant).is_some_and(|tenant| {
            tenant.active && tenant.has_policy(id) && agent.is_none_or(|agent| tenant.agent(agent).is_some())
        })
    }

    /// Whether there is a record that not every node can enforce.
    pub(crate) fn has_requirements(&self) -> bool {
        self.tenants.values().any(Tenant::has_requirements)
    }

    /// What the records of the tenants that `wanted` picks add up to.
    pub(crate) fn checksum(&mut self, wanted: impl Fn(&TenantName) -> bool) -> Checksum {
        let wanted = self.tenants.iter_mut().filter(|(name, _)| wanted(name));
        wanted.map(|(name, tenant)| tenant.checksum(name)).fold(Checksum::default(), |sum, more| sum.plus(&more))
    }

    /// Takes in the changes of one revision.
    pub(crate) fn apply(&mut self, changes: Vec<Write>) -> CompiledChanges {
        let concerned = |change: &Write| match change {
            Write::Put(Key::Tenant(name), _) | Write::Delete(Key::Tenant(name)) => Some(name.clone()),
            Write::Put(key, _) | Write::Delete(key) => key.tenant().cloned(),
        };
        let names: BTreeSet<TenantName> = changes.iter().filter_map(concerned).collect();
        let before: Vec<_> = names.into_iter().map(|name| (self.tenant_checksum(&name), name)).collect();
        let table_changes = self.take_changes(changes);
        let checksum_delta = |(before, tenant): (Checksum, TenantName)| {
            let delta = self.tenant_checksum(&tenant).minus(&before);
            (delta != Checksum::default()).then_some(ChecksumDelta { tenant, delta })
        };
        CompiledChanges {
            changes: table_changes,
            checksum_deltas: before.into_iter().filter_map(checksum_delta).collect(),
        }
    }

    fn tenant_checksum(&mut self, name: &TenantName) -> Checksum {
        self.tenants.get_mut(name).map(|tenant| tenant.checksum(name)).unwrap_or_default()
    }

    fn take_changes(&mut self, changes: Vec<Write>) -> Vec<TableChange> {
        let mut change_set = ChangeSet::default();
        let deletes = changes.iter().filter(|change| matches!(change, Write::Delete(_))).count();
        records_deleted(deletes as u64);
        for change in changes {
            self.write(change, &mut change_set);
        }
        for dirty in &change_set.dirty {
            self.compile(dirty, &mut change_set.changes);
        }
        // A rotated token's old secret may work for a while, under an id of its own.
        let ChangeSet { mut changes, revoked, kept, .. } = change_set;
        let is_kept = |digest: &Vec<u8>| kept.iter().any(|(_, kept)| kept == digest);
        for (_, revoked) in revoked.into_iter().filter(|(digest, _)| is_kept(digest)) {
            changes.retain(|change| *change != revoked);
        }
        changes.sort_by_key(|item| !item.revokes());
        changes
    }

    /// Every record of the tenants that `wanted` picks, as a snapshot sends it: `plain` takes
    /// encoded changes, the rest is returned.
    pub(crate) fn export(
        &self,
        wanted: impl Fn(&TenantName) -> bool,
        can_enforce: impl Fn(&[String]) -> bool,
        mut plain: impl FnMut(&Bytes),
    ) -> Vec<CredentialChange> {
        let mut credentials = Vec::new();
        for (name, tenant) in self.tenants.iter().filter(|(name, t)| t.active && wanted(name)) {
            tenant.export(name, &can_enforce, &mut plain, &mut |credential| credentials.push(credential));
        }
        credentials
    }

    /// Takes in one record; tokens make their items here, because a removal needs what the record
    /// was.
    fn write(&mut self, write: Write, change_set: &mut ChangeSet) {
        let (key, value) = match write {
            Write::Put(key, value) => (key, Some(value)),
            Write::Delete(key) => (key, None),
        };
        let Some(name) = key.tenant().cloned() else { return self.write_tenant(key, value, change_set) };
        let authenticated = self.authenticated;
        let tenant = self.tenants.entry(name.clone()).or_default();
        tenant.set_authenticated(authenticated);
        match key {
            Key::Agent(_, id) => {
                tenant.set_agent(id.clone(), value.and_then(|v| decode(&v, "agent")).map(agent));
                change_set.dirty.insert(DirtyKey::Agent(name, id));
            }
            Key::Service(_, id) => {
                let moved = tenant.set_service(id.clone(), value.and_then(|v| decode(&v, "service")));
                change_set
                    .dirty
                    .extend(moved.into_iter().map(|credential| DirtyKey::Credential(name.clone(), credential)));
                change_set.dirty.insert(DirtyKey::Service(name, id));
            }
            Key::Credential(_, id) => {
                tenant.set_credential(&id, value.and_then(|v| decode(&v, "credential")));
                change_set.dirty.insert(DirtyKey::Credential(name, id));
            }
            Key::Envelope(_, id, version) => tenant.set_envelope(&id, version, value),
            Key::Policy(_, id) => {
                tenant.set_policy(id.to_string(), value.and_then(|v| decode(&v, "policy")));
                change_set.dirty.insert(DirtyKey::Policies(name));
            }
            Key::Request(..) => match value {
                Some(_) => tenant.requests += 1,
                None => tenant.requests = tenant.requests.saturating_sub(1),
            },
            Key::PolicySet(_) => {
                tenant.set_policy_set(value.and_then(|v| decode(&v, "policy set")));
                change_set.dirty.insert(DirtyKey::Policies(name));
            }
            Key::Token(_, id) => self.write_token(name, id, value, change_set),
            Key::Tombstone(_, id) => {
                let token = value.and_then(|v| decode::<wire::Token>(&v, "tombstone"));
                let item = token.map(|token| TableChange::removal(&name, What::Token(revoked(&token))));
                tenant.set_tombstone(id, item.as_ref().map(TableChange::encoded));
                // The token was deleted in the same event, as a rule, and says the same.
                change_set.changes.extend(item.filter(|item| !change_set.changes.contains(item)));
            }
            _ => {}
        }
    }

    fn write_tenant(&mut self, key: Key, value: Option<Bytes>, change_set: &mut ChangeSet) {
        let Key::Tenant(name) = key else { return };
        let record = value.and_then(|v| decode::<wire::Tenant>(&v, "tenant"));
        let tenant = self.tenants.entry(name.clone()).or_default();
        tenant.quota = record.as_ref().and_then(|r| r.quota).unwrap_or_default();
        let (before, active) = (tenant.active, record.as_ref().is_some_and(|r| !r.deleting));
        tenant.active = active;
        let changed = tenant.set_networks(record.map(|r| r.private_networks).unwrap_or_default());
        match before && active {
            // Only what its services may reach has changed.
            true => change_set.dirty.extend(changed.into_iter().map(|id| DirtyKey::Service(name.clone(), id))),
            false => drop(change_set.dirty.insert(DirtyKey::Tenant(name))),
        }
    }

    fn write_token(&mut self, name: TenantName, id: TokenId, value: Option<Bytes>, change_set: &mut ChangeSet) {
        let new = value.and_then(|v| decode::<wire::Token>(&v, "token"));
        let tenant = self.tenants.entry(name.clone()).or_default();
        let put = new.is_some();
        let (old, reached) = tenant.set_token(id.clone(), new.as_ref());
        self.tokens = (self.tokens + usize::from(put)).saturating_sub(usize::from(old.is_some()));
        // A credential goes to the nodes with the first token that reaches it, and leaves them with
        // the last.
        change_set.dirty.extend(reached.into_iter().map(|credential| DirtyKey::Credential(name.clone(), credential)));
        if let Some(old) = old
            && new.as_ref().is_none_or(|new| new.digest != old.digest)
        {
            change_set.kept.retain(|(kept, _)| *kept != id);
            let change = TableChange::removal(&name, What::Token(revoked(&old)));
            change_set.revoked.push((old.digest, change.clone()));
            change_set.changes.push(change);
        }
        if let Some(new) = new.as_ref().filter(|new| !new.replaced_by.is_empty()) {
            change_set.kept.push((id, new.digest.clone()));
        }
        if let (Some(new), true) = (new, tenant.active) {
            change_set.changes.push(token_change(&name, &new));
        }
    }

    /// What nodes must be told of a record that an event touched.
    fn compile(&self, dirty: &DirtyKey, items: &mut Vec<TableChange>) {
        let of = |tenant: &TenantName| self.tenants.get(tenant).filter(|t| t.active);
        match dirty {
            DirtyKey::Tenant(name) => match of(name) {
                // All of it: when a deletion is taken back, nodes have nothing of the tenant left.
                Some(tenant) => {
                    let mut credentials = Vec::new();
                    let plain = &mut |e: &Bytes| items.push(TableChange::plain(name, e.clone(), false));
                    // What requires something follows below, for those that can enforce it.
                    tenant.export(name, &|_| false, plain, &mut |c| credentials.push(c));
                    items.extend(tenant.requiring_tokens().map(|token| token_change(name, &token)));
                    items.extend(credentials.into_iter().map(TableChange::credential));
                }
                None => items.push(TableChange::removal(name, What::Tenant(name.to_string()))),
            },
            DirtyKey::Agent(name, id) => items.extend(of(name).map(|tenant| match tenant.agent(id) {
                Some(encoded) => TableChange::plain(name, encoded.clone(), is_disabled(encoded)),
                None => TableChange::removal(name, What::Agent(named(name, id))),
            })),
            DirtyKey::Service(name, id) => items.extend(of(name).map(|tenant| match tenant.service(id) {
                Some(encoded) => TableChange::plain(name, encoded.clone(), false),
                None => TableChange::removal(name, What::Service(named(name, id))),
            })),
            DirtyKey::Credential(name, id) => items.extend(of(name).map(|tenant| match tenant.credential(name, id) {
                Some(credential) => TableChange::credential(credential),
                None => TableChange::removal(name, What::Credential(named(name, id))),
            })),
            DirtyKey::Policies(name) => items.extend(of(name).map(|tenant| {
                let encoded = tenant.policies(name);
                TableChange::plain(name, encoded, tenant.has_no_policy())
            })),
        }
    }
}

/// A token's change: for every node, or for those that can enforce what it requires.
fn token_change(tenant: &TenantName, token: &wire::Token) -> TableChange {
    match token.requires.as_slice() {
        [] => TableChange::plain(tenant, encode::token(token), false),
        requires => TableChange::token(tenant, encode::token(token), requires.into(), revoked(token)),
    }
}

/// A tenant's own record, encoded.
fn tenant_record(name: &TenantName) -> Bytes {
    encode(Change::Tenant(wire::TableTenant { name: name.to_string() }))
}

#[cfg(test)]
mod tests;
