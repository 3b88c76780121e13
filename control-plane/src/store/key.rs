//! The key of each record. Key paths are spelled only in this file.

use std::fmt;

use seks_types::id::{
    AgentName, CredentialName, NodeId, OperatorName, PolicyId, ReplicaId, ServiceName, TenantName, TokenId,
};

/// The key of one record, relative to the store's prefix.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The store's id.
    StoreId,
    /// The CA that signs operators and nodes, sealed: the value is one envelope.
    Authority,
    /// A sealed record of known content, by which a wrong KEK is noticed at start.
    Canary,
    /// The store's epoch, sealed. Without this record the epoch is the store's id.
    Epoch,
    /// Progress of a KEK rotation.
    Rotation,
    /// The key that records are authenticated with, sealed: the value is one envelope.
    RecordKey,
    /// The key pair that audit records are sealed to: the value is one envelope.
    AuditKey,
    /// The key that audit exports are signed with: the value is one envelope.
    AuditSigningKey,
    /// The end of a node's chain of audit records.
    AuditHead(NodeId),
    /// The end of a chain of operators' changes.
    AdminHead(AdminChainName),
    /// One change of an operator, by its sequence.
    AdminChange(AdminChainName, u64),
    /// Where the changes of a chain are: from which on in the store, and in whose archives.
    AdminArchive(AdminChainName),
    /// An operator.
    Operator(OperatorName),
    /// A node that was seen, and so may hold a lease.
    Node(NodeId),
    /// A control-plane replica that may grant leases.
    Replica(ReplicaId),
    /// A join token that hasn't been used, by its id.
    Join(String),
    /// A tenant itself.
    Tenant(TenantName),
    /// An agent.
    Agent(TenantName, AgentName),
    /// A service.
    Service(TenantName, ServiceName),
    /// A credential's metadata.
    Credential(TenantName, CredentialName),
    /// The envelope of one version of a credential.
    Envelope(TenantName, CredentialName, u32),
    /// How a minted credential is doing.
    Mint(TenantName, CredentialName),
    /// What a credential is minted from: the value is one envelope.
    MintSecret(TenantName, CredentialName),
    /// The tenant's key that fake AWS key pairs hang on, sealed: the value is one envelope.
    AwsKey(TenantName),
    /// A token.
    Token(TenantName, TokenId),
    /// What is left of a revoked token until it would have expired.
    Tombstone(TenantName, TokenId),
    /// A policy.
    Policy(TenantName, PolicyId),
    /// Which policies a tenant has: without one of them nothing is permitted.
    PolicySet(TenantName),
    /// How much of a limit's window was taken, for all agents or for one.
    LimitWindow(TenantName, PolicyId, Option<AgentName>),
    /// A request that waits for an operator's approval, or was decided.
    Approval(TenantName, PolicyId),
    /// Written with each new approval, so that two replicas do not make one for equal requests.
    ApprovalTurn(TenantName),
    /// The answer to an idempotent request.
    Request(TenantName, String),
}

/// Names a chain of operators' changes: that of a tenant, or the fleet's.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AdminChainName {
    /// Changes of nodes, operators, and whatever is in no tenant.
    Fleet,
    /// Changes in a tenant, and of it. The chain remains when the tenant is deleted.
    Tenant(TenantName),
}

impl fmt::Display for AdminChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => f.write_str("*"),
            Self::Tenant(tenant) => fmt::Display::fmt(tenant, f),
        }
    }
}

impl std::str::FromStr for AdminChainName {
    type Err = seks_types::id::NameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "*" { Self::Fleet } else { Self::Tenant(text.parse()?) })
    }
}

/// Not a record: what the etcd store writes to see its own watch move, see `store::etcd::watch`.
pub(super) const PULSE: &str = "meta/pulse";

/// Prefixes for `Store::list`.
pub mod prefix {
    use seks_types::id::{CredentialName, TenantName};

    /// Everything.
    pub const ALL: &str = "";
    /// All operators.
    pub const OPERATORS: &str = "operator/";
    /// The ends of all nodes' chains of audit records.
    pub const AUDIT_HEADS: &str = "audit-head/";
    /// The ends of all chains of operators' changes.
    pub const ADMIN_HEADS: &str = "admin-head/";
    /// All nodes.
    pub const NODES: &str = "node/";
    /// All join tokens that haven't been used.
    pub const JOINS: &str = "join/";
    /// All tenants, and nothing inside them.
    pub const TENANTS: &str = "tenant/";

    /// Everything inside a tenant. The slash at the end keeps `acme` and `acme2` apart.
    #[must_use]
    pub fn tenant(tenant: &TenantName) -> String {
        format!("in/{tenant}/")
    }

    /// All records of one kind in a tenant: `agent`, `service`, `credential`, `token`, `tombstone`,
    /// `policy`.
    #[must_use]
    pub fn kind(tenant: &TenantName, kind: &str) -> String {
        format!("in/{tenant}/{kind}/")
    }

    /// The changes of one chain. The newest come first.
    #[must_use]
    pub fn admin_changes(chain: &super::AdminChainName) -> String {
        format!("admin-change/{chain}/")
    }

    /// All envelopes of a credential.
    #[must_use]
    pub fn envelopes(tenant: &TenantName, credential: &CredentialName) -> String {
        format!("in/{tenant}/envelope/{credential}/")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoreId => f.write_str("meta/epoch"),
            Self::Authority => f.write_str("meta/authority"),
            Self::Canary => f.write_str("meta/canary"),
            Self::Epoch => f.write_str("meta/era"),
            Self::Rotation => f.write_str("meta/rotation"),
            Self::RecordKey => f.write_str("meta/record-key"),
            Self::AuditKey => f.write_str("meta/audit-key"),
            Self::AuditSigningKey => f.write_str("meta/audit-signing-key"),
            Self::AuditHead(id) => write!(f, "audit-head/{id}"),
            Self::AdminHead(chain) => write!(f, "admin-head/{chain}"),
            Self::AdminArchive(chain) => write!(f, "admin-archive/{chain}"),
            // Counted down, so that a listing begins with the newest.
            Self::AdminChange(chain, sequence) => write!(f, "admin-change/{chain}/{:020}", u64::MAX - sequence),
            Self::Operator(name) => write!(f, "operator/{name}"),
            Self::Node(id) => write!(f, "node/{id}"),
            Self::Replica(id) => write!(f, "replica/{id}"),
            Self::Join(id) => write!(f, "join/{id}"),
            Self::Tenant(name) => write!(f, "tenant/{name}"),
            Self::Agent(t, name) => write!(f, "in/{t}/agent/{name}"),
            Self::Service(t, name) => write!(f, "in/{t}/service/{name}"),
            Self::Credential(t, name) => write!(f, "in/{t}/credential/{name}"),
            Self::Envelope(t, name, version) => write!(f, "in/{t}/envelope/{name}/{version:010}"),
            Self::Mint(t, name) => write!(f, "in/{t}/mint/{name}"),
            Self::MintSecret(t, name) => write!(f, "in/{t}/mint-secret/{name}"),
            Self::AwsKey(t) => write!(f, "in/{t}/aws/key"),
            Self::Token(t, id) => write!(f, "in/{t}/token/{id}"),
            Self::Tombstone(t, id) => write!(f, "in/{t}/tombstone/{id}"),
            Self::Policy(t, id) => write!(f, "in/{t}/policy/{id}"),
            Self::PolicySet(t) => write!(f, "in/{t}/policy-set/all"),
            Self::LimitWindow(t, limit, None) => write!(f, "in/{t}/limit/{limit}"),
            Self::LimitWindow(t, limit, Some(agent)) => write!(f, "in/{t}/limit/{limit}/{agent}"),
            Self::Approval(t, id) => write!(f, "in/{t}/approval/{id}"),
            Self::ApprovalTurn(t) => write!(f, "in/{t}/approval-turn/all"),
            Self::Request(t, id) => write!(f, "in/{t}/request/{id}"),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

impl Key {
    /// Parses the output of [`Display`](fmt::Display); `None` for a key of a newer version or of
    /// another program.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        Some(match parts.as_slice() {
            ["meta", "epoch"] => Self::StoreId,
            ["meta", "authority"] => Self::Authority,
            ["meta", "canary"] => Self::Canary,
            ["meta", "era"] => Self::Epoch,
            ["meta", "rotation"] => Self::Rotation,
            ["meta", "record-key"] => Self::RecordKey,
            ["meta", "audit-key"] => Self::AuditKey,
            ["meta", "audit-signing-key"] => Self::AuditSigningKey,
            ["audit-head", id] => Self::AuditHead(id.parse().ok()?),
            ["admin-head", chain] => Self::AdminHead(chain.parse().ok()?),
            ["admin-archive", chain] => Self::AdminArchive(chain.parse().ok()?),
            ["admin-change", chain, sequence] if sequence.len() == 20 => {
                Self::AdminChange(chain.parse().ok()?, u64::MAX - sequence.parse::<u64>().ok()?)
            }
            ["operator", name] => Self::Operator(name.parse().ok()?),
            ["node", id] => Self::Node(id.parse().ok()?),
            ["replica", id] => Self::Replica(id.parse().ok()?),
            ["join", id] => Self::Join((*id).into()),
            ["tenant", name] => Self::Tenant(name.parse().ok()?),
            ["in", t, kind, name] => {
                let t = t.parse().ok()?;
                match *kind {
                    "agent" => Self::Agent(t, name.parse().ok()?),
                    "service" => Self::Service(t, name.parse().ok()?),
                    "credential" => Self::Credential(t, name.parse().ok()?),
                    "token" => Self::Token(t, name.parse().ok()?),
                    "tombstone" => Self::Tombstone(t, name.parse().ok()?),
                    "policy" => Self::Policy(t, name.parse().ok()?),
                    "limit" => Self::LimitWindow(t, name.parse().ok()?, None),
                    "approval" => Self::Approval(t, name.parse().ok()?),
                    "approval-turn" if *name == "all" => Self::ApprovalTurn(t),
                    "request" => Self::Request(t, (*name).into()),
                    "mint" => Self::Mint(t, name.parse().ok()?),
                    "mint-secret" => Self::MintSecret(t, name.parse().ok()?),
                    "aws" if *name == "key" => Self::AwsKey(t),
                    "policy-set" if *name == "all" => Self::PolicySet(t),
                    _ => return None,
                }
            }
            ["in", t, "limit", limit, agent] => {
                Self::LimitWindow(t.parse().ok()?, limit.parse().ok()?, Some(agent.parse().ok()?))
            }
            ["in", t, "envelope", name, version] if version.len() == 10 => {
                Self::Envelope(t.parse().ok()?, name.parse().ok()?, version.parse().ok()?)
            }
            _ => return None,
        })
    }

    /// The tenant that it lies in.
    #[must_use]
    pub fn tenant(&self) -> Option<&TenantName> {
        match self {
            Self::Agent(t, _)
            | Self::Service(t, _)
            | Self::Credential(t, _)
            | Self::Envelope(t, ..)
            | Self::Mint(t, _)
            | Self::MintSecret(t, _)
            | Self::AwsKey(t)
            | Self::Token(t, _)
            | Self::Tombstone(t, _)
            | Self::Policy(t, _)
            | Self::PolicySet(t)
            | Self::LimitWindow(t, ..)
            | Self::Approval(t, _)
            | Self::ApprovalTurn(t)
            | Self::Request(t, _) => Some(t),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_reads_back() {
        let t: TenantName = "acme".parse().unwrap();
        let keys = [
            Key::StoreId,
            Key::Authority,
            Key::Canary,
            Key::Epoch,
            Key::Rotation,
            Key::RecordKey,
            Key::AuditKey,
            Key::AuditSigningKey,
            Key::AuditHead("n-1".parse().unwrap()),
            Key::PolicySet(t.clone()),
            Key::AdminHead(AdminChainName::Fleet),
            Key::AdminChange(AdminChainName::Fleet, 1),
            Key::AdminArchive(AdminChainName::Tenant(t.clone())),
            Key::AdminChange(AdminChainName::Tenant(t.clone()), 42),
            Key::Operator("root".parse().unwrap()),
            Key::Node("n-1".parse().unwrap()),
            Key::Replica("r-1".parse().unwrap()),
            Key::Tenant(t.clone()),
            Key::Agent(t.clone(), "a".parse().unwrap()),
            Key::Service(t.clone(), "s".parse().unwrap()),
            Key::Credential(t.clone(), "c".parse().unwrap()),
            Key::Envelope(t.clone(), "c".parse().unwrap(), 42),
            Key::Mint(t.clone(), "c".parse().unwrap()),
            Key::MintSecret(t.clone(), "c".parse().unwrap()),
            Key::AwsKey(t.clone()),
            Key::Token(t.clone(), "tok-1".parse().unwrap()),
            Key::Tombstone(t.clone(), "tok-1".parse().unwrap()),
            Key::Policy(t.clone(), "p".parse().unwrap()),
            Key::LimitWindow(t.clone(), "p".parse().unwrap(), None),
            Key::LimitWindow(t.clone(), "p".parse().unwrap(), Some("a".parse().unwrap())),
            Key::Approval(t.clone(), "apr-1".parse().unwrap()),
            Key::ApprovalTurn(t.clone()),
            Key::Request(t.clone(), "abc".into()),
        ];
        for key in keys {
            assert_eq!(Key::parse(&key.to_string()), Some(key.clone()), "{key}");
        }
        let change = |sequence| Key::AdminChange(AdminChainName::Fleet, sequence).to_string();
        assert!(change(10) < change(9) && change(u64::MAX) < change(0), "the newest come first");
        assert_eq!(Key::parse("in/acme/agent/a/b"), None);
        assert_eq!(Key::parse("in/ACME/agent/a"), None);
    }

    #[test]
    fn a_tenants_prefix_is_not_its_neighbours() {
        let inside = Key::Agent("acme2".parse().unwrap(), "a".parse().unwrap()).to_string();
        assert!(!inside.starts_with(&prefix::tenant(&"acme".parse().unwrap())));
    }
}
