//! What an upstream sends back: a credential as the name of a header, and one that an event's lines
//! join to.

use seks_tests::{
    Upstream,
    raw::{self, Connection},
    sandbox::Sandbox,
    upstream::{Answer, answer::chunk},
};

const KEY: &str = "sk-Real-Edge-9f3cA7bZq0DEADbeef0123456789";

fn sandbox(answer: impl Fn() -> Answer + Send + Sync + 'static) -> (Sandbox, Upstream, String) {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::start(move |_| answer()));
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]).secret;
    (sandbox, upstream, token)
}

#[test]
fn a_header_or_trailer_named_after_the_credential_is_removed() {
    let hex: String = KEY.bytes().map(|b| format!("{b:02X}")).collect();
    let named = [KEY.to_owned(), KEY.to_ascii_lowercase(), format!("x-{KEY}-y"), hex];
    let (sandbox, _upstream, token) = sandbox(move || {
        let names: Vec<(&str, &str)> = named.iter().map(|name| (name.as_str(), "1")).chain([("x-kept", "2")]).collect();
        Answer::chunked(200, &names, vec![chunk(b"{}")], &names)
    });
    let mut connection = Connection::open(sandbox.proxy());
    connection.send(format!(
        "GET /api/openai/x HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nConnection: close, TE\r\nAuthorization: Bearer {token}\r\n\r\n"
    ));
    let reply = connection.read_reply(false);
    connection.closes(seks_tests::process::PATIENCE);
    let wire = String::from_utf8_lossy(connection.wire()).to_lowercase();
    assert_eq!((reply.status, reply.header("x-kept")), (200, Some("2")), "{wire}");
    let hex: String = KEY.bytes().map(|b| format!("{b:02x}")).collect();
    for secret in [KEY.to_lowercase(), hex] {
        assert!(!wire.contains(&secret), "{wire}");
    }
}

#[test]
fn an_event_whose_lines_join_to_the_credential_is_masked_and_the_others_come_at_once() {
    let (head, tail) = KEY.split_at(17);
    let (sandbox, _upstream, token) = sandbox(move || {
        let joined = format!("event: x\ndata: {head}\r\nid: 1\r: comment\ndata:{tail}\n\n");
        let mut steps = vec![chunk(b"data: first\n\n")];
        steps.extend(joined.as_bytes().chunks(7).map(chunk));
        steps.push(chunk(b"data: last\n\n"));
        Answer::chunked(200, &[("Content-Type", "text/event-stream")], steps, &[])
    });
    let reply = raw::get(sandbox.proxy(), "/api/openai/x", &token);
    let text = reply.text();
    assert!(!text.contains(head) && !text.contains(tail), "{text}");
    let masked =
        format!("event: x\ndata: {}\r\nid: 1\r: comment\ndata:{}\n\n", "*".repeat(17), "*".repeat(KEY.len() - 17));
    assert_eq!(text, format!("data: first\n\n{masked}data: last\n\n"));
    assert!(sandbox.metrics_page().contains("seks_scrubbed_total{service=\"openai\"} 1"), "counted");
}
