//! Store records in, table changes out: what the nodes must know, kept as it will be sent.
//!
//! The materialised table is normalised as the store is: a change to an agent is one record, however many tokens it has. Each
//! record is kept encoded, so that a snapshot is a concatenation and a delta is encoded once for all streams. Credentials are
//! kept as the store's envelopes: they are opened for one stream, and sealed to it, at the moment of sending.

mod encode;
mod tenant;

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use seks_proto::{
    id::{AgentName, CredentialName, ServiceName, TenantName, TokenId},
    wire::{self, change::Change, remove::What},
};

use self::{
    encode::{agent, decode, encode, is_disabled, named, revoked, service},
    tenant::Tenant,
};
use super::item::{Credential, Item};
use crate::store::{Key, Record, Write};

/// Everything that nodes may be told.
#[derive(Default)]
pub(super) struct Materialised {
    tenants: HashMap<TenantName, Tenant>,
    tokens: usize,
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

/// What nodes must be told of an event.
#[derive(Default)]
struct News {
    touched: BTreeSet<Touched>,
    items: Vec<Item>,
}

impl Materialised {
    /// The table of a whole listing. What can't be read is left out, and logged: one damaged record must not take the fleet down.
    pub(super) fn load(records: Vec<Record>) -> Self {
        let mut all = Self::default();
        for record in records {
            all.write(Write::Put(record.key, record.value), &mut News::default());
        }
        all
    }

    /// Tokens that nodes honour.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Takes in the changes of one revision; returns what nodes must be told, revocations first.
    pub(super) fn apply(&mut self, changes: Vec<Write>) -> Vec<Item> {
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

    /// Every record, as a snapshot sends it: `plain` takes encoded changes, the rest is returned.
    pub(super) fn export(&self, mut plain: impl FnMut(&Bytes)) -> Vec<Credential> {
        let mut credentials = Vec::new();
        for (name, tenant) in self.tenants.iter().filter(|(_, t)| t.living) {
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
        let tenant = self.tenants.entry(name.clone()).or_default();
        match key {
            Key::Agent(_, id) => {
                tenant.set_agent(id.clone(), value.and_then(|v| decode(&v, "agent")).map(agent));
                news.touched.insert(Touched::Agent(name, id));
            }
            Key::Service(_, id) => {
                tenant.set_service(id.clone(), value.and_then(|v| decode(&v, "service")).map(service));
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
            Key::Token(_, id) => self.write_token(name, id, value, news),
            Key::Tombstone(_, id) => {
                let token = value.and_then(|v| decode::<wire::Token>(&v, "tombstone"));
                let item = token.map(|token| Item::removal(What::Token(revoked(&token))));
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
        self.tenants.entry(name.clone()).or_default().living = record.is_some_and(|r| !r.deleting);
        news.touched.insert(Touched::Tenant(name));
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
            news.items.push(Item::removal(What::Token(revoked(&old))));
        }
        if let (Some(new), true) = (new, tenant.living) {
            news.items.push(Item::plain(encode::token(&new), false));
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
                    tenant
                        .export(name, &mut |e| items.push(Item::plain(e.clone(), false)), &mut |c| credentials.push(c));
                    items.extend(credentials.into_iter().map(|c| Item::Credential(c.into())));
                }
                None => items.push(Item::removal(What::Tenant(name.to_string()))),
            },
            Touched::Agent(name, id) => items.extend(of(name).map(|tenant| match tenant.agent(id) {
                Some(encoded) => Item::plain(encoded.clone(), is_disabled(encoded)),
                None => Item::removal(What::Agent(named(name, id))),
            })),
            Touched::Service(name, id) => items.extend(of(name).map(|tenant| match tenant.service(id) {
                Some(encoded) => Item::plain(encoded.clone(), false),
                None => Item::removal(What::Service(named(name, id))),
            })),
            Touched::Credential(name, id) => items.extend(of(name).map(|tenant| match tenant.credential(name, id) {
                Some(credential) => Item::Credential(credential.into()),
                None => Item::removal(What::Credential(named(name, id))),
            })),
            Touched::Policies(name) => items.extend(of(name).map(|tenant| {
                let encoded = tenant.policies(name);
                Item::plain(encoded, tenant.has_no_policy())
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
