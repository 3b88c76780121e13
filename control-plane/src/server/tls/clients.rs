//! Client certificates of two CAs, each good for the names of its own trust domain alone: a mesh
//! can't name our operators, nor we its workloads.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{ClientCertificate, TlsError};
use crate::authority::{Mesh, claimed_trust_domain};

/// Ours, or with a mesh both.
pub(super) fn verifier<'a>(
    roots: impl Iterator<Item = &'a CertificateDer<'static>>,
    mesh: Option<&Mesh>,
    clients: ClientCertificate,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let own = of_roots(roots, clients, provider)?;
    let Some(mesh) = mesh else { return Ok(own) };
    let theirs = of_roots(mesh.bundle.iter(), clients, provider)?;
    Ok(Arc::new(ByTrustDomain { own, mesh: mesh.trust_domain.clone(), theirs }))
}

fn of_roots<'a>(
    roots: impl Iterator<Item = &'a CertificateDer<'static>>,
    clients: ClientCertificate,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let unusable = |e: &dyn std::fmt::Display| TlsError::Unusable(e.to_string());
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(|e| unusable(&e))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
    let verifier = match clients {
        ClientCertificate::Required => verifier,
        ClientCertificate::Optional | ClientCertificate::OptionalInBrowser => verifier.allow_unauthenticated(),
    };
    verifier.build().map_err(|e| unusable(&e))
}

/// Chooses by the name that a certificate claims; the chosen one then has to vouch for all of it.
#[derive(Debug)]
struct ByTrustDomain {
    own: Arc<dyn ClientCertVerifier>,
    mesh: String,
    theirs: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for ByTrustDomain {
    fn offer_client_auth(&self) -> bool {
        self.own.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.own.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // naming ours alone would keep workloads of the mesh from showing theirs
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let of_mesh = claimed_trust_domain(end_entity).is_some_and(|domain| domain == self.mesh);
        let verifier = if of_mesh { &self.theirs } else { &self.own };
        verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.own.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.own.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.own.supported_verify_schemes()
    }
}
