//! Answers as real servers send them: passed where they can be read in one way, broken off where
//! the upstream breaks off.

use std::io::Write as _;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::rig::{CREDENTIAL, Rig, read_reply, upstream};

const GET: &str = "GET /api/openai/models HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n";

/// What an agent gets when the upstream answers with these bytes and closes.
async fn relayed(answer: impl Into<Vec<u8>>) -> Vec<u8> {
    relayed_to(GET, answer.into()).await
}

async fn relayed_to(request: &str, answer: Vec<u8>) -> Vec<u8> {
    let (address, _) = upstream(move |_| (answer.clone(), true)).await;
    ask(&Rig::start(address).await, request).await
}

async fn ask(rig: &Rig, request: &str) -> Vec<u8> {
    let mut agent = rig.connect().await;
    agent.write_all(rig.fill(request).as_bytes()).await.unwrap();
    let mut got = Vec::new();
    // Either the answer is whole, or the node closes.
    let read = async {
        while !got.ends_with(b"0\r\n\r\n") && !is_whole(&got) && agent.read_buf(&mut got).await.unwrap_or(0) > 0 {}
    };
    tokio::time::timeout(crate::rig::PATIENCE, read).await.unwrap();
    got
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    length.is_some_and(|length| body.len() >= length)
        || head.starts_with("http/1.1 304")
        || head.starts_with("http/1.1 204")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).to_ascii_lowercase()
}

#[tokio::test]
async fn an_answer_that_breaks_off_delivers_its_head_and_every_byte_that_came() {
    for (head, sent) in [
        ("Content-Length: 20", "0123456789"),
        ("Content-Length: 20", ""),
        ("Transfer-Encoding: chunked", "a\r\n0123456789\r\n"),
        ("Transfer-Encoding: chunked", "14\r\n0123456789"),
        ("Content-Type: text/event-stream\r\nTransfer-Encoding: chunked", "a\r\n0123456789\r\n"),
        ("Transfer-Encoding: chunked", "a\r\n0123456789\r\nnonsense"),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nX-A: b\r\n{head}\r\n\r\n{sent}");
        let (address, _) = upstream(move |_| (answer.clone().into_bytes(), true)).await;
        let rig = Rig::start(address).await;
        // At once: head, bytes and the end are there before the node looks.
        for _ in 0..20 {
            let got = text(&ask(&rig, GET).await);
            assert!(got.starts_with("http/1.1 200 ok\r\n") && got.contains("x-a: b\r\n"), "{head} {sent:?}: {got}");
            assert_eq!(got.contains("0123456789"), !sent.is_empty(), "{head} {sent:?}: {got}");
            assert!(!got.ends_with("0\r\n\r\n"), "it must not look whole: {got}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_before_the_last_byte_of_a_credential_shows_none_of_it() {
    for kind in ["application/json", "text/event-stream"] {
        let part = &CREDENTIAL[..CREDENTIAL.len() - 1];
        for lead in ["", "data: "] {
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: 400\r\n\r\n{lead}you sent {part}");
            let got = text(&relayed(answer).await);
            assert!(got.contains("you sent ****"), "{kind}: {got}");
            assert!(!got.contains(&CREDENTIAL[..8].to_ascii_lowercase()), "{kind}: {got}");
            let whole = format!("{lead}you sent {part}").len();
            assert_eq!(got.split_once("\r\n\r\n").unwrap().1.len(), whole, "as long as it came: {got}");
        }
    }
    // What is next to nothing of a match goes on as it came.
    let got = text(&relayed(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\nthe task-".to_vec()).await);
    assert!(got.ends_with("the task-"), "{got}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_reset_over_h2_behind_its_bytes() {
    for (sent, closes) in [("0123456789", true), ("", true)] {
        let answer = format!("HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 20\r\n\r\n{sent}");
        let (address, _) = upstream(move |_| (answer.clone().into_bytes(), closes)).await;
        let rig = Rig::start(address).await;
        let (mut client, connection) = h2::client::handshake(rig.connect().await).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        for _ in 0..20 {
            let request = http::Request::get("http://broker/api/openai/x")
                .header("authorization", format!("Bearer {}", rig.token.as_str()));
            let (answer, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
            let answer = answer.await.expect("the head came");
            assert_eq!((answer.status().as_u16(), &answer.headers()["x-a"]), (200, &"b".parse().unwrap()));
            let (mut body, mut got) = (answer.into_body(), Vec::new());
            let error = loop {
                match body.data().await {
                    Some(Ok(data)) => got.extend_from_slice(&data),
                    Some(Err(error)) => break error,
                    None => panic!("it must not look whole"),
                }
            };
            assert!(error.is_reset(), "{error}");
            assert_eq!(got, sent.as_bytes());
        }
    }
}

#[tokio::test]
async fn content_encodings_that_transform_nothing_pass_and_are_searched() {
    for coding in [
        "utf-8",
        "none",
        "binary",
        "7bit",
        "8bit",
        "aws-chunked",
        "application/json",
        "identity",
        "UTF-8, identity",
        "",
    ] {
        let body = format!("{{\"you sent\":\"{CREDENTIAL}\"}}");
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let got = text(&relayed(answer).await);
        assert!(got.starts_with("http/1.1 200"), "{coding}: {got}");
        assert!(got.contains(&format!("content-encoding: {}\r\n", coding.to_lowercase())), "{coding}: {got}");
        assert!(got.ends_with(&format!("{{\"you sent\":\"{}\"}}", "*".repeat(CREDENTIAL.len()))), "{coding}: {got}");
    }
}

#[tokio::test]
async fn an_unknown_coding_is_refused_by_its_name_and_a_credential_in_it_is_not_shown() {
    for (coding, shown) in
        [("compress", "`compress`"), ("x-lz9", "`x-lz9`"), (CREDENTIAL, "searched for the credential\"")]
    {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: 2\r\n\r\nab");
        let got = text(&relayed(answer).await);
        assert!(got.starts_with("http/1.1 502") && got.contains(shown), "{coding}: {got}");
        assert!(got.contains("x-should-retry: false") && !got.contains("sk-real"), "{coding}: {got}");
    }
}

#[tokio::test]
async fn raw_deflate_keeps_its_first_byte() {
    let coded = |text: &[u8], zlib: bool| {
        let level = flate2::Compression::default();
        if zlib {
            let mut coder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            coder.write_all(text).unwrap();
            coder.finish().unwrap()
        } else {
            let mut coder = flate2::write::DeflateEncoder::new(Vec::new(), level);
            coder.write_all(text).unwrap();
            coder.finish().unwrap()
        }
    };
    for body in [&b"{\"ok\": true}"[..], b"x", b""] {
        for zlib in [true, false] {
            let coded = coded(body, zlib);
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: {}\r\n\r\n", coded.len());
            let got = relayed([head.as_bytes(), &coded].concat()).await;
            let got = String::from_utf8(got).unwrap();
            let (_, chunks) = got.split_once("\r\n\r\n").unwrap();
            let data: String = chunks.split("\r\n").skip(1).step_by(2).collect();
            assert_eq!(data.as_bytes(), body, "{zlib}: {got}");
        }
    }
}

#[tokio::test]
async fn answers_without_a_body_need_no_decoder() {
    for (request, answer) in [
        (GET, "HTTP/1.1 204 No Content\r\nContent-Encoding: x-odd\r\n\r\n"),
        (GET, "HTTP/1.1 304 Not Modified\r\nContent-Encoding: x-odd\r\nContent-Length: 7\r\n\r\n"),
        (GET, "HTTP/1.1 200 OK\r\nContent-Encoding: x-odd\r\nContent-Length: 0\r\n\r\n"),
        (&GET.replace("GET", "HEAD"), "HTTP/1.1 200 OK\r\nContent-Encoding: x-odd\r\nContent-Length: 7\r\n\r\n"),
        (&GET.replace("GET", "HEAD"), "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 7\r\n\r\n"),
    ] {
        let (address, _) = upstream(move |_| (answer.as_bytes().to_vec(), false)).await;
        let rig = Rig::start(address).await;
        let mut agent = rig.connect().await;
        agent.write_all(rig.fill(request).as_bytes()).await.unwrap();
        let reply = read_reply(&mut agent, true).await;
        let status: u16 = answer[9..12].parse().unwrap();
        assert_eq!(reply.status, status, "{answer:?}: {reply:?}");
        assert!(reply.text.contains("content-encoding: "), "{answer:?}: {reply:?}");
        let describes = answer.contains("Length: 7");
        assert_eq!(reply.text.contains("content-length: 7"), describes, "{answer:?}: {reply:?}");
    }
}

#[tokio::test]
async fn trailers_pass_scrubbed_and_framing_fields_do_not() {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nTrailer: x-sum, x-key\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-Sum: 1\r\n\
         x-key: {CREDENTIAL}\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\nConnection: close\r\nSet-Cookie: a=b\r\n\
         Content-Encoding: gzip\r\n\r\n"
    );
    let (address, _) = upstream(move |_| (answer.clone().into_bytes(), false)).await;
    let rig = Rig::start(address).await;
    let mut agent = rig.connect().await;
    agent.write_all(rig.fill(GET).as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !text(&got).ends_with("*\r\n\r\n") {
        assert!(agent.read_buf(&mut got).await.unwrap() > 0, "{}", text(&got));
    }
    let got = text(&got);
    let (head, body) = got.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("trailer: x-sum, x-key") && head.contains("transfer-encoding: chunked"), "{got}");
    let stars = "*".repeat(CREDENTIAL.len());
    assert_eq!(body, format!("2\r\nab\r\n0\r\nx-sum: 1\r\nx-key: {stars}\r\n\r\n"));
    // The connection is used again: nothing of the trailers was left in it.
    agent.write_all(rig.fill(GET).as_bytes()).await.unwrap();
    let reply = read_reply(&mut agent, false).await;
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[tokio::test]
async fn equal_lengths_are_one_and_others_are_named() {
    for (lengths, status) in [
        ("Content-Length: 2\r\nContent-Length: 2\r\n", 200),
        ("Content-Length: 2, 2\r\n", 200),
        ("Content-Length: 2\r\nContent-Length: 3\r\n", 502),
        ("Content-Length: 2, 3\r\n", 502),
    ] {
        let got = text(&relayed(format!("HTTP/1.1 200 OK\r\n{lengths}\r\nab")).await);
        assert!(got.starts_with(&format!("http/1.1 {status}")), "{lengths:?}: {got}");
        assert_eq!(got.matches("content-length: 2\r\n").count(), usize::from(status == 200), "{lengths:?}: {got}");
        assert_eq!(got.contains("different values of content-length"), status == 502, "{got}");
    }
}

#[tokio::test]
async fn interim_answers_are_signs_of_life() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::with(listener.local_addr().unwrap(), |s| s.first_byte_timeout_ms = 400, |_| {}).await;
    let upstream = async {
        let mut tcp = listener.accept().await.unwrap().0;
        for status in
            ["102 Processing", "103 Early Hints", "102 Processing", "110 Odd", "102 Processing", "102 Processing"]
        {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            tcp.write_all(format!("HTTP/1.1 {status}\r\nX-I: 1\r\n\r\n").as_bytes()).await.unwrap();
        }
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        tcp
    };
    let (_tcp, reply) = tokio::join!(upstream, rig.get("/api/openai/models"));
    assert!(reply.status == 200 && reply.text.ends_with("ok") && !reply.text.contains("x-i"), "{reply:?}");
}

#[tokio::test]
async fn a_pause_within_an_answer_is_the_services_to_allow() {
    for (idle, whole) in [(100, false), (5_000, true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = |c: &mut seks_data_plane::Config| c.upstream.idle_timeout = std::time::Duration::from_millis(300);
        let rig = Rig::with(listener.local_addr().unwrap(), move |s| s.idle_timeout_ms = idle, config).await;
        let upstream = async {
            let mut tcp = listener.accept().await.unwrap().0;
            tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na").await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(800)).await;
            let _ = tcp.write_all(b"b").await;
        };
        let (_, reply) = tokio::join!(upstream, rig.get("/api/openai/models"));
        assert_eq!(reply.text.ends_with("ab"), whole, "{reply:?}");
    }
}

#[tokio::test]
async fn trailers_of_h2_upstreams_reach_agents_of_http11() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::with(listener.local_addr().unwrap(), |s| s.http2 = true, |_| {}).await;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve_with_trailers(tcp));
        }
    });
    let mut agent = rig.connect().await;
    agent.write_all(rig.fill(GET).as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !text(&got).ends_with("\r\n\r\n") || !text(&got).contains("x-sum: 1") {
        assert!(agent.read_buf(&mut got).await.unwrap() > 0, "{}", text(&got));
    }
    assert!(text(&got).ends_with("2\r\nab\r\n0\r\nx-sum: 1\r\n\r\n"), "{}", text(&got));
}

async fn serve_with_trailers(tcp: TcpStream) {
    let mut connection = h2::server::handshake(tcp).await.unwrap();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let head = http::Response::builder().header("trailer", "x-sum").header("content-length", "2").body(()).unwrap();
        let mut stream = respond.send_response(head, false).unwrap();
        stream.send_data(Bytes::from_static(b"ab"), false).unwrap();
        stream.send_trailers(http::HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())])).unwrap();
    }
}
