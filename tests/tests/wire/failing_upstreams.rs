//! Upstreams that fail: the agent, the span, the log and `seks service test` say why, and SDKs are
//! told whether a second try costs twice.

use std::net::TcpListener;

use seks_tests::{
    Collector, Sandbox, Upstream,
    raw::Reply,
    sandbox::Options,
    upstream::{Answer, answer::Step},
};

const KEY: &str = "sk-real-wire-key-000000000000000003";

/// A broker with a collector. Connecting takes at most 2 s.
struct World {
    collector: Collector,
    sandbox: Sandbox,
    token: String,
}

impl World {
    fn start() -> Self {
        let collector = Collector::start();
        let config = "[upstream]\nconnect_timeout = '2s'\n".to_owned();
        let sandbox = Sandbox::with(Options { config, ..Options::default() }.collector(&collector));
        let token = String::new();
        Self { collector, sandbox, token }
    }

    /// Points the service at an origin.
    fn lead_to(&mut self, origin: &str, more: &str) {
        let definition = format!(
            "name = 'acme'\nupstream = '{origin}'\nallow_private = true\ninject = 'bearer'\ntest = 'GET /x'\n{more}\n"
        );
        self.sandbox.cli().apply_service(&definition);
        self.sandbox.cli().put_credential("acme", "acme", KEY);
        if self.token.is_empty() {
            self.token = self.sandbox.token("agent", &["acme"]).secret;
        }
    }

    fn post(&self) -> Reply {
        self.sandbox.post("/api/acme/x", &self.token, "{}")
    }

    /// The status, the code and the text, and the word of the span of the same request.
    fn fails(&self, reply: &Reply) -> (u16, String, String) {
        let id = reply.header("x-seks-request-id").unwrap().to_owned();
        let span = self
            .collector
            .wait_for("the request's span", |span| span.name == "seks.proxy" && span.get("seks.request.id") == id);
        assert!(!reply.text().contains("127.0.0.1") && !reply.text().contains(KEY), "{}", reply.text());
        (reply.status, reply.code(), span.get("seks.upstream.error").to_owned())
    }
}

fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = listener.local_addr().unwrap().to_string();
    (listener, origin)
}

/// Says a line of HTTP to whoever comes, whatever that one says.
fn blurts() -> String {
    let (listener, origin) = silent();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            drop(std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n"));
            drop(std::io::Read::read(&mut stream, &mut [0; 4096]));
        }
    });
    origin
}

#[test]
fn every_cause_has_a_word_and_a_text_and_says_whether_the_upstream_may_have_begun() {
    let mut world = World::start();
    let closed = { silent().1 };
    let (_mute, mute) = silent();
    let blurts = blurts();
    let tls = Upstream::start_tls(|_| Answer::json(200, "{}"));
    let plain = Upstream::start(|request| match request.path().as_str() {
        "/silent/x" => Answer::steps(vec![Step::Stall]),
        "/close/x" => Answer::raw(""),
        "/odd/x" => Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        "/coding/x" => Answer::with(200, &[("Content-Encoding", "x-new")], "ab"),
        "/gzip/x" => Answer::with(200, &[("Content-Encoding", "gzip")], "this is not gzip"),
        _ => Answer::json(200, "{}"),
    });
    let at = |path: &str| format!("base_path = '{path}'\nfirst_byte_timeout = '500ms'");
    let rows: &[(String, String, u16, &str, &str, bool)] = &[
        // origin, more, status, code, word, whether SDKs are told not to try again
        ("http://no-such-name.invalid".into(), String::new(), 502, "upstream_unreachable", "dns", false),
        (format!("http://{closed}"), String::new(), 502, "upstream_unreachable", "connect_refused", false),
        (format!("https://{mute}"), String::new(), 504, "upstream_timeout", "tls_timeout", false),
        (tls.origin(), String::new(), 502, "upstream_tls", "tls_unknown_issuer", true),
        (format!("https://{blurts}"), String::new(), 502, "upstream_tls", "tls_handshake", false),
        (format!("http://{blurts}"), "http2 = true".into(), 502, "upstream_unreachable", "no_http2", false),
        (plain.origin(), at("/silent"), 504, "upstream_timeout", "first_byte_timeout", true),
        (plain.origin(), at("/close"), 502, "upstream_unreachable", "closed", true),
        (plain.origin(), at("/odd"), 502, "upstream_unreachable", "conflicting_lengths", true),
        (plain.origin(), at("/coding"), 502, "upstream_unreachable", "unknown_coding", true),
    ];
    for (origin, more, status, code, word, told) in rows {
        world.lead_to(origin, more);
        let reply = world.post();
        let right = (*status, (*code).to_owned(), (*word).to_owned());
        assert_eq!(world.fails(&reply), right, "{origin} {more}: {}", reply.text());
        let header = |name| reply.header(name).is_some_and(|value| value == "false");
        assert_eq!((header("x-should-retry"), header("stripe-should-retry")), (*told, *told), "{origin} {more}");
        // The same words for an operator.
        let tested = world.sandbox.cli().run(&["service", "test", "acme", "-o", "json"], "");
        let view: serde_json::Value = serde_json::from_str(&tested.stdout).unwrap();
        let problem: serde_json::Value = serde_json::from_str(&reply.text()).unwrap();
        assert_eq!((&view["result"], &view["message"]), (&"unreachable".into(), &problem["detail"]), "{view}");
    }
    // The head was whole: the answer breaks off, and the span says why.
    world.lead_to(&plain.origin(), &at("/gzip"));
    let reply = world.post();
    assert!(!reply.complete);
    assert_eq!(world.fails(&reply).2, "corrupt_coding");
    let log = world.sandbox.everything_emitted();
    for word in ["dns", "connect_refused", "tls_unknown_issuer", "first_byte_timeout", "corrupt_coding"] {
        assert!(
            log.contains(&format!("error=\"{word}\"")) || log.contains(&format!("\"error\":\"{word}\"")),
            "{word}: {log}"
        );
    }
}

#[test]
fn a_request_that_was_sent_again_is_one_record_with_its_attempts() {
    let mut world = World::start();
    let upstream = Upstream::start(|request| match request.path().as_str() {
        "/again" if request.connection == 0 => Answer::raw(""),
        _ => Answer::json(200, "{}"),
    });
    world.lead_to(&upstream.origin(), "");
    assert_eq!(world.sandbox.get("/api/acme/first", &world.token).status, 200);
    let reply = world.sandbox.get("/api/acme/again", &world.token);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let id = reply.header("x-seks-request-id").unwrap().to_owned();
    let span = world.collector.wait_for("the record", |s| s.name == "seks.proxy" && s.get("seks.request.id") == id);
    assert_eq!((span.get("seks.upstream.attempts"), span.get("seks.upstream.error")), ("2", ""));
    let records = |span: &&seks_tests::collector::Span| span.name == "seks.proxy" && span.get("seks.request.id") == id;
    assert_eq!(world.collector.spans().iter().filter(records).count(), 1);
    let resent = |span: &seks_tests::collector::Span| span.get("http.request.resend_count") == "1";
    world.collector.wait_for("the client span", |span| span.name == "seks.upstream" && resent(span));
}
