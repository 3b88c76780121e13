//! Sealing: what the store keeps of a secret is an envelope, and only this module can make or open
//! one.
//!
//! Every write gets a fresh data key (DEK); the DEK is wrapped by the key-encryption key (KEK),
//! which is not in the store. The envelope is bound to its record ([`RecordId`]): copied to another
//! tenant, name, version or store it no longer opens. [`rotate`] moves a store from one KEK to the
//! next; [`verify`](Sealer::verify) tells at start that this KEK is the store's.

mod cache;
mod canary;
mod config;
pub mod envelope;
mod key_service;
mod key_service_config;
mod key_watch;
mod local;
pub mod provider;
mod record_mac;
pub mod rotate;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use seks_types::{
    destination::Destination,
    id::{CredentialName, TenantName},
    secret::Secret,
};

use self::{
    cache::DekCache,
    envelope::{Header, Parts},
    local::LocalKek,
    provider::Dek,
};
pub use self::{
    config::{SealConfig, SealKind},
    key_service_config::{AwsKmsConfig, TransitConfig},
    key_watch::KeyWatch,
    provider::{KekId, KekProvider},
};
use crate::store::{Key, StoreError};

/// Which record an envelope belongs to: the additional data that its ciphertext is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordId<'a> {
    /// The tenant; `""` for what belongs to none.
    pub tenant: &'a str,
    /// What it is: `credential`, `authority`, …
    pub kind: &'static str,
    /// Its name within tenant and kind.
    pub name: &'a str,
    /// Its version; 0 for what has none.
    pub version: u32,
    /// The store's id ([`Store::store_id`](crate::store::Store::store_id)).
    pub store_id: &'a str,
    /// Where alone the secret may be sent; `None`: it is bound to no destination.
    pub destination: Option<Destination>,
}

impl<'a> RecordId<'a> {
    /// One version of a credential.
    #[must_use]
    pub fn credential(store_id: &'a str, tenant: &'a TenantName, name: &'a CredentialName, version: u32) -> Self {
        Self { tenant: tenant.as_str(), kind: "credential", name: name.as_str(), version, store_id, destination: None }
    }

    /// The CA's key.
    #[must_use]
    pub fn authority(store_id: &'a str) -> Self {
        Self { tenant: "", kind: "authority", name: "", version: 0, store_id, destination: None }
    }

    /// The store's id.
    #[must_use]
    pub fn epoch(store_id: &'a str) -> Self {
        Self { tenant: "", kind: "era", name: "", version: 0, store_id, destination: None }
    }

    /// The key that a store's records are authenticated with.
    #[must_use]
    pub fn record_key(store_id: &'a str) -> Self {
        Self { tenant: "", kind: "record-key", name: "", version: 0, store_id, destination: None }
    }

    /// The key pair that audit records are sealed to.
    #[must_use]
    pub fn audit_key(store_id: &'a str) -> Self {
        Self { tenant: "", kind: "audit-key", name: "", version: 0, store_id, destination: None }
    }

    /// The key that audit exports are signed with.
    #[must_use]
    pub fn audit_signing_key(store_id: &'a str) -> Self {
        Self { tenant: "", kind: "audit-signing-key", name: "", version: 0, store_id, destination: None }
    }

    /// The end of a backup.
    #[must_use]
    pub fn backup(store_id: &'a str) -> Self {
        Self { tenant: "", kind: "backup", name: "", version: 0, store_id, destination: None }
    }

    /// What a credential is minted from.
    #[must_use]
    pub fn mint(store_id: &'a str, tenant: &'a TenantName, name: &'a CredentialName) -> Self {
        Self { tenant: tenant.as_str(), kind: "mint", name: name.as_str(), version: 0, store_id, destination: None }
    }

    /// The key that a tenant's fake AWS key pairs hang on.
    #[must_use]
    pub fn aws_key(store_id: &'a str, tenant: &'a TenantName) -> Self {
        Self { tenant: tenant.as_str(), kind: "aws-key", name: "", version: 0, store_id, destination: None }
    }

    /// The same record, bound to a destination: an envelope of it opens for exactly that.
    #[must_use]
    pub fn bound_to(self, destination: Option<Destination>) -> Self {
        Self { destination, ..self }
    }

    fn canary(store_id: &'a str) -> Self {
        Self { tenant: "", kind: "canary", name: "", version: 0, store_id, destination: None }
    }

    /// The record that the envelope at `key` belongs to, without the destination that a credential
    /// is bound to; `None` when `key` doesn't hold an envelope.
    #[must_use]
    pub fn of(key: &'a Key, store_id: &'a str) -> Option<Self> {
        match key {
            Key::Envelope(tenant, name, version) => Some(Self::credential(store_id, tenant, name, *version)),
            Key::MintSecret(tenant, name) => Some(Self::mint(store_id, tenant, name)),
            Key::AwsKey(tenant) => Some(Self::aws_key(store_id, tenant)),
            Key::Authority => Some(Self::authority(store_id)),
            Key::Canary => Some(Self::canary(store_id)),
            Key::Epoch => Some(Self::epoch(store_id)),
            Key::RecordKey => Some(Self::record_key(store_id)),
            Key::AuditKey => Some(Self::audit_key(store_id)),
            Key::AuditSigningKey => Some(Self::audit_signing_key(store_id)),
            _ => None,
        }
    }
}

/// What can go wrong. Configuration errors (all but the last seven) are for the operator: one line,
/// exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A key of `[seal]` is absent or doesn't fit the kind.
    #[error("seal.{key}: {reason}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is the matter.
        reason: &'static str,
    },
    /// The file that holds a KEK can't be read, or made.
    #[error("key file `{path}`: {source}")]
    KeyFile {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Other users could have read the KEK.
    #[error("key file `{path}`: {reason}")]
    KeyExposed {
        /// Which.
        path: String,
        /// How.
        reason: String,
    },
    /// The environment variable isn't there.
    #[error("environment variable `{0}` is not set")]
    KeyVariable(String),
    /// What was read is not a KEK.
    #[error("{origin}: a key-encryption key is {chars} hexadecimal characters ({bytes} bytes), {reason}", chars = local::BYTES * 2, bytes = local::BYTES)]
    KeyFormat {
        /// The key of the configuration.
        key: &'static str,
        /// The file or variable.
        origin: String,
        /// What is the matter; never the key.
        reason: &'static str,
    },
    /// The store was sealed with another KEK.
    #[error("the key-encryption key {have} is not the one that this store was sealed with ({want})")]
    WrongKek {
        /// Ids of what is configured.
        have: String,
        /// Id of what the store needs.
        want: KekId,
    },
    /// The operating system has no randomness to give. Nothing was written.
    #[error("no randomness: {0}")]
    Random(getrandom::Error),
    /// An envelope names a KEK that isn't configured.
    #[error("the envelope needs the key-encryption key {0}, which is not configured")]
    UnknownKek(KekId),
    /// The key service can't be asked, or doesn't answer. Nothing was written.
    #[error("the key service is not available: {0}")]
    KekUnavailable(String),
    /// The key service doesn't permit the key any more.
    #[error("the key service refuses the key-encryption key: {0}")]
    KekRefused(String),
    /// The file was written for another kind of key service.
    #[error("key file `{path}` is wrapped by `{kind}`, and seal.kind is `{configured}`")]
    WrappedElsewhere {
        /// Which.
        path: String,
        /// The kind in the file.
        kind: String,
        /// The kind in the configuration.
        configured: String,
    },
    /// The bytes are not an envelope of this version of SEKS.
    #[error("not an envelope: {0}")]
    Malformed(&'static str),
    /// Damaged, or moved from another record.
    #[error("the envelope does not open: it is damaged, or it belongs to another record")]
    Rejected,
    /// The record was removed. Without it, forged records cannot be detected.
    #[error(
        "the sealed key of the store's records (`meta/record-key`) is gone: restore a backup, or put that one record back"
    )]
    RecordKeyGone,
    /// The store failed meanwhile.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SealError {
    /// The key of the configuration that is wrong, if it is one; `""`: the message names it.
    #[must_use]
    pub fn config_key(&self) -> Option<&'static str> {
        match self {
            Self::Config { .. } => Some(""),
            Self::KeyFile { .. } | Self::KeyExposed { .. } | Self::WrappedElsewhere { .. } => Some("seal.path"),
            Self::KeyVariable(_) => Some("seal.variable"),
            Self::KeyFormat { key, .. } => Some(key),
            _ => None,
        }
    }
}

/// How long a key service may take to wrap or unwrap one data key.
const KEK_LIMIT: Duration = Duration::from_secs(2);

/// Seals and opens envelopes with a ring of KEKs: one active, any number of older ones that still
/// open. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    active: Arc<dyn KekProvider>,
    older: Vec<Arc<dyn KekProvider>>,
    cache: Arc<DekCache>,
}

impl Sealer {
    /// Reads the KEKs that `config` names. A key service unwraps them, where it names one.
    ///
    /// # Errors
    /// As [`load`](Self::load); [`SealError::KekUnavailable`] and [`SealError::KekRefused`].
    pub async fn from_config(config: &SealConfig) -> Result<Self, SealError> {
        if !config.kind.is_wrapped() {
            return Self::load(config);
        }
        config.check()?;
        let (active, older) = key_service::load(config).await?;
        let older = older.into_iter().map(|kek| Arc::new(kek) as Arc<dyn KekProvider>);
        Ok(Self::with_keys(Arc::new(active), older.collect()))
    }

    /// Makes a KEK, has the key service of `config` wrap it, and writes it to a new file.
    ///
    /// # Errors
    /// As [`from_config`](Self::from_config); when the file exists already or can't be written.
    pub async fn create_wrapped_file(config: &SealConfig, path: &Path) -> Result<(), SealError> {
        key_service::create_file(config, path).await
    }

    /// Reads the KEKs that `config` names, without a key service.
    ///
    /// # Errors
    /// [`SealError::Config`] when a key service is needed. A missing, malformed, all-zero or
    /// world-readable key; the error never holds it.
    pub fn load(config: &SealConfig) -> Result<Self, SealError> {
        config.check()?;
        let read = |origin: &str| match config.kind {
            SealKind::Env => LocalKek::from_env(origin),
            _ => LocalKek::from_file(Path::new(origin)),
        };
        let active = match config.kind {
            SealKind::File => LocalKek::from_file(&config.path)?,
            SealKind::Env => LocalKek::from_env(&config.variable)?,
            SealKind::VaultTransit | SealKind::AwsKms => {
                return Err(SealError::Config { key: "kind", reason: "needs a key service, which is not asked here" });
            }
        };
        let older = config.older.iter().map(|origin| Ok(Arc::new(read(origin)?) as Arc<dyn KekProvider>));
        Ok(Self::with_keys(Arc::new(active), older.collect::<Result<_, SealError>>()?))
    }

    /// A sealer whose new envelopes are wrapped by `active`.
    #[must_use]
    pub fn with_keys(active: Arc<dyn KekProvider>, older: Vec<Arc<dyn KekProvider>>) -> Self {
        Self { active, older, cache: Arc::default() }
    }

    /// Makes a KEK and writes it to a new file of mode 0600: the whole file is there, or none.
    ///
    /// # Errors
    /// When the file exists already or can't be written.
    pub fn create_file(path: &Path) -> Result<(), SealError> {
        local::create_file(path)
    }

    /// Seals `plaintext` under a fresh 256-bit DEK, wrapped by the active KEK. With random 96-bit
    /// nonces one KEK wraps at most 2^32 DEKs (NIST SP 800-38D, 8.3); rotation is due long before
    /// that.
    ///
    /// # Errors
    /// [`SealError::Random`]; [`SealError::KekUnavailable`] when the key service is silent for 2 s.
    pub async fn seal(&self, id: &RecordId<'_>, plaintext: &Secret) -> Result<Bytes, SealError> {
        within_limit(&*self.active, envelope::seal(&*self.active, id, plaintext)).await
    }

    /// Opens an envelope of the record `id`.
    ///
    /// # Errors
    /// [`SealError::Malformed`], [`SealError::UnknownKek`], or [`SealError::Rejected`] when a bit
    /// of the envelope or a part of `id` differs from what was sealed;
    /// [`SealError::KekUnavailable`] when the key service is silent for 2 s.
    pub async fn open(&self, id: &RecordId<'_>, envelope: &[u8]) -> Result<Secret, SealError> {
        let parts = Parts::split(envelope)?;
        envelope::open(&self.dek(&parts).await?, id, &parts)
    }

    /// As [`open`](Self::open), without waiting: what the key service has to be asked for is
    /// [`SealError::KekUnavailable`]. Call [`load_deks`](Self::load_deks) first.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_now(&self, id: &RecordId<'_>, envelope: &[u8]) -> Result<Secret, SealError> {
        let parts = Parts::split(envelope)?;
        let unknown = || Err(SealError::KekUnavailable("it was not asked for this key".into()));
        envelope::open(&self.dek_now(&parts)?.unwrap_or_else(unknown)?, id, &parts)
    }

    /// Whether every KEK is in this process: then [`open_now`](Self::open_now) opens whatever opens
    /// at all.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.keks().all(|kek| kek.is_local())
    }

    /// Whether the key service has to be asked before [`open_now`](Self::open_now) can say more of
    /// `envelope`.
    #[must_use]
    pub fn needs_dek(&self, envelope: &[u8]) -> bool {
        Parts::split(envelope).and_then(|parts| self.dek_now(&parts)).is_ok_and(|known| known.is_none())
    }

    /// Has the DEKs of `envelopes` unwrapped, a few at a time, for [`open_now`](Self::open_now). It
    /// takes 2 s at most for each few whether or not the key service answers; what it doesn't
    /// unwrap is not asked for again within 10 s.
    pub async fn load_deks(&self, envelopes: &[Bytes]) {
        let load = envelopes.iter().map(|envelope| async move {
            if let Ok(parts) = Parts::split(envelope) {
                let _ = self.dek(&parts).await; // what failed is remembered
            }
        });
        futures_util::future::join_all(load).await;
    }

    /// Whether the KEK that wraps an envelope is configured. What isn't an envelope needs none.
    #[must_use]
    pub fn has_key_of(&self, envelope: &[u8]) -> bool {
        !Header::parse(envelope).is_ok_and(|header| self.kek(header.kek).is_err())
    }

    /// Whether an envelope of the record `id` holds exactly `secret`: however often it was
    /// re-wrapped.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn holds(&self, id: &RecordId<'_>, envelope: &[u8], secret: &Secret) -> Result<bool, SealError> {
        Ok(self.open(id, envelope).await?.expose() == secret.expose())
    }

    /// The same envelope with its DEK wrapped by the active KEK; `None` when it is already. The
    /// secret itself is not opened.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn rewrap(&self, envelope: &[u8]) -> Result<Option<Bytes>, SealError> {
        let parts = Parts::split(envelope)?;
        if parts.kek == self.active.id() {
            return Ok(None);
        }
        let dek = self.dek(&parts).await?;
        within_limit(&*self.active, envelope::rewrap(&dek, &*self.active, &parts)).await.map(Some)
    }

    /// The DEK of an envelope, if it is known without asking the key service.
    fn dek_now(&self, parts: &Parts<'_>) -> Result<Option<Result<Dek, SealError>>, SealError> {
        let kek = self.kek(parts.kek)?;
        Ok(kek.unwrap_now(parts.header, parts.wrapped).or_else(|| self.cache.get(parts.wrapped)))
    }

    async fn dek(&self, parts: &Parts<'_>) -> Result<Dek, SealError> {
        if let Some(known) = self.dek_now(parts)? {
            return known;
        }
        // One asks; who wanted the same key finds it here afterwards.
        let _call = self.cache.calls.acquire().await;
        if let Some(known) = self.dek_now(parts)? {
            return known;
        }
        let kek = self.kek(parts.kek)?;
        let answer = within_limit(kek, kek.unwrap(parts.header, parts.wrapped)).await;
        self.cache.put(parts.wrapped, &answer);
        answer
    }

    /// The KEK that new envelopes are wrapped with.
    #[must_use]
    pub fn active(&self) -> KekId {
        self.active.id()
    }

    fn kek(&self, id: KekId) -> Result<&dyn KekProvider, SealError> {
        self.keks().find(|kek| kek.id() == id).ok_or(SealError::UnknownKek(id))
    }

    fn keks(&self) -> impl Iterator<Item = &dyn KekProvider> {
        std::iter::once(&self.active).chain(&self.older).map(|kek| &**kek)
    }

    fn ids(&self) -> String {
        let ids: Vec<String> = self.keks().map(|kek| kek.id().to_string()).collect();
        ids.join(", ")
    }
}

/// Bounds how long `kek` may take. A local key answers at once, and needs no timer.
async fn within_limit<T>(
    kek: &dyn KekProvider,
    call: impl Future<Output = Result<T, SealError>>,
) -> Result<T, SealError> {
    if kek.is_local() {
        return call.await;
    }
    let silent = |_| Err(SealError::KekUnavailable("it doesn't answer".into()));
    tokio::time::timeout(KEK_LIMIT, call).await.unwrap_or_else(silent)
}

#[cfg(test)]
mod tests;
