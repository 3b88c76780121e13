//! HTTPS_PROXY mode: tunnels in which the node is the host, and requests in them that go through
//! every stage.

use std::{net::SocketAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::ServerName;
use seks_data_plane::{
    Config,
    config::ForwardProxyConfig,
    table::{Change, TokenRecord},
};
use seks_proto::wire;
use seks_service::{INTERCEPTION, INTERCEPTION_CERTIFICATE, INTERCEPTION_KEY, Service};
use seks_types::secret::{Fields, Secret};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls};

use crate::{
    rig::{CREDENTIAL, PATIENCE, Reply, Rig, Seen, definition, header_site, name, read_reply},
    tls::Pki,
};

/// A node with a tenant's CA, and an upstream behind TLS that echoes the head of what it is asked.
pub struct World {
    pub rig: Rig,
    upstream: SocketAddr,
    seen: Seen,
    ca: CertifiedIssuer<'static, KeyPair>,
}

async fn tls_upstream() -> (SocketAddr, Seen, Pki) {
    seks_runtime::install_crypto_provider();
    let pki = Pki::new();
    let acceptor = pki.acceptor(|_| {}, &[b"http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let recorder = seen.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, recorder) = (acceptor.clone(), recorder.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let index = recorder.open();
                let mut chunk = [0; 8192];
                while let Ok(n @ 1..) = tls.read(&mut chunk).await {
                    recorder.record(index, &chunk[..n]);
                    let said = String::from_utf8_lossy(&chunk[..n]).into_owned();
                    let answer = if said.contains("/stream ") {
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n".to_owned()
                    } else {
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len())
                    };
                    if tls.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, seen, pki)
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// The CA's service.
pub fn ca_service() -> wire::Service {
    let mut service = definition(INTERCEPTION, "127.0.0.1:1".parse().unwrap());
    service.upstream = "https://interception.invalid".into(); // leave for private addresses: as `definition` says
    service.fields = vec![INTERCEPTION_CERTIFICATE.into(), INTERCEPTION_KEY.into()];
    let field = |name: &str| header_site(&format!("x-{name}"), &format!("{{{name}}}"));
    let sites = service.fields.iter().map(|f| field(f)).collect();
    service.injection = Some(wire::Injection { sites, ..Default::default() });
    service
}

/// The CA's service and credential, and tokens that reach it.
fn interception(rig: &Rig, ca: &CertifiedIssuer<'static, KeyPair>) -> Vec<Change> {
    let service = ca_service();
    let (certificate, key) = (STANDARD.encode(ca.der()), STANDARD.encode(ca.key().serialize_der()));
    let json = serde_json::json!({ INTERCEPTION_CERTIFICATE: certificate, INTERCEPTION_KEY: key }).to_string();
    let fields = Fields::parse(&service.fields, &Secret::new(json.into_bytes())).unwrap();
    let credential = Change::Credential {
        tenant: name("default"),
        name: name(INTERCEPTION),
        service: name(INTERCEPTION),
        version: 1,
        minted: false,
        destination: None,
        secret: Some(Secret::new(fields.encoded().expose().to_vec())),
    };
    let token = TokenRecord {
        digest: rig.token.digest(),
        id: "tok-1".into(),
        tenant: name("default"),
        agent: name("bot"),
        grants: vec![(name("openai"), name("openai-key")), (name(INTERCEPTION), name(INTERCEPTION))],
        issued_at: 1,
        expires_at: 0,
        cidrs: Vec::new(),
        certificate: None,
        trust: None,
    };
    let service = Change::Service(Box::new(Service::try_from(&service).unwrap()));
    vec![service, credential, Change::Token(Box::new(token))]
}

impl World {
    async fn start(tenant: Option<&str>) -> Self {
        Self::with(tenant, |_| {}).await
    }

    /// `more`: of the node's configuration.
    pub async fn with(tenant: Option<&str>, more: impl Fn(&mut Config)) -> Self {
        let (upstream, seen, pki) = tls_upstream().await;
        let ca_pem = pki.ca.pem();
        let https = move |s: &mut wire::Service| {
            if s.name == "openai" {
                s.upstream = format!("https://{upstream}");
                s.upstream_ca_pem = ca_pem.clone();
                s.allow_websocket = true;
            }
        };
        let tenant = tenant.map(str::to_owned);
        let config = move |c: &mut Config| {
            c.forward_proxy =
                Some(ForwardProxyConfig { listen: "127.0.0.1:0".parse().unwrap(), tenant: tenant.clone() });
            more(c);
        };
        let rig = Rig::with(upstream, https, config).await;
        let ca = authority();
        rig.apply(interception(&rig, &ca));
        Self { rig, upstream, seen, ca }
    }

    pub fn basic(&self) -> String {
        format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("agent:{}", self.rig.token.as_str())))
    }

    async fn ask(&self, request: &str) -> (Reply, TcpStream) {
        let mut tcp = TcpStream::connect(self.rig.node.forward_addr().unwrap()).await.unwrap();
        tcp.write_all(self.rig.fill(request).as_bytes()).await.unwrap();
        let reply = read_reply(&mut tcp, request.starts_with("CONNECT")).await;
        (reply, tcp)
    }

    pub async fn connect_to(&self, host: &str, more: &str) -> (Reply, TcpStream) {
        self.ask(&format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")).await
    }

    /// A tunnel, with TLS by the tenant's CA in it.
    async fn tunnel(&self, more: &str, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let (reply, tcp) = self.connect_to(&self.upstream.to_string(), more).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        self.handshake(tcp, alpn).await.unwrap()
    }

    async fn handshake(&self, tcp: TcpStream, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = ServerName::try_from(self.upstream.ip().to_string()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }
}

async fn exchange(tls: &mut TlsStream<TcpStream>, request: &str) -> String {
    tls.write_all(request.as_bytes()).await.unwrap();
    let (mut got, mut chunk) = (Vec::new(), [0; 8192]);
    loop {
        let text = String::from_utf8_lossy(&got).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if length.is_some_and(|n| body.len() >= n) {
                return text;
            }
        }
        let n = tokio::time::timeout(PATIENCE, tls.read(&mut chunk)).await.expect("an answer").unwrap();
        assert!(n > 0, "{text}");
        got.extend_from_slice(&chunk[..n]);
    }
}

#[tokio::test]
async fn the_token_is_the_proxys_password_or_stands_in_the_request() {
    let world = World::start(Some("default")).await;
    let host = world.upstream;
    for (shown, inside) in
        [(world.basic(), ""), (String::new(), "Authorization: Bearer {T1}\r\n"), (world.basic(), "x-api-key: {T1}\r\n")]
    {
        let mut tls = world.tunnel(&shown, &[b"http/1.1"]).await;
        for path in ["/v1/models?x=1", "/v1/other"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{inside}Cookie: a=b\r\n\r\n");
            let answer = exchange(&mut tls, &world.rig.fill(&request)).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("x-seks-request-id"), "{answer}");
            assert!(answer.contains(&format!("GET {path} HTTP/1.1")), "{answer}");
            assert!(!answer.contains(CREDENTIAL), "scrubbed: {answer}");
        }
    }
    let seen = world.seen.text();
    assert_eq!(seen.matches(&format!("Bearer {CREDENTIAL}\r\n")).count(), 6, "{seen}");
    assert!(
        !seen.contains("seks_token_") && !seen.to_lowercase().contains("proxy-") && !seen.contains("a=b"),
        "{seen}"
    );
}

#[tokio::test]
async fn http2_is_spoken_in_a_tunnel() {
    let world = World::start(None).await;
    let tls = world.tunnel(&world.basic(), &[b"h2", b"http/1.1"]).await;
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut client, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let uri = format!("https://{}/v1/models", world.upstream);
    let (answer, _) = client.send_request(http::Request::get(uri).body(()).unwrap(), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    let other = http::Request::get("https://other.test/v1/models").body(()).unwrap();
    let (answer, _) = client.send_request(other, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 421, "a tunnel is to one host");
    assert!(world.seen.text().contains(&format!("Bearer {CREDENTIAL}\r\n")));
}

#[tokio::test]
async fn hosts_of_no_granted_service_are_refused_and_so_is_who_shows_nothing() {
    let world = World::start(None).await;
    let host = world.upstream.to_string();
    for (target, shown, status, code) in [
        ("example.com:443", world.basic(), 403, "service_not_granted"),
        ("127.0.0.1:1", world.basic(), 403, "service_not_granted"),
        (host.as_str(), String::new(), 407, "token_missing"),
        (host.as_str(), "Proxy-Authorization: Bearer seks_token_wrong\r\n".into(), 407, "token_malformed"),
        (host.as_str(), "Proxy-Authorization: Bearer {T2}\r\n".into(), 403, "service_not_granted"), // has no CA
        (host.as_str(), "Proxy-Authorization: Bearer {T_EXPIRED}\r\n".into(), 407, "token_expired"),
    ] {
        let mut tcp = TcpStream::connect(world.rig.node.forward_addr().unwrap()).await.unwrap();
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{shown}\r\n");
        tcp.write_all(world.rig.fill(&request).as_bytes()).await.unwrap();
        let reply = read_reply(&mut tcp, false).await;
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{target} {shown} {reply:?}");
        assert_eq!(status == 407, reply.text.to_lowercase().contains("proxy-authenticate: basic"), "{reply:?}");
    }
    let (reply, _) =
        world.ask("GET /api/openai/models HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n").await;
    assert_eq!(reply.code(), "request_invalid", "a proxy is no origin: {reply:?}");
    let reply = world.rig.send("CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n").await;
    assert_eq!(reply.status, 405, "and an origin is no proxy: {reply:?}");
    let reply = world.rig.get("/api/seks-interception/x").await;
    assert_eq!(reply.code(), "service_unknown", "the CA is nobody's upstream: {reply:?}");
    assert_eq!(world.seen.requests(), 0);
}

#[tokio::test]
async fn inside_a_tunnel_everything_holds_that_holds_outside() {
    let world = World::start(None).await;
    let host = world.upstream;
    let mut tls = world.tunnel(&world.basic(), &[b"http/1.1"]).await;
    let answer = exchange(&mut tls, &format!("GET /v1/admin/x HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    assert!(answer.contains("policy_denied") && answer.contains("no-admin"), "{answer}");
    for (request, code) in [
        ("GET /v1/x HTTP/1.1\r\nHost: other.test\r\n\r\n".to_owned(), "421"),
        (format!("GET /v1/../x HTTP/1.1\r\nHost: {host}\r\n\r\n"), "400"),
        (format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n"), "405"),
        (format!("GET /v1/x HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {{T2}}\r\n\r\n"), "401"), // another token
    ] {
        let mut tls = world.tunnel(&world.basic(), &[b"http/1.1"]).await;
        let answer = exchange(&mut tls, &world.rig.fill(&request)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{request} {answer}");
    }
    assert_eq!(world.seen.requests(), 0);
}

#[tokio::test]
async fn a_revocation_ends_open_tunnels_and_what_runs_in_them() {
    let world = World::start(None).await;
    let mut idle = world.tunnel(&world.basic(), &[b"http/1.1"]).await;
    let mut busy = world.tunnel(&world.basic(), &[b"http/1.1"]).await;
    let request = format!("GET /v1/stream HTTP/1.1\r\nHost: {}\r\n\r\n", world.upstream);
    busy.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains("first") {
        assert!(busy.read_buf(&mut got).await.unwrap() > 0);
    }
    world.rig.revoke();
    let both = async {
        let _ = idle.read_to_end(&mut Vec::new()).await;
        let mut rest = Vec::new();
        let _ = busy.read_to_end(&mut rest).await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "cut, not ended");
    };
    tokio::time::timeout(PATIENCE, both).await.expect("both tunnels end");
    let (reply, _) = world.connect_to(&world.upstream.to_string(), &world.basic()).await;
    assert_eq!(reply.status, 407, "{reply:?}");
}

#[tokio::test]
async fn plain_http_goes_through_by_its_absolute_target() {
    let (address, seen) = crate::rig::upstream(|_| (crate::rig::ok("{}"), false)).await;
    let config = |c: &mut Config| {
        c.forward_proxy = Some(ForwardProxyConfig { listen: "127.0.0.1:0".parse().unwrap(), tenant: None });
    };
    let rig = Rig::with(address, |_| {}, config).await;
    let mut tcp = TcpStream::connect(rig.node.forward_addr().unwrap()).await.unwrap();
    let basic = STANDARD.encode(format!("{}:", rig.token.as_str()));
    let request = format!(
        "GET http://{address}/v1/models HTTP/1.1\r\nHost: {address}\r\nProxy-Authorization: Basic {basic}\r\n\
         Proxy-Connection: keep-alive\r\n\r\n"
    );
    tcp.write_all(request.as_bytes()).await.unwrap();
    let reply = read_reply(&mut tcp, false).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = seen.text();
    assert!(text.contains("GET /v1/models HTTP/1.1\r\n") && text.contains(CREDENTIAL), "{text}");
    assert!(!text.to_lowercase().contains("proxy-"), "{text}");
    tcp.write_all(request.replace(&address.to_string(), "example.com").as_bytes()).await.unwrap();
    let reply = read_reply(&mut tcp, false).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "service_not_granted"), "{reply:?}");
}

#[tokio::test]
async fn a_certificate_is_the_tenants_short_lived_and_for_one_host() {
    let world = World::start(None).await;
    let tls = world.tunnel(&world.basic(), &[b"http/1.1"]).await;
    let leaf = tls.get_ref().1.peer_certificates().unwrap()[0].clone();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let hours = (parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp()) / 3600;
    assert!(hours <= 25 && !parsed.is_ca(), "{hours} hours");
    let again = world.tunnel(&world.basic(), &[b"http/1.1"]).await;
    assert_eq!(again.get_ref().1.peer_certificates().unwrap()[0], leaf, "made once");
    // Another CA's client does not take it.
    let (_, tcp) = world.connect_to(&world.upstream.to_string(), &world.basic()).await;
    let stranger = World { ca: authority(), ..World::start(None).await };
    let refused = World { upstream: world.upstream, ..stranger }.handshake(tcp, &[b"http/1.1"]).await;
    assert!(refused.is_err());
}
