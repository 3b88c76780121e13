use std::time::Duration;

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use super::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 20, uri: 1024 };
const GET: &str = "GET /a HTTP/1.1\r\nHost: broker\r\n\r\n";
const POST: &str = "POST /b HTTP/1.1\r\nHost: broker\r\nContent-Length: 5\r\n\r\nhello";
const CHUNKED: &str = "POST /c HTTP/1.1\r\nHost: broker\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";

fn strict<IO>(io: IO) -> Strict<IO> {
    let waiting = Waiting::new(Instant::now(), Duration::from_secs(10), Duration::from_secs(60));
    Strict::new(io, LIMITS, Arc::new(Activity::new()), waiting)
}

/// What hyper is handed of `wire` when it comes in these pieces and hyper has room for `room` bytes at once; and how it ends.
fn handed(wire: &[u8], cuts: &[usize], room: usize) -> (Vec<u8>, Result<(), io::ErrorKind>) {
    let mut pieces = tokio_pieces(wire, cuts);
    let mut out = Vec::new();
    let end = loop {
        let mut space = vec![0; room];
        let mut buf = ReadBuf::new(&mut space);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match Pin::new(&mut pieces).poll_read(&mut cx, &mut buf) {
            Poll::Pending => break Ok(()),
            Poll::Ready(Err(e)) => break Err(e.kind()),
            Poll::Ready(Ok(())) if buf.filled().is_empty() => break Ok(()),
            Poll::Ready(Ok(())) => out.extend_from_slice(buf.filled()),
        }
    };
    (out, end)
}

/// Gives one piece a read.
struct Pieces(Vec<Vec<u8>>);

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(piece) = self.0.first_mut() {
            let n = piece.len().min(buf.remaining());
            buf.put_slice(&piece.drain(..n).collect::<Vec<_>>());
            if piece.is_empty() {
                self.0.remove(0);
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn tokio_pieces(wire: &[u8], cuts: &[usize]) -> Strict<Pieces> {
    let mut ends: Vec<usize> = cuts.iter().map(|c| c % (wire.len() + 1)).collect();
    ends.push(wire.len());
    ends.sort_unstable();
    let mut start = 0;
    let mut pieces = Vec::new();
    for end in ends {
        if end > start {
            pieces.push(wire[start..end].to_vec());
        }
        start = end;
    }
    // A timer needs a runtime, and nothing here waits.
    strict(Pieces(pieces))
}

fn stand_in_of(bytes: &[u8]) -> Option<Violation> {
    let text = std::str::from_utf8(bytes).ok()?;
    violation_of(text.split(' ').nth(1)?)
}

#[test]
fn what_is_well_formed_is_handed_on_byte_for_byte() {
    let wire = [GET, POST, CHUNKED, GET].concat();
    assert_eq!(handed(wire.as_bytes(), &[], 8192), (wire.clone().into_bytes(), Ok(())));
    for at in 0..wire.len() {
        assert_eq!(handed(wire.as_bytes(), &[at], 8192), (wire.clone().into_bytes(), Ok(())), "cut at {at}");
    }
    let every: Vec<usize> = (0..wire.len()).collect();
    assert_eq!(handed(wire.as_bytes(), &every, 8192).0, wire.as_bytes());
}

#[test]
fn a_refused_head_becomes_a_stand_in_and_nothing_behind_it_is_read() {
    let bad = "GET /evil HTTP/1.1\nHost: broker\n\n";
    let wire = [GET, bad, GET, GET].concat();
    for cut in 0..wire.len() {
        let (out, end) = handed(wire.as_bytes(), &[cut], 8192);
        let rest = out.strip_prefix(GET.as_bytes()).unwrap();
        assert_eq!((stand_in_of(rest), end), (Some(Violation::LineEnd), Ok(())), "cut at {cut}");
        assert!(!String::from_utf8_lossy(rest).contains("evil"));
    }
}

#[test]
fn a_refused_chunk_in_the_heads_own_segment_takes_the_head_with_it() {
    let bad = CHUNKED.replace("hello\r\n", "hello\n");
    let (out, end) = handed(bad.as_bytes(), &[], 8192);
    assert_eq!((stand_in_of(&out), end), (Some(Violation::Chunk), Ok(())));
}

#[test]
fn a_refused_chunk_later_breaks_the_body_off() {
    let bad = CHUNKED.replace("hello\r\n", "hello\n");
    let head = bad.find("5\r\n").unwrap();
    for cut in head..bad.find("hello\n").unwrap() + 5 {
        let (out, end) = handed(bad.as_bytes(), &[cut], 8192);
        assert!(out.starts_with(b"POST /c") && end == Err(io::ErrorKind::InvalidData), "cut at {cut}: {end:?}");
    }
}

#[test]
fn bytes_of_a_body_are_never_read_as_a_head() {
    let inner = "GET /v1/admin HTTP/1.1\nnot: a head\n\n";
    let wire = format!("POST /b HTTP/1.1\r\nHost: broker\r\nContent-Length: {}\r\n\r\n{inner}{GET}", inner.len());
    assert_eq!(handed(wire.as_bytes(), &[40, 75, 90], 8192), (wire.clone().into_bytes(), Ok(())));
}

#[test]
fn a_marker_is_not_to_be_guessed() {
    assert_eq!(violation_of("/refused-/0"), None);
    assert_eq!(violation_of("/"), None);
    assert!(marker().len() > 40 && is_stand_in(marker()));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_late_is_answered_and_an_idle_connection_is_closed() {
    let (mut agent, node) = tokio::io::duplex(1024);
    let mut strict = strict(node);
    agent.write_all(b"GET / HTTP/1.1\r\nHost: b\r\nX: ").await.unwrap();
    let (mut out, began) = ([0; 256], Instant::now());
    let n = strict.read(&mut out).await.unwrap();
    assert_eq!(stand_in_of(&out[..n]), Some(Violation::HeadTimeout));
    assert_eq!(began.elapsed().as_secs(), 10);

    let (mut agent, node) = tokio::io::duplex(1024);
    let mut strict = super::tests::strict(node);
    agent.write_all(GET.as_bytes()).await.unwrap();
    assert_eq!(strict.read(&mut out).await.unwrap(), GET.len());
    strict.activity.begin();
    let early = tokio::time::timeout(Duration::from_secs(600), strict.read(&mut out)).await;
    assert!(early.is_err(), "an answer may take its time");
    strict.activity.end();
    let began = Instant::now();
    assert_eq!(strict.read(&mut out).await.unwrap(), 0, "then it is idle");
    assert!((60..=120).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_is_closed() {
    let (agent, node) = tokio::io::duplex(1024);
    let mut strict = strict(node);
    let began = Instant::now();
    assert_eq!(strict.read(&mut [0; 64]).await.unwrap(), 0);
    assert_eq!(began.elapsed().as_secs(), 10);
    drop(agent);
}

proptest! {
    /// However bytes are cut, and however little room hyper has, it is handed the same requests.
    #[test]
    fn split_points_do_not_matter(
        order in prop::collection::vec(0_usize..4, 1..6),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
        room in 1_usize..300,
    ) {
        let bad = "GET /evil HTTP/1.1\r\nHost: broker\r\nHost: evil\r\n\r\n";
        let wire: String = order.iter().map(|i| [GET, POST, CHUNKED, bad][*i]).collect();
        let whole = handed(wire.as_bytes(), &[], 8192);
        prop_assert_eq!(handed(wire.as_bytes(), &cuts, room), whole);
    }
}
