//! Host mode: `SERVICE.SUFFIX` in `Host` is a service.

use crate::rig::{CREDENTIAL, Reply, Rig, ok, upstream};

async fn rig(script: impl Fn(&str) -> (Vec<u8>, bool) + Send + Sync + 'static) -> (Rig, crate::rig::Seen) {
    let (address, seen) = upstream(script).await;
    let rig = Rig::with(address, |_| {}, |c| c.proxy.host_suffix = Some("broker.example".into())).await;
    (rig, seen)
}

async fn get(rig: &Rig, host: &str, path: &str) -> Reply {
    rig.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {{T1}}\r\n\r\n")).await
}

#[tokio::test]
async fn a_host_names_its_service_and_the_whole_path_is_the_services() {
    let (rig, seen) = rig(|_| (ok("{}"), false)).await;
    for (host, path) in [
        ("openai.broker.example", "/v1/models?x=1"),
        ("openai.broker.example:8300", "/models?x=1"),
        ("openai.BROKER.example", "http://openai.BROKER.example/v1/models?x=1"),
    ] {
        assert_eq!(get(&rig, host, path).await.status, 200, "{host}{path}");
    }
    let text = seen.text();
    assert_eq!(text.matches("GET /v1/models?x=1 HTTP/1.1\r\n").count(), 3, "{text}");
    assert_eq!(text.matches(&format!("Bearer {CREDENTIAL}\r\n")).count(), 3, "{text}");
    assert!(!text.contains("broker.example") && !text.contains("seks_token_"), "{text}");
}

#[tokio::test]
async fn a_path_that_looks_like_path_mode_is_a_path_like_any_other() {
    let (rig, seen) = rig(|_| (ok("{}"), false)).await;
    assert_eq!(get(&rig, "openai.broker.example", "/api/github/x").await.status, 200);
    assert!(seen.text().contains("GET /v1/api/github/x HTTP/1.1"), "{}", seen.text());
    assert_eq!(get(&rig, "broker", "/api/openai/models").await.status, 200, "path mode is as it was");
}

#[tokio::test]
async fn other_hosts_are_nobodys() {
    let (rig, seen) = rig(|_| (ok("{}"), false)).await;
    for (host, status, code) in [
        ("github.broker.example", 403, "service_not_granted"),
        ("nothing.broker.example", 404, "service_unknown"),
        ("a.openai.broker.example", 421, "request_invalid"),
        ("broker.example", 421, "request_invalid"),
        ("OPENAI.broker.example", 421, "request_invalid"),
        ("openai.broker.example.evil.test", 421, "request_invalid"),
        ("openai.evil.test", 421, "request_invalid"),
        ("openai.broker.example@evil.test", 400, "request_invalid"),
    ] {
        let reply = get(&rig, host, "/v1/models").await;
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{host}");
    }
    assert_eq!(get(&rig, "openai.broker.example", "/v1/admin/x").await.code(), "policy_denied", "policy holds as ever");
    assert_eq!(seen.requests(), 0);
    // The same name, written in full.
    assert_eq!(get(&rig, "openai.broker.example.", "/v1/models").await.status, 200);
}

#[tokio::test]
async fn a_redirect_stays_on_the_services_host() {
    let (rig, _seen) = rig(|request| {
        let host = request.lines().find_map(|l| l.strip_prefix("host: ")).unwrap_or_default().to_owned();
        (
            format!("HTTP/1.1 302 Found\r\nLocation: http://{host}/v1/next\r\nContent-Length: 0\r\n\r\n").into_bytes(),
            false,
        )
    })
    .await;
    let reply = get(&rig, "openai.broker.example", "/v1/models").await;
    assert!(reply.text.to_lowercase().contains("location: http://openai.broker.example/v1/next\r\n"), "{reply:?}");
    let reply = get(&rig, "broker", "/api/openai/models").await;
    assert!(reply.text.to_lowercase().contains("location: http://broker/api/openai/v1/next\r\n"), "{reply:?}");
}
