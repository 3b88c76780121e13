//! One tenant's part of the materialised table.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

use bytes::Bytes;
use seks_proto::wire::{self, change::Change};
use seks_protocol::TableChecksum;
use seks_service::record_destination;
use seks_types::{
    destination::Destination,
    id::{AgentName, CredentialName, PolicyId, ServiceName, TenantName, TokenId},
    token::Digest,
};

use super::{
    encode::{self, encode, read_service, read_token},
    tenant_record,
};
use crate::{
    changefeed::{
        change::CredentialChange,
        checksum::{Audience, Checksum, Pools, Requires},
    },
    registry::record::{PolicySet, destination_of},
};

#[derive(Default)]
pub(super) struct Tenant {
    /// Its own record exists, and it isn't being deleted: without it nothing in it is sent.
    pub(super) active: bool,
    /// The private networks that its services may reach, where they ask for private upstreams.
    networks: Vec<String>,
    agents: HashMap<AgentName, Bytes>,
    services: HashMap<ServiceName, Bytes>,
    /// Where each service sends credentials; none of a service whose definition is not acceptable.
    destinations: HashMap<ServiceName, Destination>,
    credentials: HashMap<CredentialName, CredentialRow>,
    /// The credentials of each service.
    of_service: HashMap<String, BTreeSet<CredentialName>>,
    /// Ordered, so that the same policies are the same bytes.
    policies: BTreeMap<String, wire::Policy>,
    /// Which they are to be.
    policy_set: Option<PolicySet>,
    /// Whether they have to be those.
    authenticated: bool,
    tokens: HashMap<TokenId, Bytes>,
    /// The tokens that not every node can enforce, and what they require.
    requiring: HashMap<TokenId, Requires>,
    tombstones: HashMap<TokenId, Bytes>,
    /// What its record says of quotas.
    pub(super) quota: wire::Quota,
    /// Request ids that the store remembers.
    pub(super) requests: u64,
    /// Of all but the tenant's own record and its policies.
    checksum: Checksum,
    policies_checksum: Option<TableChecksum>,
}

#[derive(Default)]
struct CredentialRow {
    record: Option<wire::Credential>,
    /// The envelopes of the current version and later ones: within an event, the record may come
    /// before or after them.
    envelopes: BTreeMap<u32, Bytes>,
    /// Tokens that are granted the credential. A credential without tokens is sent to no node.
    reach: usize,
    /// Its part in the tenant's sum, and whose part.
    sum: (Audience, TableChecksum),
}

impl Tenant {
    /// Hands out every record: what is sealed for each node by `credential`, the rest by `plain`.
    pub(super) fn export(
        &self,
        name: &TenantName,
        can_enforce: &impl Fn(&[String]) -> bool,
        plain: &mut impl FnMut(&Bytes),
        credential: &mut impl FnMut(CredentialChange),
    ) {
        plain(&tenant_record(name));
        self.agents.values().for_each(&mut *plain);
        self.services.values().for_each(&mut *plain);
        plain(&self.policies(name));
        // Before the tokens: a digest that is in both is revoked.
        self.tombstones.values().for_each(&mut *plain);
        match self.requiring.is_empty() {
            true => self.tokens.values().for_each(&mut *plain),
            false => {
                let withheld = |id: &TokenId| self.requiring.get(id).is_some_and(|requires| !can_enforce(requires));
                self.tokens.iter().filter(|(id, _)| !withheld(id)).for_each(|(_, token)| plain(token));
            }
        }
        self.credentials.keys().filter_map(|id| self.credential(name, id)).for_each(credential);
    }

    /// What all of it adds up to at a node. Revoked tokens don't count: each side forgets them in
    /// its own time.
    pub(super) fn checksum(&mut self, name: &TenantName) -> Checksum {
        if !self.active {
            return Checksum::default();
        }
        let policies = match self.policies_checksum {
            Some(known) => known,
            None => *self.policies_checksum.insert(TableChecksum::of_record(&self.policies(name))),
        };
        let own = TableChecksum::of_record(&tenant_record(name));
        Checksum { plain: self.checksum.plain.plus(policies).plus(own), ..self.checksum.clone() }
    }

    /// Whether it has a token that not every node can enforce.
    pub(super) fn has_requirements(&self) -> bool {
        !self.requiring.is_empty()
    }

    /// The tokens that not every node can enforce.
    pub(super) fn requiring_tokens(&self) -> impl Iterator<Item = wire::Token> {
        self.requiring.keys().filter_map(|id| self.tokens.get(id)).filter_map(read_token)
    }

    /// What it has, as far as nodes' tables tell.
    pub(super) fn usage(&self) -> wire::Usage {
        wire::Usage {
            tokens: self.tokens.len() as u64,
            agents: self.agents.len() as u64,
            services: self.services.len() as u64,
            credentials: self.credentials.values().filter(|row| row.record.is_some()).count() as u64,
            policies: self.policies.len() as u64,
            operators: 0,
            revoked: self.tombstones.len() as u64,
            requests: self.requests,
        }
    }

    pub(super) fn agent(&self, name: &AgentName) -> Option<&Bytes> {
        self.agents.get(name)
    }

    pub(super) fn service(&self, name: &ServiceName) -> Option<&Bytes> {
        self.services.get(name)
    }

    /// The current version of a credential, if nodes need it.
    pub(super) fn credential(&self, tenant: &TenantName, name: &CredentialName) -> Option<CredentialChange> {
        let row = self.credentials.get(name).filter(|row| row.reach > 0)?;
        let record = row.record.as_ref()?;
        let envelope = row.envelopes.get(&record.version)?.clone();
        let service = record.service.clone();
        let (minted, pools) = (record.mint.is_some(), record.pools.as_slice().into());
        let bound_to = destination_of(record, record.version);
        let service_at = self.destinations.get(record.service.as_str()).copied();
        let (tenant, name) = (tenant.clone(), name.clone());
        let version = record.version;
        Some(CredentialChange { tenant, name, service, version, minted, bound_to, service_at, pools, envelope })
    }

    fn is_unbound(&self, record: &wire::Credential) -> bool {
        let bound_to = destination_of(record, record.version);
        let service_at = self.destinations.get(record.service.as_str());
        bound_to.as_ref().zip(service_at).is_some_and(|(bound_to, service_at)| bound_to != service_at)
    }

    pub(super) fn has_policy(&self, id: &PolicyId) -> bool {
        self.policies.contains_key(id.as_str())
    }

    /// All policies, as the one record that they are to nodes.
    pub(super) fn policies(&self, tenant: &TenantName) -> Bytes {
        let policies = if self.has_its_policies() { self.policies.values().cloned().collect() } else { Vec::new() };
        encode(Change::Policies(wire::TablePolicies { tenant: tenant.to_string(), policies }))
    }

    pub(super) fn has_no_policy(&self) -> bool {
        self.policies.is_empty() || !self.has_its_policies()
    }

    /// Whether the policies are the complete set of the tenant. Otherwise one was removed, which
    /// may have been a `forbid`.
    fn has_its_policies(&self) -> bool {
        let is = || self.policy_set.as_ref().is_some_and(|set| *set == PolicySet::of(self.policies.values()));
        !self.authenticated || is()
    }

    pub(super) fn set_authenticated(&mut self, authenticated: bool) {
        if self.authenticated != authenticated {
            (self.authenticated, self.policies_checksum) = (authenticated, None);
        }
    }

    pub(super) fn set_policy_set(&mut self, set: Option<PolicySet>) {
        (self.policy_set, self.policies_checksum) = (set, None);
    }

    pub(super) fn set_agent(&mut self, name: AgentName, encoded: Option<Bytes>) {
        set(&mut self.agents, name, encoded, &mut self.checksum.plain);
    }

    /// Puts or removes a service. Returns the credentials of which nodes must be told, because it
    /// sends them to another destination.
    pub(super) fn set_service(&mut self, name: ServiceName, record: Option<wire::Service>) -> Vec<CredentialName> {
        let destination = record.as_ref().and_then(|record| record_destination(record).ok());
        let before = match destination {
            Some(destination) => self.destinations.insert(name.clone(), destination),
            None => self.destinations.remove(&name),
        };
        let encoded = record.map(|record| encode::service(record, &self.networks));
        set(&mut self.services, name.clone(), encoded, &mut self.checksum.plain);
        if before == destination {
            return Vec::new();
        }
        let moved: Vec<CredentialName> = self.of_service.get(name.as_str()).into_iter().flatten().cloned().collect();
        moved.iter().for_each(|credential| self.update_checksum_of(credential));
        moved
    }

    /// Replaces the private networks. Returns the services whose records must be sent to nodes
    /// again.
    pub(super) fn set_networks(&mut self, networks: Vec<String>) -> Vec<ServiceName> {
        if networks == self.networks {
            return Vec::new();
        }
        self.networks = networks;
        let again = |(name, encoded): (&ServiceName, &Bytes)| {
            let changed = encode::service(read_service(encoded)?, &self.networks);
            (changed != encoded).then(|| (name.clone(), changed))
        };
        let changed: Vec<(ServiceName, Bytes)> = self.services.iter().filter_map(again).collect();
        let mut names: Vec<ServiceName> = changed.iter().map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        changed.into_iter().for_each(|(name, new)| set(&mut self.services, name, Some(new), &mut self.checksum.plain));
        names
    }

    pub(super) fn set_policy(&mut self, id: String, policy: Option<wire::Policy>) {
        self.policies_checksum = None;
        match policy {
            Some(policy) => drop(self.policies.insert(id, policy)),
            None => drop(self.policies.remove(&id)),
        }
    }

    pub(super) fn set_credential(&mut self, name: &CredentialName, record: Option<wire::Credential>) {
        let row = self.credentials.entry(name.clone()).or_default();
        match &record {
            Some(record) => row.envelopes = row.envelopes.split_off(&record.version),
            None => row.envelopes.clear(),
        }
        let now = record.as_ref().map(|record| record.service.clone());
        let before = std::mem::replace(&mut row.record, record).map(|record| record.service);
        if before != now {
            if let Some(of) = before.and_then(|service| self.of_service.get_mut(&service)) {
                of.remove(name);
            }
            if let Some(service) = now {
                self.of_service.entry(service).or_default().insert(name.clone());
            }
            self.of_service.retain(|_, of| !of.is_empty());
        }
        self.update_checksum_of(name);
        self.forget_if_unused(name);
    }

    pub(super) fn set_envelope(&mut self, name: &CredentialName, version: u32, envelope: Option<Bytes>) {
        let row = self.credentials.entry(name.clone()).or_default();
        match envelope {
            Some(envelope) if row.record.as_ref().is_none_or(|r| version >= r.version) => {
                row.envelopes.insert(version, envelope);
            }
            Some(_) => {}
            None => drop(row.envelopes.remove(&version)),
        }
        self.update_checksum_of(name);
        self.forget_if_unused(name);
    }

    pub(super) fn set_tombstone(&mut self, id: TokenId, encoded: Option<Bytes>) {
        set(&mut self.tombstones, id, encoded, &mut TableChecksum::default());
    }

    /// Puts or removes a token. Returns what it was, and the credentials that became, or ceased to
    /// be, reached.
    pub(super) fn set_token(
        &mut self,
        id: TokenId,
        new: Option<&wire::Token>,
    ) -> (Option<wire::Token>, Vec<CredentialName>) {
        match new.map(|new| new.requires.as_slice()) {
            Some(requires @ [_, ..]) => drop(self.requiring.insert(id.clone(), requires.into())),
            _ => drop(self.requiring.remove(&id)),
        }
        let old = match new {
            Some(new) => self.tokens.insert(id, encode::token(new)),
            None => self.tokens.remove(&id),
        };
        shrink_if_sparse(&mut self.tokens);
        let old = old.as_ref().and_then(read_token);
        let sum = |token: &wire::Token| Digest::try_from(token.digest.as_slice()).map(|d| TableChecksum::of_token(&d));
        if let Some(old) = &old
            && let Ok(less) = sum(old)
        {
            self.checksum.add_requiring(&old.requires, |sum| sum.minus(less));
        }
        if let Some(new) = new
            && let Ok(more) = sum(new)
        {
            self.checksum.add_requiring(&new.requires, |sum| sum.plus(more));
        }
        let mut changed = Vec::new();
        // The new first: what both reach is never given up in between.
        for (token, more) in [(new, true), (old.as_ref(), false)] {
            for grant in token.iter().flat_map(|t| &t.grants) {
                if let Ok(name) = CredentialName::try_from(grant.credential.as_str())
                    && self.reach(&name, more)
                {
                    changed.push(name);
                }
            }
        }
        (old, changed)
    }

    /// Counts a grant; says whether nodes must be told: it was the first, or the last that went, of
    /// a credential that exists.
    fn reach(&mut self, name: &CredentialName, more: bool) -> bool {
        let row = self.credentials.entry(name.clone()).or_default();
        let before = row.reach;
        row.reach = if more { before + 1 } else { before.saturating_sub(1) };
        let edge = before.min(row.reach) == 0 && row.record.is_some();
        if edge {
            self.update_checksum_of(name);
        }
        self.forget_if_unused(name);
        edge
    }

    /// Brings a credential's part in the sum up to date.
    fn update_checksum_of(&mut self, name: &CredentialName) {
        let Some(row) = self.credentials.get(name) else { return };
        let sent = row.record.as_ref().filter(|r| row.reach > 0 && row.envelopes.contains_key(&r.version));
        let part = |r: &wire::Credential| {
            let sum = TableChecksum::of_credential(&r.tenant, name.as_str(), &r.service, r.version);
            (Audience { pools: Pools::from(r.pools.as_slice()), unbound: self.is_unbound(r) }, sum)
        };
        let part = sent.map(part).unwrap_or_default();
        let Some(row) = self.credentials.get_mut(name) else { return };
        self.checksum.shift(&row.sum.0, |sum| sum.minus(row.sum.1));
        self.checksum.shift(&part.0, |sum| sum.plus(part.1));
        row.sum = part;
    }

    fn forget_if_unused(&mut self, name: &CredentialName) {
        if self.credentials.get(name).is_some_and(|r| r.record.is_none() && r.reach == 0 && r.envelopes.is_empty()) {
            self.credentials.remove(name);
        }
    }
}

/// Gives back the room of what has been removed, once that is most of it.
fn shrink_if_sparse<N: Eq + Hash>(map: &mut HashMap<N, Bytes>) {
    if map.capacity() > 1024 && map.len() < map.capacity() / 8 {
        map.shrink_to(map.len() * 2);
    }
}

/// Puts or removes an encoded record, and takes it in or out of `sum`.
fn set<N: Eq + Hash>(map: &mut HashMap<N, Bytes>, name: N, value: Option<Bytes>, sum: &mut TableChecksum) {
    if let Some(value) = &value {
        *sum = sum.plus(TableChecksum::of_record(value));
    }
    let old = match value {
        Some(value) => map.insert(name, value),
        None => map.remove(&name),
    };
    shrink_if_sparse(map);
    if let Some(old) = old {
        *sum = sum.minus(TableChecksum::of_record(&old));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_once_most_tokens_have_gone() {
        let mut tenant = Tenant::default();
        let id = |n: u32| TokenId::try_from(format!("tok-{n}").as_str()).unwrap();
        let token = |n: u32| wire::Token {
            id: format!("tok-{n}"),
            digest: Digest::of(&n.to_be_bytes()).0.to_vec(),
            ..Default::default()
        };
        (0..20_000).for_each(|n| drop(tenant.set_token(id(n), Some(&token(n)))));
        assert!(tenant.usage().tokens == 20_000 && tenant.tokens.capacity() >= 20_000);
        (10..20_000).for_each(|n| drop(tenant.set_token(id(n), None)));
        assert!(tenant.usage().tokens == 10 && tenant.tokens.capacity() <= 2048, "{}", tenant.tokens.capacity());
    }
}
