//! HTTP/2 from agents, by preface over plain TCP.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Version};

use crate::rig::{CREDENTIAL, Rig, ok, upstream};

async fn client(rig: &Rig) -> h2::client::SendRequest<Bytes> {
    let (client, connection) = h2::client::handshake(rig.connect().await).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client
}

fn request(rig: &Rig, uri: &str) -> http::request::Builder {
    let token = format!("Bearer {}", rig.token.as_str());
    Request::builder().method(Method::POST).version(Version::HTTP_2).uri(uri).header("authorization", token)
}

#[tokio::test]
async fn an_agent_may_speak_h2_to_an_h1_upstream() {
    let (address, seen) = upstream(|_| (ok("{\"ok\":true}"), false)).await;
    let rig = Rig::start(address).await;
    let mut client = client(&rig).await;
    for _ in 0..3 {
        let (answer, mut body) =
            client.send_request(request(&rig, "http://broker/api/openai/x").body(()).unwrap(), false).unwrap();
        body.send_data(Bytes::from_static(b"abc"), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.headers().contains_key("x-seks-request-id"));
        let data = answer.into_body().data().await.unwrap().unwrap();
        assert_eq!(data, "{\"ok\":true}");
    }
    let text = seen.text();
    assert_eq!(text.matches(&format!("Bearer {CREDENTIAL}\r\n")).count(), 3, "{text}");
    assert!(text.contains(&format!("host: {address}\r\n")) && !text.contains("broker"), "{text}");
}

#[tokio::test]
async fn h2_heads_are_held_to_the_same_rules() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let send = async |request: Request<()>| {
        let mut client = client(&rig).await;
        match client.send_request(request, true) {
            Ok((answer, _)) => answer.await.map_or(0, |a| a.status().as_u16()),
            Err(_) => 0,
        }
    };
    for (request, status) in [
        (request(&rig, "http://evil.test/api/openai/x"), 421),
        (request(&rig, "file://broker/api/openai/x"), 400),
        (request(&rig, "http://broker/api/openai/../x"), 400),
        (request(&rig, "http://broker/api/openai/x").header("host", "evil.test"), 400),
        (request(&rig, "http://broker/api/openai/x").header("authorization", "Bearer x"), 400),
        (request(&rig, "http://broker/api/openai/x").method(Method::TRACE), 405),
        (request(&rig, &format!("http://broker/api/openai/{}", "x".repeat(9000))), 414),
    ] {
        assert_eq!(send(request.body(()).unwrap()).await, status);
    }
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn an_agent_that_keeps_its_window_shut_loses_the_stream_and_no_other() {
    let (address, _) = upstream(|request| {
        let big = request.contains("/big ");
        (ok(&"x".repeat(if big { 4 << 20 } else { 2 })), false)
    })
    .await;
    let rig = Rig::with(address, |_| {}, |c| c.proxy.limits.idle_timeout = Duration::from_millis(500)).await;
    let mut client = client(&rig).await;
    let (stalled, _) =
        client.send_request(request(&rig, "http://broker/api/openai/big").body(()).unwrap(), true).unwrap();
    let mut stalled = stalled.await.unwrap().into_body();
    let first = stalled.data().await.unwrap().unwrap();
    assert!(!first.is_empty());
    let page = || async { crate::rig::metrics(&rig).await };
    let active = "seks_upstream_connections{service=\"openai\",state=\"active\"} ";
    assert!(page().await.contains(&format!("{active}1")));
    let mut broke = None;
    for _ in 0..2000 {
        // What has been sent ahead is read without giving window back, so that it stays shut.
        match tokio::time::timeout(Duration::from_secs(10), stalled.data()).await.expect("it ends by itself") {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                broke = Some(error);
                break;
            }
            None => break,
        }
    }
    assert!(broke.expect("reset, not ended").is_reset());
    assert!(page().await.contains(&format!("{active}0")), "the upstream is let go of");
    let (answer, _) = client.send_request(request(&rig, "http://broker/api/openai/x").body(()).unwrap(), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200, "the connection still serves");
}
