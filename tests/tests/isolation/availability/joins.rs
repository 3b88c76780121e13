//! Attackers that call `Enrolment/Join` without a token that is good.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use prost::Message as _;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use seks_proto::wire::JoinRequest;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::attackers::Deed;

/// Calls on one connection.
const CALLS: usize = 20;

/// Calls `Join` on each connection [`CALLS`] times with `token`, as fast as it is answered.
pub fn joins(token: &str) -> Deed {
    let message = JoinRequest { join_token: token.into(), node: String::new(), csr_der: vec![0x30; 400] };
    let mut frame = BytesMut::new();
    frame.put_u8(0); // not compressed
    frame.put_u32(message.encoded_len().try_into().unwrap());
    message.encode(&mut frame).unwrap();
    let (frame, connector) = (frame.freeze(), TlsConnector::from(Arc::new(trusting())));
    Arc::new(move |stream| {
        let (frame, connector) = (frame.clone(), connector.clone());
        // A listener that is silent costs the attacker a connection, and nobody anything.
        Box::pin(async move { drop(timeout(Duration::from_secs(10), call(stream, connector, frame)).await) })
    })
}

async fn call(stream: TcpStream, connector: TlsConnector, frame: Bytes) -> Option<()> {
    let name = ServerName::try_from("seks-control-plane").unwrap();
    let tls = connector.connect(name, stream).await.ok()?;
    let (mut requests, connection) = h2::client::handshake(tls).await.ok()?;
    let calls = async {
        for _ in 0..CALLS {
            let request = Request::post("https://seks-control-plane/seks.v1.Enrolment/Join")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .unwrap();
            requests = requests.ready().await.ok()?;
            let (answer, mut body) = requests.send_request(request, false).ok()?;
            body.send_data(frame.clone(), true).ok()?;
            answer.await.ok()?;
        }
        Some(())
    };
    tokio::select! { done = calls => done, _ = connection => None }
}

/// The configuration of a client that takes any server for the right one.
fn trusting() -> ClientConfig {
    seks_tests::install_crypto_provider();
    let provider = CryptoProvider::get_default().unwrap().clone();
    let builder = ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Trusting(provider)));
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
