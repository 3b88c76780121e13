//! An agent that doesn't read keeps nothing open: what it may no longer have ends at once, whatever
//! its windows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, client::SendRequest};
use http::Request;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::rig::{PATIENCE, Rig, metrics, ok, tenant_policies, upstream};

/// What the agent lets the node send on one stream.
const WINDOW: usize = 20_000;
/// The upstream's connection that is in use.
const ACTIVE: &str = "seks_upstream_connections{service=\"openai\",state=\"active\"} ";

async fn client(rig: &Rig) -> SendRequest<Bytes> {
    let tcp = rig.connect().await;
    let mut builder = h2::client::Builder::new();
    let (client, connection) = builder.initial_window_size(WINDOW as u32).handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn get(client: &mut SendRequest<Bytes>, token: &str) -> RecvStream {
    let request = Request::get("http://broker/api/openai/x").header("authorization", format!("Bearer {token}"));
    let (answer, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.into_body()
}

/// Reads without giving window back until `count` bytes are there.
async fn read(body: &mut RecvStream, count: usize) {
    let mut got = 0;
    while got < count {
        got += body.data().await.unwrap().unwrap().len();
    }
    assert_eq!(got, count);
}

/// Opens the window, and tells what came and how the stream ended.
async fn read_on(body: &mut RecvStream) -> (usize, Option<Reason>) {
    let _ = body.flow_control().release_capacity(WINDOW);
    let mut got = 0;
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            match body.data().await {
                Some(Ok(data)) => got += data.len(),
                Some(Err(error)) => return error.reason(),
                None => return None,
            }
        }
    });
    let reason = ended.await.expect("the stream ends at once");
    (got, reason)
}

/// An upstream whose answer has no end, and how much of it was taken.
async fn flood() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, taken) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = taken.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let _ = tcp.read(&mut [0; 4096]).await;
                let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                while tcp.write_all(&[b'x'; 4096]).await.is_ok() {
                    count.fetch_add(4096, SeqCst);
                }
            });
        }
    });
    (address, taken)
}

/// An upstream whose answer has this many bytes, or no end.
async fn answering(length: Option<usize>) -> std::net::SocketAddr {
    match length {
        Some(length) => upstream(move |_| (ok(&"x".repeat(length)), false)).await.0,
        None => flood().await.0,
    }
}

#[tokio::test]
async fn a_stream_whose_window_is_shut_is_reset_when_the_right_to_it_ends_and_no_other_is() {
    // Without an end; with one behind the window; with one that is queued together with the last
    // part.
    for length in [None, Some(4 << 20), Some(WINDOW + 10_853), Some(WINDOW + 1)] {
        let rig = Rig::start(answering(length).await).await;
        let mut client = client(&rig).await;
        let mut body = get(&mut client, rig.token.as_str()).await;
        let mut other = get(&mut client, rig.other.as_str()).await;
        read(&mut body, WINDOW).await;
        read(&mut other, WINDOW).await;
        rig.revoke();
        // Before the window is opened: the node doesn't wait for it.
        wait_for_active(&rig, 1, length).await;
        assert_eq!(read_on(&mut body).await, (0, Some(Reason::CANCEL)), "{length:?}");
        let _ = other.flow_control().release_capacity(WINDOW);
        assert!(!other.data().await.unwrap().unwrap().is_empty(), "another token's stream goes on");
    }
}

/// Waits until so many connections to the upstream are in use. What has come from it whole uses
/// none.
async fn wait_for_active(rig: &Rig, active: usize, length: Option<usize>) {
    if length.is_some_and(|length| length < 64 << 10) {
        return;
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !metrics(rig).await.contains(&format!("{ACTIVE}{active}")) {
        assert!(tokio::time::Instant::now() < deadline, "{}", metrics(rig).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_stream_whose_window_is_shut_is_reset_when_a_policy_forbids_it() {
    let rig = Rig::start(answering(None).await).await;
    let mut body = get(&mut client(&rig).await, rig.token.as_str()).await;
    read(&mut body, WINDOW).await;
    rig.apply(vec![tenant_policies(&[("off", "forbid (principal, action, resource);")])]);
    assert_eq!(read_on(&mut body).await, (0, Some(Reason::CANCEL)));
}

#[tokio::test]
async fn answers_of_every_length_are_whole_and_end_once() {
    for length in [0, 1, 255, WINDOW - 1, WINDOW, WINDOW + 1, 300_000] {
        let rig = Rig::start(answering(Some(length)).await).await;
        let mut body = get(&mut client(&rig).await, rig.token.as_str()).await;
        let mut got = 0;
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            got += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        assert_eq!(got, length);
        assert!(body.is_end_stream());
    }
}

/// Reads nothing until the node can write nothing more; then the right ends, and the rest is read.
async fn what_comes_after_the_cut(rig: &Rig, taken: &AtomicUsize, mut tcp: TcpStream) -> std::io::Result<Vec<u8>> {
    let active = async |n: usize| metrics(rig).await.contains(&format!("{ACTIVE}{n}"));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let (mut last, mut still) = (0, 0);
    while still < 20 {
        assert!(tokio::time::Instant::now() < deadline, "it is taken for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = taken.load(SeqCst);
        still = if now > 0 && now == last { still + 1 } else { 0 };
        last = now;
    }
    rig.revoke();
    while active(1).await {
        assert!(tokio::time::Instant::now() < deadline, "it is held open by an agent that doesn't read");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut rest)).await.expect("the connection ends").map(|_| rest)
}

#[tokio::test]
async fn a_connection_that_takes_nothing_is_reset_with_what_it_holds() {
    let (address, taken) = flood().await;
    let rig = Rig::start(address).await;
    let request = rig.fill("GET /api/openai/x HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n");
    let mut tcp = rig.connect().await;
    tcp.write_all(request.as_bytes()).await.unwrap();
    let ended = what_comes_after_the_cut(&rig, &taken, tcp).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_http2_connection_that_takes_nothing_is_reset_with_what_it_holds() {
    let (address, taken) = flood().await;
    let rig = Rig::start(address).await;
    // What a client with open windows says; then nobody reads.
    let mut hpack = vec![0x82, 0x86]; // GET, http
    let mut literal = |index: u8, value: &str| {
        hpack.extend([index, value.len() as u8]);
        hpack.extend(value.as_bytes());
    };
    literal(0x04, "/api/openai/x"); // :path
    literal(0x01, "broker"); // :authority
    let bearer = format!("Bearer {}", rig.token.as_str());
    hpack.extend([0x0f, 0x08, bearer.len() as u8]); // authorization
    hpack.extend(bearer.as_bytes());
    let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    wire.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x40, 0, 0, 0]); // SETTINGS_INITIAL_WINDOW_SIZE
    wire.extend([0, 0, 4, 8, 0, 0, 0, 0, 0, 0x40, 0, 0, 0]); // WINDOW_UPDATE
    wire.extend([0, 0, hpack.len() as u8, 1, 5, 0, 0, 0, 1]); // HEADERS, END_HEADERS and END_STREAM
    wire.extend(hpack);
    let mut tcp = rig.connect().await;
    tcp.write_all(&wire).await.unwrap();
    let ended = what_comes_after_the_cut(&rig, &taken, tcp).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
