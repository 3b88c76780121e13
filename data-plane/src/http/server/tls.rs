//! TLS towards agents: certificate and key from files, read again when they change.

mod any_certificate;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use self::any_certificate::AnyCertificate;

/// How often the files' times are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// `[proxy.tls]`: read again when the files change.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM chain, leaf first.
    pub cert_file: PathBuf,
    /// PEM private key.
    pub key_file: PathBuf,
    /// PEM roots for agents' client certificates. Default: none.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
    /// Whether agents must show a client certificate. Default: `required` with `client_ca_file`,
    /// else `none`.
    #[serde(default)]
    pub client_certificates: Option<ClientCertificates>,
}

/// What agents must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// They are not asked for a certificate.
    None,
    /// A certificate or none. With `client_ca_file`, one of its; else any, for tokens that are
    /// bound to it.
    Optional,
    /// A certificate of `client_ca_file`.
    Required,
}

/// Why TLS can't be served. Names the file, never its contents.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file that cannot be read.
    #[error("cannot read `{path}` as PEM: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the parser or the operating system says.
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate and key are not a pair, or are of no use.
    #[error("certificate and key cannot be used: {0}")]
    Pair(#[source] rustls::Error),
    /// The roots for client certificates.
    #[error("the client CA cannot be used")]
    ClientCa,
    /// Required by nobody's roots.
    #[error("client_certificates = \"required\" needs client_ca_file")]
    NoClientCa,
}

/// Shakes hands with agents.
pub(super) struct Acceptor {
    tls: TlsAcceptor,
    served: Arc<Reloading>,
}

/// Checks the files of a listener's certificate and key.
pub(crate) fn check_tls(config: &TlsConfig) -> Result<(), TlsError> {
    Acceptor::load(config).map(drop)
}

impl Acceptor {
    pub(super) fn load(config: &TlsConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(TlsError::Pair)?;
        let asks = config.client_certificates.unwrap_or(match config.client_ca_file {
            Some(_) => ClientCertificates::Required,
            None => ClientCertificates::None,
        });
        let builder = match (&config.client_ca_file, asks) {
            (_, ClientCertificates::None) => builder.with_no_client_auth(),
            (None, ClientCertificates::Required) => return Err(TlsError::NoClientCa),
            (None, ClientCertificates::Optional) => {
                builder.with_client_cert_verifier(Arc::new(AnyCertificate(provider)))
            }
            (Some(path), _) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|_| TlsError::ClientCa)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match asks {
                    ClientCertificates::Optional => verifier.allow_unauthenticated(),
                    _ => verifier,
                };
                let verifier = verifier.build().map_err(|_| TlsError::ClientCa)?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let served = Arc::new(Reloading::load(config)?);
        let mut server = builder.with_cert_resolver(served.clone());
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if asks != ClientCertificates::None {
            // Every connection shows its certificate: a resumed one would go on after that has
            // expired.
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
        }
        Ok(Self { tls: TlsAcceptor::from(Arc::new(server)), served })
    }

    pub(super) async fn accept(&self, tcp: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls.accept(tcp).await
    }

    /// Says when the certificate ends that is served, in Unix seconds.
    pub(super) fn certificate_end(&self) -> impl Fn() -> Option<i64> + Send + Sync + 'static {
        let served = self.served.clone();
        move || not_after(served.current().cert.first()?)
    }
}

/// When the certificate ends that the agent has shown, from now; `None`: it has shown none. The
/// connection ends with it.
pub(super) fn certificate_left<T>(stream: &TlsStream<T>) -> Option<Duration> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    // It was verified: what can't be read has no time left.
    let end = not_after(certificate).and_then(|end| u64::try_from(end).ok()).unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Some(Duration::from_secs(end).saturating_sub(now))
}

fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// SHA-256 of the certificate that the agent has shown.
pub(super) fn certificate<T>(stream: &TlsStream<T>) -> Option<[u8; 32]> {
    Some(Sha256::digest(stream.get_ref().1.peer_certificates()?.first()?).into())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |source| TlsError::File { path: path.into(), source };
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(fail)
}

fn certified(config: &TlsConfig) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(&config.cert_file)?;
    let key = PrivateKeyDer::from_pem_file(&config.key_file)
        .map_err(|source| TlsError::File { path: config.key_file.clone(), source })?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider()).map_err(TlsError::Pair)
}

/// The pair that is served. A pair that can't be read leaves the one before in place: half-written
/// files are the rule when certificates are renewed.
#[derive(Debug)]
struct Reloading {
    config: TlsConfig,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    key: Arc<CertifiedKey>,
    written: [Option<SystemTime>; 2],
    looked: Instant,
}

impl Reloading {
    fn load(config: &TlsConfig) -> Result<Self, TlsError> {
        let written = written(config);
        let key = Arc::new(certified(config)?);
        Ok(Self { config: config.clone(), state: Mutex::new(State { key, written, looked: Instant::now() }) })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let mut state = self.state.lock();
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            let written = written(&self.config);
            if written != state.written {
                match certified(&self.config) {
                    Ok(key) => {
                        state.key = Arc::new(key);
                        state.written = written;
                    }
                    Err(error) => tracing::warn!(%error, "keeping the certificate that was served before"),
                }
            }
        }
        state.key.clone()
    }
}

fn written(config: &TlsConfig) -> [Option<SystemTime>; 2] {
    [&config.cert_file, &config.key_file].map(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok())
}

impl ResolvesServerCert for Reloading {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}
