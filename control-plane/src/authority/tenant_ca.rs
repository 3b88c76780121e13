//! The certificate of a tenant's interception CA that clients trust.
//!
//! Nodes sign certificates of hosts with the key of this CA, so a stolen node can sign for any
//! host. Therefore the certificate of the CA limits the hosts by name constraints (RFC 5280,
//! 4.2.1.10) to those of the tenant's services. It is issued again, with the same key and subject,
//! when these hosts change and when a third of its lifetime is left. A client that trusts an older
//! certificate can use the hosts in that one until it expires.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, DistinguishedName, DnType, GeneralSubtree, IsCa,
    KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, GeneralSubtree as Parsed},
    prelude::FromDer as _,
};

/// Clocks of clients may be slow.
const BACKDATE: Duration = Duration::from_secs(3600);
/// A host name that never exists (RFC 6761, 6.4): permits none, where a list of permitted names may
/// not be empty.
const NO_NAME: &str = "invalid";

/// Why there is no certificate. Says nothing of a key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TenantCaError {
    /// The certificate that the CA was made with.
    #[error("the CA's certificate can't be read")]
    Certificate,
    /// Its subject is none that `seks ca create` gives: it can't be written again.
    #[error("the CA's subject isn't one of `seks ca create`")]
    Subject,
    /// Its key.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
}

/// Whether `pem` is for exactly `hosts`, of the same CA as `original`, and has more than a third of
/// its life left.
pub(crate) fn is_current(pem: &str, original: &str, hosts: &BTreeSet<String>, now: SystemTime) -> bool {
    let (Some(der), Some(original)) = (der_of(pem), der_of(original)) else { return false };
    let (Ok((_, have)), Ok((_, original))) = (X509Certificate::from_der(&der), X509Certificate::from_der(&original))
    else {
        return false;
    };
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let (begin, end) = (have.validity().not_before.timestamp(), have.validity().not_after.timestamp());
    have.public_key().raw == original.public_key().raw && (end - now) * 3 > end - begin && hosts_of(&have) == *hosts
}

/// Whether `certificate` (DER) is of the same CA as `pem`.
pub(crate) fn is_of(certificate: &[u8], pem: &str) -> bool {
    let Some(der) = der_of(pem) else { return false };
    let key = |der: &[u8]| X509Certificate::from_der(der).map(|(_, c)| c.public_key().raw.to_vec());
    matches!((key(certificate), key(&der)), (Ok(a), Ok(b)) if a == b)
}

/// The certificate for `hosts`, in PEM: the subject, the key and the length of life of `original`.
pub(crate) fn make(
    original: &[u8],
    key: &[u8],
    hosts: &BTreeSet<String>,
    now: SystemTime,
) -> Result<String, TenantCaError> {
    let (_, parsed) = X509Certificate::from_der(original).map_err(|_| TenantCaError::Certificate)?;
    let text = |found: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        found.and_then(|a| a.as_str().ok()).map(str::to_owned).ok_or(TenantCaError::Subject)
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, text(parsed.subject().iter_organization().next())?);
    params.distinguished_name.push(DnType::CommonName, text(parsed.subject().iter_common_name().next())?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)); // it signs hosts, never another CA
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(constraints(hosts));
    let life = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
    let life = Duration::from_secs(u64::try_from(life).unwrap_or_default()).saturating_sub(BACKDATE);
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + life).into();
    let made = CertifiedIssuer::self_signed(params, KeyPair::try_from(&PrivatePkcs8KeyDer::from(key))?)?;
    let (_, again) = X509Certificate::from_der(made.der()).map_err(|_| TenantCaError::Certificate)?;
    // Leaves name their issuer byte for byte, and this must be it.
    let same =
        again.subject().as_raw() == parsed.subject().as_raw() && again.public_key().raw == parsed.public_key().raw;
    if same { Ok(made.pem()) } else { Err(TenantCaError::Subject) }
}

/// Only these: a name (with the names below it, which the standard doesn't let one leave out), or
/// an address.
fn constraints(hosts: &BTreeSet<String>) -> NameConstraints {
    let (mut names, mut addresses) = (Vec::new(), Vec::new());
    for host in hosts {
        match host.parse::<IpAddr>() {
            Ok(ip) => addresses.push(GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip, prefix(ip)))),
            Err(_) => names.push(GeneralSubtree::DnsName(host.clone())),
        }
    }
    if names.is_empty() {
        names.push(GeneralSubtree::DnsName(NO_NAME.into()));
    }
    // A kind of name that isn't constrained is unconstrained.
    let every = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    let every = every.map(|ip| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip, 0)));
    let excluded_subtrees = if addresses.is_empty() { every.into() } else { Vec::new() };
    NameConstraints { permitted_subtrees: [names, addresses].concat(), excluded_subtrees }
}

fn prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn hosts_of(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let permitted = certificate.name_constraints().ok().flatten().and_then(|c| c.value.permitted_subtrees.as_ref());
    let host = |subtree: &Parsed<'_>| match &subtree.base {
        GeneralName::DNSName(name) => Some((*name).to_owned()).filter(|name| name != NO_NAME),
        GeneralName::IPAddress(bytes) => {
            let (address, _mask) = bytes.split_at_checked(bytes.len() / 2)?;
            let v4 = || <[u8; 4]>::try_from(address).map(IpAddr::from);
            v4().or_else(|_| <[u8; 16]>::try_from(address).map(IpAddr::from)).ok().map(|ip| ip.to_string())
        }
        _ => None,
    };
    permitted.into_iter().flatten().filter_map(host).collect()
}

fn der_of(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::Issuer;
    use rustls::{RootCertStore, client::WebPkiServerVerifier, client::danger::ServerCertVerifier as _};
    use rustls_pki_types::{ServerName, UnixTime};

    use super::*;

    fn hosts(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// A CA as `seks ca create` makes it: its certificate in DER and PEM, and its key.
    fn original(key: &KeyPair) -> (Vec<u8>, String, Vec<u8>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "SEKS");
        params.distinguished_name.push(DnType::CommonName, "SEKS interception CA of tenant acme");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let now = SystemTime::now();
        (params.not_before, params.not_after) =
            ((now - BACKDATE).into(), (now + Duration::from_secs(30 * 86400)).into());
        let der = key.serialize_der();
        let ca = CertifiedIssuer::self_signed(params, KeyPair::try_from(&PrivatePkcs8KeyDer::from(&der[..])).unwrap())
            .unwrap();
        (ca.der().to_vec(), ca.pem(), der)
    }

    /// Whether a client that trusts `pem` takes a certificate for `host` that a node has signed
    /// with the original.
    fn takes(pem: &str, original: &[u8], key: &[u8], host: &str) -> bool {
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key)).unwrap();
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(original), key).unwrap();
        let leaf = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(der_of(pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        verifier.verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn a_client_takes_certificates_for_the_hosts_of_services_and_no_others() {
        let (der, pem, key) = original(&KeyPair::generate().unwrap());
        assert!(takes(&pem, &der, &key, "bank.test"), "without constraints it takes any");
        for (services, yes, no) in [
            (
                hosts(&["api.a.test", "b.test"]),
                vec!["api.a.test", "b.test", "x.b.test"],
                vec!["a.test", "bank.test", "xb.test", "127.0.0.1", "::1"],
            ),
            (hosts(&["127.0.0.1"]), vec!["127.0.0.1"], vec!["127.0.0.2", "::1", "bank.test", "localhost"]),
            (
                hosts(&["a.test", "::1", "10.0.0.1"]),
                vec!["a.test", "::1", "10.0.0.1"],
                vec!["b.test", "::2", "10.0.0.2"],
            ),
            (hosts(&[]), vec![], vec!["bank.test", "127.0.0.1"]),
        ] {
            let made = make(&der, &key, &services, SystemTime::now()).unwrap();
            yes.iter().for_each(|host| assert!(takes(&made, &der, &key, host), "{services:?} {host}"));
            no.iter().for_each(|host| assert!(!takes(&made, &der, &key, host), "{services:?} {host}"));
        }
    }

    #[test]
    fn it_is_made_again_when_hosts_or_the_ca_change_and_before_it_expires() {
        let ((der, pem, key), (_, other, _)) =
            (original(&KeyPair::generate().unwrap()), original(&KeyPair::generate().unwrap()));
        let (now, services) = (SystemTime::now(), hosts(&["a.test", "10.0.0.1"]));
        let made = make(&der, &key, &services, now).unwrap();
        let later = |days: u64| now + Duration::from_secs(days * 86400);
        assert!(is_current(&made, &pem, &services, now) && is_current(&made, &pem, &services, later(19)));
        assert!(!is_current(&made, &pem, &services, later(21)), "a third of 30 days is left");
        assert!(!is_current(&made, &pem, &hosts(&["a.test"]), now) && !is_current(&made, &other, &services, now));
        assert!(!is_current(&pem, &pem, &services, now) && !is_current("", &pem, &services, now));
        assert!(is_of(&der, &made) && is_of(&der, &pem) && !is_of(&der, &other));
    }
}
