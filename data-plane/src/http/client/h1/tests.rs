//! Exchanges with upstreams that are written by hand, byte for byte.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, header};
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::http::{
    HeaderList,
    client::{
        Answer, Connection, Destination, Failure, Gauge, Pool, Request, RequestHead, Resolve, Upload, UpstreamError,
        dial::Stream,
        gauge::ConnectionGauge,
        owner_limits::{OwnerLimits, OwnerUsage},
    },
};

/// A pool and the upstream that it reaches.
struct Pair {
    pool: Arc<Pool>,
    listener: TcpListener,
}

struct Uncounted;

impl Gauge for Uncounted {
    fn connections(&self, _: bool, _: i64) {}
}

/// The address of a listener.
struct At(SocketAddr);

impl Resolve for At {
    fn resolve(&self) -> Pin<Box<dyn Future<Output = Result<Vec<SocketAddr>, UpstreamError>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(vec![self.0])))
    }
}

impl Pair {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let authority = address.to_string().parse().unwrap();
        let destination = Destination { authority, tls: None, http2_only: false, resolve: Box::new(At(address)) };
        let place = Arc::new(OwnerUsage::new(Arc::new(OwnerLimits::new(128, 1)))).open().unwrap();
        Self { pool: Arc::new(Pool::new(destination, 128, place, Arc::new(Uncounted))), listener }
    }

    async fn send(&self, method: Method, upload: Upload) -> Result<Response<Answer>, Failure> {
        let connection = Connection::take(&self.pool, Duration::from_secs(10)).await.unwrap();
        let mut headers = HeaderList::default();
        headers.set(header::HOST, HeaderValue::from_static("up.test"));
        let head = RequestHead { method, target: "/v1?a=b".into(), headers };
        connection.send(Request { head, body: upload }, Duration::from_secs(10)).await
    }

    async fn get(&self) -> Result<Response<Answer>, Failure> {
        self.send(Method::GET, Upload::Empty).await
    }

    async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }
}

fn answered(result: Result<Response<Answer>, Failure>) -> Response<Answer> {
    result.map_err(|failure| failure.error).unwrap()
}

/// Reads a request up to `end`.
async fn read_to(stream: &mut TcpStream, end: &str) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(end.as_bytes()) {
        seen.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(seen).unwrap()
}

async fn body(answer: Response<Answer>) -> Result<String, UpstreamError> {
    Ok(String::from_utf8(answer.into_body().collect().await?.to_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn one_connection_carries_exchange_after_exchange() {
    let pair = Pair::new().await;
    let upstream = async {
        let mut stream = pair.accept().await;
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nx-t: 1\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 4\r\n\r\nlast",
        ] {
            assert_eq!(read_to(&mut stream, "\r\n\r\n").await, "GET /v1?a=b HTTP/1.1\r\nhost: up.test\r\n\r\n");
            // In three pieces: nothing depends on how it comes.
            for piece in answer.as_bytes().chunks(answer.len() / 3 + 1) {
                stream.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed after the last");
        let mut next = pair.accept().await;
        read_to(&mut next, "\r\n\r\n").await;
        next.write_all(b"HTTP/1.1 200 OK\r\n\r\nto the end").await.unwrap();
    };
    let agent = async {
        for (status, text) in [(200, "ok"), (204, ""), (200, ""), (200, "ok"), (404, "last"), (200, "to the end")] {
            let answer = answered(pair.get().await);
            assert_eq!((answer.status().as_u16(), body(answer).await.unwrap()), (status, text.to_owned()));
        }
    };
    tokio::join!(upstream, agent);
}

#[tokio::test]
async fn a_body_goes_out_with_its_length_and_an_empty_one_says_so() {
    let pair = Pair::new().await;
    let large = Bytes::from(vec![b'x'; 300_000]);
    let upstream = async {
        let mut stream = pair.accept().await;
        let head = |length| format!("POST /v1?a=b HTTP/1.1\r\nhost: up.test\r\ncontent-length: {length}\r\n\r\n");
        for (length, end) in [(0, ""), (5, "small"), (300_000, "")] {
            assert_eq!(read_to(&mut stream, "\r\n\r\n").await, head(length));
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            assert!(body.ends_with(end.as_bytes()));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    };
    let agent = async {
        for upload in
            [Upload::Empty, Upload::Whole(Some(Bytes::from_static(b"small"))), Upload::Whole(Some(large.clone()))]
        {
            assert_eq!(answered(pair.send(Method::POST, upload).await).status(), 200);
        }
    };
    tokio::join!(upstream, agent);
}

#[tokio::test]
async fn an_answer_that_comes_before_the_whole_request_is_relayed_and_ends_the_connection() {
    let pair = Pair::new().await;
    let upstream = async {
        let mut stream = pair.accept().await;
        read_to(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig").await.unwrap();
        // Takes nothing of the body; the node sees that the answer is whole and goes.
        let mut rest = Vec::new();
        while matches!(stream.read_buf(&mut rest).await, Ok(n) if n > 0) {}
        assert!(rest.len() < 64 << 20);
        let mut next = pair.accept().await;
        read_to(&mut next, "\r\n\r\n").await;
        next.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    };
    let agent = async {
        let answer = answered(pair.send(Method::PUT, Upload::Whole(Some(vec![0; 64 << 20].into()))).await);
        assert_eq!((answer.status().as_u16(), body(answer).await.unwrap().as_str()), (413, "big"));
        assert_eq!(answered(pair.get().await).status(), 200);
    };
    tokio::join!(upstream, agent);
}

#[tokio::test]
async fn an_upstream_that_says_what_nobody_asked_for_is_not_used_again() {
    let pair = Pair::new().await;
    let upstream = async {
        for extra in ["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", ""] {
            let mut stream = pair.accept().await;
            read_to(&mut stream, "\r\n\r\n").await;
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood{extra}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    let agent = async {
        for _ in 0..2 {
            assert_eq!(body(answered(pair.get().await)).await.unwrap(), "good");
        }
    };
    tokio::join!(upstream, agent);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_taken_for_whole() {
    let pair = Pair::new().await;
    for (wire, error) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfour", UpstreamError::Closed),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n", UpstreamError::Closed),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\n0\r\n\r\n", UpstreamError::BadChunk),
    ] {
        let upstream = async {
            let mut stream = pair.accept().await;
            read_to(&mut stream, "\r\n\r\n").await;
            stream.write_all(wire.as_bytes()).await.unwrap();
        };
        let agent = async { body(answered(pair.get().await)).await };
        assert_eq!(tokio::join!(upstream, agent).1, Err(error), "{wire:?}");
    }
    for (wire, why) in [
        ("", UpstreamError::Closed),
        ("HTTP/1.1 200", UpstreamError::Closed),
        ("SSH-2.0\r\n\r\n", UpstreamError::BadStatusLine),
    ] {
        let upstream = async {
            let mut stream = pair.accept().await;
            read_to(&mut stream, "\r\n\r\n").await;
            stream.write_all(wire.as_bytes()).await.unwrap();
        };
        let answer = tokio::join!(upstream, pair.get()).1;
        assert_eq!(answer.err().map(|failure| failure.error), Some(why), "{wire:?}");
    }
}

#[tokio::test]
async fn interim_answers_without_end_are_given_up() {
    let pair = Pair::new().await;
    let upstream = async {
        let mut stream = pair.accept().await;
        while stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {}
    };
    let failure = tokio::join!(upstream, pair.get()).1.err().unwrap();
    assert_eq!(failure.error, UpstreamError::TooManyInterim);
}

#[tokio::test]
async fn an_answer_that_is_dropped_closes_its_connection() {
    let pair = Pair::new().await;
    let upstream = async {
        let mut stream = pair.accept().await;
        read_to(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst").await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    };
    let agent = async {
        let mut answer = answered(pair.get().await);
        let frame = poll_fn(|cx| http_body::Body::poll_frame(std::pin::Pin::new(answer.body_mut()), cx)).await;
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "first");
    };
    tokio::join!(upstream, agent);
}

#[tokio::test]
async fn a_task_without_budget_takes_no_connection_for_idle_that_is_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ours, theirs) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (ours, mut theirs) = (ours.unwrap(), theirs.unwrap().0);
    theirs.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").await.unwrap();
    ours.readable().await.unwrap();
    let mut h1 = super::H1::new(Stream::Plain(ours), ConnectionGauge::new(Arc::new(Uncounted)));
    while tokio::task::coop::has_budget_remaining() {
        tokio::task::coop::consume_budget().await;
    }
    assert!(!poll_fn(|cx| std::task::Poll::Ready(h1.is_idle(cx))).await);
}

/// Answers one request, so that the next one comes on a connection that was used before; then
/// closes it on receipt of that.
async fn close_the_second(pair: &Pair, end: &str) {
    let mut stream = pair.accept().await;
    read_to(&mut stream, "\r\n\r\n").await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    read_to(&mut stream, end).await;
}

#[tokio::test]
async fn what_an_old_connection_swallowed_may_be_sent_again_if_it_is_idempotent() {
    let whole = |text: &'static str| Upload::Whole(Some(Bytes::from_static(text.as_bytes())));
    for (method, body, end, again) in [
        (Method::GET, Upload::Empty, "\r\n\r\n", true),
        (Method::PUT, whole("body"), "body", true),
        (Method::DELETE, Upload::Empty, "\r\n\r\n", true),
        (Method::POST, whole("body"), "body", false),
        (Method::PATCH, whole("body"), "body", false),
    ] {
        let pair = Pair::new().await;
        let agent = async {
            drop(answered(pair.get().await));
            pair.send(method.clone(), body).await.err().unwrap()
        };
        let (_, failure) = tokio::join!(close_the_second(&pair, end), agent);
        assert!(matches!(failure.error, UpstreamError::Closed | UpstreamError::Reset), "{method} {}", failure.error);
        assert_eq!(failure.again.is_some(), again, "{method}");
        let Some(again) = failure.again else { continue };
        let upstream = async {
            let mut stream = pair.accept().await;
            assert!(read_to(&mut stream, end).await.starts_with(method.as_str()));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        };
        let agent = async {
            let connection = again.connect(Duration::from_secs(10)).await.unwrap().unwrap();
            body_of(answered(connection.send(again.request, Duration::from_secs(10)).await)).await
        };
        assert_eq!(tokio::join!(upstream, agent).1, "ok", "{method}");
    }
}

async fn body_of(answer: Response<Answer>) -> String {
    body(answer).await.unwrap()
}

#[tokio::test]
async fn what_was_answered_in_part_or_went_out_on_a_new_connection_is_not_sent_again() {
    let pair = Pair::new().await;
    let upstream = async { drop(read_to(&mut pair.accept().await, "\r\n\r\n").await) };
    let failure = tokio::join!(upstream, pair.get()).1.err().unwrap();
    assert!(failure.again.is_none(), "a new connection was not idle for too long");

    let upstream = async {
        let mut stream = pair.accept().await;
        read_to(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        read_to(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200").await.unwrap();
    };
    let agent = async {
        drop(answered(pair.get().await));
        pair.get().await.err().unwrap()
    };
    assert!(tokio::join!(upstream, agent).1.again.is_none(), "it had begun to answer");
}
