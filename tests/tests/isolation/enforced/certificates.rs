//! A certificate that has expired is worth nothing, on connections that were opened with it too.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::HandshakeKind;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use seks_proto::wire;
use seks_tests::{Control, control::Pair};
use tokio::net::TcpStream;
use tonic::Code;

/// How long the certificates here are good for: as short as whole seconds allow.
const LIFE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_call_on_an_open_connection_is_refused_once_the_certificate_has_expired() {
    let control = Control::start().await;
    let pair = control.forge(|params| params.not_after = (SystemTime::now() + LIFE).into()).await;
    let mut client = control.client(&pair);
    client.who_am_i(wire::WhoAmIRequest {}).await.unwrap();
    let mut lasting = control.root();
    lasting.who_am_i(wire::WhoAmIRequest {}).await.unwrap();
    let deadline = SystemTime::now() + LIFE * 10;
    let refused = loop {
        match client.who_am_i(wire::WhoAmIRequest {}).await {
            Err(status) => break status,
            Ok(_) => assert!(SystemTime::now() < deadline, "it goes on after its end"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("expired"), "{refused}");
    lasting.who_am_i(wire::WhoAmIRequest {}).await.unwrap();
    control.plane.shutdown().await;
}

/// A client that resumes sessions where the server lets it.
fn resuming(control: &Control, pair: &Pair) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(control.plane.ca_pem().as_bytes()).unwrap()).unwrap();
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = builder.with_client_auth_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_is_resumed_where_certificates_are_shown() {
    let control = Control::start().await;
    let config = resuming(&control, &control.root);
    for address in [control.plane.admin_addr(), control.plane.distribution_addr()] {
        for n in 0..3 {
            let tcp = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("seks-control-plane").unwrap();
            let tls = tokio_rustls::TlsConnector::from(config.clone()).connect(name, tcp).await.unwrap();
            // Tickets come behind the handshake, with the first bytes.
            let (_, session) = tls.get_ref();
            assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full), "connection {n}");
            let (mut reader, mut writer) = tokio::io::split(tls);
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            tokio::io::AsyncWriteExt::write_all(&mut writer, preface).await.unwrap();
            tokio::io::AsyncReadExt::read_u8(&mut reader).await.unwrap();
        }
    }
    control.plane.shutdown().await;
}
