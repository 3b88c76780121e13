//! CAs from files: one that signs instead of our own, and those whose certificates count as well.

use std::path::Path;

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use seks_runtime::private_file;
use zeroize::Zeroizing;

use super::AuthorityError;

fn wrong(key: &'static str, path: &Path, reason: impl ToString) -> AuthorityError {
    AuthorityError::File { key, path: path.display().to_string(), reason: reason.to_string() }
}

/// A CA's certificate, the first in `cert_file`, and its key.
pub(super) fn read(cert_file: &Path, key_file: &Path) -> Result<(CertificateDer<'static>, KeyPair), AuthorityError> {
    let certificate = certificates("cert_file", cert_file)?.into_iter().next();
    let certificate = certificate.ok_or_else(|| wrong("cert_file", cert_file, "no certificate in it"))?;
    let refused = |reason: &str| wrong("key_file", key_file, reason);
    let pem = private_file::read_private(key_file).map_err(|e| wrong("key_file", key_file, e))?;
    let pem = Zeroizing::new(pem);
    let key = KeyPair::from_pem(&pem).map_err(|_| refused("no private key that can sign in it (PKCS #8, PEM)"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|_| AuthorityError::Damaged)?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(refused("not the key of authority.cert_file"));
    }
    Ok((certificate, key))
}

/// Every CA certificate in a PEM file.
pub(super) fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|e| wrong(key, path, e))?;
    let found = read.collect::<Result<Vec<_>, _>>().map_err(|e| wrong(key, path, e))?;
    for certificate in &found {
        let parsed = x509_parser::parse_x509_certificate(certificate);
        let (_, parsed) = parsed.map_err(|_| wrong(key, path, "not a certificate"))?;
        if !parsed.is_ca() {
            return Err(wrong(key, path, "not the certificate of a CA"));
        }
        if !parsed.validity().is_valid() {
            let (from, to) = (parsed.validity().not_before, parsed.validity().not_after);
            return Err(wrong(key, path, format!("valid from {from} to {to}")));
        }
    }
    Ok(found)
}
