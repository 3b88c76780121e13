//! The HTTP edge: what is not acceptable is refused before the upstream hears of it.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::rig::{Rig, ok, read_reply, tenant_policies, upstream};

const AUTH: &str = "Authorization: Bearer {T1}\r\n";

#[tokio::test]
async fn each_class_of_unacceptable_request_has_its_status() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let host = "Host: broker\r\n";
    for (raw, status) in [
        (format!("TRACE /api/openai/models HTTP/1.1\r\n{host}{AUTH}\r\n"), 405),
        (format!("Get /api/openai/models HTTP/1.1\r\n{host}{AUTH}\r\n"), 405),
        (format!("CONNECT evil.test:443 HTTP/1.1\r\n{host}{AUTH}\r\n"), 405),
        (format!("GET /api/openai/models HTTP/1.1\r\nHost: evil.test\r\n{AUTH}\r\n"), 421),
        (format!("GET http://broker/api/openai/models HTTP/1.1\r\nHost: evil.test\r\n{AUTH}\r\n"), 400),
        (format!("GET http://evil.test/api/openai/models HTTP/1.1\r\nHost: broker\r\n{AUTH}\r\n"), 400),
        (format!("GET /api/openai/models HTTP/1.1\r\nHost: broker@evil\r\n{AUTH}\r\n"), 400),
        (format!("GET /api/openai/models HTTP/1.1\r\nHost:\r\n{AUTH}\r\n"), 400),
        (format!("GET /api/openai/models HTTP/1.1\r\n{host}{AUTH}Connection: host\r\n\r\n"), 400),
        (format!("GET /api/openai/models HTTP/1.1\r\n{host}{AUTH}Connection: close, Content-Length\r\n\r\n"), 400),
        (format!("GET /api/openai/../github/user HTTP/1.1\r\n{host}{AUTH}\r\n"), 400),
        (format!("GET /api/openai/v1/%2e%2e/admin HTTP/1.1\r\n{host}{AUTH}\r\n"), 400),
        (format!("GET /api/openai/x?_method=DELETE HTTP/1.1\r\n{host}{AUTH}\r\n"), 400),
        (format!("GET /api/openai.evil.test/x HTTP/1.1\r\n{host}{AUTH}\r\n"), 404),
        (format!("GET /api/openai:443@evil.test/x HTTP/1.1\r\n{host}{AUTH}\r\n"), 404),
        (format!("GET / HTTP/1.1\r\n{host}{AUTH}\r\n"), 404),
        (format!("GET /api/github/user HTTP/1.1\r\n{host}{AUTH}\r\n"), 403),
        (format!("DELETE /api/openai/files/1 HTTP/1.1\r\n{host}{AUTH}\r\n"), 403),
        (format!("GET /api/openai/admin/keys HTTP/1.1\r\n{host}{AUTH}\r\n"), 403),
        (format!("POST /api/openai/organization/api_keys HTTP/1.1\r\n{host}{AUTH}\r\n"), 403),
        (format!("GET /api/openai/{} HTTP/1.1\r\n{host}{AUTH}\r\n", "x".repeat(9000)), 414),
        (format!("GET /api/openai/x HTTP/1.1\r\n{host}{AUTH}X: {}\r\n\r\n", "x".repeat(40_000)), 431),
        (format!("GET /api/openai/x HTTP/1.1\r\n{host}{AUTH}{}\r\n", "X: y\r\n".repeat(100)), 431),
        (format!("POST /api/openai/x HTTP/1.1\r\n{host}{AUTH}Content-Length: 9999999999\r\n\r\n"), 413),
        (format!("GET /api/openai/models HTTP/1.1\n{host}{AUTH}\r\n"), 400),
        (
            format!(
                "GET /api/openai/models HTTP/1.1\r\n{host}{AUTH}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0"
            ),
            400,
        ),
    ] {
        let reply = rig.send(&raw).await;
        assert_eq!(reply.status, status, "{raw:?} {reply:?}");
        assert!(reply.text.contains("x-seks-request-id: ") && !reply.code().is_empty(), "{raw:?} {reply:?}");
    }
    assert_eq!(seen.requests(), 0, "{}", seen.text());
}

#[tokio::test]
async fn a_denied_request_with_an_unread_body_is_answered_and_its_body_never_read_as_a_request() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let inner = rig.fill("GET /api/openai/models HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n");
    let raw = format!(
        "POST /api/openai/admin HTTP/1.1\r\nHost: broker\r\n{AUTH}Content-Length: 10485760\r\n\r\n{}",
        inner.repeat(40)
    );
    let reply = rig.send(&raw).await;
    assert_eq!((reply.status, reply.closed), (403, true), "{reply:?}");
    assert_eq!((reply.text.matches("HTTP/1.1 ").count(), seen.requests()), (1, 0));
    assert!(reply.text.contains("connection: close"), "{reply:?}");
}

#[tokio::test]
async fn a_body_streams_and_arrives_framed_once() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let head =
        rig.fill(&format!("POST /api/openai/x HTTP/1.1\r\nHost: broker\r\n{AUTH}Transfer-Encoding: chunked\r\n\r\n"));
    let mut tcp = rig.connect().await;
    tcp.write_all(head.as_bytes()).await.unwrap();
    tcp.write_all(b"5;ext=1\r\nhello\r\n").await.unwrap();
    seen.wait_for("hello").await;
    assert_eq!(seen.text().matches("\r\n0\r\n\r\n").count(), 0, "the body goes on");
    tcp.write_all(b"6\r\n world\r\n0\r\nAuthorization: Bearer evil\r\nX-Trailer: x\r\n\r\n").await.unwrap();
    let reply = read_reply(&mut tcp, false).await;
    let text = seen.text().to_lowercase();
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(text.contains("transfer-encoding: chunked") && !text.contains("content-length"), "{text}");
    assert!(!text.contains("ext=1") && !text.contains("trailer") && !text.contains("evil"), "{text}");

    let reply =
        rig.send(&format!("POST /api/openai/y HTTP/1.1\r\nHost: broker\r\n{AUTH}Content-Length: 3\r\n\r\nabc")).await;
    assert_eq!(reply.status, 200);
    assert!(seen.text().contains("content-length: 3\r\n") && seen.text().ends_with("\r\n\r\nabc"), "{}", seen.text());
}

#[tokio::test]
async fn a_body_whose_framing_breaks_later_is_never_completed_at_the_upstream() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let head =
        rig.fill(&format!("POST /api/openai/x HTTP/1.1\r\nHost: broker\r\n{AUTH}Transfer-Encoding: chunked\r\n\r\n"));
    let mut tcp = rig.connect().await;
    tcp.write_all(head.as_bytes()).await.unwrap();
    tcp.write_all(b"5\r\nhello\r\n").await.unwrap();
    seen.wait_for("hello").await;
    tcp.write_all(b"5\r\nworld\n0\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(10), tcp.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the connection is closed");
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&rest));
    assert!(!seen.text().contains("0\r\n\r\n"), "{}", seen.text());
}

#[tokio::test]
async fn a_policy_that_looks_at_the_body_decides_on_the_bytes_that_are_sent() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let small = r#"permit (principal, action, resource) when { context has body && context.body has model && context.body.model == "small" };"#;
    rig.apply(vec![tenant_policies(&[("small", small)])]);
    let post = |body: &str, fields: &str| {
        format!(
            "POST /api/openai/x HTTP/1.1\r\nHost: broker\r\n{AUTH}{fields}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let json = "Content-Type: application/json\r\n";
    let small = r#"{"model":"small","n":1}"#;
    assert_eq!(rig.send(&post(small, json)).await.status, 200);
    assert!(seen.text().ends_with(small), "{}", seen.text());
    let padded = format!("{}{small}", " ".repeat(2 << 20));
    for (body, fields) in [
        (r#"{"model":"large"}"#, json),
        (r#"{"model":"small","model":"large"}"#, json),
        (r#"{"model":"small","\u006dodel":"large"}"#, json),
        (small, "Content-Type: text/plain\r\n"),
        (small, ""),
        (small, "Content-Type: application/json\r\nContent-Encoding: gzip\r\n"),
        (&padded, json),
    ] {
        let reply = rig.send(&post(body, fields)).await;
        assert_eq!((reply.status, reply.code().as_str()), (403, "policy_denied"), "{}", &body[body.len() - 20..]);
    }
    assert_eq!(seen.requests(), 1);
    let detail = rig.send(&post(small, "")).await.text;
    assert!(detail.contains("policy") && !detail.contains("context"), "names, never text: {detail}");
}

#[tokio::test]
async fn a_body_that_only_an_audit_policy_looks_at_is_sent_whole() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let watch =
        r#"@mode("audit") forbid (principal, action, resource) when { context has body && context.body has model };"#;
    rig.apply(vec![tenant_policies(&[("all", "permit (principal, action, resource);"), ("watch", watch)])]);
    let long = format!("{{\"x\":\"{}\"}}", "~".repeat(2 << 20));
    let head = format!("POST /api/openai/x HTTP/1.1\r\nHost: broker\r\n{AUTH}Content-Type: application/json\r\n");
    let (first, rest) = long.split_at(5);
    for framed in [
        format!("Content-Length: {}\r\n\r\n{long}", long.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n5\r\n{first}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len()),
    ] {
        assert_eq!(rig.send(&[head.as_str(), &framed].concat()).await.status, 200);
    }
    let sent = seen.text().bytes().filter(|b| *b == b'~').count();
    assert_eq!(sent, 2 * (2 << 20), "no byte is lost");
}

#[tokio::test]
async fn headers_that_would_make_one_request_another_stay_behind() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let fields = "X-Forwarded-Host: evil\r\nForwarded: host=evil\r\n\
                  TE: trailers\r\nExpect: 100-continue\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\
                  Connection: Upgrade, HTTP2-Settings, X-Secret\r\nX-Secret: evil\r\nRange: bytes=0-3\r\nBaggage: a=b\r\n\
                  traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nAccept-Encoding: br\r\nX-Real-IP: 1.2.3.4\r\n\
                  User-Agent: sdk/1\r\nOpenAI-Beta: yes\r\n";
    let reply = rig.send(&format!("GET /api/openai/models HTTP/1.1\r\nHost: broker\r\n{AUTH}{fields}\r\n")).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = seen.text().to_lowercase();
    let names: Vec<&str> = text.lines().skip(1).filter_map(|l| l.split_once(": ").map(|(n, _)| n)).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["accept-encoding", "authorization", "host", "openai-beta", "user-agent"], "{text}");
}

#[tokio::test]
async fn a_node_without_a_lease_serves_nothing() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    rig.table().lease().end();
    let reply = rig.get("/api/openai/models").await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "node_stale"));
    assert!(reply.text.contains("retry-after: 1"), "{reply:?}");
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn a_token_has_so_many_requests_in_flight_and_no_more() {
    let (address, seen) = upstream(|_| (Vec::new(), false)).await; // never answers
    let rig = Rig::with(address, |_| {}, |c| c.proxy.limits.max_in_flight = 2).await;
    let raw = rig.fill("GET /api/openai/models HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n");
    let (mut a, mut b) = (rig.connect().await, rig.connect().await);
    a.write_all(raw.as_bytes()).await.unwrap();
    b.write_all(raw.as_bytes()).await.unwrap();
    crate::rig::wait("two requests", || seen.requests() == 2).await;
    let third = rig.get("/api/openai/models").await;
    assert_eq!((third.status, third.code().as_str()), (429, "limit_exceeded"));
    drop(a);
    let mut freed = 429;
    for _ in 0..1000 {
        let mut tcp = rig.connect().await;
        tcp.write_all(raw.as_bytes()).await.unwrap();
        match tokio::time::timeout(Duration::from_millis(50), read_reply(&mut tcp, false)).await {
            Ok(reply) => assert_eq!(reply.status, 429),
            Err(_) => {
                freed = 0; // it waits for the upstream: it was let in
                break;
            }
        }
    }
    assert_eq!(freed, 0);
}

#[tokio::test]
async fn a_range_is_passed_on_where_the_service_allows_it_and_nowhere_else() {
    let part = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-8/9\r\nContent-Length: 9\r\n\r\n1234567ab";
    for (allowed, status) in [(true, 206), (false, 200)] {
        let (address, seen) = upstream(move |request| {
            let ranged = request.to_lowercase().contains("range: bytes=0-");
            (if ranged { part.as_bytes().to_vec() } else { ok("1234567ab") }, false)
        })
        .await;
        let rig = Rig::with(address, |s| s.allow_range = allowed, |_| {}).await;
        let asked = format!("GET /api/openai/x HTTP/1.1\r\nHost: broker\r\n{AUTH}Range: bytes=7-8\r\n\r\n");
        let reply = rig.send(&asked).await;
        assert_eq!(reply.status, status, "{reply:?} {}", seen.text());
        assert_eq!(reply.text.to_lowercase().contains("content-range: bytes 7-8/9"), allowed);
        assert!(reply.text.ends_with(if allowed { "\r\n\r\nab" } else { "1234567ab" }), "{}", reply.text);
    }
}
