//! Store records in, table changes out: what the nodes must know, kept as it will be sent.
//!
//! The materialised table is normalised as the store is: a change to an agent is one record, however many tokens it has. Each
//! record is kept encoded, so that a snapshot is a concatenation and a delta is encoded once for all streams. Credentials are
//! kept as the store's envelopes: they are opened for one stream, and sealed to it, at the moment of sending.

mod encode;
mod tenant;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use seks_proto::wire::{self, change::Change, remove::What};
use seks_types::id::{AgentName, CredentialName, ServiceName, TenantName, TokenId};

use self::{
    encode::{agent, decode, encode, is_disabled, named, revoked},
    tenant::Tenant,
};
use crate::{
    changefeed::{
        change::{Credential, Item},
        checksum::{Shift, Sums},
    },
    store::{Key, Record, Write},
};

/// Everything that nodes may be told.
#[derive(Default)]
pub(crate) struct Materialised {
    tenants: HashMap<TenantName, Tenant>,
    tokens: usize,
    /// Each tenant says which policies it has: where these are others, nothing is permitted in it.
    authenticated: bool,
}

/// What an event touched; each is compiled once, when all of the event is in.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Touched {
    Tenant(TenantName),
    Agent(TenantName, AgentName),
    Service(TenantName, ServiceName),
    Credential(TenantName, CredentialName),
    Policies(TenantName),
}

/// What an event means to nodes.
#[derive(Default)]
pub(crate) struct Compiled {
    /// What they must be told, revocations first.
    pub(crate) items: Vec<Item>,
    /// By what each tenant's records add up to something else.
    pub(crate) shifts: Vec<Shift>,
}

/// What nodes must be told of an event.
#[derive(Default)]
struct News {
    touched: BTreeSet<Touched>,
    items: Vec<Item>,
}

impl Materialised {
    /// The table of a whole listing. What can't be read is left out, and logged: one damaged record must not take the fleet down.
    /// `authenticated`: as the store says of itself.
    pub(crate) fn load(records: Vec<Record>, authenticated: bool) -> Self {
        let mut all = Self { authenticated, ..Self::default() };
        for record in records {
            all.write(Write::Put(record.key, record.value), &mut News::default());
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
        let living = self.tenants.get(tenant).filter(|t| t.living)?;
        let credential = living.credential(tenant, name).filter(|credential| !credential.is_unbound());
        credential.map(|credential| credential.pools)
    }

    /// What the records of the tenants that `wanted` picks add up to.
    pub(crate) fn sums(&mut self, wanted: impl Fn(&TenantName) -> bool) -> Sums {
        let wanted = self.tenants.iter_mut().filter(|(name, _)| wanted(name));
        wanted.map(|(name, tenant)| tenant.sums(name)).fold(Sums::default(), |sum, more| sum.plus(&more))
    }

    /// Takes in the changes of one revision.
    pub(crate) fn apply(&mut self, changes: Vec<Write>) -> Compiled {
        let concerned = |change: &Write| match change {
            Write::Put(Key::Tenant(name), _) | Write::Delete(Key::Tenant(name)) => Some(name.clone()),
            Write::Put(key, _) | Write::Delete(key) => key.tenant().cloned(),
        };
        let names: BTreeSet<TenantName> = changes.iter().filter_map(concerned).collect();
        let before: Vec<_> = names.into_iter().map(|name| (self.tenant_sums(&name), name)).collect();
        let items = self.take(changes);
        let shift = |(before, tenant): (Sums, TenantName)| {
            let by = self.tenant_sums(&tenant).minus(&before);
            (by != Sums::default()).then_some(Shift { tenant, by })
        };
        Compiled { items, shifts: before.into_iter().filter_map(shift).collect() }
    }

    fn tenant_sums(&mut self, name: &TenantName) -> Sums {
        self.tenants.get_mut(name).map(|tenant| tenant.sums(name)).unwrap_or_default()
    }

    fn take(&mut self, changes: Vec<Write>) -> Vec<Item> {
        let mut news = News::default();
        for change in changes {
            self.write(change, &mut news);
        }
        for touched in &news.touched {
            self.compile(touched, &mut news.items);
        }
        news.items.sort_by_key(|item| !item.narrows());
        news.items
    }

    /// Every record of the tenants that `wanted` picks, as a snapshot sends it: `plain` takes encoded changes, the rest is
    /// returned.
    pub(crate) fn export(
        &self,
        wanted: impl Fn(&TenantName) -> bool,
        mut plain: impl FnMut(&Bytes),
    ) -> Vec<Credential> {
        let mut credentials = Vec::new();
        for (name, tenant) in self.tenants.iter().filter(|(name, t)| t.living && wanted(name)) {
            tenant.export(name, &mut plain, &mut |credential| credentials.push(credential));
        }
        credentials
    }

    /// Takes in one record; tokens make their items here, because a removal needs what the record was.
    fn write(&mut self, write: Write, news: &mut News) {
        let (key, value) = match write {
            Write::Put(key, value) => (key, Some(value)),
            Write::Delete(key) => (key, None),
        };
        let Some(name) = key.tenant().cloned() else { return self.write_tenant(key, value, news) };
        let authenticated = self.authenticated;
        let tenant = self.tenants.entry(name.clone()).or_default();
        tenant.set_authenticated(authenticated);
        match key {
            Key::Agent(_, id) => {
                tenant.set_agent(id.clone(), value.and_then(|v| decode(&v, "agent")).map(agent));
                news.touched.insert(Touched::Agent(name, id));
            }
            Key::Service(_, id) => {
                let moved = tenant.set_service(id.clone(), value.and_then(|v| decode(&v, "service")));
                news.touched.extend(moved.into_iter().map(|credential| Touched::Credential(name.clone(), credential)));
                news.touched.insert(Touched::Service(name, id));
            }
            Key::Credential(_, id) => {
                tenant.set_credential(&id, value.and_then(|v| decode(&v, "credential")));
                news.touched.insert(Touched::Credential(name, id));
            }
            Key::Envelope(_, id, version) => tenant.set_envelope(&id, version, value),
            Key::Policy(_, id) => {
                tenant.set_policy(id.to_string(), value.and_then(|v| decode(&v, "policy")));
                news.touched.insert(Touched::Policies(name));
            }
            Key::Request(..) => match value {
                Some(_) => tenant.requests += 1,
                None => tenant.requests = tenant.requests.saturating_sub(1),
            },
            Key::PolicySet(_) => {
                tenant.set_policy_set(value.and_then(|v| decode(&v, "policy set")));
                news.touched.insert(Touched::Policies(name));
            }
            Key::Token(_, id) => self.write_token(name, id, value, news),
            Key::Tombstone(_, id) => {
                let token = value.and_then(|v| decode::<wire::Token>(&v, "tombstone"));
                let item = token.map(|token| Item::removal(&name, What::Token(revoked(&token))));
                tenant.set_tombstone(id, item.as_ref().map(Item::encoded));
                // The token was deleted in the same event, as a rule, and says the same.
                news.items.extend(item.filter(|item| !news.items.contains(item)));
            }
            _ => {}
        }
    }

    fn write_tenant(&mut self, key: Key, value: Option<Bytes>, news: &mut News) {
        let Key::Tenant(name) = key else { return };
        let record = value.and_then(|v| decode::<wire::Tenant>(&v, "tenant"));
        let tenant = self.tenants.entry(name.clone()).or_default();
        tenant.quota = record.as_ref().and_then(|r| r.quota).unwrap_or_default();
        let (before, living) = (tenant.living, record.as_ref().is_some_and(|r| !r.deleting));
        tenant.living = living;
        let changed = tenant.set_networks(record.map(|r| r.private_networks).unwrap_or_default());
        match before && living {
            // Only what its services may reach has changed.
            true => news.touched.extend(changed.into_iter().map(|id| Touched::Service(name.clone(), id))),
            false => drop(news.touched.insert(Touched::Tenant(name))),
        }
    }

    fn write_token(&mut self, name: TenantName, id: TokenId, value: Option<Bytes>, news: &mut News) {
        let new = value.and_then(|v| decode::<wire::Token>(&v, "token"));
        let tenant = self.tenants.entry(name.clone()).or_default();
        let put = new.is_some();
        let (old, reached) = tenant.set_token(id, new.as_ref());
        self.tokens = (self.tokens + usize::from(put)).saturating_sub(usize::from(old.is_some()));
        // A credential goes to the nodes with the first token that reaches it, and leaves them with the last.
        news.touched.extend(reached.into_iter().map(|credential| Touched::Credential(name.clone(), credential)));
        if let Some(old) = old
            && new.as_ref().is_none_or(|new| new.digest != old.digest)
        {
            news.items.push(Item::removal(&name, What::Token(revoked(&old))));
        }
        if let (Some(new), true) = (new, tenant.living) {
            news.items.push(Item::plain(&name, encode::token(&new), false));
        }
    }

    /// What nodes must be told of a record that an event touched.
    fn compile(&self, touched: &Touched, items: &mut Vec<Item>) {
        let of = |tenant: &TenantName| self.tenants.get(tenant).filter(|t| t.living);
        match touched {
            Touched::Tenant(name) => match of(name) {
                // All of it: when a deletion is taken back, nodes have nothing of the tenant left.
                Some(tenant) => {
                    let mut credentials = Vec::new();
                    tenant.export(name, &mut |e| items.push(Item::plain(name, e.clone(), false)), &mut |c| {
                        credentials.push(c)
                    });
                    items.extend(credentials.into_iter().map(Item::credential));
                }
                None => items.push(Item::removal(name, What::Tenant(name.to_string()))),
            },
            Touched::Agent(name, id) => items.extend(of(name).map(|tenant| match tenant.agent(id) {
                Some(encoded) => Item::plain(name, encoded.clone(), is_disabled(encoded)),
                None => Item::removal(name, What::Agent(named(name, id))),
            })),
            Touched::Service(name, id) => items.extend(of(name).map(|tenant| match tenant.service(id) {
                Some(encoded) => Item::plain(name, encoded.clone(), false),
                None => Item::removal(name, What::Service(named(name, id))),
            })),
            Touched::Credential(name, id) => items.extend(of(name).map(|tenant| match tenant.credential(name, id) {
                Some(credential) => Item::credential(credential),
                None => Item::removal(name, What::Credential(named(name, id))),
            })),
            Touched::Policies(name) => items.extend(of(name).map(|tenant| {
                let encoded = tenant.policies(name);
                Item::plain(name, encoded, tenant.has_no_policy())
            })),
        }
    }
}

/// A tenant's own record, encoded.
fn tenant_record(name: &TenantName) -> Bytes {
    encode(Change::Tenant(wire::TableTenant { name: name.to_string() }))
}

#[cfg(test)]
mod tests;
