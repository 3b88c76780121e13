//! Trust in a CA that is known by the hash of its public key alone.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use sha2::{Digest as _, Sha256};

/// SHA-256 of a CA's public key, as in its certificate (SPKI).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) struct Pin([u8; 32]);

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(..)")
    }
}

impl Pin {
    /// The pin in a join token; `None` when it isn't one.
    pub(in crate::sync) fn of_token(token: &str) -> Option<Self> {
        let mut parts = token.strip_prefix("seks_join_")?.split('.');
        let (id, secret, pin) = (parts.next()?, parts.next()?, parts.next()?);
        if id.is_empty() || secret.is_empty() || parts.next().is_some() || pin.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(pin.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).ok().filter(|d| !d.starts_with('+'))?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(Self(bytes))
    }

    pub(in crate::sync) fn matches_pem(self, pem: &str) -> bool {
        CertificateDer::from_pem_slice(pem.as_bytes()).is_ok_and(|c| self.matches(&c))
    }

    fn matches(self, certificate: &CertificateDer<'_>) -> bool {
        let parsed = x509_parser::parse_x509_certificate(certificate);
        parsed.is_ok_and(|(_, c)| <[u8; 32]>::from(Sha256::digest(c.public_key().raw)) == self.0)
    }

    fn algorithms() -> WebPkiSupportedAlgorithms {
        aws_lc_rs::default_provider().signature_verification_algorithms
    }
}

/// The server shows its CA behind its certificate. When that is the pinned one, everything else is
/// checked as usual.
impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|c| self.matches(c));
        let ca = pinned.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let verifier = verifier.map_err(|e| Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &Self::algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &Self::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::algorithms().supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_from_a_join_token_and_from_nothing_else() {
        let pin = "ab".repeat(32);
        assert_eq!(Pin::of_token(&format!("seks_join_id.secret.{pin}")), Some(Pin([0xab; 32])));
        for bad in [
            String::new(),
            format!("seks_join_id.{pin}"),
            format!("seks_join_.secret.{pin}"),
            format!("seks_join_id.secret.{pin}.x"),
            format!("seks_join_id.secret.{}", "ab".repeat(31)),
            format!("seks_join_id.secret.{}", "+1".repeat(32)),
            format!("seks_join_id.secret.{}", "é".repeat(32)),
            format!("seks_token_id.secret.{pin}"),
        ] {
            assert_eq!(Pin::of_token(&bad), None, "{bad}");
        }
    }

    #[test]
    fn only_the_pinned_ca_vouches_for_a_server() {
        let issue = |name: &str| {
            let ca_key = rcgen::KeyPair::generate().unwrap();
            let mut ca = rcgen::CertificateParams::default();
            ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let ca = rcgen::CertifiedIssuer::self_signed(ca, ca_key).unwrap();
            let leaf = rcgen::CertificateParams::new(vec![name.into()]).unwrap();
            let leaf = leaf.signed_by(&rcgen::KeyPair::generate().unwrap(), &ca).unwrap();
            (leaf.der().clone(), CertificateDer::from(ca.der().to_vec()))
        };
        let pin = |ca: &CertificateDer<'_>| {
            let (_, parsed) = x509_parser::parse_x509_certificate(ca).unwrap();
            Pin(Sha256::digest(parsed.public_key().raw).into())
        };
        let verify = |pin: Pin, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>], name: &'static str| {
            pin.verify_server_cert(leaf, chain, &ServerName::try_from(name).unwrap(), &[], UnixTime::now()).is_ok()
        };
        let (leaf, ca) = issue("cp");
        let (other_leaf, other_ca) = issue("cp");
        assert!(verify(pin(&ca), &leaf, std::slice::from_ref(&ca), "cp"));
        assert!(!verify(pin(&ca), &leaf, std::slice::from_ref(&ca), "other"), "the name is checked");
        assert!(!verify(pin(&ca), &leaf, &[], "cp"), "the CA has to be shown");
        assert!(!verify(pin(&ca), &other_leaf, std::slice::from_ref(&other_ca), "cp"));
        assert!(!verify(pin(&ca), &other_leaf, &[other_ca, ca.clone()], "cp"), "showing it is not being signed by it");
    }
}
