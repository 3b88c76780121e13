//! HTTP/2 from agents, by preface over plain TCP.

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
