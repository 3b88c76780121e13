//! When a connection to an upstream is used again, and when it must not be.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::rig::{CREDENTIAL, Rig, credential, ok, read_reply, upstream, upstream_that_answers_at_once};

#[tokio::test]
async fn a_connection_is_used_again_after_a_whole_answer_of_any_kind() {
    let (address, seen) = upstream(|request| {
        let answer = match request.split(' ').nth(1).unwrap() {
            "/v1/empty" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            "/v1/same" => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n".to_vec(),
            "/v1/chunked" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n".to_vec(),
            "/v1/head" => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".to_vec(),
            _ => ok("{}"),
        };
        (answer, false)
    })
    .await;
    let rig = Rig::start(address).await;
    for path in ["empty", "same", "chunked", "json", "chunked", "empty"] {
        let reply = rig.get(&format!("/api/openai/{path}")).await;
        assert!(matches!(reply.status, 200 | 204 | 304), "{reply:?}");
    }
    let head = rig.send("HEAD /api/openai/head HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n").await;
    assert!(head.status == 200 && head.text.contains("content-length: 10"), "{head:?}");
    assert_eq!((seen.connections().len(), seen.requests()), (1, 7));
    let metrics = crate::rig::metrics(&rig).await;
    assert!(metrics.contains("seks_upstream_connections{service=\"openai\",state=\"idle\"} 1\n"), "{metrics}");
    assert!(metrics.contains("seks_upstream_connections{service=\"openai\",state=\"active\"} 0\n"), "{metrics}");
}

#[tokio::test]
async fn bytes_behind_an_answer_are_never_taken_for_the_next_one() {
    for answer in [
        "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
        "HTTP/1.1 304 Not Modified\r\n\r\nforged",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    ] {
        let (address, seen) = upstream(move |_| (answer.as_bytes().to_vec(), false)).await;
        let rig = Rig::start(address).await;
        for _ in 0..3 {
            let reply = rig.get("/api/openai/models").await;
            assert!(!reply.text.contains("forged"), "{answer:?} {reply:?}");
        }
        assert_eq!(seen.connections().len(), 3, "{answer:?}");
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_upload_ends_its_connection() {
    let (address, seen) = upstream_that_answers_at_once().await;
    let rig = Rig::start(address).await;
    let mut tcp = rig.connect().await;
    let head =
        "POST /api/openai/x HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\nContent-Length: 40\r\n\r\n";
    tcp.write_all(rig.fill(head).as_bytes()).await.unwrap();
    let reply = read_reply(&mut tcp, false).await;
    assert_eq!(reply.status, 401, "{reply:?}");
    let other = rig.send("GET /api/openai/y HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T2}\r\n\r\n").await;
    assert_eq!((other.status, seen.connections().len()), (401, 2), "{other:?}");
}

#[tokio::test]
async fn a_get_with_a_body_has_its_connection_to_itself() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let raw = "GET /api/openai/x HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\nContent-Length: 34\r\n\r\n\
               GET /v1/admin HTTP/1.1\r\nX: 1\r\n\r\n..";
    assert_eq!(rig.send(raw).await.status, 200);
    assert_eq!(rig.get("/api/openai/y").await.status, 200);
    assert_eq!(seen.connections().len(), 2);
}

#[tokio::test]
async fn a_connection_that_the_upstream_closed_is_not_used() {
    let (address, seen) = upstream(|_| (ok("{}"), true)).await;
    let rig = Rig::start(address).await;
    for _ in 0..5 {
        assert_eq!(rig.get("/api/openai/models").await.status, 200);
    }
    assert_eq!(seen.connections().len(), 5);
}

#[tokio::test]
async fn a_replaced_credential_is_used_by_the_next_request_on_a_connection_of_its_own() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    assert_eq!(rig.get("/api/openai/models").await.status, 200);
    rig.apply(vec![credential("openai-key", "openai", "sk-second", 2)]);
    assert_eq!(rig.get("/api/openai/models").await.status, 200);
    let connections = seen.connections();
    assert_eq!(connections.len(), 2);
    assert!(connections[0].contains(CREDENTIAL) && !connections[0].contains("sk-second"));
    assert!(!connections[1].contains(CREDENTIAL) && connections[1].contains("Bearer sk-second\r\n"));
}

#[tokio::test]
async fn an_agent_that_leaves_takes_its_upstream_connection_with_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::start(listener.local_addr().unwrap()).await;
    let mut agent = rig.connect().await;
    let raw = rig.fill("GET /api/openai/models HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n");
    agent.write_all(raw.as_bytes()).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    upstream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n").await.unwrap();
    let mut head = [0; 64];
    tokio::io::AsyncReadExt::read_exact(&mut agent, &mut head).await.unwrap();
    drop(agent);
    let closed = async {
        let mut chunk = [0; 4096];
        while let Ok(n) = tokio::io::AsyncReadExt::read(&mut upstream, &mut chunk).await {
            if n == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed).await.expect("the upstream connection is closed");
}
