//! The tokens that this node made or read by trusts.
//!
//! An exchanged token has an entry of its own, which is kept here and not among the table's
//! records: it counts in no checksum, and any node can make it again from the token itself. The
//! entry points to the record of its trust. When that record is replaced, the entry is made again
//! under the new one, or is found revoked.

use std::sync::Arc;

use seks_service::EXCHANGE;
use seks_trust::{Identity, Rejected};
use seks_types::{id::ServiceName, token::Digest};

use super::{
    Found,
    generation::{DigestKey, DigestMap, Generation, digest_map},
    token::{Id, Origin, RevokedEntry, SharedGrants, TokenEntry},
};

/// Entries of exchanged tokens that a node keeps. One beyond that drops another, which is made
/// again when it is next presented.
const MAX_ENTRIES: usize = 64 * 1024;

/// What an exchanged token was verified to say.
pub struct Exchanged {
    /// Who it stands for.
    pub identity: Identity,
    /// The services that it was made for.
    pub services: Vec<ServiceName>,
    /// Unix seconds.
    pub issued_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
}

/// Entries of exchanged tokens, by the digest of what was presented.
pub(super) struct ExchangedTokens(DigestMap<TokenEntry>);

impl Default for ExchangedTokens {
    fn default() -> Self {
        Self(digest_map())
    }
}

impl ExchangedTokens {
    /// Keeps an entry for what was presented.
    pub(super) fn insert(
        &self,
        table: &Generation,
        digest: Digest,
        parent: &Arc<TokenEntry>,
        exchanged: Exchanged,
    ) -> Result<Arc<TokenEntry>, Rejected> {
        if self.0.len() >= MAX_ENTRIES {
            self.make_room(exchanged.issued_at);
        }
        let entry = Arc::new(make(table, digest, parent, exchanged)?);
        self.0.insert(DigestKey(digest), entry.clone());
        // A trust that was replaced in between has marked its record by now, or finds this entry
        // superseded later.
        Ok(entry)
    }

    /// What `digest` is: an entry under the record of its trust as it is now.
    pub(super) fn find(&self, table: &Generation, digest: &Digest) -> Found {
        let Some(entry) = self.0.get(&DigestKey(*digest)).map(|entry| Arc::clone(entry.value())) else {
            return Found::Unknown;
        };
        let Origin::Exchanged { parent, identity, .. } = &entry.terms.origin else { return Found::Unknown };
        let Some(trust) = parent.trust() else { return Found::Unknown };
        let revoked = || {
            Found::Revoked(Arc::new(RevokedEntry {
                id: entry.id().to_owned(),
                tenant: entry.tenant().clone(),
                agent: entry.agent_name().clone(),
                until: entry.expires_at,
            }))
        };
        let Found::Token(current) = table.find(&trust.digest) else { return revoked() };
        if Arc::ptr_eq(&current, parent) {
            return Found::Token(entry);
        }
        let exchanged = Exchanged {
            identity: identity.clone(),
            services: entry.services().to_vec(),
            issued_at: entry.issued_at,
            expires_at: entry.expires_at,
        };
        match make(table, *digest, &current, exchanged) {
            Ok(again) => {
                let again = Arc::new(again);
                self.0.insert(DigestKey(*digest), again.clone());
                Found::Token(again)
            }
            Err(_) => revoked(),
        }
    }

    /// Drops what has expired, and where that is nothing, a part of the rest.
    fn make_room(&self, now: i64) {
        self.sweep(now);
        if self.0.len() >= MAX_ENTRIES {
            let mut kept = 0_usize;
            self.0.retain(|_, _| {
                kept += 1;
                !kept.is_multiple_of(8)
            });
        }
    }

    pub(super) fn sweep(&self, now: i64) {
        self.0.retain(|_, entry| !entry.is_expired(now));
    }
}

/// The entry of an exchanged token under the record `parent` of its trust.
fn make(
    table: &Generation,
    digest: Digest,
    parent: &Arc<TokenEntry>,
    exchanged: Exchanged,
) -> Result<TokenEntry, Rejected> {
    let trust = parent.trust().ok_or(Rejected::Untrusted)?;
    let Exchanged { identity, services, issued_at, expires_at } = exchanged;
    if !trust.keys().has(&identity.key) {
        return Err(Rejected::UnknownKey);
    }
    let agent = trust.rule.admit(&identity)?;
    // An agent is an operator's to create: no claim brings one into being.
    let agent = table.directory(parent.tenant()).and_then(|directory| directory.known_agent(&agent));
    let agent = agent.ok_or(Rejected::NoAgent)?;
    let granted = |name: &ServiceName| name.as_str() != EXCHANGE && services.contains(name);
    let grants: Box<_> = parent.grants().iter().filter(|grant| granted(grant.service_name())).cloned().collect();
    let terms = SharedGrants {
        services: grants.iter().map(|grant| grant.service_name().clone()).collect(),
        grants,
        cidrs: parent.terms.cidrs.clone(),
        certificate: identity.certificate,
        origin: Origin::Exchanged { parent: parent.clone(), claims: trust.rule.listed_claims(&identity), identity },
    };
    let hex: String = digest.0.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(TokenEntry {
        agent,
        terms: Arc::new(terms),
        issued_at,
        expires_at,
        id: Id::new(&format!("{}.{hex}", parent.id())),
        in_flight: 0.into(),
        cut: false.into(),
    })
}
