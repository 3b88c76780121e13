//! The records that a request reads: agent, service, credential. Immutable; a change makes a new
//! one in the same slot.

use std::{
    ops::Deref,
    sync::{Arc, atomic::AtomicBool},
};

use seks_protocol::{SessionError, SessionKey};
use seks_service::Service;
use seks_types::{
    destination::Destination,
    id::{AgentName, CredentialName, ServiceName, TenantName},
    secret::{Fields, FieldsError},
};

use super::Attributes;

/// An agent.
pub struct AgentEntry {
    /// Its name, unique in the tenant.
    pub name: AgentName,
    /// Its Cedar tags.
    pub attributes: Attributes,
    /// Whether everything it presents is refused.
    pub disabled: bool,
}

/// A service: derefs to its checked definition.
pub struct ServiceEntry {
    /// Changes whenever the definition does, and never repeats in a process: what is cached for a
    /// service is keyed by it.
    pub generation: u64,
    /// Where it sends credentials, and in what form: computed once, when the definition arrives.
    pub(super) destination: Destination,
    pub(super) service: Service,
    /// Its upstream's origin and base path, as audit records have them.
    pub(super) upstream_base: Box<str>,
}

impl ServiceEntry {
    /// Its upstream's origin and base path.
    #[must_use]
    pub fn upstream_base(&self) -> &str {
        &self.upstream_base
    }

    /// What passes through by its leave (`tunnel_other_hosts`) has to end when `after` takes its
    /// place.
    pub(super) fn loses_leave(&self, after: &Service) -> bool {
        let private = after.private_networks.removes_any_of(&self.private_networks);
        self.tunnel_other_hosts && (private || !after.tunnel_other_hosts)
    }
}

impl Deref for ServiceEntry {
    type Target = Service;
    fn deref(&self) -> &Service {
        &self.service
    }
}

/// Why a credential did not open. Each refuses the request; all but [`Unbound`](Self::Unbound) take
/// a memory error.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The sealed bytes have changed.
    #[error("the credential in memory does not open")]
    Sealed(#[from] SessionError),
    /// It is bound to another destination than the service has.
    #[error("the credential is bound to another destination")]
    Unbound,
    /// What was sealed is no encoding of fields.
    #[error(transparent)]
    Fields(#[from] FieldsError),
}

/// A credential, sealed in memory.
pub struct CredentialEntry {
    /// Its name, unique in the tenant.
    pub name: CredentialName,
    /// The one service that it is for.
    pub service: ServiceName,
    /// Its version, from 1.
    pub version: u32,
    /// As [`ServiceEntry::generation`]: pools of upstream connections are keyed by it.
    pub generation: u64,
    /// The control plane can make another version if an upstream refuses this one.
    pub minted: bool,
    /// It was told that an upstream does.
    pub(super) reported: AtomicBool,
    pub(super) tenant: TenantName,
    /// Where alone it may be sent; `None`: a control plane of an earlier version has said nothing
    /// about that.
    pub(super) destination: Option<Destination>,
    /// Empty: the control plane keeps the secret back, because the service has another destination.
    pub(super) sealed: Box<[u8]>,
    /// What the sealed bytes are bound to.
    pub(super) aad: Box<[u8]>,
    pub(super) memory_key: Arc<SessionKey>,
}

impl CredentialEntry {
    /// Whether it may be sent where `service` sends it.
    #[must_use]
    pub fn is_bound_to(&self, service: &ServiceEntry) -> bool {
        !self.sealed.is_empty() && self.destination.is_none_or(|bound_to| bound_to == service.destination)
    }

    /// Its fields in the clear, for a request to `service`.
    ///
    /// # Errors
    /// [`OpenError::Unbound`]; as [`open`](Self::open).
    pub fn open_for(&self, service: &ServiceEntry) -> Result<Fields, OpenError> {
        if self.is_bound_to(service) { self.open() } else { Err(OpenError::Unbound) }
    }

    /// Its fields in the clear, for the moment of use: the result wipes itself. What sends them
    /// anywhere calls [`open_for`](Self::open_for) instead.
    ///
    /// # Errors
    /// When memory has been damaged; the request is refused then.
    pub fn open(&self) -> Result<Fields, OpenError> {
        Ok(Fields::decode(self.memory_key.open(&self.aad, &self.sealed)?)?)
    }
}
