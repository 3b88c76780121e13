//! Behind a balancer, the agent's address is the one that the balancer's PROXY header names: in
//! records, spans and bindings of tokens.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use seks_tests::{
    Sandbox, Upstream,
    process::{PATIENCE, wait_for},
    raw,
    sandbox::Options,
    upstream::{Answer, tls},
};
use serde_json::Value;

const KEY: &str = "sk-real-proxy-0123456789abcdef";
const FROM_LOOPBACK: &str = "proxy_protocol_from = [\"127.0.0.0/8\"]\n";

fn request(token: &str) -> String {
    format!(
        "GET /api/openai/v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    )
}

fn v2(source: [u8; 4]) -> Vec<u8> {
    let fixed = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &source, &[127, 0, 0, 1, 0xc0, 0, 0x20, 0xfb]];
    fixed.concat()
}

fn sources(sandbox: &Sandbox, count: usize) -> Vec<String> {
    let found = wait_for("the records", || {
        let found = sandbox.cli().json(&["audit", "search"]).as_array().unwrap().clone();
        (found.len() == count).then_some(found)
    });
    let mut sources: Vec<String> = found.iter().map(|r: &Value| r["source"].as_str().unwrap_or("").into()).collect();
    sources.sort();
    sources
}

fn rejected(sandbox: &Sandbox) -> u64 {
    let page = sandbox.metrics_page();
    page.lines().find_map(|l| l.strip_prefix("seks_proxy_protocol_rejected_total ")).unwrap().parse().unwrap()
}

#[test]
fn the_source_of_a_request_is_the_one_that_a_listed_balancer_names() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let sandbox = Sandbox::with(Options { config: format!("[proxy]\n{FROM_LOOPBACK}"), ..Options::default() });
    sandbox.service("openai", &upstream, KEY);
    sandbox.cli().create_agent("bot");
    let bound = sandbox.cli().issue("bot", &["openai"], &["--cidr", "192.0.2.0/24"]).secret;
    let ask = |header: &[u8]| raw::exchange(sandbox.proxy(), [header, request(&bound).as_bytes()].concat());
    assert_eq!(ask(b"PROXY TCP4 192.0.2.7 127.0.0.1 49152 8300\r\n").status, 200);
    assert_eq!(ask(&v2([192, 0, 2, 8])).status, 200);
    let outside = ask(b"PROXY TCP4 198.51.100.7 127.0.0.1 49152 8300\r\n");
    assert_eq!((outside.status, outside.code().as_str()), (403, "token_binding"));
    assert_eq!(ask(b"PROXY UNKNOWN\r\n").code(), "token_binding", "the balancer itself is outside");
    assert_eq!(sources(&sandbox, 4), ["127.0.0.1", "192.0.2.7", "192.0.2.8", "198.51.100.7"]);

    // A listed balancer sends a header. Without it, or with one that is none, the connection ends
    // without an answer.
    let before = upstream.requests().len();
    for header in [&b""[..], b"PROXY TCP4 192.0.2.7\r\n", b"PROXY TCP4 192.0.2.7 127.0.0.1 1 99999\r\n"] {
        let mut balancer = TcpStream::connect(sandbox.proxy()).unwrap();
        balancer.set_read_timeout(Some(PATIENCE)).unwrap();
        balancer.write_all(&[header, request(&bound).as_bytes()].concat()).unwrap();
        let mut answer = Vec::new();
        let _ = balancer.read_to_end(&mut answer); // closed, or reset because the request was not read
        assert_eq!(String::from_utf8_lossy(&answer), "", "{header:?}");
    }
    wait_for("the rejected connections to be counted", || (rejected(&sandbox) == 3).then_some(()));
    assert_eq!(upstream.requests().len(), before);
}

#[test]
fn nobody_else_names_a_source() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let config = "[proxy]\nproxy_protocol_from = [\"192.0.2.0/24\"]\n".to_owned();
    let sandbox = Sandbox::with(Options { config, ..Options::default() });
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]).secret;
    let forged = [&b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n"[..], request(&token).as_bytes()].concat();
    assert_eq!(raw::exchange(sandbox.proxy(), forged).status, 400);
    assert_eq!(raw::exchange(sandbox.proxy(), request(&token)).status, 200);
    let sources = sources(&sandbox, 2);
    assert!(sources.iter().all(|source| source == "127.0.0.1" || source.is_empty()), "{sources:?}");
    assert_eq!(rejected(&sandbox), 0);
}

#[test]
fn tls_comes_after_the_header() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let folder = tempfile::tempdir().unwrap();
    let identity = tls::identity();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&cert, &identity.certificate_pem).unwrap();
    fs::write(&key, &identity.key_pem).unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let config = format!("[proxy]\n{FROM_LOOPBACK}[proxy.tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n");
    let sandbox = Sandbox::with(Options { config, ..Options::default() });
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]).secret;
    assert!(over_tls(sandbox.proxy(), &identity.ca_pem, &v2([192, 0, 2, 9]), &token).starts_with("HTTP/1.1 200"));
    assert_eq!(sources(&sandbox, 1), ["192.0.2.9"]);
}

fn over_tls(proxy: SocketAddr, ca_pem: &str, header: &[u8], token: &str) -> String {
    let mut tcp = TcpStream::connect(proxy).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.write_all(header).unwrap();
    let name = "localhost".try_into().unwrap();
    let client = rustls::ClientConnection::new(tls::client(ca_pem, &[b"http/1.1"]), name).unwrap();
    let mut stream = rustls::StreamOwned::new(client, tcp);
    stream.write_all(request(token).as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // it may end without TLS's own goodbye
    String::from_utf8_lossy(&answer).into_owned()
}
