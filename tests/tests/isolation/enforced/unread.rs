//! An agent that doesn't read keeps nothing open and gets nothing more, through a whole SEKS.

use std::time::{Duration, Instant};

use h2::Reason;
use seks_tests::{
    Sandbox, Upstream, raw, runtime,
    upstream::{Answer, Gate, answer::Step},
};

use crate::socket;

const WINDOW: usize = 20_000;

/// An upstream that sends all of a response but its end. 10,853 bytes of it do not fit into the agent's window.
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

/// How long the tokens of the tests below are valid. Long enough for a slow machine to get the response's head through.
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
        // The window stays closed. Only a reset can end the stream before the 30 s that an agent may read nothing.
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

#[test]
fn a_socket_whose_agent_does_not_read_is_cut_when_its_token_is_revoked() {
    // One message that is larger than what the sockets' buffers take: the node waits for the agent.
    let size: u64 = 32 << 20;
    let upstream = Upstream::start(move |request| {
        let frame = [&[0x82, 127][..], &size.to_be_bytes(), &vec![b'x'; size as usize]].concat();
        socket::accepted(request, &frame)
    });
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, "sk-real-unread-key-0000000000001");
    let token = sandbox.token("agent", &["openai"]);
    let mut agent = raw::Connection::open(sandbox.proxy());
    agent.send(format!(
        "GET /api/openai/v1/realtime HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{}\r\n",
        token.secret,
        socket::ASKED
    ));
    assert_eq!(agent.read_head().unwrap().0, 101);
    let revoked = sandbox.cli().revoke(&token.id);
    assert_eq!(revoked["enforced"], true, "{revoked}");
    let began = Instant::now();
    upstream.wait("the upstream's connection to end", |log| log.connections.iter().all(|c| c.closed));
    assert!(began.elapsed() < Duration::from_secs(5), "it stayed for {:?}", began.elapsed());
    // What the kernel had taken before; a tenth of the message is left out at least.
    assert!((agent.drain(size as usize) as u64) < size / 10 * 9, "the agent got all of it");
}
