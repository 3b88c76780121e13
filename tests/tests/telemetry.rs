//! What a node says about its work: a span for every request, metrics, JSON logs, health; and no
//! secret in any of them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::net::TcpListener;

use seks_tests::{
    Collector, Sandbox, Upstream, collector::Span, metrics::NAMES, oracle, raw, sandbox::Options, upstream::Answer,
};

const KEY: &str = r#"sk-real-telemetry/key+with="odd\bytes-0001"#;

/// The attributes that every request's span has, refused ones included.
const ALWAYS: &[&str] = &[
    "seks.decision",
    "seks.node",
    "seks.region",
    "seks.table.revision",
    "seks.request.id",
    "http.request.method",
    "url.path",
    "http.response.status_code",
    "server.address",
    "server.port",
    "client.address",
    "url.scheme",
    "network.protocol.version",
];

/// And those of a request that was let through.
const ALLOWED: &[&str] = &[
    "seks.tenant",
    "seks.agent",
    "seks.token.id",
    "seks.service",
    "seks.credential",
    "seks.credential.version",
    "seks.policy.ids",
    "seks.scrub.count",
    "http.route",
    "http.request.body.size",
    "http.response.body.size",
];

fn missing<'a>(span: &Span, names: &[&'a str]) -> Vec<&'a str> {
    names.iter().copied().filter(|name| !span.attributes.contains_key(*name)).collect()
}

fn by_request_id<'a>(id: &'a str) -> impl Fn(&Span) -> bool + 'a {
    move |span| span.name == "seks.proxy" && span.get("seks.request.id") == id
}

#[test]
fn every_request_closes_one_span_with_all_attributes() {
    let (collector, upstream) = (Collector::start(), Upstream::start(|r| Answer::text(&r.head)));
    let sandbox = Sandbox::with(Options::default().collector(&collector));
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]);

    let allowed = sandbox.post("/api/openai/v1/chat/completions?secret_name=secret_value", &token.secret, "{}");
    assert_eq!(allowed.status, 200);
    let id = allowed.header("x-seks-request-id").unwrap().to_owned();
    let span = collector.wait_for("the span of an allowed request", by_request_id(&id));
    assert_eq!(missing(&span, ALWAYS), [""; 0]);
    assert_eq!(missing(&span, ALLOWED), [""; 0]);
    let expected = [
        ("seks.tenant", "default"),
        ("seks.agent", "agent"),
        ("seks.token.id", &token.id),
        ("seks.service", "openai"),
        ("seks.credential", "openai"),
        ("seks.credential.version", "1"),
        ("seks.decision", "allow"),
        ("seks.policy.ids", "granted-services"),
        ("seks.scrub.count", "1"),
        ("http.request.method", "POST"),
        ("url.path", "/api/openai/v1/chat/completions"),
        ("http.response.status_code", "200"),
        ("server.address", "dev"),
        ("client.address", "127.0.0.1"),
        ("url.scheme", "http"),
        ("http.route", "/api/{service}"),
        ("network.protocol.version", "1.1"),
        ("http.request.body.size", "2"),
    ];
    for (name, value) in expected {
        assert_eq!(span.get(name), value, "{name}");
    }
    assert_eq!(span.kind, 2, "a server");
    let child = |s: &Span| s.name == "seks.upstream" && s.parent == span.id && s.trace == span.trace;
    let child = collector.wait_for("the upstream's span", child);
    assert_eq!((child.kind, child.get("url.full")), (3, &*format!("{}/v1/chat/completions", upstream.origin())));
    assert_eq!(
        (child.get("server.address"), child.get("server.port")),
        ("127.0.0.1", &*upstream.address().port().to_string())
    );
    assert_eq!((child.get("http.request.method"), child.get("http.response.status_code")), ("POST", "200"));

    let refusals = [
        (sandbox.get("/api/openai/v1/models", "nothing-like-a-token"), "token_malformed"),
        (sandbox.get("/api/github/user", &token.secret), "service_unknown"),
        (sandbox.get("/api/openai/v1/../admin", &token.secret), "request_invalid"),
        (
            raw::exchange(sandbox.proxy(), "GET /api/openai/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            "token_missing",
        ),
    ];
    for (reply, code) in &refusals {
        assert_eq!(reply.code(), *code, "{}", reply.text());
        let id = reply.header("x-seks-request-id").unwrap();
        let span = collector.wait_for(code, by_request_id(id));
        assert_eq!(missing(&span, ALWAYS), [""; 0], "{code}");
        assert_eq!((span.get("seks.decision"), span.get("seks.reason")), ("deny", *code));
        assert_eq!(span.get("http.response.status_code"), reply.status.to_string());
    }
    let proxied = collector.spans().iter().filter(|s| s.name == "seks.proxy").count();
    assert_eq!(proxied, 1 + refusals.len(), "one span a request");
    let admin = collector.wait_for("an administrator's span", |s| s.name == "seks.admin");
    assert_eq!(admin.kind, 2);
    no_secret(&collector.everything(), &token.secret);
    no_secret(&sandbox.everything_emitted(), &token.secret);
}

fn no_secret(emitted: &str, token: &str) {
    assert_eq!(oracle::find(emitted.as_bytes(), KEY), None);
    assert!(!emitted.contains(&token[..20]), "a token");
    assert!(!emitted.contains("secret_value"), "a query's value");
}

#[test]
fn a_collector_that_speaks_http_is_told_the_same() {
    for gzip in ["none", "gzip"] {
        let (collector, upstream) = (Collector::start_http(), Upstream::ok());
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".into()),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", gzip.into()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc".into()),
        ];
        let environment = variables.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let sandbox = Sandbox::with(Options { environment, ..Options::default() });
        sandbox.service("openai", &upstream, KEY);
        let token = sandbox.token("agent", &["openai"]).secret;
        let reply = sandbox.get("/api/openai/v1/models", &token);
        let span = collector.wait_for(gzip, by_request_id(reply.header("x-seks-request-id").unwrap()));
        assert_eq!(missing(&span, &[ALWAYS, ALLOWED].concat()), [""; 0]);
        collector.wait_for("an administrator's span", |s| s.name == "seks.admin");
        assert!(!sandbox.everything_emitted().contains("Bearer abc"));
    }
}

#[test]
fn the_metrics_page_has_every_name_that_dashboards_use() {
    let upstream = Upstream::start(|r| Answer::text(&r.head));
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    assert_eq!(sandbox.get("/api/openai/v1/models", &token).status, 200);
    assert_eq!(sandbox.get("/api/openai/v1/models", "seks_token_x").status, 401);
    let page = sandbox.metrics_page();
    let absent: Vec<_> = NAMES.iter().filter(|name| !page.contains(&format!("# TYPE {name} "))).collect();
    assert!(absent.is_empty(), "{absent:?} in\n{page}");
    let counted = |parts: &[&str]| {
        page.lines().any(|l| l.starts_with("seks_proxy_requests_total") && parts.iter().all(|p| l.contains(p)))
    };
    assert!(counted(&["service=\"openai\"", "decision=\"allow\"", "status_class=\"2xx\""]), "{page}");
    assert!(counted(&["decision=\"deny\"", "reason=\"token_malformed\"", "status_class=\"4xx\""]), "{page}");
    assert!(page.lines().any(|l| l.starts_with("seks_table_tokens") && l.ends_with(" 1")), "{page}");
    no_secret(&page, &token);
}

#[test]
fn logs_are_one_json_object_a_line() {
    let upstream = Upstream::ok();
    let mut sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    sandbox.get("/api/openai/v1/models", &token);
    sandbox.get("/api/openai/v1/%0a%1b[2J", &token);
    sandbox.process().terminate();
    let log = sandbox.process().stderr();
    assert!(!log.trim().is_empty(), "no log at all");
    for line in log.lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok_and(|l| l.is_object()), "not a JSON object: {line}");
    }
    no_secret(&log, &token);
}

#[test]
fn health_says_whether_a_node_may_serve() {
    let sandbox = Sandbox::start();
    for page in ["/healthz", "/readyz"] {
        let request = format!("GET {page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let reply = raw::exchange(sandbox.metrics(), request);
        assert_eq!(reply.status, 200, "{page}: {}", reply.text());
    }
}

#[test]
fn a_dead_collector_stops_nobody() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("http://{nobody}"));
    let upstream = Upstream::ok();
    let mut sandbox = Sandbox::with(Options { environment: vec![endpoint], ..Options::default() });
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    for _ in 0..50 {
        assert_eq!(sandbox.get("/api/openai/v1/models", &token).status, 200);
    }
    assert!(sandbox.process().terminate().success());
}
