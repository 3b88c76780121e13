//! The thin line: what an SDK sends arrives with the real key in it, and the answer comes back.

use crate::rig::{CREDENTIAL, Rig, ok, upstream};

#[tokio::test]
async fn the_real_key_arrives_and_no_byte_of_the_token_does() {
    let (address, seen) = upstream(|_| (ok("{\"ok\":true}"), false)).await;
    let rig = Rig::start(address).await;
    for path in ["/api/openai/models", "/api/openai/v1/models"] {
        let reply = rig.get(path).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(reply.text.ends_with("{\"ok\":true}") && reply.text.contains("x-seks-request-id: "), "{reply:?}");
        assert!(!reply.closed);
    }
    let text = seen.text();
    assert_eq!(text.matches("GET /v1/models HTTP/1.1\r\n").count(), 2, "{text}");
    assert_eq!(text.matches(&format!("authorization: Bearer {CREDENTIAL}\r\n")).count(), 2, "{text}");
    assert!(text.contains(&format!("host: {address}\r\n")) && text.contains("accept-encoding: identity\r\n"), "{text}");
    assert!(!text.contains("seks_token_"), "{text}");
    assert_eq!(seen.connections().len(), 1, "one upstream connection serves both");
}
