//! TLS upstreams: verified before any byte, and HTTP/2 where ALPN chooses it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::{io::AsyncReadExt as _, net::TcpListener};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use crate::rig::{CREDENTIAL, Rig};

pub struct Pki {
    pub ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Pki {
    pub fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self { ca: rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap() }
    }

    pub fn acceptor(&self, change: impl FnOnce(&mut rcgen::CertificateParams), alpn: &[&[u8]]) -> TlsAcceptor {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Counts application bytes behind a handshake that should fail.
async fn counting(acceptor: TlsAcceptor) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let bytes = Arc::new(AtomicUsize::new(0));
    let count = bytes.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(mut tls) = acceptor.accept(tcp).await {
                let mut buffer = [0; 1024];
                while let Ok(n) = tls.read(&mut buffer).await {
                    if n == 0 {
                        break;
                    }
                    count.fetch_add(n, SeqCst);
                }
            }
        }
    });
    (address, bytes)
}

async fn rig(address: SocketAddr, ca_pem: String) -> Rig {
    let https = move |s: &mut seks_proto::wire::Service| {
        s.upstream = format!("https://{address}");
        s.upstream_ca_pem = ca_pem.clone();
    };
    Rig::with(address, https, |_| {}).await
}

#[tokio::test]
async fn an_upstream_that_can_not_be_verified_gets_no_byte() {
    seks_runtime::install_crypto_provider();
    let (pki, other) = (Pki::new(), Pki::new());
    let far_ahead = (rcgen::date_time_ymd(2101, 1, 1), rcgen::date_time_ymd(2102, 1, 1));
    let long_ago = (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
    let acceptors = [
        ("from an unknown issuer", other.acceptor(|_| {}, &[])),
        (
            "for another name",
            pki.acceptor(|p| p.subject_alt_names = vec![rcgen::SanType::IpAddress([127, 0, 0, 2].into())], &[]),
        ),
        ("for another name", pki.acceptor(|p| p.subject_alt_names.clear(), &[])),
        ("not valid yet", pki.acceptor(|p| (p.not_before, p.not_after) = far_ahead, &[])),
        ("has expired", pki.acceptor(|p| (p.not_before, p.not_after) = long_ago, &[])),
        ("not valid", pki.acceptor(|p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth], &[])),
    ];
    for (what, acceptor) in acceptors {
        let (address, bytes) = counting(acceptor).await;
        let rig = rig(address, pki.ca.pem()).await;
        let reply = rig.get("/api/openai/models").await;
        assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_tls"), "{what} {reply:?}");
        assert!(reply.text.contains(what), "{what} {reply:?}");
        assert_eq!(bytes.load(SeqCst), 0, "{what}");
    }
}

#[tokio::test]
async fn a_private_ca_is_trusted_for_its_own_service_only() {
    seks_runtime::install_crypto_provider();
    let pki = Pki::new();
    let (address, bytes) = counting(pki.acceptor(|_| {}, &[])).await;
    let rig = rig(address, String::new()).await; // the machine's roots
    assert_eq!(rig.get("/api/openai/models").await.code(), "upstream_tls");
    assert_eq!(bytes.load(SeqCst), 0);
}

#[tokio::test]
async fn h2_is_spoken_where_the_upstream_chooses_it_and_one_connection_carries_all() {
    seks_runtime::install_crypto_provider();
    let pki = Pki::new();
    let acceptor = pki.acceptor(|_| {}, &[b"h2", b"http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            count.fetch_add(1, SeqCst);
            let tls = acceptor.accept(tcp).await.unwrap();
            let service = service_fn(|request: Request<Incoming>| async move {
                let said = format!(
                    "{} {} {:?}\n",
                    request.uri(),
                    request.headers()["authorization"].to_str().unwrap().contains(CREDENTIAL),
                    request.headers().get("host"),
                );
                let body = request.into_body().collect().await?.to_bytes();
                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from([said.as_bytes(), &body].concat()))))
            });
            tokio::spawn(async move {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
    let rig = rig(address, pki.ca.pem()).await;
    for _ in 0..3 {
        let raw = "POST /api/openai/x?a=b HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\nContent-Length: 4\r\n\r\nping";
        let reply = rig.send(raw).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let expected = format!("https://{address}/v1/x?a=b true None\nping");
        assert!(reply.text.ends_with(&expected), "{reply:?}");
    }
    assert_eq!(connections.load(SeqCst), 1);
    // A new node whose first requests come at once: the first handshake tells that one connection
    // carries all.
    let rig = self::rig(address, pki.ca.pem()).await;
    let replies = futures_util::future::join_all((0..25).map(|_| rig.send("POST /api/openai/x HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\nContent-Length: 4\r\n\r\nping"))).await;
    assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?}");
    assert_eq!(connections.load(SeqCst), 2);
}
