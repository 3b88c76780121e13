//! A token's entry in the table. A node may hold a million of them. Data that many tokens share
//! (agent, grants, networks) is stored once, behind one pointer each. The id is stored inline.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use ipnet::IpNet;
use seks_policy::{Policies, TrustFacts};
use seks_trust::Identity;
use seks_types::id::{AgentName, CredentialName, ServiceName, TenantName};

use super::{
    entry::{AgentEntry, CredentialEntry, ServiceEntry},
    state::{AgentState, RecordCell, TenantState},
    trust::Trust,
};

/// What a token reaches: a service and the credential for it.
#[derive(Clone)]
pub struct Grant {
    pub(super) service: Arc<RecordCell<ServiceName, ServiceEntry>>,
    pub(super) credential: Arc<RecordCell<CredentialName, CredentialEntry>>,
}

impl Grant {
    /// The service's name.
    #[must_use]
    pub fn service_name(&self) -> &ServiceName {
        self.service.name()
    }

    /// The present service; `None` if it was deleted, or if this node cannot serve it.
    #[must_use]
    pub fn service(&self) -> Option<Arc<ServiceEntry>> {
        self.service.get()
    }

    /// The credential's name.
    #[must_use]
    pub fn credential_name(&self) -> &CredentialName {
        self.credential.name()
    }

    /// The present credential; `None` if it was deleted or is withheld from this node.
    #[must_use]
    pub fn credential(&self) -> Option<Arc<CredentialEntry>> {
        self.credential.get()
    }
}

/// Grants and networks, shared by all tokens that were issued alike.
pub(super) struct SharedGrants {
    pub(super) grants: Box<[Grant]>,
    pub(super) services: Box<[ServiceName]>,
    pub(super) cidrs: Box<[IpNet]>,
    /// SHA-256 of the client certificate that the token is bound to.
    pub(super) certificate: Option<[u8; 32]>,
    pub(super) origin: Origin,
}

/// Where a token's rights come from.
pub(super) enum Origin {
    /// An operator issued it.
    Issued,
    /// It is a trust, and nobody's token.
    Trust(Box<Trust>),
    /// It was exchanged by a trust.
    Exchanged {
        /// The record of the trust.
        parent: Arc<TokenEntry>,
        /// Who it stands for.
        identity: Identity,
        /// The claims that the trust lists, each `NAME=VALUE`.
        claims: Box<[Box<str>]>,
    },
}

/// A token that is honoured.
pub struct TokenEntry {
    pub(super) agent: Arc<AgentState>,
    pub(super) terms: Arc<SharedGrants>,
    pub(super) issued_at: i64,
    pub(super) expires_at: i64,
    pub(super) id: Id,
    /// Requests under way.
    pub(super) in_flight: AtomicU32,
    pub(super) cut: AtomicBool,
}

impl TokenEntry {
    /// Its public handle, `tok-…`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// The tenant that it belongs to.
    #[must_use]
    pub fn tenant(&self) -> &TenantName {
        self.agent.tenant.name()
    }

    /// The tenant that it belongs to, as a handle that costs nothing to clone.
    #[must_use]
    pub fn tenant_state(&self) -> &Arc<TenantState> {
        &self.agent.tenant
    }

    /// The name of the agent that presents it.
    #[must_use]
    pub fn agent_name(&self) -> &AgentName {
        self.agent.agent.name()
    }

    /// The agent; `None` when it was deleted, and the token with it.
    #[must_use]
    pub fn agent(&self) -> Option<Arc<AgentEntry>> {
        self.agent.agent.get()
    }

    /// The policies of its tenant; `None` denies. [`TenantState::policies_or_wait`] waits for those
    /// that are being compiled.
    #[must_use]
    pub fn policies(&self) -> Option<Arc<Policies>> {
        self.agent.tenant.policies.get()
    }

    /// What it reaches.
    #[must_use]
    pub fn grants(&self) -> &[Grant] {
        &self.terms.grants
    }

    /// The services that it was issued for, as policy sees them.
    #[must_use]
    pub fn services(&self) -> &[ServiceName] {
        &self.terms.services
    }

    /// What it reaches by the name of `service`.
    #[must_use]
    pub fn grant(&self, service: &str) -> Option<&Grant> {
        self.terms.grants.iter().find(|g| g.service_name().as_str() == service)
    }

    /// Unix seconds.
    #[must_use]
    pub fn issued_at(&self) -> i64 {
        self.issued_at
    }

    /// Unix seconds; 0: never.
    #[must_use]
    pub fn expires_at(&self) -> i64 {
        self.expires_at
    }

    /// Whether it has expired at `now`, unix seconds.
    #[must_use]
    pub fn is_expired(&self, now: i64) -> bool {
        self.expires_at != 0 && now >= self.expires_at
    }

    /// Whether it may be presented from `source`. An IPv4 address that came in over IPv6 counts as
    /// itself.
    #[must_use]
    pub fn admits(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        self.terms.cidrs.is_empty() || self.terms.cidrs.iter().any(|net| net.contains(&source))
    }

    /// Whether it may be presented on a connection whose client has shown this certificate, by its
    /// SHA-256.
    #[must_use]
    pub fn admits_certificate(&self, shown: Option<&[u8; 32]>) -> bool {
        self.terms.certificate.is_none() || self.terms.certificate.as_ref() == shown
    }

    /// The trust that this record is; `None` for a token.
    #[must_use]
    pub fn trust(&self) -> Option<&Trust> {
        match &self.terms.origin {
            Origin::Trust(trust) => Some(trust),
            _ => None,
        }
    }

    /// What policies see of an exchanged token; `None` for a token that an operator issued.
    #[must_use]
    pub fn trust_facts(&self) -> Option<TrustFacts<'_>> {
        let Origin::Exchanged { parent, identity, claims } = &self.terms.origin else { return None };
        let rule = &parent.trust()?.rule;
        Some(TrustFacts { name: &rule.name, issuer: &rule.issuer, subject: &identity.subject, claims })
    }

    /// Whether it reaches what `other` reaches, from the same networks.
    pub(super) fn has_terms_of(&self, other: &Self) -> bool {
        let pairs = |token: &Self| -> Vec<(ServiceName, CredentialName)> {
            token.grants().iter().map(|g| (g.service_name().clone(), g.credential_name().clone())).collect()
        };
        pairs(self) == pairs(other) && self.terms.cidrs == other.terms.cidrs && self.expires_at == other.expires_at
    }

    /// Whether the trust that it was exchanged by has been replaced or deleted since: look it up
    /// again.
    #[must_use]
    pub(super) fn is_superseded(&self) -> bool {
        matches!(&self.terms.origin, Origin::Exchanged { parent, .. } if parent.is_cut())
    }

    /// Counts a request in, unless `most` are in flight. A new snapshot restarts the count.
    #[must_use]
    pub fn enter(&self, most: u32) -> bool {
        if self.in_flight.fetch_add(1, Relaxed) < most {
            return true;
        }
        self.leave();
        false
    }

    /// Counts one out that [`enter`](Self::enter) let in.
    pub fn leave(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Whether it has been revoked or replaced since it was found.
    /// [`Table::register`](super::Table::register) looks further: at agent, service, credential,
    /// snapshots and the lease.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut.load(SeqCst)
    }
}

/// A token that was revoked not long ago.
pub struct RevokedEntry {
    /// Its public handle.
    pub id: String,
    /// The tenant that it belongs to.
    pub tenant: TenantName,
    /// The agent that presented it.
    pub agent: AgentName,
    /// Until when it is remembered, in unix seconds.
    pub until: i64,
}

const INLINE: usize = 22;

/// A token's id without an allocation of its own: `tok-` and 16 characters fit.
pub(super) enum Id {
    Inline(u8, [u8; INLINE]),
    Boxed(Box<str>),
}

impl Id {
    pub(super) fn new(id: &str) -> Self {
        let mut bytes = [0; INLINE];
        match (bytes.get_mut(..id.len()), u8::try_from(id.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(id.as_bytes());
                Self::Inline(len, bytes)
            }
            _ => Self::Boxed(id.into()),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Inline(len, bytes) => {
                bytes.get(..usize::from(*len)).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
            }
            Self::Boxed(id) => id,
        }
    }
}

impl fmt::Debug for TokenEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenEntry").field("id", &self.id()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_any_length_is_kept() {
        for id in ["", "tok-0123456789abcdef", &"x".repeat(22), &"x".repeat(23), &"x".repeat(63)] {
            assert_eq!(Id::new(id).as_str(), id);
        }
    }

    #[test]
    fn an_entry_stays_small() {
        assert!(size_of::<TokenEntry>() <= 64, "{} bytes", size_of::<TokenEntry>());
    }
}
