//! Certificates for tests: a CA made on the spot.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
};
use tokio_rustls::TlsAcceptor;

use super::Host;

/// A certificate with its key and the CA that signed it, in PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The leaf.
    pub certificate_pem: String,
    /// Its key.
    pub key_pem: String,
    /// The CA.
    pub ca_pem: String,
}

/// A leaf for `localhost` and `127.0.0.1`, by a fresh CA.
pub fn identity() -> Identity {
    identity_of(&Host::address())
}

fn identity_of(host: &Host) -> Identity {
    crate::install_crypto_provider();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Another name than the leaf's: OpenSSL takes a certificate by its own name for its own issuer.
    params.distinguished_name.push(DnType::CommonName, "stand-in CA");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    if !names.contains(&host.name) {
        names.push(host.name.clone());
    }
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
    Identity { certificate_pem: leaf.pem(), key_pem: key.serialize_pem(), ca_pem: ca.pem() }
}

/// A server for [`identity`] and `host`, HTTP/1.1 by ALPN, and its CA.
pub fn acceptor(host: &Host) -> (TlsAcceptor, String) {
    let identity = identity_of(host);
    let leaf = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap();
    let key = PrivatePkcs8KeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf], PrivateKeyDer::Pkcs8(key)).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), identity.ca_pem)
}

/// A client that trusts one CA and offers `alpn`.
pub fn client(ca_pem: &str, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    crate::install_crypto_provider();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}
