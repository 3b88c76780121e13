//! HTTPS_PROXY mode: the host of CONNECT, of the ClientHello and of each request are one.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use seks_tests::{
    Upstream, raw,
    sandbox::{Cli, Options, Sandbox, Token},
    upstream::{Answer, Host},
};

struct World {
    sandbox: Sandbox,
    upstream: Upstream,
    token: Token,
}

impl World {
    fn start() -> Self {
        seks_tests::install_crypto_provider();
        let config = "[forward_proxy]\nlisten = \"127.0.0.1:0\"\n".to_owned();
        let sandbox = Sandbox::with(Options { config, ..Options::default() });
        let upstream = Upstream::start_tls_as(Host::localhost(), |_| Answer::json(200, "{}"));
        let text = format!(
            "name = 'code'\nupstream = '{}'\nallow_private = true\ninject = 'bearer'\nupstream_ca_pem = '''\n{}'''\n",
            upstream.origin(),
            upstream.ca_pem().unwrap()
        );
        sandbox.cli().apply_service(&text);
        sandbox.cli().put_credential("code", "code", "sk-real-hosts-0123456789");
        assert_eq!(sandbox.cli().run(&["ca", "create"], "").code, Some(0));
        let token = sandbox.token("agent", &["code", "seks-interception"]);
        Self { sandbox, upstream, token }
    }

    fn cli(&self) -> &Cli {
        self.sandbox.cli()
    }

    fn authority(&self) -> String {
        self.upstream.origin().replace("https://", "")
    }

    /// What the node answers to CONNECT with these lines.
    fn connect(&self, lines: &str) -> u16 {
        let shown = format!("Proxy-Authorization: Bearer {}\r\n", self.token.secret);
        let request = format!("CONNECT {} HTTP/1.1\r\n{lines}{shown}\r\n", self.authority());
        let mut connection = raw::Connection::open(self.sandbox.forward_proxy().unwrap());
        connection.send(request);
        connection.read_head().unwrap().0
    }

    /// A tunnel to the service's host, in which TLS names `host`.
    fn tunnel(&self, host: &str) -> StreamOwned<ClientConnection, TcpStream> {
        self.tunnel_trusting(host, &shown_ca(self))
    }

    fn tunnel_trusting(&self, host: &str, ca: &CertificateDer<'static>) -> StreamOwned<ClientConnection, TcpStream> {
        let mut tcp = TcpStream::connect(self.sandbox.forward_proxy().unwrap()).unwrap();
        tcp.set_read_timeout(Some(seks_tests::process::PATIENCE)).unwrap();
        let authority = self.authority();
        let shown = format!("Proxy-Authorization: Bearer {}\r\n", self.token.secret);
        tcp.write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{shown}\r\n").as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            tcp.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.enable_sni = host != NO_SNI;
        let host = if host == NO_SNI { "localhost" } else { host };
        let name = ServerName::try_from(host.to_owned()).unwrap();
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp)
    }
}

/// The service's host, which the ClientHello does not name.
const NO_SNI: &str = "";

fn exchange(tls: &mut StreamOwned<ClientConnection, TcpStream>, request: &str) -> Result<String, String> {
    tls.write_all(request.as_bytes()).map_err(|e| format!("{e:?}"))?;
    let mut answer = vec![0; 4096];
    let length = tls.read(&mut answer).map_err(|e| format!("{e:?}"))?;
    answer.truncate(length);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn connect_client_hello_and_host_name_one_host() {
    let world = World::start();
    let authority = world.authority();
    let good = format!("GET /v1/x HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    assert!(exchange(&mut world.tunnel("localhost"), &good).unwrap().starts_with("HTTP/1.1 200"));
    let seen = world.upstream.requests().len();
    for other in ["other.test", "api.openai.com", "x.localhost", NO_SNI] {
        let refused = exchange(&mut world.tunnel(other), &good).unwrap_err();
        assert!(refused.contains("AlertReceived"), "{other}: the node shows no certificate: {refused}");
    }
    for (request, status) in [
        ("GET /v1/x HTTP/1.1\r\nHost: other.test\r\n\r\n".to_owned(), "421"),
        (format!("GET https://other.test/v1/x HTTP/1.1\r\nHost: {authority}\r\n\r\n"), "400"),
        (format!("GET http://{authority}/v1/x HTTP/1.1\r\nHost: {authority}\r\n\r\n"), "421"),
    ] {
        let answer = exchange(&mut world.tunnel("localhost"), &request).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
    assert_eq!(world.upstream.requests().len(), seen);
    let port = authority.strip_prefix("localhost:").unwrap();
    for own in [format!("Host: {authority}\r\n"), "Host: LOCALHOST\r\n".to_owned(), String::new()] {
        assert_eq!(world.connect(&own), 200, "{own}");
    }
    for other in ["other.test".to_owned(), format!("other.test:{port}"), "localhost:1".to_owned()] {
        assert_eq!(world.connect(&format!("Host: {other}\r\n")), 400, "{other}");
    }
}

#[test]
fn https_in_absolute_form_takes_a_tunnel() {
    let world = World::start();
    let (authority, token) = (world.authority(), &world.token.secret);
    for shown in [format!("Proxy-Authorization: Bearer {token}"), format!("Authorization: Bearer {token}")] {
        let request = format!("GET https://{authority}/v1/x HTTP/1.1\r\nHost: {authority}\r\n{shown}\r\n\r\n");
        let reply = raw::exchange(world.sandbox.forward_proxy().unwrap(), request);
        assert_eq!((reply.status, reply.code().as_str()), (400, "request_invalid"), "{reply:?}");
        assert!(reply.text().contains("CONNECT"), "{}", reply.text());
    }
    assert!(world.upstream.log().connections.is_empty(), "the upstream was not contacted");
}

/// The certificate that clients are told to trust.
fn shown_ca(world: &World) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(world.cli().run(&["ca", "show"], "").stdout.as_bytes()).unwrap()
}

/// Whether a client that trusts `ca` takes the node's certificate for the service's host.
fn is_taken(world: &World, ca: &CertificateDer<'static>) -> bool {
    let mut tls = world.tunnel_trusting("localhost", ca);
    let request = format!("GET /v1/x HTTP/1.1\r\nHost: {}\r\n\r\n", world.authority());
    exchange(&mut tls, &request).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

#[test]
fn the_tenants_ca_counts_for_the_hosts_of_its_services_alone() {
    let world = World::start();
    let holds = |ca: &CertificateDer<'static>, host: &str| memchr::memmem::find(ca, host.as_bytes()).is_some();
    let first = shown_ca(&world);
    assert!(holds(&first, "localhost") && !holds(&first, "api.openai.com") && is_taken(&world, &first));

    // Another service: made again, with the same key. Who trusts the first goes on with the hosts
    // in that.
    world.cli().json(&["service", "enable", "openai"]);
    let second = shown_ca(&world);
    assert!(second != first && holds(&second, "localhost") && holds(&second, "api.openai.com"));
    assert!(is_taken(&world, &first) && is_taken(&world, &second));

    world.cli().json(&["service", "delete", "openai", "--yes"]);
    let third = shown_ca(&world);
    assert!(holds(&third, "localhost") && !holds(&third, "api.openai.com"));
    assert_eq!(shown_ca(&world), third, "nothing changes, nothing is made");
    assert_eq!(world.cli().json(&["ca", "show"])["certificate"].as_str().map(str::is_empty), Some(false));
}

#[test]
fn a_second_token_inside_of_a_tunnel_never_reaches_the_upstream() {
    let world = World::start();
    let other = world.sandbox.token("other", &["code"]);
    let authority = world.authority();
    for token in [&world.token.secret, &other.secret] {
        for (target, lines, status) in [
            ("/v1/x".to_owned(), format!("X-Mine: {token}\r\nReferer: https://a.test/?t={token}\r\n"), "200"),
            (format!("/v1/x?k={token}&a=b"), String::new(), "200"),
            (format!("/v1/{token}/x"), String::new(), "400"),
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: {authority}\r\n{lines}\r\n");
            let answer = exchange(&mut world.tunnel("localhost"), &request).unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{target} {lines}: {answer}");
        }
    }
    for request in world.upstream.requests() {
        let seen = String::from_utf8_lossy(&request.head).into_owned();
        assert!(!seen.contains("seks_token_"), "{seen}");
    }
}
