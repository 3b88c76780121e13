//! TLS towards upstreams: TLS 1.2 or 1.3, verified before any byte, and nothing shared between
//! services.
//!
//! Each pool has a configuration of its own, so session tickets never cross a service, a tenant or
//! a credential. No early data (a replayed request would carry the credential again), no key log
//! whatever the environment says.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use seks_service::Upstream;
use tokio_rustls::TlsConnector;

use crate::http::client::UpstreamError;

/// Makes connectors; holds the machine's roots, which are read once.
pub(super) struct Trust {
    extra: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    platform: OnceLock<Arc<dyn ServerCertVerifier>>,
}

/// Why `[upstream] ca_file` can't be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{path}` as PEM certificates{}", source.as_ref().map_or(String::new(), |e| format!(": {e}")))]
pub struct CaFileError {
    path: String,
    #[source]
    source: Option<rustls_pki_types::pem::Error>,
}

/// Checks the file of the roots that are trusted beside the machine's.
pub(crate) fn check_ca_file(ca_file: Option<&Path>) -> Result<(), CaFileError> {
    Trust::load(ca_file).map(drop)
}

impl Trust {
    /// Reads the roots that are trusted beside the machine's.
    pub(super) fn load(ca_file: Option<&Path>) -> Result<Self, CaFileError> {
        let extra = match ca_file {
            None => Vec::new(),
            Some(path) => {
                let fail = |source| CaFileError { path: path.display().to_string(), source };
                let read: Result<Vec<_>, _> =
                    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|e| fail(Some(e)));
                read.and_then(|certs| if certs.is_empty() { Err(fail(None)) } else { Ok(certs) })?
            }
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(Self { extra, provider, platform: OnceLock::new() })
    }

    /// A connector for one pool that offers `protocols`: the service's own roots only, where it has
    /// some, else the machine's.
    pub(super) fn connector(&self, service_ca_pem: &str, protocols: &[&[u8]]) -> Result<TlsConnector, UpstreamError> {
        let verifier = if service_ca_pem.is_empty() { self.platform()? } else { self.only(service_ca_pem)? };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|_| UpstreamError::TlsSetup)?
            .dangerous() // only in name: both verifiers check chain and name
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        config.enable_early_data = false;
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn platform(&self) -> Result<Arc<dyn ServerCertVerifier>, UpstreamError> {
        if let Some(verifier) = self.platform.get() {
            return Ok(verifier.clone());
        }
        let verifier =
            rustls_platform_verifier::Verifier::new_with_extra_roots(self.extra.iter().cloned(), self.provider.clone())
                .map_err(|_| UpstreamError::TlsSetup)?;
        Ok(self.platform.get_or_init(|| Arc::new(verifier)).clone())
    }

    fn only(&self, pem: &str) -> Result<Arc<dyn ServerCertVerifier>, UpstreamError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(certificate.map_err(|_| UpstreamError::TlsSetup)?).map_err(|_| UpstreamError::TlsSetup)?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        verifier.map(|v| v as Arc<dyn ServerCertVerifier>).map_err(|_| UpstreamError::TlsSetup)
    }
}

/// The name that the certificate must be for, and the SNI: the service's host.
pub(super) fn server_name(upstream: &Upstream) -> Result<ServerName<'static>, UpstreamError> {
    ServerName::try_from(upstream.host().to_owned()).map_err(|_| UpstreamError::TlsSetup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::client::{ALPN_H1, ALPN_H2};

    #[test]
    fn a_connector_offers_both_protocols_and_logs_no_keys() {
        let trust = Trust::load(None).unwrap();
        let key = rcgen::generate_simple_self_signed(vec!["ca.test".into()]).unwrap();
        let connector = trust.connector(&key.cert.pem(), &[ALPN_H2, ALPN_H1]).unwrap();
        let config = connector.config();
        assert_eq!(config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert!(!config.enable_early_data && !config.key_log.will_log("CLIENT_RANDOM"));
    }

    #[test]
    fn a_ca_file_without_certificates_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Trust::load(Some(file.path())).err().unwrap();
        assert!(error.to_string().contains(&file.path().display().to_string()));
        assert!(Trust::load(Some(Path::new("does/not/exist"))).is_err());
    }
}
