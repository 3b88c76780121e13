//! URLs in JSON and event-stream bodies lead through the node, for services with `rewrite_urls`,
//! however the body is split.

use std::sync::{Arc, OnceLock};

use seks_tests::{
    Sandbox, Upstream,
    raw::{Connection, Reply},
    upstream::{Answer, answer::chunk},
};

const KEY: &str = "sk-real-wire-key-000000000000000001";

/// A service with these options, and an upstream that answers as `answer` says, told its own
/// origin.
struct Rig {
    sandbox: Sandbox,
    _upstream: Upstream,
    token: String,
}

impl Rig {
    fn new(options: &str, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let origin: Arc<OnceLock<String>> = Arc::default();
        let own = origin.clone();
        let upstream = Upstream::start(move |_| answer(own.get().unwrap()));
        origin.set(upstream.origin()).unwrap();
        let sandbox = Sandbox::start();
        sandbox.cli().apply_service(&format!(
            "name = 'acme'\nupstream = '{}'\nallow_private = true\ninject = 'bearer'\n{options}\n",
            upstream.origin()
        ));
        sandbox.cli().put_credential("acme", "acme", KEY);
        let token = sandbox.token("agent", &["acme"]).secret;
        Self { sandbox, _upstream: upstream, token }
    }

    fn ask(&self, method: &str) -> Reply {
        let mut client = Connection::open(self.sandbox.proxy());
        client.send(format!(
            "{method} /api/acme/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
            self.token
        ));
        client.read_reply(method == "HEAD")
    }
}

const ON: &str = "rewrite_urls = true";
const JSON: (&str, &str) = ("Content-Type", "application/json");

#[test]
fn both_spellings_of_a_slash_are_rewritten() {
    let rig = Rig::new(ON, |own| {
        let escaped = own.replace('/', "\\/");
        Answer::with(
            200,
            &[JSON],
            format!(r#"{{"url":"{escaped}\/repos\/o\/r","next":"{own}/x","other":"http://o.test/"}}"#),
        )
    });
    let reply = rig.ask("GET");
    assert_eq!(
        reply.text(),
        r#"{"url":"http:\/\/localhost\/api\/acme\/repos\/o\/r","next":"http://localhost/api/acme/x","other":"http://o.test/"}"#
    );
    assert!(reply.complete && reply.header("content-length").is_none());
}

#[test]
fn a_url_is_found_wherever_the_body_is_split() {
    let rig = Rig::new(ON, |own| {
        let text = format!("data: {{\"next\":\"{own}/x\"}}\n\ndata: {own}/y\n\n");
        let steps = text.as_bytes().chunks(1).map(chunk).collect();
        Answer::chunked(200, &[("Content-Type", "text/event-stream")], steps, &[])
    });
    let expect = "data: {\"next\":\"http://localhost/api/acme/x\"}\n\ndata: http://localhost/api/acme/y\n\n";
    assert_eq!(rig.ask("GET").text(), expect);
}

#[test]
fn digests_and_lengths_go_and_the_etag_stays() {
    let rig = Rig::new(ON, |own| {
        let fields =
            [JSON, ("ETag", "\"v1\""), ("Content-MD5", "x"), ("x-goog-hash", "md5=x"), ("Accept-Ranges", "bytes")];
        Answer::with(200, &fields, format!(r#"{{"a":"{own}/x","key":"{KEY}"}}"#))
    });
    for method in ["GET", "HEAD"] {
        let reply = rig.ask(method);
        for gone in ["content-length", "content-md5", "x-goog-hash", "accept-ranges"] {
            assert_eq!(reply.header(gone), None, "{method}: {gone}");
        }
        assert_eq!(reply.header("etag"), Some("\"v1\""));
    }
    let masked = "*".repeat(KEY.len());
    assert_eq!(rig.ask("GET").text(), format!(r#"{{"a":"http://localhost/api/acme/x","key":"{masked}"}}"#));
}

#[test]
fn what_is_no_api_answer_stays_byte_for_byte() {
    for (options, status, fields) in [
        ("", 200, vec![JSON]),
        (ON, 206, vec![JSON, ("Content-Range", "bytes 0-9/100")]),
        (ON, 200, vec![("Content-Type", "text/plain")]),
        (ON, 200, vec![JSON, ("Content-Disposition", "attachment; filename=a.json")]),
        (ON, 200, vec![("Content-Type", "application/vnd.github.raw+json")]),
        ("rewrite_urls = true\nbase_path = '/api/v4'", 200, vec![JSON]),
    ] {
        let told = fields.clone();
        let rig = Rig::new(options, move |own| Answer::with(status, &told, format!(r#"["{own}/group/project"]"#)));
        let reply = rig.ask("GET");
        assert!(reply.text().starts_with("[\"http://127.0.0.1:"), "{options} {fields:?}: {}", reply.text());
        assert!(reply.header("content-length").is_some() || options.contains("base_path"), "{options} {fields:?}");
    }
}

#[test]
fn prose_that_mentions_the_upstream_stays() {
    let rig = Rig::new(ON, |own| {
        Answer::with(200, &[JSON], format!(r#"{{"text":"see {own}/x","q":"http://o.test/?u={own}/"}}"#))
    });
    assert!(!rig.ask("GET").text().contains("localhost"));
}
