//! A certificate that has expired is worth nothing, on connections that were opened with it too.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{DnType, DnValue, KeyPair, SanType};
use rustls::HandshakeKind;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use seks_control_plane::registry::{Admission, Joining};
use seks_proto::wire::{
    self, NodeMessage, audit_trail_client::AuditTrailClient, audit_upload, distribution_client::DistributionClient,
    node_message,
};
use seks_protocol::{Recipient, features};
use seks_tests::{
    Control,
    control::{Pair, connect},
};
use seks_types::id::NodeId;
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

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

/// How `stream` ends. It may last a few times as long as the certificate.
async fn end_of<T>(mut stream: Streaming<T>) -> Status {
    let end = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("it has ended without a reason"),
                Err(status) => return status,
            }
        }
    };
    timeout(LIFE * 10, end).await.expect("the stream goes on after the certificate's end")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_stream_ends_with_the_certificate() {
    let control = Control::start().await;
    let pair = control.forge(|params| params.not_after = (SystemTime::now() + LIFE).into()).await;
    let follow = wire::SearchAuditRequest::default();
    let stream = control.client(&pair).follow_fleet_audit(follow.clone()).await.unwrap().into_inner();
    let mut lasting = control.root().follow_fleet_audit(follow).await.unwrap().into_inner();
    assert!(lasting.message().await.unwrap().is_some());
    let end = end_of(stream).await;
    assert!(end.code() == Code::PermissionDenied && end.message().contains("expired"), "{end}");
    let more = timeout(Duration::from_millis(100), lasting.message()).await;
    assert!(more.is_err(), "a stream with a valid certificate goes on: {more:?}");
    control.plane.shutdown().await;
}

/// Enrols a node and makes a certificate for it that ends after [`LIFE`].
async fn short_node(control: &Control, node: &NodeId) -> Pair {
    let registry = control.plane.registry();
    let token = registry.create_join_token(Admission::default(), "00").await.unwrap();
    let joining = Joining { token: &token.text, node: Some(node.clone()), key_sha256: [7; 32] };
    let enrolment = registry.enrol(&joining).await.unwrap().enrolment;
    let mut params = seks_tests::control::root_params();
    let serial_number = DnType::CustomDnType(vec![2, 5, 4, 5]);
    params.distinguished_name.push(serial_number, DnValue::PrintableString(enrolment.try_into().unwrap()));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://seks/node/{node}").try_into().unwrap())];
    params.not_after = (SystemTime::now() + LIFE).into();
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &control.ca().await).unwrap().pem();
    Pair { certificate, key: key.serialize_pem() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_streams_end_with_the_certificate() {
    let control = Control::start().await;
    let node: NodeId = "short-lived".parse().unwrap();
    let pair = short_node(&control, &node).await;
    let channel = connect(&control.plane.distribution_addr().to_string(), &control.plane.ca_pem(), &pair);

    let hello = wire::Hello {
        protocol: 1,
        node: node.to_string(),
        version: "test".into(),
        features: features::ALL.iter().map(|&feature| feature.into()).collect(),
        session_key: Recipient::generate().unwrap().public_key().to_vec(),
        ..Default::default()
    };
    let (changes, messages) = mpsc::channel(1);
    changes.send(NodeMessage { message: Some(node_message::Message::Hello(hello)) }).await.unwrap();
    let mut distribution = DistributionClient::new(channel.clone());
    let changes_answer = distribution.sync(ReceiverStream::new(messages)).await.unwrap().into_inner();

    let hello = wire::AuditUploadHello { node: node.to_string(), ..Default::default() };
    let (upload, messages) = mpsc::channel(1);
    upload.send(wire::AuditUpload { message: Some(audit_upload::Message::Hello(hello)) }).await.unwrap();
    let mut trail = AuditTrailClient::new(channel.clone());
    let mut upload_answer = trail.upload(ReceiverStream::new(messages)).await.unwrap().into_inner();
    assert!(upload_answer.message().await.unwrap().is_some());

    let (changes_end, upload_end) = tokio::join!(end_of(changes_answer), end_of(upload_answer));
    for end in [changes_end, upload_end] {
        assert!(end.code() != Code::Ok && end.message().contains("certificate has expired"), "{end:?}");
    }
    let again = trail.open_segments(wire::OpenSegmentsRequest::default()).await.unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated, "{again}");
    drop((changes, upload));
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
