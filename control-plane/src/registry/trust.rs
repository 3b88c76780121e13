//! Trusts: records of tokens without a secret. A trust has a token's id, `trust-NAME`, and a digest
//! that is nobody's token.
//!
//! So what holds for tokens holds for trusts: a credential goes to the nodes that a trust reaches
//! it through, a service that a trust grants cannot be deleted, and deleting a trust is a
//! revocation, with the same answer.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use seks_protocol::features;
use seks_service::{EXCHANGE, spec::ServiceSpec};
use seks_trust::{ExchangeKey, KeySet, MAX_EXCHANGED_SECONDS, SKEW_SECONDS, TrustRule};
use seks_types::{
    id::{CredentialName, OperatorName, ServiceName, TenantName, TokenId},
    secret::{Fields, Secret},
};
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    limits, now,
    record::{Credential, Stored, Token, Trust, destination_of},
    token::check_cidrs,
};
use crate::{
    seal::RecordId,
    store::{Key, Revision, StoreError, key::prefix},
};

const KIND: &str = "trust";
const TOKEN: &str = "token";
/// In front of a trust's name, in the id of its record.
const ID: &str = "trust-";
/// When a trust ends, in Unix seconds: at the end of the year 9999. What ends is forgotten.
const NEVER: i64 = 253_402_300_799;
/// Age of an exchange key, in seconds, at which the next one is made: 24 h. The one before verifies
/// until then.
const KEY_SECONDS: i64 = 24 * 60 * 60;
/// Reports of unknown keys that wait.
const MAX_REPORTS: usize = 256;

/// What a trust is to be.
#[derive(Clone, Debug)]
pub struct NewTrust {
    /// Name, issuer, audiences, conditions, template, life, claims and keys.
    pub trust: Trust,
    /// What its tokens reach; `None`: the service's only credential.
    pub grants: Vec<(ServiceName, Option<CredentialName>)>,
    /// Source networks that its tokens may be used from; empty: any.
    pub cidrs: Vec<String>,
    /// Who makes it.
    pub by: OperatorName,
}

/// A change of a trust. What is empty stays as it is.
#[derive(Clone, Debug, Default)]
pub struct TrustChange {
    /// All conditions.
    pub matches: Vec<String>,
    /// The template.
    pub agent: String,
    /// Life of exchanged tokens, in seconds.
    pub ttl_seconds: u32,
    /// All claims that policies see.
    pub claims: Vec<String>,
    /// Subjects to deny.
    pub deny: Vec<String>,
    /// Subjects to deny no longer.
    pub allow: Vec<String>,
    /// The issuer's keys, in their stored form.
    pub jwks: String,
    /// All grants.
    pub grants: Vec<(ServiceName, Option<CredentialName>)>,
}

/// Trusts whose issuer has signed with a key that no node has, as nodes report them.
#[derive(Default)]
pub struct UnknownKeyReports {
    waiting: Mutex<VecDeque<(TenantName, TokenId)>>,
    news: Notify,
}

impl UnknownKeyReports {
    /// Adds a report. One that waits already is not added again.
    pub fn add(&self, tenant: TenantName, trust: TokenId) {
        let mut waiting = self.waiting.lock();
        let report = (tenant, trust);
        if waiting.len() < MAX_REPORTS && !waiting.contains(&report) {
            waiting.push_back(report);
            self.news.notify_one();
        }
    }

    /// The next one; waits for it.
    pub async fn next(&self) -> (TenantName, TokenId) {
        loop {
            let news = self.news.notified();
            if let Some(report) = self.waiting.lock().pop_front() {
                return report;
            }
            news.await;
        }
    }
}

impl Registry {
    /// Reports of unknown keys.
    #[must_use]
    pub fn unknown_keys(&self) -> &Arc<UnknownKeyReports> {
        &self.unknown_keys
    }

    /// Makes a trust, and the tenant's exchange key with the first.
    ///
    /// # Errors
    /// [`RegistryError::Exists`], [`RegistryError::Invalid`], [`RegistryError::NotFound`],
    /// [`RegistryError::Quota`]. Invalid is also an audience that another tenant has for the
    /// issuer.
    pub async fn create_trust(&self, tenant: &TenantName, new: NewTrust) -> Result<(Token, Revision), RegistryError> {
        let cidrs = check_cidrs(&new.cidrs)?;
        let id = id_of(&new.trust.name)?;
        check(&new.trust)?;
        if new.grants.is_empty() || new.grants.len() >= limits::GRANTS {
            return Err(RegistryError::invalid("grants", format!("1 to {}", limits::GRANTS - 1)));
        }
        self.check_audience_is_free(tenant, &new.trust).await?;
        if self.trusts(tenant).await?.len() >= limits::TRUSTS {
            let (tenant, limit) = (tenant.to_string(), limits::TRUSTS as u64);
            return Err(RegistryError::Quota { tenant, kind: KIND, limit });
        }
        self.make_exchange_key(tenant, &new.by).await?;
        let (id, new, cidrs) = (&id, &new, &cidrs);
        retry_on_conflict(|| async {
            let parent = self.active_tenant(tenant).await?;
            let key = Key::Token(tenant.clone(), id.clone());
            if self.store.get(&key).await?.is_some() {
                return Err(RegistryError::exists(KIND, &new.trust.name));
            }
            self.check_quota(tenant, TOKEN, limits::TOKENS).await?;
            let (change, mut grants) = self.resolve_grants(Change::new().check(&parent), tenant, &new.grants).await?;
            grants.push(exchange_grant());
            let mut digest = vec![0; 32];
            getrandom::fill(&mut digest).map_err(RegistryError::Random)?;
            let issued_at = now();
            let token = Token {
                id: id.to_string(),
                tenant: tenant.to_string(),
                agent: id.to_string(), // nobody: the agents are those that the template names
                grants,
                issued_at,
                expires_at: NEVER,
                cidrs: cidrs.clone(),
                digest,
                issued_by: new.by.to_string(),
                requires: vec![features::TRUST_V1.to_owned()],
                trust: Some(Trust { keys_changed_at: issued_at, updated_at: issued_at, ..new.trust.clone() }),
                ..Token::default()
            };
            let revision = self.commit(change.check_absent(key.clone()).put(key, &token)).await?;
            Ok((token, revision))
        })
        .await
    }

    /// A token that trusts of two tenants accept is refused by every node: a name that only one
    /// tenant gives to an issuer keeps them apart.
    async fn check_audience_is_free(&self, tenant: &TenantName, trust: &Trust) -> Result<(), RegistryError> {
        for other in self.tenants().await? {
            let Ok(name) = TenantName::try_from(other.name.as_str()) else { continue };
            if name == *tenant || other.deleting {
                continue;
            }
            let taken = |known: &Token| {
                known.trust.as_ref().is_some_and(|known| {
                    known.issuer == trust.issuer && known.audiences.iter().any(|a| trust.audiences.contains(a))
                })
            };
            if self.trusts(&name).await?.iter().any(taken) {
                // Nothing of other tenants is said.
                return Err(RegistryError::invalid(
                    "audiences",
                    format!(
                        "not to be had for this issuer: choose one that names the tenant, such as \
                             `https://seks.example/{tenant}`, and let the workflow ask the issuer for it"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// All trusts of a tenant, by name. Their digests are in them.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] for the tenant.
    pub async fn trusts(&self, tenant: &TenantName) -> Result<Vec<Token>, RegistryError> {
        self.load_tenant(tenant).await?;
        let trusts = self.values::<Token>(&format!("{}{ID}", prefix::kind(tenant, TOKEN))).await?;
        Ok(trusts.into_iter().filter(|token| token.trust.is_some()).collect())
    }

    /// One trust.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn trust(&self, tenant: &TenantName, name: &str) -> Result<Token, RegistryError> {
        Ok(self.load_trust(tenant, name).await?.0.value)
    }

    async fn load_trust(&self, tenant: &TenantName, name: &str) -> Result<(Stored<Token>, Trust), RegistryError> {
        let stored = self.load::<Token>(Key::Token(tenant.clone(), id_of(name)?)).await?;
        match stored.and_then(|stored| stored.value.trust.clone().map(|trust| (stored, trust))) {
            Some(found) => Ok(found),
            None => Err(self.missing(tenant, KIND, name).await),
        }
    }

    /// Changes a trust. Writes nothing when it is already so.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Invalid`].
    pub async fn update_trust(
        &self,
        tenant: &TenantName,
        name: &str,
        change: &TrustChange,
    ) -> Result<(Token, Revision), RegistryError> {
        retry_on_conflict(|| async {
            let (stored, old) = self.load_trust(tenant, name).await?;
            let mut new = old.clone();
            replace(&mut new.matches, &change.matches);
            replace(&mut new.claims, &change.claims);
            if !change.agent.is_empty() {
                new.agent.clone_from(&change.agent);
            }
            if change.ttl_seconds > 0 {
                new.ttl_seconds = change.ttl_seconds;
            }
            new.denied_subjects.retain(|subject| !change.allow.contains(subject));
            let added: Vec<&String> = change.deny.iter().filter(|s| !new.denied_subjects.contains(s)).collect();
            let added: Vec<String> = added.into_iter().cloned().collect();
            new.denied_subjects.extend(added);
            if !change.jwks.is_empty() && change.jwks != new.jwks {
                new.jwks.clone_from(&change.jwks);
                new.keys_changed_at = now();
            }
            check(&new)?;
            let (mut write, mut grants) = (Change::new().check(&stored), stored.value.grants.clone());
            if !change.grants.is_empty() {
                (write, grants) = self.resolve_grants(write, tenant, &change.grants).await?;
                grants.push(exchange_grant());
            }
            if new == old && grants == stored.value.grants {
                return Ok((stored.value, stored.modified));
            }
            new.updated_at = now();
            let token = Token { trust: Some(new), grants, ..stored.value.clone() };
            let revision = self.commit(write.put(stored.key.clone(), &token)).await?;
            Ok((token, revision))
        })
        .await
    }

    /// Deletes a trust. What remains is kept as long as a token that it has made could live, so
    /// that nodes answer "revoked".
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn delete_trust(&self, tenant: &TenantName, name: &str) -> Result<Revision, RegistryError> {
        let id = id_of(name)?;
        let tombstone = Key::Tombstone(tenant.clone(), id.clone());
        let deleted = retry_on_conflict(|| async {
            let (stored, _) = match self.load_trust(tenant, name).await {
                Err(RegistryError::NotFound { kind: KIND, .. }) if self.store().get(&tombstone).await?.is_some() => {
                    return Ok(self.store().revision().await?);
                }
                found => found?,
            };
            let expires_at = now().saturating_add(MAX_EXCHANGED_SECONDS + SKEW_SECONDS);
            let remains = Token { expires_at, trust: None, ..stored.value.clone() };
            let change = Change::new().check(&stored).delete(stored.key.clone());
            match self.keeps_tombstone(tenant) {
                true => self.commit(change.put(tombstone.clone(), &remains)).await,
                false => self.commit(change).await,
            }
        })
        .await;
        match deleted {
            Err(RegistryError::Store(StoreError::Full) | RegistryError::Busy) => {
                self.commit(Change::new().delete(Key::Token(tenant.clone(), id.clone()))).await
            }
            decided => decided,
        }
    }

    /// Makes the tenant's exchange key where it has none.
    async fn make_exchange_key(&self, tenant: &TenantName, by: &OperatorName) -> Result<(), RegistryError> {
        let (service, credential) = names()?;
        if self.load::<Credential>(Key::Credential(tenant.clone(), credential.clone())).await?.is_some() {
            return Ok(());
        }
        let unusable = |error: &dyn std::fmt::Display| RegistryError::invalid("service", error.to_string());
        let spec: ServiceSpec = serde_json::from_value(definition()).map_err(|error| unusable(&error))?;
        let definition = spec.to_wire(tenant.as_str()).map_err(|error| unusable(&error))?;
        self.apply_service(definition, true).await?;
        self.put_credential(tenant, &credential, &service, &keys(None)?, &[], by).await?;
        Ok(())
    }

    /// Makes the next exchange key where the current one is a day old. The one before remains valid
    /// for verification.
    ///
    /// # Errors
    /// Of the store and the seal.
    pub async fn rotate_exchange_key(&self, tenant: &TenantName, by: &OperatorName) -> Result<(), RegistryError> {
        let (service, credential) = names()?;
        let Some(stored) = self.load::<Credential>(Key::Credential(tenant.clone(), credential.clone())).await? else {
            return self.make_exchange_key(tenant, by).await;
        };
        if stored.value.updated_at.saturating_add(KEY_SECONDS) > now() {
            return Ok(());
        }
        let version = stored.value.version;
        let Some(envelope) = self.store().get(&Key::Envelope(tenant.clone(), credential.clone(), version)).await?
        else {
            return Ok(());
        };
        let id = RecordId::credential(self.store().store_id(), tenant, &credential, version);
        let id = id.bound_to(destination_of(&stored.value, version));
        let fields = Fields::decode(self.sealer.open(&id, &envelope.value).await?);
        let fields = fields.map_err(|_| RegistryError::Corrupt { key: stored.key.to_string() })?;
        let next = keys(fields.get(ExchangeKey::CURRENT))?;
        self.put_credential(tenant, &credential, &service, &next, &[], by).await?;
        Ok(())
    }
}

/// Nothing is ever sent there: the name does not resolve (RFC 6761, 6.4), and no token is granted
/// the service.
fn definition() -> serde_json::Value {
    serde_json::json!({
        "name": EXCHANGE,
        "title": "Key of exchanged tokens",
        "upstream": "https://seks-exchange.invalid",
        "inject": { "headers": {
            "x-current": format!("{{{}}}", ExchangeKey::CURRENT),
            "x-previous": format!("{{{}}}", ExchangeKey::PREVIOUS),
        } },
    })
}

fn names() -> Result<(ServiceName, CredentialName), RegistryError> {
    let invalid = |_| RegistryError::invalid("service", "the exchange service has no name");
    Ok((ServiceName::try_from(EXCHANGE).map_err(invalid)?, CredentialName::try_from(EXCHANGE).map_err(invalid)?))
}

fn exchange_grant() -> super::record::Grant {
    super::record::Grant { service: EXCHANGE.into(), credential: EXCHANGE.into() }
}

/// A new exchange key, with the one before it. The first has one before it that nothing was made
/// with.
fn keys(previous: Option<&[u8]>) -> Result<Secret, RegistryError> {
    let fresh = || {
        let mut random = Zeroizing::new([0_u8; 32]);
        getrandom::fill(&mut *random).map_err(RegistryError::Random)?;
        Ok::<_, RegistryError>(Zeroizing::new(data_encoding::HEXLOWER.encode(&*random)))
    };
    let current = fresh()?;
    let previous = match previous.and_then(|key| std::str::from_utf8(key).ok()) {
        Some(previous) => Zeroizing::new(previous.to_owned()),
        None => fresh()?,
    };
    let (now, before) = (ExchangeKey::CURRENT, ExchangeKey::PREVIOUS);
    Ok(Secret::new(format!(r#"{{"{now}":"{}","{before}":"{}"}}"#, *current, *previous).into_bytes()))
}

fn id_of(name: &str) -> Result<TokenId, RegistryError> {
    let invalid =
        || RegistryError::invalid("name", "1 to 57 of a-z, 0-9 and `-`, from a letter or digit to a letter or digit");
    if !seks_types::id::is_name(name) {
        return Err(invalid());
    }
    TokenId::try_from(format!("{ID}{name}")).map_err(|_| invalid())
}

fn replace(old: &mut Vec<String>, new: &[String]) {
    if !new.is_empty() {
        *old = new.to_vec();
    }
}

/// What nodes would refuse is not stored.
fn check(trust: &Trust) -> Result<(), RegistryError> {
    TrustRule::try_from(trust).map_err(|error| RegistryError::invalid(error.field, error.reason))?;
    KeySet::parse(trust.jwks.as_bytes()).map_err(|error| RegistryError::invalid("jwks", error.to_string()))?;
    Ok(())
}
