//! What is stored: the nouns of the wire contract, one message a record, and where each was found.

pub use seks_proto::wire::{
    Agent, Approval, Credential, CredentialVersion, Grant, Mint, Node, Operator, Policy, Quota, Replica, Role,
    RoleBinding, Service, Tenant, Token, Trust, Usage,
};
use seks_types::destination::Destination;
use sha2::{Digest as _, Sha256};

use crate::store::{Key, Revision};

/// A record as it was read.
#[derive(Clone, Debug)]
pub(super) struct Stored<T> {
    pub(super) key: Key,
    pub(super) value: T,
    /// What a transaction that is decided on `value` must still find.
    pub(super) modified: Revision,
}

/// What version `version` of a credential is bound to; `None`: it was stored before credentials
/// were bound, or isn't kept.
pub(crate) fn destination_of(credential: &Credential, version: u32) -> Option<Destination> {
    let found = credential.versions.iter().find(|known| known.version == version)?;
    Destination::from_bytes(&found.destination)
}

/// A join token, until it expires; one that was used, until its answer can't be repeated any more.
/// Only control planes read it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct JoinRecord {
    /// SHA-256 of the secret.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) hash: Vec<u8>,
    /// Where the node will be.
    #[prost(string, tag = "2")]
    pub(super) region: String,
    /// Unix seconds.
    #[prost(int64, tag = "3")]
    pub(super) expires_at: i64,
    /// Whose tokens and credentials the node may hold.
    #[prost(string, repeated, tag = "4")]
    pub(super) tenants: Vec<String>,
    /// The pools that the node is to belong to.
    #[prost(string, repeated, tag = "5")]
    pub(super) pools: Vec<String>,
    /// The node that it has made, by which time `hash` is empty: to a control plane of the version
    /// before it is no token.
    #[prost(string, tag = "6")]
    pub(super) node: String,
    /// What `hash` was then.
    #[prost(bytes = "vec", tag = "7")]
    pub(super) used_hash: Vec<u8>,
}

impl JoinRecord {
    /// What is left of it once it has made `node`, for a repetition of the same request until
    /// `expires_at`.
    pub(super) fn used(&self, node: &str, expires_at: i64) -> Self {
        let used_hash = self.hash.clone();
        Self { node: node.into(), used_hash, expires_at, ..Self::default() }
    }
}

/// How a minted credential is doing. Only control planes read it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct MintRecord {
    /// One of `mint::Kind::NAMES`.
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    /// When the current version ends, in unix seconds, as all that follow.
    #[prost(int64, tag = "2")]
    pub(super) expires_at: i64,
    /// When the next one is due.
    #[prost(int64, tag = "3")]
    pub(super) refresh_at: i64,
    /// When the current one was minted.
    #[prost(int64, tag = "4")]
    pub(super) refreshed_at: i64,
    /// Since when no attempt went well; 0: the last one did.
    #[prost(int64, tag = "5")]
    pub(super) failing_since: i64,
    /// What was wrong with the last attempt.
    #[prost(string, tag = "6")]
    pub(super) error: String,
    /// Attempts that failed, in a row.
    #[prost(uint32, tag = "7")]
    pub(super) failures: u32,
    /// The replica that is at it.
    #[prost(string, tag = "8")]
    pub(super) claimed_by: String,
    /// Until when others leave it alone.
    #[prost(int64, tag = "9")]
    pub(super) claimed_until: i64,
    /// When a node last had it renewed ahead of time.
    #[prost(int64, tag = "10")]
    pub(super) forced_at: i64,
    /// The part of a reference that may be shown, as JSON; of what is minted: `""`.
    #[prost(string, tag = "480")]
    pub(super) reference: String,
}

/// The list of a tenant's policies. Only control planes read it. If the stored policies differ from
/// the list, another writer has changed the store, and nothing is permitted in the tenant.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct PolicySet {
    /// Every one, by id.
    #[prost(message, repeated, tag = "1")]
    pub(crate) policies: Vec<PolicyDigest>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct PolicyDigest {
    /// Its id.
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// SHA-256 of its text.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) sha256: Vec<u8>,
}

impl PolicySet {
    /// That of exactly these.
    pub(crate) fn of<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> Self {
        let digest = |policy: &Policy| PolicyDigest { id: policy.id.clone(), sha256: sha256(&policy.text) };
        let mut policies: Vec<PolicyDigest> = policies.into_iter().map(digest).collect();
        policies.sort_by(|a, b| a.id.cmp(&b.id));
        Self { policies }
    }

    /// Ids of policies that are gone or have another text, and of those that are there without
    /// being named.
    pub(crate) fn differs_in(&self, policies: &Self) -> Vec<String> {
        let (ours, theirs) = (&self.policies, &policies.policies);
        let missing = ours.iter().filter(|policy| !theirs.contains(policy));
        let others = theirs.iter().filter(|policy| !ours.iter().any(|known| known.id == policy.id));
        missing.chain(others).map(|policy| policy.id.clone()).collect()
    }
}

fn sha256(text: &str) -> Vec<u8> {
    Sha256::digest(text.as_bytes()).to_vec()
}

/// The answer to an idempotent request.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct RequestRecord {
    /// What it made.
    #[prost(string, tag = "1")]
    pub(super) token: String,
    /// When, in unix seconds.
    #[prost(int64, tag = "2")]
    pub(super) created_at: i64,
}
