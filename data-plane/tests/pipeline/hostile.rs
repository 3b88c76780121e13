//! Upstreams that answer oddly: what can't be relayed in one way is not relayed, and no doubt
//! outlives its connection.

use crate::rig::{CREDENTIAL, Rig, upstream};

async fn answered(answer: &'static str) -> (crate::rig::Reply, Rig, crate::rig::Seen) {
    let (address, seen) = upstream(move |_| (answer.replace("{C}", CREDENTIAL).into_bytes(), false)).await;
    let rig = Rig::start(address).await;
    let reply = rig.get("/api/openai/models").await;
    (reply, rig, seen)
}

#[tokio::test]
async fn answers_with_doubtful_framing_are_a_bad_gateway() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 200\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nab",
        "HTTP/0.9 what\r\n\r\n",
        "\u{16}\u{3}\u{1}nonsense\r\n\r\n",
    ] {
        let (reply, rig, seen) = answered(answer).await;
        assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_unreachable"), "{answer:?} {reply:?}");
        assert!(!reply.text.contains("nonsense") && !reply.text.contains("127.0.0.1"), "{reply:?}");
        let _ = rig.get("/api/openai/models").await;
        assert_eq!(seen.connections().len(), 2, "{answer:?}: its connection is not used again");
    }
}

#[tokio::test]
async fn what_is_the_connections_own_stays_behind_and_the_rest_passes() {
    let answer = "HTTP/1.1 201 Whatever {C}\r\nContent-Length: 2\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                  Alt-Svc: h3=\":443\"\r\nX-Kept: yes\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nX-Seks-Request-Id: forged\r\n\r\nab";
    let (reply, _rig, _) = answered(answer).await;
    let text = reply.text.to_lowercase();
    assert!(text.starts_with("http/1.1 201 created\r\n") && text.ends_with("\r\n\r\nab"), "{text}");
    assert!(text.contains("x-kept: yes") && text.matches("set-cookie: ").count() == 2, "{text}");
    for absent in ["x-hop", "keep-alive", "alt-svc", "forged", "sk-real"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
}

#[tokio::test]
async fn interim_answers_are_dropped() {
    let answer = "HTTP/1.1 103 Early Hints\r\nLink: </{C}>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab";
    let (reply, ..) = answered(answer).await;
    assert!(reply.status == 200 && !reply.text.contains("103") && !reply.text.contains("sk-REAL"), "{reply:?}");
}

#[tokio::test]
async fn the_credential_is_taken_out_of_head_and_body() {
    let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer error=\"bad {C}\"\r\nX-Debug: Bearer {C}\r\n\
                  Transfer-Encoding: chunked\r\n\r\n4\r\nkey=\r\n2b\r\n{C}\r\n0\r\n\r\n";
    assert_eq!(CREDENTIAL.len(), 0x2b);
    let (reply, ..) = answered(answer).await;
    assert!(reply.status == 401 && reply.text.contains("key"), "{reply:?}");
    assert!(!reply.text.contains(CREDENTIAL) && !reply.text.contains("DEADBEEF"), "{reply:?}");
}

#[tokio::test]
async fn redirects_are_the_agents_to_follow_and_stay_with_the_broker_where_they_can() {
    let (address, seen) = upstream(|request| {
        let path = request.split(' ').nth(1).unwrap();
        let host = request.to_lowercase().split("host: ").nth(1).unwrap().split("\r\n").next().unwrap().to_owned();
        let to = match path {
            "/v1/same" => format!("http://{host}/v1/next?a=b"),
            "/v1/relative" => "/v1/next".into(),
            "/v1/other" => "http://169.254.169.254/latest".into(),
            "/v1/scheme" => format!("https://{host}/v1/next"),
            _ => "//evil.test/x".into(),
        };
        (format!("HTTP/1.1 307 Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").into_bytes(), false)
    })
    .await;
    let rig = Rig::start(address).await;
    for (path, location) in [
        ("same", "http://broker/api/openai/v1/next?a=b".to_owned()),
        ("relative", "/api/openai/v1/next".into()),
        ("other", "http://169.254.169.254/latest".into()),
        ("scheme", format!("https://{address}/v1/next")),
        ("network", "//evil.test/x".into()),
    ] {
        let reply = rig.get(&format!("/api/openai/{path}")).await;
        assert!(reply.status == 307 && reply.text.contains(&format!("location: {location}\r\n")), "{path} {reply:?}");
    }
    assert_eq!(seen.requests(), 5, "nothing was followed");
}

#[tokio::test]
async fn a_dead_or_silent_upstream_has_its_status_and_says_nothing_of_itself() {
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let rig = Rig::start(dead).await;
    let reply = rig.get("/api/openai/models?secret=1").await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_unreachable"));
    assert!(!reply.text.contains("127.0.0.1") && !reply.text.contains("secret"), "{reply:?}");

    let (address, _) = upstream(|_| (Vec::new(), false)).await;
    let rig = Rig::with(address, |s| s.first_byte_timeout_ms = 50, |_| {}).await;
    let reply = rig.get("/api/openai/models").await;
    assert_eq!((reply.status, reply.code().as_str()), (504, "upstream_timeout"));

    let (address, _) = upstream(|_| (Vec::new(), true)).await; // closes without a word
    let rig = Rig::start(address).await;
    assert_eq!(rig.get("/api/openai/models").await.code(), "upstream_unreachable");

    let (address, _) = crate::rig::upstream_that_answers_at_once().await; // plain HTTP where TLS is spoken
    let rig = Rig::with(address, |s| s.upstream = s.upstream.replace("http:", "https:"), |_| {}).await;
    let reply = rig.get("/api/openai/models").await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_tls"));
}
