//! A store's record as a node's change, encoded.

use bytes::Bytes;
use prost::Message;
use seks_proto::wire::{self, change::Change};
use seks_types::id::TenantName;

pub(super) fn encode(change: Change) -> Bytes {
    wire::Change { change: Some(change) }.encode_to_vec().into()
}

/// A record of the store. One that doesn't decode counts as absent: what depends on it is denied.
pub(super) fn decode<T: Message + Default>(value: &Bytes, kind: &'static str) -> Option<T> {
    T::decode(value.clone())
        .inspect_err(|_| tracing::error!(kind, "a record in the store is not readable; it is treated as absent"))
        .ok()
}

pub(super) fn agent(record: wire::Agent) -> Bytes {
    let disabled = record.disabled || record.deleting;
    // Every field, by name: one that nodes must enforce doesn't compile until it is sent.
    let wire::Agent { tenant, name, attributes, disabled: _, deleting: _, created_at: _ } = record;
    encode(Change::Agent(wire::TableAgent { tenant, name, attributes, disabled }))
}

/// A service as nodes are sent it. One that asks for private upstreams gets `networks` in place of
/// the flag: a node of a version before, which knows the flag alone, then reaches no private
/// address. Without networks no node may reach one either.
pub(super) fn service(mut record: wire::Service, networks: &[String]) -> Bytes {
    record.private_networks = if record.allow_private { networks.to_vec() } else { Vec::new() };
    record.allow_private &= networks.is_empty();
    record.client_ca_pem.clear(); // for clients alone
    encode(Change::Service(wire::TableService { service: Some(record) }))
}

pub(super) fn token(record: &wire::Token) -> Bytes {
    // Every field is named, so that a new field does not compile until it is decided here whether
    // nodes get it. A field that nodes must enforce needs a feature in `requires`. Nodes without
    // the feature then do not get the token.
    let wire::Token {
        digest,
        id,
        tenant,
        agent,
        grants,
        issued_at,
        expires_at,
        cidrs,
        requires,
        trust,
        certificate_sha256,
        shape: _,        // how it looks, for people
        issued_by: _,    // for people
        replaced_by: _,  // for people
        last_used_at: _, // only in answers
    } = record.clone();
    let grant = |wire::Grant { service, credential }: wire::Grant| wire::TableGrant {
        service: service.into(),
        credential: credential.into(),
    };
    encode(Change::Token(wire::TableToken {
        digest: digest.into(),
        id: id.into(),
        tenant: tenant.into(),
        agent: agent.into(),
        grants: grants.into_iter().map(grant).collect(),
        issued_at,
        expires_at,
        cidrs,
        requires,
        trust: trust.map(for_nodes),
        certificate_sha256: certificate_sha256.into(),
    }))
}

/// A trust without what only the control plane needs.
fn for_nodes(trust: wire::Trust) -> wire::Trust {
    wire::Trust {
        jwks_uri: String::new(),
        issuer_ca_pem: String::new(),
        static_keys: false,
        keys_changed_at: 0,
        updated_at: 0,
        ..trust
    }
}

/// What is left of a token: nodes say "revoked" until it would have expired. One that never would
/// have is remembered as long as the store does.
pub(super) fn revoked(token: &wire::Token) -> wire::RevokedToken {
    let wire::Token { digest, id, tenant, agent, expires_at, .. } = token.clone();
    let until = if expires_at == 0 { i64::MAX } else { expires_at };
    wire::RevokedToken { digest, id, tenant, agent, until }
}

/// An encoded token, read back.
pub(super) fn read_token(encoded: &Bytes) -> Option<wire::Token> {
    let change = wire::Change::decode(encoded.clone()).ok()?.change?;
    let Change::Token(token) = change else { return None };
    let wire::TableToken { digest, id, tenant, agent, grants, issued_at, expires_at, cidrs, .. } = token;
    let (requires, trust, certificate_sha256) = (token.requires, token.trust, token.certificate_sha256.into());
    let grant = |wire::TableGrant { service, credential }: wire::TableGrant| {
        Some(wire::Grant { service: text(service)?, credential: text(credential)? })
    };
    Some(wire::Token {
        digest: digest.into(),
        id: text(id)?,
        tenant: text(tenant)?,
        agent: text(agent)?,
        grants: grants.into_iter().map(grant).collect::<Option<_>>()?,
        issued_at,
        expires_at,
        cidrs,
        requires,
        trust,
        certificate_sha256,
        ..Default::default()
    })
}

fn text(bytes: Bytes) -> Option<String> {
    String::from_utf8(bytes.into()).ok()
}

/// An encoded service, read back as the store has it.
pub(super) fn read_service(encoded: &Bytes) -> Option<wire::Service> {
    let change = wire::Change::decode(encoded.clone()).ok()?.change?;
    let Change::Service(wire::TableService { service: Some(mut service) }) = change else { return None };
    service.allow_private |= !service.private_networks.is_empty();
    service.private_networks.clear();
    Some(service)
}

pub(super) fn is_disabled(encoded: &Bytes) -> bool {
    let change = wire::Change::decode(encoded.clone()).ok().and_then(|c| c.change);
    matches!(change, Some(Change::Agent(agent)) if agent.disabled)
}

pub(super) fn named(tenant: &TenantName, name: &impl ToString) -> wire::Name {
    wire::Name { tenant: tenant.to_string(), name: name.to_string() }
}
