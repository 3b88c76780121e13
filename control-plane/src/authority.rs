//! The certificate authority: it signs operators, nodes and our own listeners, and nothing else
//! trusts it.
//!
//! Its key is made at the first start and kept in the store as an envelope; the first replica wins.
//! The names in a certificate are ours, never those that a request asks for.

pub mod audit_key;
mod config;
mod external;
pub mod identity;
mod sign;
pub(crate) mod tenant_ca;

use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use seks_types::secret::Secret;
use sha2::{Digest as _, Sha256};

pub use self::{
    config::{AuthorityConfig, MeshConfig},
    identity::{Identities, Identity, Mesh, Peer, claimed_trust_domain},
    sign::{NODE_TTL, OPERATOR_TTL, Request, ServerIdentity, check_operator_ttl},
};
use crate::{
    seal::{RecordId, SealError, Sealer},
    store::{Key, Store, StoreError, Transaction},
};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A certificate signing request that doesn't parse, or isn't signed by the key that it is for.
    #[error("the certificate signing request is not acceptable: {0}")]
    Request(String),
    /// A lifetime beyond what such a certificate may have.
    #[error("a certificate's lifetime is 1 minute to {0} days")]
    Lifetime(u64),
    /// A CA that the configuration names can't be read, or isn't one.
    #[error("authority.{key}: `{path}`: {reason}")]
    File {
        /// The key.
        key: &'static str,
        /// Which file.
        path: String,
        /// What is the matter.
        reason: String,
    },
    /// A value of `[authority]` is not acceptable.
    #[error("authority.{key}: {reason}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is the matter.
        reason: &'static str,
    },
    /// The record in the store is not a certificate authority.
    #[error("the stored certificate authority is damaged")]
    Damaged,
    /// The record doesn't open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Making a key or a certificate failed.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// The operating system has no randomness to give.
    #[error("no randomness")]
    Random(#[source] getrandom::Error),
}

/// The CA of one store.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pin: String,
    /// CAs whose certificates count as well.
    trusted: Vec<CertificateDer<'static>>,
    identities: Identities,
}

impl Authority {
    /// The authority that `config` names: a CA from elsewhere, or [the store's
    /// own](Self::load_or_create), which is made in any case.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub async fn open(
        config: &AuthorityConfig,
        store: &dyn Store,
        sealer: &Sealer,
        first: impl Fn() -> Transaction,
    ) -> Result<Self, AuthorityError> {
        let identities = Identities::new(config)?;
        let external = match (config.cert_file.as_os_str().is_empty(), config.key_file.as_os_str().is_empty()) {
            (true, true) => None,
            (false, false) => Some(external::read(&config.cert_file, &config.key_file)?),
            (true, false) => {
                return Err(AuthorityError::Config { key: "cert_file", reason: "is missing beside key_file" });
            }
            (false, true) => {
                return Err(AuthorityError::Config { key: "key_file", reason: "is missing beside cert_file" });
            }
        };
        let trusted = match config.trusted_file.as_os_str().is_empty() {
            true => Vec::new(),
            false => external::certificates("trusted_file", &config.trusted_file)?,
        };
        let own = Self::load_or_create(store, sealer, first).await?;
        let authority = match external {
            Some((certificate, key)) => Self::new(certificate, key)?,
            None => own,
        };
        Ok(Self { trusted, identities, ..authority })
    }

    /// The store's authority; made when there is none, in one transaction with what `first` adds.
    ///
    /// # Errors
    /// [`AuthorityError::Damaged`], [`AuthorityError::Seal`], [`AuthorityError::Store`].
    pub async fn load_or_create(
        store: &dyn Store,
        sealer: &Sealer,
        first: impl Fn() -> Transaction,
    ) -> Result<Self, AuthorityError> {
        loop {
            if let Some(record) = store.get(&Key::Authority).await? {
                let secret = sealer.open(&RecordId::authority(store.store_id()), &record.value).await?;
                return Self::decode(&secret);
            }
            let (authority, secret) = Self::create(store.store_id())?;
            let envelope = sealer.seal(&RecordId::authority(store.store_id()), &secret).await?;
            let mut transaction = first();
            transaction.checks.push((Key::Authority, 0));
            transaction.writes.push(crate::store::Write::Put(Key::Authority, envelope));
            match store.commit(transaction).await {
                Ok(_) => return Ok(authority),
                Err(StoreError::Conflict) => {} // another replica's first start: read what it wrote
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn create(epoch: &str) -> Result<(Self, Secret), AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "SEKS");
        params.distinguished_name.push(DnType::CommonName, format!("SEKS CA {}", epoch.get(..8).unwrap_or(epoch)));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        sign::set_lifetime(&mut params, std::time::Duration::from_secs(10 * 365 * 24 * 3600));
        params.serial_number = Some(sign::serial()?);
        let certificate = params.self_signed(&key)?.der().clone();
        let secret = Self::encode(&certificate, key.serialized_der());
        Ok((Self::new(certificate, key)?, secret))
    }

    fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, AuthorityError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|_| AuthorityError::Damaged)?;
        let pin = HEXLOWER.encode(&Sha256::digest(parsed.public_key().raw));
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { issuer, certificate, pin, trusted: Vec::new(), identities: Identities::default() })
    }

    /// `certificate length u32 LE, certificate, key in PKCS #8`.
    fn encode(certificate: &[u8], key: &[u8]) -> Secret {
        let mut bytes = Vec::with_capacity(4 + certificate.len() + key.len());
        bytes.extend_from_slice(&u32::try_from(certificate.len()).unwrap_or_default().to_le_bytes());
        bytes.extend_from_slice(certificate);
        bytes.extend_from_slice(key);
        Secret::new(bytes)
    }

    fn decode(secret: &Secret) -> Result<Self, AuthorityError> {
        let parts = || {
            let (len, rest) = secret.expose().split_first_chunk::<4>()?;
            rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)
        };
        let (certificate, key) = parts().ok_or(AuthorityError::Damaged)?;
        let key = PrivatePkcs8KeyDer::from(key);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| AuthorityError::Damaged)?;
        Self::new(CertificateDer::from(certificate.to_vec()), key)
    }

    /// The CA's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificates that clients must trust: the CA's own, and those of the other trusted CAs.
    /// The own one is first.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        self.roots().map(|certificate| sign::pem(certificate)).collect()
    }

    /// The CAs whose certificates are good for operators and nodes.
    pub fn roots(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.certificate).chain(&self.trusted)
    }

    /// How certificates are read.
    #[must_use]
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// SHA-256 of the CA's public key (its SPKI), in hexadecimal: what a join token pins.
    #[must_use]
    pub fn pin(&self) -> &str {
        &self.pin
    }
}

#[cfg(test)]
mod tests;
