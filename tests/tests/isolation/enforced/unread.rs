//! An agent that doesn't read keeps nothing open and gets nothing more, through a whole SEKS.

use std::time::{Duration, Instant};

use h2::Reason;
use seks_tests::{
    Sandbox, Upstream, raw, runtime,
    sandbox::Options,
    upstream::{Answer, Gate, answer::Step},
};

use crate::socket;

const WINDOW: usize = 20_000;

/// An upstream that sends all of a response but its end. 10,853 bytes of it do not fit into the
/// agent's window.
fn unfinished_upstream() -> Upstream {
    let held = Gate::default();
    Upstream::start(move |_| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", WINDOW + 10_854);
        let body = vec![b'x'; WINDOW + 10_853];
        Answer::steps(vec![Step::Send([head.into_bytes(), body].concat()), Step::Hold(held.clone())])
    })
}

/// A response over HTTP/2 whose agent has read one window and does not open it again.
async fn response_behind_a_closed_window(sandbox: &Sandbox, token: &str) -> h2::RecvStream {
    let tcp = tokio::net::TcpStream::connect(sandbox.proxy()).await.unwrap();
    let mut builder = h2::client::Builder::new();
    let (mut client, connection) =
        builder.initial_window_size(WINDOW as u32).handshake::<_, bytes::Bytes>(tcp).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://localhost/api/openai/v1/models")
        .header("authorization", format!("Bearer {token}"))
        .body(())
        .unwrap();
    let mut body = client.send_request(request, true).unwrap().0.await.unwrap().into_body();
    let mut got = 0;
    while got < WINDOW {
        got += body.data().await.unwrap().unwrap().len();
    }
    body
}

#[test]
fn a_revoked_stream_is_reset_before_its_agent_opens_the_window() {
    let upstream = unfinished_upstream();
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, "sk-real-unread-key-0000000000001");
    let token = sandbox.token("agent", &["openai"]);
    runtime().block_on(async {
        let mut body = response_behind_a_closed_window(&sandbox, &token.secret).await;
        let revoked = tokio::task::block_in_place(|| sandbox.cli().revoke(&token.id));
        assert_eq!(revoked["enforced"], true, "{revoked}");
        let _ = body.flow_control().release_capacity(WINDOW);
        let next = tokio::time::timeout(Duration::from_secs(5), body.data()).await.expect("it ends at once");
        let error = next.expect("reset, not ended").expect_err("no byte more");
        assert_eq!(error.reason(), Some(Reason::CANCEL));
    });
}

/// How long the tokens of the tests below are valid. Long enough for a slow machine to get the
/// response's head through.
const SHORT: (&str, Duration) = ("6s", Duration::from_secs(6));

#[test]
fn an_http2_stream_is_reset_when_its_token_expires_though_its_agent_does_not_open_the_window() {
    let upstream = unfinished_upstream();
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, "sk-real-unread-key-0000000000001");
    sandbox.cli().create_agent("agent");
    let token = sandbox.cli().issue("agent", &["openai"], &["--ttl", SHORT.0]);
    runtime().block_on(async {
        let mut body = response_behind_a_closed_window(&sandbox, &token.secret).await;
        // The window stays closed. Only a reset can end the stream before the 30 s that an agent
        // may read nothing.
        let end = tokio::time::timeout(SHORT.1 + Duration::from_secs(8), body.data()).await.expect("it ends at expiry");
        let error = end.expect("reset, not ended").expect_err("no byte more");
        assert_eq!(error.reason(), Some(Reason::CANCEL));
    });
}

#[test]
fn an_http1_response_ends_when_its_token_expires_though_its_agent_does_not_read() {
    let size: usize = 32 << 20; // more than the sockets' buffers take
    let upstream = Upstream::start(move |_| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
        Answer::steps(vec![Step::Send([head.into_bytes(), vec![b'x'; size]].concat())])
    });
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, "sk-real-unread-key-0000000000001");
    sandbox.cli().create_agent("agent");
    let token = sandbox.cli().issue("agent", &["openai"], &["--ttl", SHORT.0]);
    let mut agent = raw::Connection::open(sandbox.proxy());
    agent.send(format!(
        "GET /api/openai/v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
        token.secret,
    ));
    assert_eq!(agent.read_head().unwrap().0, 200);
    let began = Instant::now();
    upstream.wait("the upstream's connection to end", |log| log.connections.iter().all(|c| c.closed));
    assert!(began.elapsed() < SHORT.1 + Duration::from_secs(8), "it stayed for {:?}", began.elapsed());
    assert!(agent.drain(size) < size / 10 * 9, "the agent got all of it");
}

/// More than what the sockets' buffers take: the node waits for the agent.
const LARGE: usize = 32 << 20;

/// An upstream that sends one large message over a WebSocket.
fn upstream_of_one_large_message() -> Upstream {
    Upstream::start(move |request| {
        let frame = [&[0x82, 127][..], &(LARGE as u64).to_be_bytes(), &vec![b'x'; LARGE]].concat();
        socket::accepted(request, &frame)
    })
}

/// An agent that has opened a WebSocket and reads nothing.
fn socket_of(sandbox: &Sandbox, token: &str) -> raw::Connection {
    let mut agent = raw::Connection::open(sandbox.proxy());
    agent.send(format!(
        "GET /api/openai/v1/realtime HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{}\r\n",
        socket::ASKED
    ));
    assert_eq!(agent.read_head().unwrap().0, 101);
    agent
}

/// Within `bound`, the upstream's connections end, and the agent gets what its kernel had taken
/// before: a tenth of it is left out at least.
fn assert_ended(upstream: &Upstream, mut agent: raw::Connection, bound: Duration) {
    let began = Instant::now();
    upstream.wait("the upstream's connection to end", |log| log.connections.iter().all(|c| c.closed));
    assert!(began.elapsed() < bound, "it stayed for {:?}", began.elapsed());
    assert!(agent.drain(LARGE) < LARGE / 10 * 9, "the agent got all of it");
}

#[test]
fn a_socket_whose_agent_does_not_read_is_cut_when_its_token_is_revoked() {
    let upstream = upstream_of_one_large_message();
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, "sk-real-unread-key-0000000000001");
    let token = sandbox.token("agent", &["openai"]);
    let agent = socket_of(&sandbox, &token.secret);
    let revoked = sandbox.cli().revoke(&token.id);
    assert_eq!(revoked["enforced"], true, "{revoked}");
    assert_ended(&upstream, agent, Duration::from_secs(5));
}

#[test]
fn a_socket_whose_agent_does_not_read_is_cut_when_its_token_expires() {
    let upstream = upstream_of_one_large_message();
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, "sk-real-unread-key-0000000000001");
    sandbox.cli().create_agent("agent");
    let token = sandbox.cli().issue("agent", &["openai"], &["--ttl", SHORT.0]);
    let agent = socket_of(&sandbox, &token.secret);
    assert_ended(&upstream, agent, SHORT.1 + Duration::from_secs(8));
}

/// A sandbox that passes CONNECT to hosts of no service through, with an upstream that is one.
fn passage() -> (Sandbox, Upstream) {
    let config = "[forward_proxy]\nlisten = \"127.0.0.1:0\"\n".to_owned();
    let sandbox = Sandbox::with(Options { config, ..Options::default() });
    let upstream = Upstream::start(move |_| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
        Answer::steps(vec![Step::Send([head.into_bytes(), vec![b'x'; LARGE]].concat()), Step::Stall])
    });
    assert_eq!(sandbox.cli().run(&["ca", "create"], "").code, Some(0));
    sandbox.cli().json(&["ca", "other-hosts", "tunnel", "--allow-private"]);
    (sandbox, upstream)
}

/// An agent that has asked for something through a tunnel and reads nothing.
fn tunnel_of(sandbox: &Sandbox, upstream: &Upstream, token: &str) -> raw::Connection {
    let mut agent = raw::Connection::open(sandbox.forward_proxy().unwrap());
    let authority = upstream.address();
    agent.send(format!(
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
    ));
    assert_eq!(agent.read_head().unwrap().0, 200);
    agent.send("GET / HTTP/1.1\r\nHost: other\r\n\r\n");
    upstream.wait("the request in the tunnel", |log| !log.requests.is_empty());
    agent
}

#[test]
fn a_tunnel_whose_agent_does_not_read_is_cut_when_its_token_is_revoked() {
    let (sandbox, upstream) = passage();
    let token = sandbox.token("agent", &["seks-interception"]);
    let agent = tunnel_of(&sandbox, &upstream, &token.secret);
    let revoked = sandbox.cli().revoke(&token.id);
    assert_eq!(revoked["enforced"], true, "{revoked}");
    assert_ended(&upstream, agent, Duration::from_secs(5));
}

#[test]
fn a_tunnel_whose_agent_does_not_read_is_cut_when_its_token_expires() {
    let (sandbox, upstream) = passage();
    sandbox.cli().create_agent("agent");
    let token = sandbox.cli().issue("agent", &["seks-interception"], &["--ttl", SHORT.0]);
    let agent = tunnel_of(&sandbox, &upstream, &token.secret);
    assert_ended(&upstream, agent, SHORT.1 + Duration::from_secs(8));
}
