//! Leaf certificates: who they are for, what they may be used for, how long.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use seks_types::id::{NodeId, OperatorName};
use sha2::{Digest as _, Sha256};

use super::{Authority, AuthorityError, identity};

/// Default lifetime of an operator's certificate: 90 days.
pub const OPERATOR_TTL: Duration = Duration::from_secs(90 * DAY);
/// Lifetime of a node's certificate: 24 h. The node renews it at half of that.
pub const NODE_TTL: Duration = Duration::from_secs(DAY);
/// Lifetime of a listener's certificate: 30 days. Renewed while running.
const SERVER_TTL: Duration = Duration::from_secs(30 * DAY);
/// Longest lifetime of an operator's certificate, in days.
const MAX_OPERATOR_DAYS: u64 = 366;
const DAY: u64 = 24 * 3600;
/// Longest request that is looked at, in bytes: an RSA-4096 request has about 1.7 kB.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// A certificate signing request that is signed by the key that it is for. All that is taken from
/// it is that key.
pub struct Request(PublicKey);

impl Request {
    /// Reads a PKCS #10 request in DER.
    ///
    /// # Errors
    /// [`AuthorityError::Request`].
    pub fn parse(der: &[u8]) -> Result<Self, AuthorityError> {
        if der.len() > MAX_REQUEST_BYTES {
            return Err(AuthorityError::Request(format!("over {MAX_REQUEST_BYTES} bytes")));
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(|error| AuthorityError::Request(error.to_string()))?;
        Ok(Self(request.public_key))
    }

    /// SHA-256 of the key (its SPKI).
    #[must_use]
    pub fn key_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.0.subject_public_key_info()).into()
    }
}

/// A listener's certificate with its key.
pub struct ServerIdentity {
    /// The certificate; the CA's is not needed behind it.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// When to make the next one: at two thirds of its life.
    pub renew_in: Duration,
}

impl Authority {
    /// A client certificate for an operator whose record is of this `enrolment`, as PEM.
    ///
    /// # Errors
    /// [`AuthorityError::Lifetime`] over 366 days.
    pub fn sign_operator(
        &self,
        request: &Request,
        name: &OperatorName,
        enrolment: &str,
        ttl: Duration,
    ) -> Result<String, AuthorityError> {
        check_operator_ttl(ttl)?;
        let mut params = leaf(name.as_str(), ttl, ExtendedKeyUsagePurpose::ClientAuth)?;
        if !enrolment.is_empty() {
            params.distinguished_name.push(DnType::CustomDnType(identity::ENROLMENT.to_vec()), enrolment);
        }
        params.subject_alt_names.push(SanType::URI(self.identities.operator_uri(name).try_into()?));
        Ok(pem(params.signed_by(&request.0, &self.issuer)?.der()))
    }

    /// A client certificate for a node, good for [`NODE_TTL`], as PEM. It says who the node is, and
    /// of which enrolment; where it is and what it may hold is in its record, so that neither
    /// outlives it.
    ///
    /// # Errors
    /// [`AuthorityError::Sign`].
    pub fn sign_node(&self, request: &Request, node: &NodeId, enrolment: &str) -> Result<String, AuthorityError> {
        let mut params = leaf(node.as_str(), NODE_TTL, ExtendedKeyUsagePurpose::ClientAuth)?;
        params.distinguished_name.push(DnType::CustomDnType(identity::ENROLMENT.to_vec()), enrolment);
        params.subject_alt_names.push(SanType::URI(self.identities.node_uri(node).try_into()?));
        Ok(pem(params.signed_by(&request.0, &self.issuer)?.der()))
    }

    /// A server certificate for a listener that is reached by `names` (DNS names and addresses). It
    /// is also good for `seks-control-plane`, by which a client can check that it has reached a
    /// control plane of this CA, wherever that is.
    ///
    /// # Errors
    /// [`AuthorityError::Sign`] for a name that can't be in a certificate.
    pub fn server_certificate(&self, names: &[String]) -> Result<ServerIdentity, AuthorityError> {
        let mut params = leaf(identity::SERVER_NAME, SERVER_TTL, ExtendedKeyUsagePurpose::ServerAuth)?;
        params.subject_alt_names.push(SanType::DnsName(identity::SERVER_NAME.try_into()?));
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok(ServerIdentity {
            certificate,
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            renew_in: SERVER_TTL * 2 / 3,
        })
    }

    /// A new key with its operator certificate, for the first operator. Its key is generated here,
    /// because no other operator exists yet.
    ///
    /// # Errors
    /// [`AuthorityError::Sign`].
    pub(crate) fn make_operator(
        &self,
        name: &OperatorName,
        enrolment: &str,
    ) -> Result<(String, String), AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let csr = CertificateParams::default().serialize_request(&key)?;
        let certificate = self.sign_operator(&Request::parse(csr.der())?, name, enrolment, OPERATOR_TTL)?;
        Ok((certificate, key.serialize_pem()))
    }
}

/// Refuses a lifetime that an operator's certificate can't have.
///
/// # Errors
/// [`AuthorityError::Lifetime`].
pub fn check_operator_ttl(ttl: Duration) -> Result<(), AuthorityError> {
    if ttl < Duration::from_secs(60) || ttl > Duration::from_secs(MAX_OPERATOR_DAYS * DAY) {
        return Err(AuthorityError::Lifetime(MAX_OPERATOR_DAYS));
    }
    Ok(())
}

fn leaf(name: &str, ttl: Duration, usage: ExtendedKeyUsagePurpose) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "SEKS");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial()?);
    set_lifetime(&mut params, ttl);
    Ok(params)
}

pub(super) fn set_lifetime(params: &mut CertificateParams, ttl: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - identity::BACKDATE).into();
    params.not_after = (now + ttl).into();
}

/// 127 random bits: unique without a counter (CA/Browser Forum asks for 64).
pub(super) fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut random = [0_u8; 16];
    getrandom::fill(&mut random).map_err(AuthorityError::Random)?;
    random[0] &= 0x7f; // a positive INTEGER
    Ok(SerialNumber::from_slice(&random))
}

pub(super) fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 60);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).unwrap_or_default());
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

// The public key's bytes are what is certified; the trait is only needed to hand it on.
const _: fn(&Request) -> &dyn PublicKeyData = |request| &request.0;
