//! What is said to be enforced holds: for requests that began before the change, for agents that
//! don't read, for connections that are open, whatever the clocks say.

mod certificates;
mod memory;
mod unread;

use std::time::{Duration, Instant};

use seks_tests::{Sandbox, Upstream, raw::Connection};

const KEY: &str = "sk-real-enforced-key-000000000001";
const SECOND: &str = "sk-real-enforced-key-000000000002";
const PATH: &str = "/api/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"m"}"#;
/// Reads bodies: a request waits for the whole of its own before it is decided.
const INSPECTS: &str = r#"@id("inspects") permit (principal, action, resource)
  when { context has body && context.body has model && context.body.model == "m" };"#;

/// A SEKS, and a request of which the first half of the body was taken.
fn half_sent(upstream: &Upstream) -> (Sandbox, Connection) {
    let sandbox = Sandbox::start();
    sandbox.service("openai", upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    sandbox.cli().apply_policies(INSPECTS);
    let mut agent = Connection::open(sandbox.proxy());
    agent.send(format!(
        "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        BODY.len()
    ));
    let invited = "HTTP/1.1 100 Continue\r\n\r\n".len();
    assert_eq!(agent.drain(invited), invited, "the body is waited for");
    agent.send(&BODY[..5]);
    (sandbox, agent)
}

#[test]
fn a_policy_that_is_enforced_holds_for_a_request_whose_body_still_comes() {
    let upstream = Upstream::ok();
    let (sandbox, mut agent) = half_sent(&upstream);
    sandbox.cli().apply_policies(r#"@id("off") forbid (principal, action, resource);"#);
    agent.send(&BODY[5..]);
    let reply = agent.read_reply(false);
    assert_eq!((reply.status, reply.code().as_str()), (403, "policy_denied"));
    assert_eq!(upstream.received(), b"");
}

#[test]
fn a_credential_whose_replacement_is_enforced_is_not_used_by_a_request_whose_body_still_comes() {
    let upstream = Upstream::ok();
    let (sandbox, mut agent) = half_sent(&upstream);
    let put = sandbox.cli().put_credential("openai", "openai", SECOND);
    assert_eq!(put["enforced"], true, "{put}");
    agent.send(&BODY[5..]);
    assert_eq!(agent.read_reply(false).status, 200);
    let received = String::from_utf8(upstream.received()).unwrap();
    assert!(received.contains(SECOND) && !received.contains(KEY), "{received}");
}

#[test]
fn a_restarted_seks_dev_waits_for_no_process_that_has_ended() {
    let upstream = Upstream::ok();
    let mut sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]);
    assert_eq!(sandbox.get("/api/openai/v1/models", &token.secret).status, 200);
    // Twice: the second start finds what two processes have left.
    for n in 0..2 {
        sandbox.crash();
        let begun = Instant::now();
        let put = sandbox.cli().put_credential("openai", "openai", &format!("{KEY}{n}"));
        assert_eq!(put["enforced"], true, "{put}");
        // 10.9 s is what a lease takes; this is the command as a whole, on a machine that does
        // other things.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}: {put}", begun.elapsed());
        println!("the first change after a crash: {} ms", put["waited_ms"]);
    }
    let revoked = sandbox.cli().revoke(&token.id);
    assert_eq!(revoked["enforced"], true, "{revoked}");
}
