//! Connections whose agents are written by hand, byte for byte.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    task::JoinHandle,
    time::Instant,
};

use super::*;
use crate::http::server::stream::Inbound;

const GET: &str = "GET /a HTTP/1.1\r\nHost: broker\r\n\r\n";
const POST: &str = "POST /b HTTP/1.1\r\nHost: broker\r\nContent-Length: 5\r\n\r\nhello";
const CHUNKED: &str = "POST /c HTTP/1.1\r\nHost: broker\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
const BAD: &str = "GET /evil HTTP/1.1\r\nHost: broker\r\nHost: evil\r\n\r\n";

/// Answers with what was asked, once all of it was read; `/later…` never, and `/unread…` without
/// reading.
#[derive(Clone, Default)]
struct Echo(Arc<Mutex<Vec<String>>>);

impl Echo {
    fn seen(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

type Answered = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

impl RequestHandler for Echo {
    type Body = Full<Bytes>;
    type Handling = Answered;

    fn handle(&self, request: Request<Incoming>) -> Answered {
        let seen = self.0.clone();
        Box::pin(async move {
            let line = format!("{} {}", request.method(), request.uri());
            if line.contains("/later") {
                seen.lock().push(line);
                return std::future::pending().await;
            }
            let body = if line.contains("/unread") {
                Ok(Bytes::new())
            } else {
                request.into_body().collect().await.map(|body| body.to_bytes())
            };
            let line = format!("{line} {:?}", body.map(|body| String::from_utf8(body.to_vec()).unwrap()));
            seen.lock().push(line.clone());
            Response::new(Full::from(line))
        })
    }

    fn refuse(&self, violation: Violation) -> Response<Full<Bytes>> {
        let line = format!("{violation:?}");
        self.0.lock().push(line.clone());
        let mut response = Response::new(Full::from(line));
        *response.status_mut() = violation.status();
        response
    }
}

impl AbortableBody for Full<Bytes> {
    fn poll_aborted(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

/// A connection with `room` between agent and node.
fn connected<S: RequestHandler + Clone + Send + Sync + 'static>(
    serve: &S,
    room: usize,
) -> (DuplexStream, JoinHandle<&'static str>, CancellationToken)
where
    S::Handling: Send,
    S::Body: Send,
{
    let (agent, node) = tokio::io::duplex(room);
    let waiting = Waiting::new(Instant::now(), Duration::from_secs(10), Duration::from_secs(60));
    let limits = HeadLimits { bytes: 4096, fields: 20, uri: 1024 };
    let connection = H1::new(Stream::new(Inbound::Memory(node)), limits, Arc::new(Activity::new(None)), waiting);
    let (serve, stop) = (serve.clone(), CancellationToken::new());
    let stopped = stop.clone();
    (
        agent,
        tokio::spawn(async move {
            match connection.serve(&serve, &stopped).await {
                End::Gone => "gone",
                End::Last(_) => "last",
                End::Switched(..) => "switched",
            }
        }),
        stop,
    )
}

/// What comes of `wire` in these pieces: what was handled, and what was answered.
async fn exchanged(wire: &[u8], cuts: &[usize], room: usize) -> (Vec<String>, String) {
    let echo = Echo::default();
    let (agent, ended, _stop) = connected(&echo, room);
    let (mut from, mut to) = tokio::io::split(agent);
    let reading = tokio::spawn(async move {
        let mut answers = Vec::new();
        let _ = from.read_to_end(&mut answers).await;
        answers
    });
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (wire.len() + 1)).chain([wire.len()]).collect();
    ends.sort_unstable();
    let mut start = 0;
    for end in ends {
        // A node that has refused takes no more.
        if to.write_all(&wire[start..end]).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
        start = end;
    }
    // An agent that goes ends what is under way: it waits until everything was answered.
    let expected = wire.windows(9).filter(|w| w == b"HTTP/1.1\r").count();
    tokio::time::timeout(Duration::from_secs(5), async {
        while echo.seen().len() < expected && !ended.is_finished() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let _ = to.shutdown().await;
    ended.await.unwrap();
    (echo.seen(), String::from_utf8(reading.await.unwrap()).unwrap())
}

fn bodies(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.1 ").skip(1).map(|answer| answer.split_once("\r\n\r\n").unwrap().1).collect()
}

#[tokio::test]
async fn requests_are_answered_in_order_however_they_are_split() {
    let wire = [GET, POST, CHUNKED, GET].concat();
    let lines = ["GET /a Ok(\"\")", "POST /b Ok(\"hello\")", "POST /c Ok(\"hello\")", "GET /a Ok(\"\")"];
    for at in 0..wire.len() {
        let (seen, answers) = exchanged(wire.as_bytes(), &[at], 8192).await;
        assert_eq!(seen, lines, "cut at {at}");
        assert_eq!(bodies(&answers), lines, "cut at {at}");
    }
    let every: Vec<usize> = (0..wire.len()).collect();
    assert_eq!(exchanged(wire.as_bytes(), &every, 8192).await.0, lines);
    assert_eq!(exchanged(wire.as_bytes(), &[], 7).await.0, lines, "with little room both ways");
}

#[tokio::test]
async fn a_refused_request_is_answered_in_its_turn_and_nothing_behind_it_is_read() {
    for bad in ["GET /evil HTTP/1.1\nHost: broker\n\n", BAD] {
        let wire = [GET, bad, GET, GET].concat();
        for cut in 0..wire.len() {
            let (seen, answers) = exchanged(wire.as_bytes(), &[cut], 8192).await;
            let refused = if bad == BAD { "Host" } else { "LineEnd" };
            assert_eq!(seen, ["GET /a Ok(\"\")", refused], "cut at {cut}");
            assert!(answers.contains("HTTP/1.1 400 ") && answers.contains("connection: close"), "{answers}");
        }
    }
}

#[tokio::test]
async fn a_refused_chunk_in_the_heads_own_segment_takes_the_head_with_it() {
    let bad = CHUNKED.replace("hello\r\n", "hello\n");
    assert_eq!(exchanged(bad.as_bytes(), &[], 8192).await.0, ["Chunk"]);
}

#[tokio::test]
async fn a_refused_chunk_later_breaks_the_body_off_and_ends_the_connection() {
    let bad = [&CHUNKED.replace("hello\r\n", "hello\n"), GET].concat();
    let head = bad.find("5\r\n").unwrap();
    for cut in head..bad.find("hello\n").unwrap() + 5 {
        let (seen, answers) = exchanged(bad.as_bytes(), &[cut], 8192).await;
        assert_eq!(seen, ["POST /c Err(BrokenBody)"], "cut at {cut}");
        assert!(answers.contains("connection: close"), "{answers}");
    }
}

#[tokio::test]
async fn bytes_of_a_body_are_never_read_as_a_head() {
    let inner = "GET /v1/admin HTTP/1.1\nnot: a head\n\n";
    let wire = format!("POST /b HTTP/1.1\r\nHost: broker\r\nContent-Length: {}\r\n\r\n{inner}{GET}", inner.len());
    let (seen, _) = exchanged(wire.as_bytes(), &[40, 75, 90], 8192).await;
    assert_eq!(seen, [format!("POST /b Ok({inner:?})"), "GET /a Ok(\"\")".into()]);
}

#[tokio::test]
async fn a_body_that_nobody_reads_ends_the_connection_with_the_answer() {
    let wire = "POST /unread HTTP/1.1\r\nHost: broker\r\nContent-Length: 5\r\n\r\nhe";
    let (seen, answers) = exchanged(wire.as_bytes(), &[], 8192).await;
    assert_eq!(seen, ["POST /unread Ok(\"\")"]);
    assert!(answers.contains("connection: close"), "{answers}");
    let whole = [&POST.replace("/b", "/unread"), GET].concat();
    let (seen, answers) = exchanged(whole.as_bytes(), &[], 8192).await;
    assert_eq!(seen, ["POST /unread Ok(\"\")", "GET /a Ok(\"\")"], "one that came along is no matter");
    assert!(!answers.contains("connection: close"), "{answers}");
}

#[tokio::test]
async fn an_agent_that_waits_is_asked_for_its_body_when_somebody_wants_it() {
    let echo = Echo::default();
    let head = "POST /b HTTP/1.1\r\nHost: broker\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let (mut agent, ended, _stop) = connected(&echo, 1024);
    agent.write_all(head.as_bytes()).await.unwrap();
    let mut asked = [0; 25];
    agent.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    agent.write_all(b"hello").await.unwrap();
    let mut answer = vec![0; 1024];
    let n = agent.read(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer[..n]).ends_with("POST /b Ok(\"hello\")"));
    agent.write_all(head.replace("/b", "/unread").as_bytes()).await.unwrap();
    let n = agent.read(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer[..n]).into_owned();
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains("connection: close"), "not asked: {text}");
    assert_eq!(ended.await.unwrap(), "last");
}

#[tokio::test]
async fn an_agent_that_has_sent_its_last_request_may_end_its_side() {
    for head in ["HTTP/1.1\r\nHost: b\r\nConnection: close", "HTTP/1.0\r\nHost: b"] {
        for body in ["\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"] {
            let (mut agent, ended, _stop) = connected(&Slow, 1024);
            agent.write_all(format!("POST /x {head}{body}").as_bytes()).await.unwrap();
            agent.shutdown().await.unwrap();
            let mut answer = String::new();
            agent.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains(" 200 OK\r\n") && answer.ends_with("answered"), "{head} {answer:?}");
            assert_eq!(ended.await.unwrap(), "last");
        }
    }
}

/// Answers after others have been polled a few times.
#[derive(Clone)]
struct Slow;

impl RequestHandler for Slow {
    type Body = Full<Bytes>;
    type Handling = Answered;

    fn handle(&self, request: Request<Incoming>) -> Answered {
        Box::pin(async move {
            let _body = request.into_body().collect().await;
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            Response::new(Full::from("answered"))
        })
    }

    fn refuse(&self, _: Violation) -> Response<Full<Bytes>> {
        Response::new(Full::from("refused"))
    }
}

#[tokio::test]
async fn a_request_whose_agent_goes_is_dropped() {
    let echo = Echo::default();
    for wire in
        ["GET /later HTTP/1.1\r\nHost: broker\r\n\r\n", "POST /later HTTP/1.1\r\nHost: b\r\nContent-Length: 1\r\n\r\nx"]
    {
        let (mut agent, ended, _stop) = connected(&echo, 1024);
        agent.write_all(wire.as_bytes()).await.unwrap();
        while echo.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(agent);
        assert_eq!(ended.await.unwrap(), "gone");
        echo.0.lock().clear();
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_late_is_answered_and_an_idle_connection_is_closed() {
    let echo = Echo::default();
    let (mut agent, ended, _stop) = connected(&echo, 1024);
    agent.write_all(b"GET / HTTP/1.1\r\nHost: b\r\nX: ").await.unwrap();
    let began = Instant::now();
    assert_eq!(ended.await.unwrap(), "last");
    assert_eq!((echo.seen(), began.elapsed().as_secs()), (vec!["HeadTimeout".to_owned()], 10));

    let (mut agent, mut ended, _stop) = connected(&echo, 1024);
    agent.write_all(GET.as_bytes()).await.unwrap();
    let began = Instant::now();
    assert_eq!((&mut ended).await.unwrap(), "last");
    assert!((60..=61).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());

    let (mut agent, ended, _stop) = connected(&echo, 1024);
    agent.write_all(b"GET /later HTTP/1.1\r\nHost: b\r\n\r\n").await.unwrap();
    let early = tokio::time::timeout(Duration::from_secs(600), ended).await;
    assert!(early.is_err(), "an answer may take its time");

    let (_agent, ended, _stop) = connected(&echo, 1024);
    let began = Instant::now();
    assert_eq!(ended.await.unwrap(), "last");
    assert_eq!(began.elapsed().as_secs(), 10, "a connection that says nothing");
}

#[tokio::test]
async fn a_node_that_stops_answers_what_has_begun_and_says_that_it_is_the_last() {
    let echo = Echo::default();
    let (agent, ended, stop) = connected(&echo, 1024);
    stop.cancel();
    assert_eq!(ended.await.unwrap(), "last", "an idle one");
    drop(agent);
    let (mut agent, ended, stop) = connected(&echo, 1024);
    agent.write_all(&POST.as_bytes()[..POST.len() - 2]).await.unwrap();
    tokio::task::yield_now().await;
    stop.cancel();
    agent.write_all(b"lo").await.unwrap();
    assert_eq!(ended.await.unwrap(), "last");
    let mut answer = String::new();
    agent.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("connection: close") && answer.ends_with("POST /b Ok(\"hello\")"), "{answer}");
}

/// An answer without end, until it is severed.
#[derive(Clone)]
struct Endless(CancellationToken);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(&[b'x'; 100])))))
    }
}

impl AbortableBody for Endless {
    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let severed = self.0.clone();
        // The waker is the connection's; a task tells it.
        let waker = cx.waker().clone();
        if severed.is_cancelled() {
            return Poll::Ready(());
        }
        tokio::spawn(async move {
            severed.cancelled().await;
            waker.wake();
        });
        Poll::Pending
    }
}

impl RequestHandler for Endless {
    type Body = Self;
    type Handling = Ready<Response<Self>>;

    fn handle(&self, _: Request<Incoming>) -> Self::Handling {
        ready(Response::new(self.clone()))
    }

    fn refuse(&self, _: Violation) -> Response<Self> {
        Response::new(self.clone())
    }
}

#[tokio::test]
async fn an_answer_that_must_end_ends_though_nobody_reads_it() {
    let endless = Endless(CancellationToken::new());
    let (mut agent, ended, _stop) = connected(&endless, 1024);
    agent.write_all(GET.as_bytes()).await.unwrap();
    let mut first = [0; 15];
    agent.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!ended.is_finished(), "it waits for its agent");
    endless.0.cancel();
    assert_eq!(ended.await.unwrap(), "gone");
    let mut rest = Vec::new();
    agent.read_to_end(&mut rest).await.unwrap();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it is not to be taken for whole");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However bytes are cut, and however little room there is, the same requests are handled.
    #[test]
    fn split_points_do_not_matter(
        order in prop::collection::vec(0_usize..4, 1..6),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
        room in 1_usize..300,
    ) {
        let wire: String = order.iter().map(|i| [GET, POST, CHUNKED, BAD][*i]).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (whole, split) = runtime.block_on(async {
            (exchanged(wire.as_bytes(), &[], 8192).await.0, exchanged(wire.as_bytes(), &cuts, room).await.0)
        });
        prop_assert_eq!(whole, split);
    }
}
