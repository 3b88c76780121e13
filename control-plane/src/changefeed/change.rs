//! The changes of the nodes' table. They are encoded once and shared by all streams; only
//! credentials are sealed to each stream.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use seks_proto::wire::{self, RevokedToken, change::Change, remove::What};
use seks_protocol::{SessionKey, bound_credential_aad};
use seks_types::{
    destination::{self, Destination},
    id::{CredentialName, TenantName},
};

use super::checksum::Requires;
use crate::seal::{RecordId, Sealer};

/// The current version of a credential, sealed as the store has it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct CredentialChange {
    pub(crate) tenant: TenantName,
    pub(crate) name: CredentialName,
    pub(crate) service: String,
    pub(crate) version: u32,
    pub(crate) minted: bool,
    /// The destination that the envelope is bound to; `None`: it was stored before credentials were
    /// bound.
    pub(crate) bound_to: Option<Destination>,
    /// The destination of its service. `None`: there is no such service, or its definition is not
    /// acceptable.
    pub(crate) service_at: Option<Destination>,
    /// The pools whose nodes may have it; none: all of the tenant's.
    pub(crate) pools: Arc<[String]>,
    pub(crate) envelope: Bytes,
}

/// One change of a delta.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct TableChange {
    /// The tenant; other tenants' nodes aren't sent the change.
    pub(crate) tenant: TenantName,
    pub(crate) payload: Payload,
}

/// What is changed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Payload {
    /// The same for all nodes.
    Shared { change: Bytes, revokes: bool },
    /// The same for all nodes that can enforce it; the others are sent `withheld`.
    Requiring { change: Bytes, requires: Requires, withheld: Bytes },
    /// Sealed for each.
    Credential(Arc<CredentialChange>),
}

impl TableChange {
    pub(crate) fn plain(tenant: &TenantName, change: Bytes, revokes: bool) -> Self {
        Self { tenant: tenant.clone(), payload: Payload::Shared { change, revokes } }
    }

    pub(crate) fn removal(tenant: &TenantName, what: What) -> Self {
        Self::plain(tenant, removal(what), true)
    }

    /// A token, for the nodes that can enforce what it requires. The others are told that there is
    /// no such token.
    pub(crate) fn token(tenant: &TenantName, change: Bytes, requires: Requires, revoked: RevokedToken) -> Self {
        let withheld = removal(What::Token(revoked));
        Self { tenant: tenant.clone(), payload: Payload::Requiring { change, requires, withheld } }
    }

    pub(crate) fn credential(credential: CredentialChange) -> Self {
        Self { tenant: credential.tenant.clone(), payload: Payload::Credential(credential.into()) }
    }

    /// Whether it removes rights. Such changes are sent first.
    pub(crate) fn revokes(&self) -> bool {
        match &self.payload {
            Payload::Shared { revokes, .. } => *revokes,
            Payload::Requiring { .. } => false,
            Payload::Credential(credential) => credential.is_unbound(),
        }
    }

    /// The encoded change of a plain item.
    pub(crate) fn encoded(&self) -> Bytes {
        match &self.payload {
            Payload::Shared { change, .. } | Payload::Requiring { change, .. } => change.clone(),
            Payload::Credential(_) => Bytes::new(),
        }
    }

    /// What is sealed for each node.
    pub(crate) fn envelope(&self) -> Option<&Bytes> {
        match &self.payload {
            Payload::Shared { .. } | Payload::Requiring { .. } => None,
            Payload::Credential(credential) => Some(&credential.envelope),
        }
    }

    /// Its size in memory, in bytes, approximately.
    pub(crate) fn size(&self) -> usize {
        match &self.payload {
            Payload::Shared { change, .. } => change.len(),
            Payload::Requiring { change, withheld, .. } => change.len() + withheld.len(),
            Payload::Credential(credential) => credential.size_bound(),
        }
    }
}

fn removal(what: What) -> Bytes {
    let remove = wire::Remove { what: Some(what) };
    wire::Change { change: Some(Change::Remove(remove)) }.encode_to_vec().into()
}

impl CredentialChange {
    /// The change for one node: the credential is opened and sealed to the stream's key. If the
    /// envelope cannot be opened (a missing KEK, damage), the node gets a deletion of the
    /// credential. Requests for that credential are then refused, and all others continue.
    ///
    /// A node that checks bindings also gets the destination that the credential is bound to. It
    /// gets no secret whose destination differs from its service's. A node that does not check
    /// bindings gets a deletion instead.
    pub(crate) fn seal_to(
        &self,
        (stored, epoch): (&str, &str),
        sealer: &Sealer,
        key: &SessionKey,
        checks_binding: bool,
    ) -> Bytes {
        let Self { tenant, name, version, envelope, .. } = self;
        if self.is_unbound() {
            return if checks_binding { self.change(self.bound_to, Vec::new()) } else { self.withheld() };
        }
        // One that was stored before credentials were bound is for where its service sends it,
        // until it is bound.
        let destination = self.bound_to.or(self.service_at).filter(|_| checks_binding);
        let aad = bound_credential_aad(epoch, tenant.as_str(), name.as_str(), *version, destination.as_ref());
        let id = RecordId::credential(stored, tenant, name, *version).bound_to(self.bound_to);
        let opened = sealer.open_now(&id, envelope);
        let sealed = opened.map_err(|e| e.to_string()).and_then(|s| key.seal(&aad, &s).map_err(|e| e.to_string()));
        match sealed {
            Ok(sealed) => self.change(destination, sealed),
            Err(error) => {
                tracing::error!(seks.tenant = %tenant, seks.credential = %name, error, "a credential cannot be sent to nodes");
                self.withheld()
            }
        }
    }

    /// Whether it is bound to another destination than its service has: no node is sent the secret.
    pub(crate) fn is_unbound(&self) -> bool {
        self.bound_to.zip(self.service_at).is_some_and(|(bound_to, service_at)| bound_to != service_at)
    }

    fn change(&self, destination: Option<Destination>, sealed: Vec<u8>) -> Bytes {
        let change = wire::TableCredential {
            tenant: self.tenant.to_string(),
            name: self.name.to_string(),
            service: self.service.clone(),
            version: self.version,
            minted: self.minted,
            sealed,
            destination: destination.map(|destination| destination.as_bytes().to_vec()).unwrap_or_default(),
        };
        wire::Change { change: Some(Change::Credential(change)) }.encode_to_vec().into()
    }

    /// The change for a node that must not have it.
    pub(crate) fn withheld(&self) -> Bytes {
        removal(What::Credential(wire::Name { tenant: self.tenant.to_string(), name: self.name.to_string() }))
    }

    /// At least the size of [`seal_to`](Self::seal_to)'s result: an envelope is longer than what it
    /// is sealed again as.
    pub(crate) fn size_bound(&self) -> usize {
        self.tenant.as_str().len()
            + self.name.as_str().len()
            + self.service.len()
            + self.envelope.len()
            + 64
            + destination::BYTES
    }
}
