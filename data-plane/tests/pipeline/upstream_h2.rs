//! HTTP/2 upstreams with limits, and that send requests back.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::rig::{CREDENTIAL, Reply, Rig, metrics};

/// What an upstream has seen.
#[derive(Clone, Default)]
struct Counts {
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

/// What an upstream does with a request, the `number`th of its connection, counted from 0.
type Act = fn(Asked) -> Answering;

struct Asked {
    number: usize,
    request: Request<h2::RecvStream>,
    respond: SendResponse<Bytes>,
}

type Answering = std::pin::Pin<Box<dyn Future<Output = Option<Reason>> + Send>>;

/// An upstream of HTTP/2 by prior knowledge, with `limit` streams a connection. After an answer
/// that gives a reason, the connection ends with a GOAWAY for that reason.
async fn upstream(limit: u32, act: Act) -> (SocketAddr, Counts) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, counts) = (listener.local_addr().unwrap(), Counts::default());
    let counted = counts.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            counted.connections.fetch_add(1, SeqCst);
            tokio::spawn(serve(tcp, limit, counted.clone(), act));
        }
    });
    (address, counts)
}

async fn serve(tcp: TcpStream, limit: u32, counts: Counts, act: Act) {
    let mut h2 = h2::server::Builder::new().max_concurrent_streams(limit).handshake::<_, Bytes>(tcp).await.unwrap();
    let (end, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let mut number = 0;
    loop {
        tokio::select! {
            accepted = h2.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                counts.requests.fetch_add(1, SeqCst);
                let (asked, end) = (Asked { number, request, respond }, end.clone());
                number += 1;
                tokio::spawn(async move {
                    if let Some(reason) = act(asked).await {
                        let _ = end.send(reason);
                    }
                });
            }
            reason = ends.recv() => h2.abrupt_shutdown(reason.unwrap()),
        }
    }
}

fn answer(mut asked: Asked, body: &'static str) -> Option<Reason> {
    let mut stream = asked.respond.send_response(Response::new(()), false).ok()?;
    stream.send_data(Bytes::from_static(body.as_bytes()), true).ok()?;
    None
}

async fn rig(upstream: SocketAddr) -> Rig {
    Rig::with(upstream, |s| s.http2 = true, |_| {}).await
}

async fn post(rig: &Rig, body: &str) -> Reply {
    let length = body.len();
    rig.send(&format!(
        "POST /api/openai/x HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {{T1}}\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
    .await
}

#[tokio::test]
async fn a_limit_of_streams_brings_further_connections_and_no_waiting() {
    let (address, counts) = upstream(10, |asked| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            answer(asked, "{}")
        })
    })
    .await;
    let rig = rig(address).await;
    for _ in 0..2 {
        let begun = Instant::now();
        let replies = futures_util::future::join_all((0..25).map(|_| rig.get("/api/openai/x"))).await;
        assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?}");
        assert!(begun.elapsed() < Duration::from_millis(1400), "{:?}", begun.elapsed());
    }
    let connections = counts.connections.load(SeqCst);
    assert!((3..=4).contains(&connections), "{connections}");
    let page = metrics(&rig).await;
    let gauge = format!("seks_upstream_connections{{service=\"openai\",state=\"active\"}} {connections}\n");
    assert!(page.contains(&gauge), "{page}");
}

#[tokio::test]
async fn an_upstream_that_allows_nothing_at_first_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = rig(listener.local_addr().unwrap()).await;
    let upstream = async {
        let tcp = listener.accept().await.unwrap().0;
        let mut h2 = h2::server::Builder::new().max_concurrent_streams(0).handshake::<_, Bytes>(tcp).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(300), h2.accept()).await;
        assert!(early.is_err(), "a request came although none is allowed");
    };
    let (_, reply) = tokio::join!(upstream, rig.get("/api/openai/x"));
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_unreachable"), "{reply:?}");
    assert!(!reply.text.contains("x-should-retry"), "{reply:?}");
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_with_its_body() {
    let (address, counts) = upstream(100, |mut asked| {
        Box::pin(async move {
            if asked.number == 0 {
                asked.respond.send_reset(Reason::REFUSED_STREAM);
                return None;
            }
            let mut body = asked.request.into_body();
            let mut got = Vec::new();
            while let Some(data) = body.data().await {
                got.extend_from_slice(&data.unwrap());
            }
            let stream = asked.respond.send_response(Response::new(()), false);
            stream.unwrap().send_data(got.into(), true).unwrap();
            None
        })
    })
    .await;
    let rig = rig(address).await;
    let reply = post(&rig, "{\"model\":\"x\"}").await;
    assert!(reply.status == 200 && reply.text.contains("{\"model\":\"x\"}"), "{reply:?}");
    assert_eq!(counts.requests.load(SeqCst), 2);
}

#[tokio::test]
async fn a_request_that_is_refused_again_and_again_is_given_up_and_may_be_tried_later() {
    let (address, counts) = upstream(100, |mut asked| {
        Box::pin(async move {
            asked.respond.send_reset(Reason::REFUSED_STREAM);
            None
        })
    })
    .await;
    let rig = rig(address).await;
    let reply = post(&rig, "{}").await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_unreachable"), "{reply:?}");
    assert!(reply.text.contains("refused the request before") && !reply.text.contains("x-should-retry"), "{reply:?}");
    assert_eq!(counts.requests.load(SeqCst), 3);
    // A body that is too large to be kept can't be sent again.
    let reply = post(&rig, &"x".repeat(300_000)).await;
    assert!(reply.text.contains("too large to be sent again") && !reply.text.contains("x-should-retry"), "{reply:?}");
}

#[tokio::test]
async fn a_stream_that_was_reset_otherwise_is_not_sent_again() {
    let (address, counts) = upstream(100, |mut asked| {
        Box::pin(async move {
            asked.respond.send_reset(Reason::INTERNAL_ERROR);
            None
        })
    })
    .await;
    let rig = rig(address).await;
    let reply = rig.get("/api/openai/x").await;
    assert_eq!(reply.status, 502, "{reply:?}");
    assert!(reply.text.contains("x-should-retry: false") && reply.text.contains("broke off"), "{reply:?}");
    assert_eq!(counts.requests.load(SeqCst), 1);
}

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The SETTINGS of a server, by hand.
async fn greet(tcp: &mut TcpStream) {
    let mut preface = [0; 24];
    tcp.read_exact(&mut preface).await.unwrap();
    tcp.write_all(&frame(4, 0, 0, &[])).await.unwrap();
}

/// Reads a frame: its head.
async fn read_head(tcp: &mut TcpStream) -> [u8; 9] {
    let mut head = [0; 9];
    tcp.read_exact(&mut head).await.unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    tcp.read_exact(&mut vec![0; length]).await.unwrap();
    head
}

/// Reads a frame: its kind and its flags.
async fn read_frame(tcp: &mut TcpStream) -> (u8, u8) {
    let head = read_head(tcp).await;
    (head[3], head[4])
}

/// Reads frames up to a request's HEADERS. Its stream.
async fn read_headers(tcp: &mut TcpStream) -> u32 {
    loop {
        let head = read_head(tcp).await;
        if head[3] == 1 {
            return u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        }
    }
}

fn go_away(last: u32) -> Vec<u8> {
    frame(7, 0, 0, &[last.to_be_bytes(), 0_u32.to_be_bytes()].concat())
}

#[tokio::test]
async fn a_goaway_below_the_streams_id_has_the_request_sent_again_and_one_above_does_not() {
    for (last, again) in [(0, true), (1, false)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rig = rig(listener.local_addr().unwrap()).await;
        let upstream = async {
            let mut tcp = listener.accept().await.unwrap().0;
            greet(&mut tcp).await;
            assert_eq!(read_headers(&mut tcp).await, 1);
            tcp.write_all(&go_away(last)).await.unwrap();
            if !again {
                return; // closes: the upstream may have processed it
            }
            let second = listener.accept().await.unwrap().0;
            let mut h2 = h2::server::handshake(second).await.unwrap();
            let (request, mut respond) = h2.accept().await.unwrap().unwrap();
            assert_eq!(request.headers()["authorization"], format!("Bearer {CREDENTIAL}"));
            respond.send_response(Response::new(()), true).unwrap();
            let _ = h2.accept().await;
        };
        let agent = async {
            let reply = post(&rig, "{}").await;
            if again {
                assert_eq!(reply.status, 200, "{reply:?}");
            } else {
                assert_eq!(reply.status, 502, "{reply:?}");
                assert!(reply.text.contains("x-should-retry: false"), "{reply:?}");
            }
        };
        tokio::select! {
            () = agent => {}
            () = async { upstream.await; std::future::pending::<()>().await } => {}
        }
    }
}

#[tokio::test]
async fn a_request_is_not_sent_again_once_its_token_is_revoked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = rig(listener.local_addr().unwrap()).await;
    let upstream = async {
        let mut tcp = listener.accept().await.unwrap().0;
        greet(&mut tcp).await;
        read_headers(&mut tcp).await;
        rig.revoke();
        let _ = tcp.write_all(&go_away(0)).await;
        let second = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
        if let Ok(Ok((mut second, _))) = second {
            let mut seen = Vec::new();
            let _ = tokio::time::timeout(Duration::from_millis(300), second.read_to_end(&mut seen)).await;
            assert!(!String::from_utf8_lossy(&seen).contains("sk-REAL"), "nothing is sent again");
        }
    };
    let (_, reply) = tokio::join!(upstream, post(&rig, "{}"));
    assert_eq!(reply.code(), "token_revoked", "{reply:?}");
}

#[tokio::test]
async fn a_limit_that_is_lowered_later_brings_another_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = rig(listener.local_addr().unwrap()).await;
    let upstream = async {
        let mut first = listener.accept().await.unwrap().0;
        greet(&mut first).await;
        assert_eq!(read_headers(&mut first).await, 1);
        let one = [0, 3, 0, 0, 0, 1]; // SETTINGS_MAX_CONCURRENT_STREAMS
        let ping = frame(6, 0, 0, &[7; 8]);
        first.write_all(&[frame(4, 0, 0, &one), ping].concat()).await.unwrap();
        while read_frame(&mut first).await != (6, 1) {} // the node has read both
        first
    };
    let second = async {
        let tcp = listener.accept().await.unwrap().0;
        let mut h2 = h2::server::handshake(tcp).await.unwrap();
        let (_, mut respond) = h2.accept().await.unwrap().unwrap();
        respond.send_response(Response::new(()), true).unwrap();
        let _ = h2.accept().await;
    };
    let agents = async {
        let mut waiting = rig.connect().await;
        let request = "GET /api/openai/x HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n";
        waiting.write_all(rig.fill(request).as_bytes()).await.unwrap();
        let _first = upstream.await;
        tokio::select! {
            reply = rig.get("/api/openai/x") => assert_eq!(reply.status, 200, "{reply:?}"),
            () = second => panic!("the second connection ended"),
        }
    };
    tokio::time::timeout(crate::rig::PATIENCE, agents).await.unwrap();
}
