//! Heads and trailers of requests: both versions of HTTP are answered alike, and nothing is dropped
//! uncounted.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use seks_tests::raw::{Connection, exchange};

use crate::rig::Rig;

type Body = BoxBody<Bytes, std::convert::Infallible>;

/// Sends a request over HTTP/2; gives status and body of the answer.
fn over_h2(rig: &Rig, request: http::request::Builder, body: Body) -> (StatusCode, String) {
    let request = request.body(body).unwrap();
    seks_tests::runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(rig.sandbox.proxy()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, String::from_utf8_lossy(&body).into_owned())
    })
}

fn request(path: &str) -> http::request::Builder {
    Request::post(format!("http://localhost/api/acme{path}"))
}

fn empty() -> Body {
    Full::default().boxed()
}

#[test]
fn a_doubled_authorization_is_refused_over_both_versions() {
    let rig = Rig::start("");
    let doubled = rig.ask("POST", "/x", "Authorization: Bearer {T}\r\n", "");
    rig.assert_refused(&doubled, 401, "token_ambiguous");
    let bearer = format!("Bearer {}", rig.token);
    let (status, text) =
        over_h2(&rig, request("/x").header("authorization", &bearer).header("authorization", &bearer), empty());
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("Authorization stands twice"), "{text}");
    assert_eq!(over_h2(&rig, request("/x").header("authorization", &bearer), empty()).0, StatusCode::OK);
}

#[test]
fn an_expectation_is_answered_and_another_one_than_continue_is_refused() {
    let rig = Rig::start("");
    for expect in ["200-ok", "100-continue, x", ""] {
        let reply = rig.ask("POST", "/x", &format!("Expect: {expect}\r\n"), "ab");
        rig.assert_refused(&reply, 417, "request_invalid");
        assert!(reply.text().contains("Expect"), "{}", reply.text());
    }
    assert_eq!(rig.ask("POST", "/x", "Expect: 100-Continue\r\n", "ab").status, 200);
    // The body of a request that is refused is not asked for.
    let mut connection = Connection::open(rig.sandbox.proxy());
    connection
        .send("POST /api/acme/x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    let reply = connection.read_reply(false);
    assert_eq!((reply.status, reply.header("connection")), (401, Some("close")));
    assert!(!String::from_utf8_lossy(&reply.wire).contains("100 Continue"));
}

#[test]
fn a_host_may_have_a_port_a_final_dot_and_any_case() {
    let rig = Rig::start("");
    let ask = |host: &str| {
        let token = &rig.token;
        let head = format!("GET /api/acme/x HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n");
        exchange(rig.sandbox.proxy(), head).status
    };
    for host in ["localhost", "LocalHost:80", "localhost.", "localhost.:8300", "127.0.0.1", "[::1]:8300"] {
        assert_eq!(ask(host), 200, "{host}");
    }
    for (host, status) in [
        ("localhost..", 421),
        ("elsewhere.test", 421),
        ("xn--bcher-kva.test", 421),
        (".", 421),
        ("[fe80::1%25eth0]", 400),
        ("localhost:http", 400),
        ("b\u{fc}cher.test", 400),
    ] {
        assert_eq!(ask(host), status, "{host}");
    }
}

#[test]
fn a_target_in_absolute_form_may_write_the_schemes_own_port() {
    let rig = Rig::start("");
    for (target, host, status) in [
        ("http://localhost", "localhost", 200),
        ("HTTP://LOCALHOST:80", "localhost", 200),
        ("http://localhost", "localhost:80", 200),
        ("http://localhost:8300", "localhost:8300", 200),
        ("http://localhost:8300", "localhost", 400),
        ("http://localhost", "elsewhere.test", 400),
        ("http://user@localhost", "localhost", 400),
        ("ftp://localhost", "localhost", 400),
    ] {
        let token = &rig.token;
        let head = format!("GET {target}/api/acme/x HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n");
        assert_eq!(exchange(rig.sandbox.proxy(), head).status, status, "{target} {host}");
    }
}

#[test]
fn trailers_of_a_request_are_dropped_and_counted() {
    let rig = Rig::start("");
    let counted = || {
        let page = rig.sandbox.metrics_page();
        let count = page.lines().find_map(|line| {
            line.strip_prefix("seks_request_headers_dropped_total{service=\"acme\",header=\"trailer\"} ")
        });
        count.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    let chunked = |trailers: &str| {
        let token = &rig.token;
        exchange(
            rig.sandbox.proxy(),
            format!(
                "POST /api/acme/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
                 Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nab\r\n0\r\n{trailers}\r\n"
            ),
        )
        .status
    };
    assert_eq!((chunked(""), counted()), (200, 0));
    assert_eq!((chunked("X-Sum: 1\r\nX-Api-Key: 2\r\n"), counted()), (200, 2));
    assert_eq!(rig.upstream.requests()[1].body, b"ab");

    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
    let frames = [Ok(Frame::data(Bytes::from_static(b"ab"))), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(tokio_stream::iter(frames)).boxed();
    let bearer = format!("Bearer {}", rig.token);
    assert_eq!(over_h2(&rig, request("/x").header("authorization", bearer), body).0, StatusCode::OK);
    assert_eq!(counted(), 3);
    assert!(!String::from_utf8_lossy(&rig.upstream.received()).to_lowercase().contains("x-sum"));
}
