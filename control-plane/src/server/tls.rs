//! TLS of our listeners: version 1.3, HTTP/2, client certificates of our own CA, and a server
//! certificate that can be replaced while connections are served.

mod clients;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use seks_runtime::{private_file, reload};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    authority::{Authority, AuthorityError},
    config::ListenerTlsConfig,
};

/// How often a certificate of our own CA that could not be signed is tried again.
const RETRY: Duration = Duration::from_secs(60);
/// When a listener that has just started asks our own CA for its next certificate.
const FIRST_RENEWAL: Duration = Duration::from_secs(3600);

/// Why a listener's TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read or isn't what it should be.
    #[error("{key}: `{path}`: {reason}")]
    File {
        /// `cert_file` or `key_file`.
        key: &'static str,
        /// Which.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key don't go together, or can't be used.
    #[error("{0}")]
    Unusable(String),
    /// Our own CA can't sign.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Whether a listener's clients must show a certificate, or may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    /// No certificate of our CA, no handshake.
    Required,
    /// Who shows one must show one of our CA.
    Optional,
    /// The same, for clients that speak HTTP/1.1.
    OptionalInBrowser,
}

/// The certificate that a listener presents now.
#[derive(Debug)]
pub struct Presented(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Presented {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Where a listener's certificate comes from.
pub struct Source {
    authority: Arc<Authority>,
    files: ListenerTlsConfig,
    names: Vec<String>,
}

impl Source {
    /// From `files`, or when they are empty signed by `authority` for `names`.
    #[must_use]
    pub fn new(authority: Arc<Authority>, files: ListenerTlsConfig, names: Vec<String>) -> Self {
        Self { authority, files, names }
    }

    /// The configuration of a listener, and the certificate in it, to be kept fresh by
    /// [`Source::keep_fresh`].
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn server_config(&self, clients: ClientCertificate) -> Result<(ServerConfig, Arc<Presented>), TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        // Nodes alone are of the mesh: their listener is the one on which a certificate is
        // optional.
        let mesh = self.authority.identities().mesh().filter(|_| clients == ClientCertificate::Optional);
        let verifier = clients::verifier(self.authority.roots(), mesh.map(Arc::as_ref), clients, &provider)?;
        let (certificate, _) = self.certificate(&provider)?;
        let presented = Arc::new(Presented(ArcSwap::from_pointee(certificate)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| TlsError::Unusable(e.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&presented) as Arc<dyn ResolvesServerCert>);
        let protocol: &[u8] = if clients == ClientCertificate::OptionalInBrowser { b"http/1.1" } else { b"h2" };
        config.alpn_protocols = vec![protocol.to_vec()];
        without_resumption(&mut config);
        Ok((config, presented))
    }

    /// Replaces the certificate before it ends, or when its files change, until `stop`. A
    /// certificate that can't be read is reported, and the present one stays. `renewed` learns of
    /// each certificate, the present one first.
    pub async fn keep_fresh(
        self,
        presented: Arc<Presented>,
        stop: CancellationToken,
        renewed: impl Fn(&CertificateDer<'static>),
    ) {
        presented.0.load().cert.first().into_iter().for_each(&renewed);
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut wait = FIRST_RENEWAL;
        let mut seen = self.files.state();
        loop {
            let due =
                async { if self.files.is_empty() { tokio::time::sleep(wait).await } else { reload::due().await } };
            if stop.run_until_cancelled(due).await.is_none() {
                return;
            }
            let state = self.files.state();
            if !self.files.is_empty() && std::mem::replace(&mut seen, state) == state {
                continue;
            }
            match self.certificate(&provider) {
                Ok((certificate, renew_in)) => {
                    certificate.cert.first().into_iter().for_each(&renewed);
                    presented.0.store(Arc::new(certificate));
                    wait = renew_in;
                }
                Err(error) => {
                    tracing::error!(%error, "the listener's certificate can't be renewed");
                    wait = RETRY;
                    seen = FileState::default(); // looked at again, even if nothing changes
                }
            }
        }
    }

    /// The certificate, and when to look again.
    fn certificate(&self, provider: &CryptoProvider) -> Result<(CertifiedKey, Duration), TlsError> {
        if self.files.is_empty() {
            let made = self.authority.server_certificate(&self.names)?;
            // The CA goes with it: a node that joins knows the CA by its hash alone.
            let chain = vec![made.certificate, self.authority.certificate().clone()];
            let key = certified(chain, made.key, provider)?;
            return Ok((key, made.renew_in));
        }
        let chain = read_chain(&self.files.cert_file)?;
        let key = read_key(&self.files.key_file)?;
        Ok((certified(chain, key, provider)?, RETRY))
    }
}

/// What tells whether the files have changed: their times, and the reloads that were requested.
#[derive(Clone, Copy, Default, PartialEq)]
struct FileState {
    written: [Option<SystemTime>; 2],
    requests: u64,
}

impl ListenerTlsConfig {
    fn state(&self) -> FileState {
        let written = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        FileState { written: [written(&self.cert_file), written(&self.key_file)], requests: reload::requests() }
    }
}

/// Every connection shows its certificate: one that was resumed would be worth what the first one
/// was, and go on after the certificate has expired. A handshake with a certificate costs less than
/// a millisecond of CPU.
fn without_resumption(config: &mut ServerConfig) {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    CertifiedKey::from_der(chain, key, provider).map_err(|e| TlsError::Unusable(e.to_string()))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError::File { key: "cert_file", path: path.display().to_string(), reason };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))?;
    let chain = certificates.collect::<Result<Vec<_>, _>>().map_err(|e| wrong(e.to_string()))?;
    let leaf = chain.first().ok_or_else(|| wrong("no certificate in it".into()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_| wrong("not a certificate".into()))?;
    if !parsed.validity().is_valid() {
        return Err(wrong(format!("valid from {} to {}", parsed.validity().not_before, parsed.validity().not_after)));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let wrong = |reason: String| TlsError::File { key: "key_file", path: path.display().to_string(), reason };
    let pem = private_file::read_private(path).map(Zeroizing::new).map_err(|e| wrong(e.to_string()))?;
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| wrong("no private key in PEM in it".into()))
}
