//! The records that a request reads: agent, service, credential. Immutable; a change makes a new one in the same slot.

use std::{
    ops::Deref,
    sync::{Arc, atomic::AtomicBool},
};

use seks_proto::{
    id::{AgentName, CredentialName, ServiceName, TenantName},
    secret::{Fields, FieldsError},
    service::Service,
    table::{SessionError, SessionKey},
};

use super::Attributes;

/// An agent.
pub struct AgentEntry {
    /// Its name.
    pub name: AgentName,
    /// Its Cedar tags.
    pub attributes: Attributes,
    /// Whether everything it presents is refused.
    pub disabled: bool,
}

/// A service: derefs to its checked definition.
pub struct ServiceEntry {
    /// Changes whenever the definition does, and never repeats in a process: what is cached for a service is keyed by it.
    pub generation: u64,
    pub(super) service: Service,
}

impl ServiceEntry {
    /// What passes through by its leave (`tunnel_other_hosts`) has to end when `after` takes its place.
    pub(super) fn loses_leave(&self, after: &Service) -> bool {
        let private = after.private_networks.narrows(&self.private_networks);
        self.tunnel_other_hosts && (private || !after.tunnel_other_hosts)
    }
}

impl Deref for ServiceEntry {
    type Target = Service;
    fn deref(&self) -> &Service {
        &self.service
    }
}

/// Why a credential did not open. Neither can happen short of a memory error; both refuse the request.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The sealed bytes have changed.
    #[error("the credential in memory does not open")]
    Sealed(#[from] SessionError),
    /// What was sealed is no encoding of fields.
    #[error(transparent)]
    Fields(#[from] FieldsError),
}

/// A credential, sealed in memory.
pub struct CredentialEntry {
    /// Its name.
    pub name: CredentialName,
    /// The one service that it is for.
    pub service: ServiceName,
    /// Which version.
    pub version: u32,
    /// As [`ServiceEntry::generation`]: pools of upstream connections are keyed by it.
    pub generation: u64,
    /// The control plane can make another version if an upstream refuses this one.
    pub minted: bool,
    /// It was told that an upstream does.
    pub(super) reported: AtomicBool,
    pub(super) tenant: TenantName,
    pub(super) sealed: Box<[u8]>,
    /// What the sealed bytes are bound to.
    pub(super) aad: Box<[u8]>,
    pub(super) memory_key: Arc<SessionKey>,
}

impl CredentialEntry {
    /// Its fields in the clear, for the moment of use: the result wipes itself.
    ///
    /// # Errors
    /// When memory has been damaged; the request is refused then.
    pub fn open(&self) -> Result<Fields, OpenError> {
        Ok(Fields::decode(self.memory_key.open(&self.aad, &self.sealed)?)?)
    }
}
