//! What can happen to the table, in the domain's own types: [`sync`](crate::sync) makes it from the
//! wire's.

use std::sync::Arc;

use ipnet::IpNet;
use seks_policy::Policies;
use seks_proto::wire;
use seks_protocol::TableChecksum;
use seks_service::Service;
use seks_types::{
    destination::Destination,
    id::{AgentName, CredentialName, ServiceName, TenantName},
    secret::Secret,
    token::Digest,
};

use super::{Attributes, trust::TrustRecord};

/// All changes of one revision of the store.
pub struct Delta {
    /// The epoch of the store.
    pub epoch: String,
    /// What must be applied already. Revisions are sparse: it needn't be `revision - 1`.
    pub previous: u64,
    /// What is applied afterwards.
    pub revision: u64,
    /// Each record at most once.
    pub changes: Vec<Change>,
    /// What they do to the table's [sum](super::Table::sum).
    pub marks: Vec<ChecksumUpdate>,
}

/// What a record adds to the table's sum from now on; tokens add what they are by themselves.
#[derive(Clone, Debug)]
pub struct ChecksumUpdate {
    /// Of which kind it is.
    pub kind: RecordKind,
    /// The tenant that the record belongs to.
    pub tenant: TenantName,
    /// Its name; empty where a tenant has one alone.
    pub name: Box<str>,
    /// `None`: it is gone.
    pub sum: Option<TableChecksum>,
}

/// The kinds of records that have a [`ChecksumUpdate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// The tenant's own.
    Tenant,
    /// An agent.
    Agent,
    /// A service.
    Service,
    /// A credential.
    Credential,
    /// All policies.
    Policies,
}

/// One record, put or removed.
pub enum Change {
    /// A tenant exists.
    Tenant(TenantName),
    /// An agent.
    Agent {
        /// The tenant that it belongs to.
        tenant: TenantName,
        /// Its name, unique in the tenant.
        name: AgentName,
        /// Its Cedar tags.
        attributes: Attributes,
        /// Whether everything it presents is refused.
        disabled: bool,
    },
    /// A service.
    Service(Box<Service>),
    /// A credential, in the clear until the table has sealed it to its own memory key.
    Credential {
        /// The tenant that it belongs to.
        tenant: TenantName,
        /// Its name, unique in the tenant.
        name: CredentialName,
        /// The one service that it is for.
        service: ServiceName,
        /// Which of its versions.
        version: u32,
        /// The control plane can make another version if this one is refused.
        minted: bool,
        /// Where alone it may be sent; `None`: a control plane of an earlier version has said
        /// nothing about that.
        destination: Option<Destination>,
        /// Encoded [`Fields`](seks_types::secret::Fields); `None`: kept back, because the service
        /// has another destination.
        secret: Option<Secret>,
    },
    /// All policies of a tenant, compiled; `None` when this node can't compile them, which denies.
    Policies(TenantName, Option<Arc<Policies>>),
    /// All policies of a tenant, to be compiled; until they are, nothing is permitted.
    PolicyTexts(TenantName, Vec<wire::Policy>),
    /// A token.
    Token(Box<TokenRecord>),
    /// A token that this node can't enforce, and so doesn't honour. It counts as held: the table is
    /// still that of its revision.
    RefuseToken {
        /// SHA-256 of it.
        digest: Digest,
        /// The tenant that it belongs to.
        tenant: TenantName,
    },
    /// A tenant and everything in it is gone.
    RemoveTenant(TenantName),
    /// An agent is gone.
    RemoveAgent(TenantName, AgentName),
    /// A service is gone, or is one that this node can't serve.
    RemoveService(TenantName, ServiceName),
    /// A credential is gone, or no token reaches it any more.
    RemoveCredential(TenantName, CredentialName),
    /// A tenant has no policy any more: everything is denied.
    RemovePolicies(TenantName),
    /// A token is revoked.
    RevokeToken {
        /// SHA-256 of the token.
        digest: Digest,
        /// Its public id, `tok-…`.
        id: String,
        /// The tenant that it belongs to.
        tenant: TenantName,
        /// The agent that it was issued to.
        agent: AgentName,
        /// Until when the node says "revoked" rather than "unknown", in unix seconds; 0: not at
        /// all.
        until: i64,
    },
}

/// A token as it arrives.
pub struct TokenRecord {
    /// SHA-256 of it.
    pub digest: Digest,
    /// Its public handle.
    pub id: String,
    /// The tenant that it belongs to.
    pub tenant: TenantName,
    /// The agent that presents it.
    pub agent: AgentName,
    /// What it reaches, each service once.
    pub grants: Vec<(ServiceName, CredentialName)>,
    /// Unix seconds.
    pub issued_at: i64,
    /// Unix seconds; 0: never.
    pub expires_at: i64,
    /// Source networks that it is bound to; empty: any.
    pub cidrs: Vec<IpNet>,
    /// SHA-256 of the client certificate that it is bound to.
    pub certificate: Option<[u8; 32]>,
    /// It is a trust.
    pub trust: Option<Box<TrustRecord>>,
}

impl Change {
    /// Whether it takes rights away: such changes are applied before all others of their delta.
    #[must_use]
    pub fn narrows(&self) -> bool {
        match self {
            Self::RemoveTenant(_)
            | Self::RemoveAgent(..)
            | Self::RemoveService(..)
            | Self::RemoveCredential(..)
            | Self::RemovePolicies(_)
            | Self::RevokeToken { .. }
            | Self::RefuseToken { .. }
            | Self::Policies(_, None) => true,
            Self::Agent { disabled, .. } => *disabled,
            Self::Credential { secret, .. } => secret.is_none(),
            _ => false,
        }
    }
}
