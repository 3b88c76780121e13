//! Bodies pass through as they come, both ways, over every protocol that an agent may speak;
//! nothing is held back and nothing is hoarded. That something was not held back is shown by order
//! (the second part is not there before the first has arrived), never by a clock.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use seks_tests::{
    Sandbox, Upstream,
    raw::Connection,
    runtime,
    sandbox::Options,
    upstream::{
        Answer, Gate,
        answer::{Step, chunk},
        tls,
    },
};

const KEY: &str = "sk-real-streaming-key-00000000001";
const PATH: &str = "/api/openai/v1/chat/completions";

fn sandbox(upstream: &Upstream) -> (Sandbox, String) {
    let sandbox = Sandbox::start();
    sandbox.service("openai", upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    (sandbox, token)
}

fn head(method: &str, token: &str, more: &str) -> String {
    format!("{method} {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}\r\n")
}

#[test]
fn an_event_arrives_before_the_next_one_exists() {
    let gates: Vec<Gate> = (0..3).map(|_| Gate::default()).collect();
    let held = gates.clone();
    let upstream = Upstream::start(move |_| {
        let steps = held
            .iter()
            .enumerate()
            .flat_map(|(n, gate)| [chunk(format!("data: {n}\n\n").as_bytes()), Step::Hold(gate.clone())]);
        Answer::chunked(200, &[("Content-Type", "text/event-stream")], steps.collect(), &[])
    });
    let (sandbox, token) = sandbox(&upstream);
    let mut client = Connection::open(sandbox.proxy());
    client.send(head("GET", &token, ""));
    let (status, head) = client.read_head().unwrap();
    assert_eq!(status, 200);
    assert!(head.to_ascii_lowercase().contains("content-type: text/event-stream"), "{head}");
    for (n, gate) in gates.iter().enumerate() {
        assert_eq!(client.read_chunk().unwrap(), format!("data: {n}\n\n").as_bytes());
        gate.open();
    }
    assert_eq!(client.read_chunk(), None);
}

#[test]
fn a_head_arrives_before_its_body_exists() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream =
        Upstream::start(move |_| Answer::chunked(200, &[], vec![Step::Hold(held.clone()), chunk(b"late")], &[]));
    let (sandbox, token) = sandbox(&upstream);
    let mut client = Connection::open(sandbox.proxy());
    client.send(head("GET", &token, ""));
    assert_eq!(client.read_head().unwrap().0, 200);
    gate.open();
    assert_eq!(client.read_chunk().unwrap(), b"late");
}

#[test]
fn a_request_body_passes_on_before_it_is_whole() {
    let upstream = Upstream::ok();
    let (sandbox, token) = sandbox(&upstream);
    let mut client = Connection::open(sandbox.proxy());
    client.send(head("POST", &token, "Transfer-Encoding: chunked\r\n"));
    for n in 1..=3 {
        client.send("5\r\nhello\r\n");
        upstream.wait("a part of the body", |log| log.requests.iter().any(|r| r.body_length == 5 * n));
    }
    assert_eq!(upstream.complete(), 0);
    client.send("0\r\n\r\n");
    assert_eq!(client.read_reply(false).status, 200);
    assert_eq!(upstream.requests()[0].body, b"hellohellohello");
}

#[test]
fn an_early_answer_reaches_the_agent() {
    let upstream = Upstream::start_early(|_| Some(Answer::json(413, r#"{"error":"too large"}"#)));
    let (sandbox, token) = sandbox(&upstream);
    let mut client = Connection::open(sandbox.proxy());
    client.send(head("POST", &token, "Content-Length: 1000000\r\n"));
    client.send("x");
    let reply = client.read_reply(false);
    assert_eq!((reply.status, reply.text().as_str()), (413, r#"{"error":"too large"}"#));
}

#[test]
fn an_agent_that_leaves_ends_the_upstream_request() {
    let endless = || Answer::chunked(200, &[], vec![chunk(b"first"), Step::Stall], &[]);
    let upstream = Upstream::start(move |_| endless());
    let (sandbox, token) = sandbox(&upstream);
    let mut client = Connection::open(sandbox.proxy());
    client.send(head("GET", &token, ""));
    assert_eq!(client.read_head().unwrap().0, 200);
    assert_eq!(client.read_chunk().unwrap(), b"first");
    drop(client);
    upstream.wait("its connection to be closed", |log| log.connections.iter().all(|c| c.closed));
}

#[test]
fn an_agent_that_leaves_before_the_answer_ends_the_upstream_request() {
    let upstream = Upstream::start(|_| Answer::steps(vec![Step::Stall]));
    let (sandbox, token) = sandbox(&upstream);
    let mut client = Connection::open(sandbox.proxy());
    client.send(head("GET", &token, ""));
    upstream.wait("the request", |log| log.requests.len() == 1);
    drop(client);
    upstream.wait("its connection to be closed", |log| log.connections.iter().all(|c| c.closed));
}

/// The most memory that a process has ever had, in KiB.
fn peak_kib(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn large_bodies_take_no_memory() {
    const SIZE: usize = 1 << 30;
    let upstream = Upstream::start(|request| match request.method().as_str() {
        "GET" => Answer::steps(vec![
            Step::Send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").into_bytes()),
            Step::Flood(SIZE),
        ]),
        _ => Answer::json(200, &request.body_length.to_string()),
    });
    let (mut sandbox, token) = sandbox(&upstream);
    let id = sandbox.process().id();
    assert_eq!(sandbox.get("/api/openai/v1/none", "not-a-token").status, 401); // warm
    let before = peak_kib(id);

    let mut client = Connection::open(sandbox.proxy());
    client.send(head("POST", &token, &format!("Content-Length: {SIZE}\r\n")));
    let block = vec![b'y'; 1 << 20];
    (0..SIZE / block.len()).for_each(|_| client.send(&block));
    assert_eq!(client.read_reply(false).text(), SIZE.to_string());

    let mut client = Connection::open(sandbox.proxy());
    client.send(head("GET", &token, ""));
    assert_eq!(client.read_head().unwrap().0, 200);
    let received = client.drain(SIZE);
    assert_eq!(received, SIZE);
    let grown = peak_kib(id).saturating_sub(before);
    assert!(grown < 24 << 10, "grew by {grown} KiB while {} MiB passed", (2 * SIZE) >> 20);
}

#[test]
fn connections_to_the_upstream_are_used_again() {
    let upstream = Upstream::ok();
    let (sandbox, token) = sandbox(&upstream);
    for _ in 0..20 {
        assert_eq!(sandbox.get("/api/openai/v1/models", &token).status, 200);
    }
    assert_eq!(upstream.log().connections.len(), 1);
}

async fn connect(address: SocketAddr) -> TokioIo<tokio::net::TcpStream> {
    TokioIo::new(tokio::net::TcpStream::connect(address).await.unwrap())
}

type Sender = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

async fn ask(sender: &mut Sender, uri: &str, token: &str, body: &'static str) -> (StatusCode, Bytes) {
    let request = Request::builder().method(if body.is_empty() { "GET" } else { "POST" }).uri(uri);
    let request = request.header("authorization", format!("Bearer {token}")).body(Full::from(body)).unwrap();
    let response = sender.send_request(request).await.unwrap();
    (response.status(), response.into_body().collect().await.unwrap().to_bytes())
}

#[test]
fn an_http2_agent_is_served_over_one_connection() {
    let upstream = Upstream::start(|r| Answer::text(&r.body));
    let (sandbox, token) = sandbox(&upstream);
    runtime().block_on(async {
        let io = connect(sandbox.proxy()).await;
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let uri = format!("http://localhost{PATH}");
        for _ in 0..3 {
            assert_eq!(ask(&mut sender, &uri, &token, "over h2").await, (StatusCode::OK, Bytes::from("over h2")));
        }
        let (status, body) = ask(&mut sender, &uri, "seks_token_wrong", "").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(body.windows(15).any(|w| w == b"token_malformed"), "{body:?}");
        let foreign = format!("http://evil.test{PATH}");
        assert_eq!(ask(&mut sender, &foreign, &token, "x").await.0, StatusCode::MISDIRECTED_REQUEST);
    });
    for request in upstream.requests() {
        assert_eq!(request.header("authorization"), Some(format!("Bearer {KEY}")));
        assert_eq!(request.header("host"), Some(upstream.address().to_string()));
    }
    assert_eq!(upstream.complete(), 3);
}

fn tls_sandbox(upstream: &Upstream) -> (Sandbox, String, tls::Identity, tempfile::TempDir) {
    let (identity, directory) = (tls::identity(), tempfile::tempdir().unwrap());
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (cert, key) = (file("cert.pem", &identity.certificate_pem), file("key.pem", &identity.key_pem));
    drop(std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)));
    let config = format!("[proxy.tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n");
    let sandbox = Sandbox::with(Options { config, ..Options::default() });
    sandbox.service("openai", upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    (sandbox, token, identity, directory)
}

async fn tls_connect(
    address: SocketAddr,
    ca_pem: &str,
    alpn: &[&[u8]],
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(tls::client(ca_pem, alpn));
    connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap()
}

#[test]
fn a_tls_listener_speaks_both_protocols_to_a_tls_upstream() {
    let upstream = Upstream::start_tls(|r| Answer::text(&r.body));
    let (sandbox, token, identity, _directory) = tls_sandbox(&upstream);
    assert!(sandbox.proxy_url().starts_with("https://"), "{}", sandbox.proxy_url());
    let uri = format!("https://localhost{PATH}");
    runtime().block_on(async {
        let stream = tls_connect(sandbox.proxy(), &identity.ca_pem, &[b"h2", b"http/1.1"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        assert_eq!(ask(&mut sender, &uri, &token, "secret h2").await, (StatusCode::OK, Bytes::from("secret h2")));

        let stream = tls_connect(sandbox.proxy(), &identity.ca_pem, &[b"http/1.1"]).await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post(PATH)
            .header("host", "localhost")
            .header("authorization", format!("Bearer {token}"))
            .body(Full::<Bytes>::from("secret h1"))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "secret h1");
    });
    assert_eq!(upstream.complete(), 2);
}

#[test]
fn nothing_is_said_to_an_upstream_whose_certificate_is_not_trusted() {
    let (upstream, other) = (Upstream::start_tls(|_| Answer::text("no")), Upstream::start_tls(|_| Answer::text("no")));
    let (sandbox, token) = sandbox(&upstream);
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("other-ca.pem");
    std::fs::write(&ca, other.ca_pem().unwrap()).unwrap();
    let (origin, ca) = (upstream.origin(), ca.display().to_string());
    let arguments = [
        "service",
        "enable",
        "openai",
        "--as",
        "impostor",
        "--upstream",
        &origin,
        "--upstream-ca",
        &ca,
        "--allow-private",
    ];
    sandbox.cli().json(&arguments);
    sandbox.cli().put_credential("impostor", "impostor", KEY);
    drop(token);
    let token = sandbox.token("second", &["impostor"]).secret;
    let refused = sandbox.get("/api/impostor/v1/models", &token);
    assert_eq!((refused.status, refused.code().as_str()), (502, "upstream_tls"));
    assert!(upstream.received().is_empty(), "application bytes before the check");
    assert!(!refused.text().contains("127.0.0.1"), "{}", refused.text());
}

#[test]
fn trailers_of_an_answer_reach_an_http2_agent() {
    let upstream = Upstream::start(|_| {
        Answer::chunked(200, &[("Trailer", "x-checksum")], vec![chunk(b"body")], &[("x-checksum", "abc")])
    });
    let (sandbox, token) = sandbox(&upstream);
    let shared = Arc::new(token);
    runtime().block_on(async {
        let io = connect(sandbox.proxy()).await;
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(format!("http://localhost{PATH}"))
            .header("authorization", format!("Bearer {shared}"))
            .header("te", "trailers")
            .body(Full::<Bytes>::default())
            .unwrap();
        let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-checksum"], "abc");
        assert_eq!(body.to_bytes(), "body");
    });
}
