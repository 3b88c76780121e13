//! Spans come from the node's spool: whatever happens to the collector or the node, each request
//! that was answered has its span.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
};

use seks_tests::{
    Collector, Sandbox, Upstream,
    collector::{Mood, Span},
    process::wait_for,
    sandbox::Options,
    upstream::{Answer, Gate, answer::Step},
};

const KEY: &str = "sk-real-spool-0123456789abcdef";
const REQUIRED: &str = "[audit]\nmode = \"required\"\n";

fn start(config: &str, collector: &Collector, upstream: &Upstream) -> (Sandbox, String) {
    let sandbox = Sandbox::with(Options { config: config.into(), ..Options::default() }.collector(collector));
    sandbox.service("openai", upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    (sandbox, token)
}

/// Sends `count` requests, every third of which is refused. Returns their ids.
fn requests(sandbox: &Sandbox, token: &str, count: usize) -> BTreeSet<String> {
    let ask = |n: usize| {
        let path = ["/api/openai/v1/models", "/api/openai/v1/chat", "/api/nothing/x"][n % 3];
        let reply = sandbox.get(path, token);
        assert_eq!(reply.status, [200, 200, 404][n % 3], "{path}: {}", reply.text());
        reply.header("x-seks-request-id").unwrap().to_owned()
    };
    (0..count).map(ask).collect()
}

/// The spans of requests, by request id.
fn by_request(collector: &Collector) -> BTreeMap<String, Vec<Span>> {
    let mut spans: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for span in collector.spans().into_iter().filter(|span| span.name == "seks.proxy") {
        spans.entry(span.get("seks.request.id").to_owned()).or_default().push(span);
    }
    spans
}

fn wait_for_all(collector: &Collector, ids: &BTreeSet<String>) -> BTreeMap<String, Vec<Span>> {
    wait_for("a span for each request", || {
        let spans = by_request(collector);
        ids.iter().all(|id| spans.contains_key(id)).then_some(spans)
    })
}

fn metric(sandbox: &Sandbox, name: &str) -> u64 {
    let page = sandbox.metrics_page();
    let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in\n{page}"));
    line.trim().parse().unwrap()
}

#[test]
fn in_quiet_running_each_request_has_exactly_one_span() {
    let (collector, upstream) = (Collector::start(), Upstream::ok());
    let (sandbox, token) = start("", &collector, &upstream);
    let ids = requests(&sandbox, &token, 90);
    let spans = wait_for_all(&collector, &ids);
    assert_eq!(spans.keys().cloned().collect::<BTreeSet<_>>(), ids, "no other request has a span");
    assert!(spans.values().all(|spans| spans.len() == 1), "one span a request");
    let span_ids: BTreeSet<&str> = spans.values().map(|spans| &*spans[0].id).collect();
    assert_eq!(span_ids.len(), ids.len());
    wait_for("what was exported to be counted", || {
        (metric(&sandbox, "seks_audit_queue ") == 0 && metric(&sandbox, "seks_otlp_spans_exported_total ") >= 150)
            .then_some(())
    });
    assert_eq!(metric(&sandbox, "seks_audit_dropped_total "), 0);
}

#[test]
fn a_node_that_is_killed_while_the_collector_is_away_loses_nothing_that_was_answered() {
    let (collector, upstream) = (Collector::start(), Upstream::ok());
    let (mut sandbox, token) = start(REQUIRED, &collector, &upstream);
    let mut ids = requests(&sandbox, &token, 6);
    collector.set_mood(Mood::Away);
    for _ in 0..2 {
        ids.extend(requests(&sandbox, &token, 30));
        sandbox.stab();
        sandbox.crash();
    }
    ids.extend(requests(&sandbox, &token, 3));
    assert!(metric(&sandbox, "seks_audit_queue ") >= 60, "they wait on the disk");
    collector.set_mood(Mood::Well);
    let spans = wait_for_all(&collector, &ids);
    for spans in spans.values() {
        assert!(spans.iter().all(|span| span.id == spans[0].id && span.trace == spans[0].trace), "{spans:?}");
    }
    let children = collector.spans().into_iter().filter(|span| span.name == "seks.upstream").map(|span| span.parent);
    let parents: BTreeSet<String> = spans.values().map(|spans| spans[0].id.clone()).collect();
    assert!(children.collect::<BTreeSet<_>>().is_subset(&parents), "the calls belong to the requests");
}

/// The node's resident memory, in KiB.
fn resident_kib(sandbox: &mut Sandbox) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", sandbox.process().id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_collector_that_is_away_for_long_costs_no_memory_and_no_span() {
    // SEKS_TEST_AWAY=36000 is an hour of 10 requests a second.
    let count: usize = std::env::var("SEKS_TEST_AWAY").ok().and_then(|count| count.parse().ok()).unwrap_or(900);
    let (collector, upstream) = (Collector::start(), Upstream::ok());
    let options = Options { config: REQUIRED.into(), ..Options::planes("") }.collector(&collector);
    let mut sandbox = Sandbox::with(options);
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    collector.set_mood(Mood::Away);
    let mut ids = requests(&sandbox, &token, count / 3);
    let before = resident_kib(&mut sandbox);
    ids.extend(requests(&sandbox, &token, count / 3));
    ids.extend(requests(&sandbox, &token, count / 3));
    let grown = resident_kib(&mut sandbox).saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more for {} requests", 2 * count / 3);
    collector.set_mood(Mood::Well);
    let spans = wait_for_all(&collector, &ids);
    assert_eq!(spans.len(), ids.len(), "no other request has a span");
    for spans in spans.values() {
        assert!(spans.iter().all(|span| span.id == spans[0].id), "what is exported again has the same id");
    }
    assert_eq!(metric(&sandbox, "seks_audit_dropped_total "), 0);
}

#[test]
fn a_node_that_stops_while_the_collector_is_away_exports_after_its_next_start() {
    let (collector, upstream) = (Collector::start(), Upstream::ok());
    let (mut sandbox, token) = start("", &collector, &upstream);
    collector.set_mood(Mood::Away);
    let ids = requests(&sandbox, &token, 30);
    sandbox.restart();
    collector.set_mood(Mood::Well);
    wait_for_all(&collector, &ids);
    assert_eq!(metric(&sandbox, "seks_audit_dropped_total "), 0);
}

#[test]
fn a_collector_that_loses_its_acknowledgements_gets_the_same_spans_again() {
    let (collector, upstream) = (Collector::start(), Upstream::ok());
    let (sandbox, token) = start("", &collector, &upstream);
    collector.set_mood(Mood::Forgetful);
    let ids = requests(&sandbox, &token, 9);
    wait_for("the spans to come twice", || by_request(&collector).values().any(|spans| spans.len() > 1).then_some(()));
    collector.set_mood(Mood::Well);
    let spans = wait_for_all(&collector, &ids);
    assert!(spans.values().flatten().all(|span| span.id == spans[span.get("seks.request.id")][0].id));
    wait_for("the queue to be empty", || (metric(&sandbox, "seks_audit_queue ") == 0).then_some(()));
}

#[test]
fn a_request_whose_node_died_has_a_span_that_says_so() {
    let gate = Gate::default();
    let held = gate.clone();
    let collector = Collector::start();
    let upstream = Upstream::start(move |request| match request.path().as_str() {
        "/v1/held" => Answer::steps(vec![Step::Hold(held.clone())]),
        _ => Answer::text("hello"),
    });
    let (mut sandbox, token) = start(REQUIRED, &collector, &upstream);
    let proxy = sandbox.proxy();
    let asking = {
        let token = token.clone();
        thread::spawn(move || {
            drop(std::panic::catch_unwind(|| seks_tests::raw::get(proxy, "/api/openai/v1/held", &token)))
        })
    };
    upstream.wait("the request", |log| log.requests.iter().any(|request| request.path() == "/v1/held"));
    sandbox.crash();
    gate.open();
    asking.join().unwrap();
    let span = collector.wait_for("its span", |span| span.get("url.path") == "/api/openai/v1/held");
    assert_eq!((span.get("seks.incomplete"), span.get("error.type"), span.is_error), ("true", "unrecorded", true));
    assert_eq!((span.get("seks.agent"), span.get("seks.decision")), ("agent", "allow"), "{span:?}");
}

#[test]
fn an_agents_trace_is_a_link_until_the_service_trusts_it() {
    let (collector, upstream) = (Collector::start(), Upstream::ok());
    let sandbox = Sandbox::with(Options::default().collector(&collector));
    let apply = |options: &str| {
        let origin = upstream.origin();
        sandbox.cli().apply_service(&format!(
            "name = \"acme\"\nupstream = \"{origin}\"\nallow_private = true\ninject = \"bearer\"\n{options}"
        ));
        sandbox.cli().put_credential("acme", "acme", KEY);
    };
    apply("");
    let token = sandbox.token("agent", &["acme"]).secret;
    let ask = || {
        let head = format!(
            "GET /api/acme/v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\nConnection: close\r\n\r\n"
        );
        let reply = seks_tests::raw::exchange(sandbox.proxy(), head);
        assert_eq!(reply.status, 200, "{}", reply.text());
        let id = reply.header("x-seks-request-id").unwrap().to_owned();
        collector.wait_for("the span", |span| span.name == "seks.proxy" && span.get("seks.request.id") == id)
    };
    let agent = "0af7651916cd43dd8448eb211c80319c";
    let span = ask();
    assert_eq!((span.parent.as_str(), &span.links[..], span.trace == agent), ("", &[agent.to_owned()][..], false));
    apply("trust_trace_context = true\n");
    let span = ask();
    assert_eq!((span.parent.as_str(), span.links.len(), &*span.trace), ("b7ad6b7169203331", 0, agent));
}
