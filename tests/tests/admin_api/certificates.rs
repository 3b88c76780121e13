//! Certificates: which of them end the handshake, and which get as far as being denied.

use std::{sync::Arc, time::Duration};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use seks_proto::wire::{self, Role};
use seks_tests::{
    Control,
    control::{Pair, forge, root_params},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

use super::{call_all, records, seed_fixtures};

/// The TLS alert or error with which the server ends a handshake that shows `pair`; `None` when it
/// takes it.
async fn handshake(control: &Control, pair: Option<&Pair>) -> Option<std::io::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(control.plane.ca_pem().as_bytes()).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(control.plane.admin_addr()).await.unwrap();
    let name = ServerName::try_from("seks-control-plane").unwrap();
    let mut tls = match tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
        Ok(tls) => tls,
        Err(error) => return Some(error),
    };
    // With TLS 1.3 the server's verdict comes after the client's handshake is done: with the first
    // bytes it reads.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    if let Err(error) = tls.write_all(preface).await {
        return Some(error);
    }
    let read = tokio::time::timeout(Duration::from_secs(20), tls.read_u8()).await.unwrap();
    read.err()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_the_ca_did_not_make_for_a_client_end_the_handshake() {
    let control = Control::start().await;
    assert!(handshake(&control, Some(&control.root)).await.is_none(), "the positive control");
    assert!(handshake(&control, Some(&control.forge(|_| {}).await)).await.is_none(), "a forgery that nobody can tell");

    let key = KeyPair::generate().unwrap();
    let mut other = CertificateParams::default();
    other.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let other = Issuer::new(other, key);
    let key = KeyPair::generate().unwrap();
    let certificate = root_params().self_signed(&key).unwrap().pem();
    let hour = Duration::from_secs(3600);
    let now = std::time::SystemTime::now();
    let wrong = [
        ("another CA", forge(&other, |_| {})),
        ("self-signed", Pair { certificate, key: key.serialize_pem() }),
        (
            "expired",
            control.forge(|p| (p.not_before, p.not_after) = ((now - 2 * hour).into(), (now - hour).into())).await,
        ),
        ("not yet valid", control.forge(|p| p.not_before = (now + hour).into()).await),
        ("for servers", control.forge(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]).await),
    ];
    for (what, pair) in &wrong {
        assert!(handshake(&control, Some(pair)).await.is_some(), "{what} was taken");
        let status = control.client(pair).status(wire::StatusRequest {}).await.unwrap_err();
        assert_ne!(status.code(), Code::PermissionDenied, "{what} got as far as the API");
    }
    assert!(handshake(&control, None).await.is_some(), "no certificate was taken");
    control.plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_the_ca_that_name_no_operator_are_denied_everything() {
    let control = Control::start().await;
    let token = seed_fixtures(&mut control.root(), "acme").await;
    let uri = |text: &str| vec![SanType::URI(text.try_into().unwrap())];
    let dns = vec![SanType::DnsName("root".try_into().unwrap())];
    let both = vec![uri("spiffe://seks/operator/root").remove(0), uri("spiffe://seks/operator/x").remove(0)];
    let names = [
        ("a common name only", Vec::new()),
        ("a DNS name", dns),
        ("a node", uri("spiffe://seks/node/root")),
        ("an operator that isn't", uri("spiffe://seks/operator/ghost")),
        ("two operators", both),
        ("another trust domain", uri("spiffe://seks.test/operator/root")),
    ];
    for (what, names) in names {
        let pair = control.forge(|p| p.subject_alt_names = names).await;
        let before = records(&control).await;
        for (method, end) in call_all(&mut control.client(&pair), "acme", &token).await {
            let status = end.unwrap_or_else(|| panic!("{what} was allowed {method}"));
            assert_eq!(status.code(), Code::PermissionDenied, "{what} {method}");
        }
        assert_eq!(records(&control).await, before, "{what} wrote something");
    }
    control.plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_operators_certificate_is_worth_nothing_and_stays_so_for_a_namesake() {
    let control = Control::start().await;
    // As if it had been signed long before the namesake's record was made.
    let old = control
        .forge(|p| {
            p.subject_alt_names = vec![SanType::URI("spiffe://seks/operator/ann".try_into().unwrap())];
            p.not_before = (std::time::SystemTime::now() - Duration::from_secs(600)).into();
        })
        .await;
    let new = control.operator("ann", &[("*", Role::Owner)]).await;
    control.client(&new).who_am_i(wire::WhoAmIRequest {}).await.unwrap();
    let status = control.client(&old).who_am_i(wire::WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let delete = wire::DeleteRequest { tenant: String::new(), name: "ann".into(), wait: None };
    control.root().delete_operator(delete).await.unwrap();
    let status = control.client(&new).who_am_i(wire::WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    control.plane.shutdown().await;
}
