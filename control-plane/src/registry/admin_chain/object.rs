//! What the chain says of each kind of record: an allow-list of values, without secrets, digests
//! and envelopes.

use bytes::Bytes;
use prost::Message;
use seks_proto::wire::AdminObject;
use seks_service::record_destination;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    registry::record::{
        Agent, Approval, Credential, JoinRecord, Node, Operator, Policy, Quota, Service, Tenant, Token, Trust,
    },
    store::{Key, Write, key::AdminChainName},
};

/// A write that the chain records.
pub(super) struct Known<'a> {
    pub(super) key: &'a Key,
    kind: &'static str,
    name: String,
    chain: AdminChainName,
}

/// What a write does to an object.
pub(super) struct Described {
    pub(super) chain: AdminChainName,
    pub(super) object: AdminObject,
}

/// The object that a write is about; `None` for records that no operator sees.
pub(super) fn identify(write: &Write) -> Option<Known<'_>> {
    let (Write::Put(key, _) | Write::Delete(key)) = write;
    let (kind, name) = match key {
        Key::Tenant(tenant) => ("tenant", tenant.to_string()),
        Key::Agent(_, name) => ("agent", name.to_string()),
        Key::Service(_, name) => ("service", name.to_string()),
        Key::Credential(_, name) => ("credential", name.to_string()),
        Key::Token(_, id) => ("token", id.to_string()),
        Key::Policy(_, id) => ("policy", id.to_string()),
        Key::Approval(_, id) => ("approval", id.to_string()),
        Key::Operator(name) => ("operator", name.to_string()),
        Key::Node(id) => ("node", id.to_string()),
        Key::Join(id) => ("join-token", id.clone()),
        _ => return None,
    };
    let tenant = if let Key::Tenant(tenant) = key { Some(tenant) } else { key.tenant() };
    let chain = tenant.map_or(AdminChainName::Fleet, |tenant| AdminChainName::Tenant(tenant.clone()));
    Some(Known { key, kind, name, chain })
}

/// What a write changes; `None` when nothing of it is different to an operator.
pub(super) fn describe(known: &Known<'_>, before: Option<Bytes>, write: &Write) -> Option<Described> {
    let mut old = before.map(|bytes| values(known.key, bytes)).unwrap_or_default();
    let mut new = match write {
        Write::Put(_, bytes) => values(known.key, bytes.clone()),
        Write::Delete(_) => Map::new(),
    };
    if old == new {
        return None;
    }
    if !old.is_empty() && !new.is_empty() {
        let same: Vec<String> =
            old.iter().filter(|(key, value)| new.get(*key) == Some(value)).map(|(key, _)| key.clone()).collect();
        for key in same {
            old.remove(&key);
            new.remove(&key);
        }
    }
    let text =
        |values: Map<String, Value>| if values.is_empty() { String::new() } else { Value::Object(values).to_string() };
    let object = AdminObject { kind: known.kind.into(), name: known.name.clone(), before: text(old), after: text(new) };
    Some(Described { chain: known.chain.clone(), object })
}

/// The values of a record. One that does not decode has none but that it is there.
fn values(key: &Key, bytes: Bytes) -> Map<String, Value> {
    let values = match key {
        Key::Tenant(_) => decoded(bytes, tenant),
        Key::Agent(..) => decoded(
            bytes,
            |agent: Agent| json!({ "attributes": agent.attributes.into_iter().collect::<std::collections::BTreeMap<_, _>>(), "disabled": agent.disabled }),
        ),
        Key::Service(..) => decoded(bytes, service),
        Key::Credential(..) => decoded(bytes, credential),
        Key::Token(..) => decoded(bytes, token),
        Key::Approval(..) => decoded(bytes, approval),
        Key::Policy(..) => decoded(bytes, |policy: Policy| json!({ "text": policy.text })),
        Key::Operator(_) => decoded(bytes, |operator: Operator| {
            let role = |role: &seks_proto::wire::RoleBinding| {
                format!("{}:{}", role.role().as_str_name().to_lowercase(), role.tenant)
            };
            json!({ "roles": operator.roles.iter().map(role).collect::<Vec<_>>() })
        }),
        Key::Node(_) => decoded(
            bytes,
            |node: Node| json!({ "region": node.region, "tenants": node.tenants, "pools": node.pools, "enrolment": node.enrolment }),
        ),
        Key::Join(_) => decoded(bytes, |join: JoinRecord| {
            json!({
                "region": join.region, "tenants": join.tenants, "pools": join.pools, "expires_at": join.expires_at,
                "node": join.node,
            })
        }),
        _ => None,
    };
    match values {
        Some(Value::Object(values)) => values,
        _ => Map::from_iter([("readable".into(), Value::Bool(false))]),
    }
}

fn decoded<T: Message + Default>(bytes: Bytes, values: impl Fn(T) -> Value) -> Option<Value> {
    T::decode(bytes).ok().map(values)
}

fn tenant(tenant: Tenant) -> Value {
    let Quota { tokens, agents, services, credentials, policies, operators, writes_per_second, write_burst } =
        tenant.quota.unwrap_or_default();
    json!({
        "strict": tenant.strict,
        "private_networks": tenant.private_networks,
        "approval_by_another": tenant.approval_by_another,
        "quota": {
            "tokens": tokens, "agents": agents, "services": services, "credentials": credentials, "policies": policies,
            "operators": operators, "writes_per_second": writes_per_second, "write_burst": write_burst,
        },
    })
}

fn approval(approval: Approval) -> Value {
    json!({
        "agent": approval.agent,
        "service": approval.service,
        "method": approval.method,
        "path": approval.path,
        "query_names": approval.query_names,
        "mcp_method": approval.mcp_method,
        "mcp_name": approval.mcp_name,
        "any_values": approval.any_values,
        "policy": approval.policy,
        "scope": approval.scope,
        "token": approval.token,
        "state": approval.state().as_str_name().to_lowercase(),
        "decided_by": approval.decided_by,
        "reason": approval.reason,
        "expires_at": approval.expires_at,
        "limit": approval.limit,
    })
}

fn service(service: Service) -> Value {
    let destination =
        record_destination(&service).map(|destination| data_encoding::HEXLOWER.encode(destination.as_bytes()));
    let rest = Service { created_at: 0, deleting: false, client_ca_pem: String::new(), ..service.clone() };
    json!({
        "upstream": service.upstream,
        "allow_private": service.allow_private,
        "fields": service.fields,
        "methods": service.methods,
        "destination": destination.unwrap_or_default(),
        // Says that anything of the definition has changed.
        "definition": data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(rest.encode_to_vec())),
    })
}

fn credential(credential: Credential) -> Value {
    let current = credential.versions.iter().find(|version| version.version == credential.version);
    json!({
        "service": credential.service,
        "version": credential.version,
        "origin": current.map(|version| version.origin.as_str()).unwrap_or_default(),
        "restored_from": current.map_or(0, |version| version.restored_from),
        "pools": credential.pools,
        "mint": credential.mint.map(|mint| mint.kind),
    })
}

fn token(token: Token) -> Value {
    let grant = |grant: &seks_proto::wire::Grant| format!("{}={}", grant.service, grant.credential);
    let mut value = Map::from_iter([
        ("agent".to_owned(), Value::from(token.agent)),
        ("grants".to_owned(), token.grants.iter().map(grant).collect::<Vec<_>>().into()),
        ("issued_at".to_owned(), token.issued_at.into()),
        ("expires_at".to_owned(), token.expires_at.into()),
        ("cidrs".to_owned(), token.cidrs.into()),
        ("shape".to_owned(), token.shape.into()),
    ]);
    if !token.certificate_sha256.is_empty() {
        let certificate = data_encoding::HEXLOWER.encode(&token.certificate_sha256);
        value.insert("certificate_sha256".to_owned(), certificate.into());
    }
    if let Some(known) = token.trust {
        value.insert("trust".to_owned(), trust(known));
    }
    Value::Object(value)
}

/// A trust without the keys themselves: their digest shows that they changed.
fn trust(trust: Trust) -> Value {
    let keys = Sha256::digest(&trust.jwks);
    json!({
        "issuer": trust.issuer,
        "audiences": trust.audiences,
        "matches": trust.matches,
        "agent": trust.agent,
        "ttl_seconds": trust.ttl_seconds,
        "claims": trust.claims,
        "denied_subjects": trust.denied_subjects,
        "keys_sha256": data_encoding::HEXLOWER.encode(&keys),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &Key, before: Option<&impl Message>, after: Option<&impl Message>) -> Option<AdminObject> {
        let write = match after {
            Some(after) => Write::Put(key.clone(), after.encode_to_vec().into()),
            None => Write::Delete(key.clone()),
        };
        describe(&identify(&write)?, before.map(|before| before.encode_to_vec().into()), &write).map(|d| d.object)
    }

    #[test]
    fn a_change_says_what_was_and_what_is_and_no_secret() {
        let key = Key::Token("acme".parse().unwrap(), "tok-1".parse().unwrap());
        let token = Token { agent: "bot".into(), digest: vec![0xAB; 32], expires_at: 7, ..Token::default() };
        let issued = of(&key, None::<&Token>, Some(&token)).unwrap();
        assert_eq!((issued.kind.as_str(), issued.name.as_str(), issued.before.as_str()), ("token", "tok-1", ""));
        assert!(issued.after.contains(r#""agent":"bot""#) && !issued.after.contains("abab"), "{}", issued.after);
        let later = Token { expires_at: 8, ..token.clone() };
        let changed = of(&key, Some(&token), Some(&later)).unwrap();
        assert_eq!((changed.before.as_str(), changed.after.as_str()), (r#"{"expires_at":7}"#, r#"{"expires_at":8}"#));
        let revoked = of(&key, Some(&token), None::<&Token>).unwrap();
        assert!(revoked.after.is_empty() && revoked.before == issued.after);
        assert_eq!(of(&key, Some(&token), Some(&token)), None);
    }

    #[test]
    fn a_mark_is_no_change_and_records_of_the_control_plane_are_no_objects() {
        let key = Key::Agent("acme".parse().unwrap(), "bot".parse().unwrap());
        let (agent, marked) = (Agent::default(), Agent { deleting: true, ..Agent::default() });
        assert_eq!(of(&key, Some(&agent), Some(&marked)), None);
        let envelope = Write::Delete(Key::Envelope("acme".parse().unwrap(), "key".parse().unwrap(), 1));
        assert!(identify(&envelope).is_none());
    }
}
