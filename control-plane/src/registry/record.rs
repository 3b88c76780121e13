//! What is stored: the nouns of the wire contract, one message a record, and where each was found.

pub use seks_proto::wire::{
    Agent, Credential, CredentialVersion, Grant, Node, Operator, Policy, Replica, Role, RoleBinding, Service, Tenant,
    Token,
};

use crate::store::{Key, Revision};

/// A record as it was read.
#[derive(Clone, Debug)]
pub(super) struct Stored<T> {
    pub(super) key: Key,
    pub(super) value: T,
    /// What a transaction that is decided on `value` must still find.
    pub(super) modified: Revision,
}

/// A join token that hasn't been used. Only this control plane reads it.
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
