//! Certificates for intercepted hosts: signed by the tenant's CA, short-lived, generated at first
//! use.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dashmap::DashMap;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber,
};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use seks_service::{INTERCEPTION_CERTIFICATE, INTERCEPTION_KEY};
use tokio::time::Instant;

use crate::table::CredentialEntry;

/// How long a certificate is good.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long one is shown before another is made.
const SHOWN: Duration = Duration::from_secs(12 * 3600);
/// Clocks of agents may be slow.
const BACKDATE: Duration = Duration::from_secs(3600);
/// More than the services of any node. Beyond it, all are generated again.
const MOST: usize = 4096;

/// Why there is no certificate. Says nothing of a key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeafError {
    /// The CA's credential.
    #[error("the CA's credential has no `{0}`")]
    Field(&'static str),
    /// The CA's credential in memory.
    #[error("the CA's credential does not open")]
    Open,
    /// Its certificate or key, or the host's name.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// The pair.
    #[error("cannot use what was signed: {0}")]
    Tls(#[from] rustls::Error),
}

/// The certificates of one node. The CA's key is opened for the moment of a signature; what is kept
/// are keys of single hosts.
#[derive(Default)]
pub(crate) struct CertificateCache {
    /// By the CA's generation, which changes with its version, and host.
    made: DashMap<(u64, Box<str>), (Arc<ServerConfig>, Instant)>,
    /// One key for all of a process's certificates: making one costs more than a signature.
    key: OnceLock<KeyPair>,
}

impl CertificateCache {
    /// TLS as `host`.
    pub(super) fn config(&self, ca: &CredentialEntry, host: &str) -> Result<Arc<ServerConfig>, LeafError> {
        let at = (ca.generation, host.into());
        if let Some(made) = self.made.get(&at).filter(|made| made.1.elapsed() < SHOWN) {
            return Ok(made.0.clone());
        }
        let config = Arc::new(self.make(ca, host)?);
        if self.made.len() >= MOST {
            self.made.clear();
        }
        self.made.insert(at, (config.clone(), Instant::now()));
        Ok(config)
    }

    fn make(&self, ca: &CredentialEntry, host: &str) -> Result<ServerConfig, LeafError> {
        let fields = ca.open().map_err(|_| LeafError::Open)?;
        let der = |name| fields.get(name).and_then(|v| STANDARD.decode(v).ok()).ok_or(LeafError::Field(name));
        let ca_key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(der(INTERCEPTION_KEY)?))?;
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(der(INTERCEPTION_CERTIFICATE)?), ca_key)?;
        let key = match self.key.get() {
            Some(key) => key,
            None => {
                let fresh = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
                self.key.get_or_init(|| fresh)
            }
        };
        let certificate = params(host)?.signed_by(key, &issuer)?.der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let shown = CertifiedKey::from_der(vec![certificate], key, &provider)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(OneHost { host: host.into(), shown: Arc::new(shown) }));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The certificate of the host that a tunnel was asked for, and of no other: a client that names
/// another in its ClientHello speaks to somebody else than it told the proxy. Addresses have no
/// name (RFC 6066, 3): only a tunnel to one may have a ClientHello without.
#[derive(Debug)]
struct OneHost {
    host: Box<str>,
    shown: Arc<CertifiedKey>,
}

impl ResolvesServerCert for OneHost {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_right = match hello.server_name() {
            Some(name) => name.eq_ignore_ascii_case(&self.host),
            None => self.host.parse::<IpAddr>().is_ok(),
        };
        is_right.then(|| self.shown.clone())
    }
}

fn params(host: &str) -> Result<CertificateParams, LeafError> {
    let mut params = CertificateParams::new(vec![host.to_owned()])?; // an address becomes one
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "SEKS");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let mut serial = [0_u8; 16];
    getrandom::fill(&mut serial).map_err(|_| LeafError::Open)?;
    serial[0] &= 0x7f; // a positive INTEGER
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + LIFETIME).into();
    Ok(params)
}
