use std::collections::{BTreeMap, HashSet};

use opentelemetry_proto::tonic::{
    common::v1::any_value::Value,
    trace::v1::{ScopeSpans, Span},
};
use prost::Message as _;
use seks_audit::record::{Kind, RecordWriter, field};

use super::*;

const TRACE: [u8; 16] = [1; 16];
const AGENT: SpanContext = SpanContext { trace: [7; 16], span: [8; 8], flags: 0 };

/// A record of a request that was sent to an upstream, without its outcome.
fn sent() -> RecordWriter {
    let mut record = RecordWriter::default();
    let numbers = [
        (field::KIND, Kind::Whole as u64),
        (field::BEGAN_US, 1_000_000),
        (field::HTTP_VERSION, 20),
        (field::TLS, 1),
        (field::DECISION, Decision::Allow as u64),
        (field::QUEUE_US, 100),
        (field::CONNECT_US, 300),
        (field::WHOLE_US, 900),
    ];
    numbers.iter().for_each(|(field, number)| record.number(*field, *number));
    let texts = [
        (field::METHOD, "POST"),
        (field::PATH, "/api/openai/chat"),
        (field::ROUTE, PATH_ROUTE),
        (field::SERVICE, "openai"),
        (field::UPSTREAM, "api.openai.com"),
        (field::UPSTREAM_BASE, "https://api.openai.com/v1"),
    ];
    texts.iter().for_each(|(field, text)| record.text(*field, text));
    record.bytes(field::SOURCE, &[10, 0, 0, 7]);
    record.bytes(field::REQUEST_ID, &[5; 16]);
    record.bytes(field::TRACE_ID, &TRACE);
    record
}

type Numbers<'a> = &'a [(u32, u64)];
type Texts<'a> = &'a [(u32, &'a str)];

fn with(numbers: Numbers<'_>, texts: Texts<'_>) -> RecordWriter {
    let mut record = sent();
    numbers.iter().for_each(|(field, number)| record.number(*field, *number));
    texts.iter().for_each(|(field, text)| record.text(*field, text));
    record
}

fn spans(record: &RecordWriter, recorded: Recorded) -> Vec<Span> {
    let mut spans = SpanWriter::default();
    write(record.as_bytes(), recorded, &SpanNode { name: "edge-1".into(), port: 8443 }, &mut spans);
    ScopeSpans::decode(spans.as_bytes()).unwrap().spans
}

fn attributes(span: &Span) -> BTreeMap<&str, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pairs =
        span.attributes.iter().map(|a| (a.key.as_str(), text(a.value.as_ref().unwrap().value.as_ref().unwrap())));
    let map: BTreeMap<_, _> = pairs.collect();
    assert_eq!(map.len(), span.attributes.len(), "an attribute is in a span once");
    map
}

#[test]
fn the_node_serves_the_agent_and_calls_the_upstream() {
    let record = with(&[(field::STATUS, 200), (field::UPSTREAM_STATUS, 200), (field::FIRST_BYTE_US, 500)], &[]);
    let spans = spans(&record, Recorded::Whole);
    let [server, client] = &spans[..] else { panic!("{spans:?}") };
    let (own, call) = (attributes(server), attributes(client));
    for (name, value) in [
        ("server.address", "edge-1"),
        ("server.port", "8443"),
        ("client.address", "10.0.0.7"),
        ("url.scheme", "https"),
        ("http.route", "/api/{service}"),
        ("network.protocol.version", "2"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(own[name], value, "{name}");
    }
    for (name, value) in [
        ("http.request.method", "POST"),
        ("server.address", "api.openai.com"),
        ("server.port", "443"),
        ("url.full", "https://api.openai.com/v1/chat"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(call[name], value, "{name}");
    }
    assert_eq!((server.kind, client.kind, &client.parent_span_id), (2, 3, &server.span_id));
    assert_eq!((server.start_time_unix_nano, server.end_time_unix_nano), (1_000_000_000, 1_000_900_000));
    assert_eq!((client.start_time_unix_nano, client.end_time_unix_nano), (1_000_300_000, 1_000_800_000));
    assert!(server.status.is_none() && client.status.is_none());
    assert!(!own.contains_key("error.type") && !call.contains_key("error.type"));
}

#[test]
fn statuses_follow_the_conventions() {
    let error = |span: &Span| span.status.as_ref().is_some_and(|status| status.code == 2);
    // What happened: the error of the server's span, and of the client's.
    let cases: [(Numbers<'_>, Texts<'_>, Option<&str>, Option<&str>); 7] = [
        (&[(field::STATUS, 200), (field::UPSTREAM_STATUS, 200)], &[], None, None),
        (&[(field::STATUS, 429), (field::UPSTREAM_STATUS, 429)], &[], None, Some("429")),
        (&[(field::STATUS, 503), (field::UPSTREAM_STATUS, 503)], &[], Some("503"), Some("503")),
        (
            &[(field::STATUS, 502)],
            &[(field::UPSTREAM_ERROR, "connect_refused"), (field::REASON, "upstream_unreachable")],
            Some("connect_refused"),
            Some("connect_refused"),
        ),
        (&[(field::STATUS, 503)], &[(field::REASON, "node_stale")], Some("node_stale"), None),
        (&[(field::STATUS, 200), (field::UPSTREAM_STATUS, 200), (field::ABORTED, 1)], &[], None, None),
        (
            &[(field::STATUS, 200), (field::UPSTREAM_STATUS, 200), (field::ABORTED, 1)],
            &[(field::UPSTREAM_ERROR, "reset")],
            Some("reset"),
            Some("reset"),
        ),
    ];
    for (numbers, texts, server, client) in cases {
        let spans = spans(&with(numbers, texts), Recorded::Whole);
        for (span, expected) in spans.iter().zip([server, client]) {
            let found = attributes(span).get("error.type").cloned();
            assert_eq!((found.as_deref(), error(span)), (expected, expected.is_some()), "{}: {numbers:?}", span.name);
        }
    }
    let spans = spans(&sent(), Recorded::IntentAlone);
    assert_eq!((attributes(&spans[0])["error.type"].as_str(), error(&spans[0])), ("unrecorded", true));
}

#[test]
fn an_agents_trace_is_a_link_unless_the_service_trusts_it() {
    for trusted in [false, true] {
        let mut record = sent();
        record.bytes(field::AGENT_TRACE, &encode_context(&AGENT));
        record.number(field::AGENT_TRACE_TRUSTED, trusted.into());
        let spans = spans(&record, Recorded::Whole);
        let server = &spans[0];
        let links: Vec<_> = server.links.iter().map(|link| (&link.trace_id[..], &link.span_id[..])).collect();
        let (link, parent): (&[_], &[u8]) =
            if trusted { (&[], &AGENT.span) } else { (&[(&AGENT.trace[..], &AGENT.span[..])], &[]) };
        assert_eq!((&links[..], &server.parent_span_id[..]), (link, parent), "trusted: {trusted}");
        assert_eq!(spans.len(), 2, "sampled=0 changes nothing");
    }
}

#[test]
fn the_same_request_has_the_same_ids_and_others_have_others() {
    let id = |process: u64, count: u64| (u128::from(process) << 64 | u128::from(count)).to_be_bytes();
    let ids: HashSet<[u8; 8]> = (0..2)
        .flat_map(|process| (1..5000).map(move |count| SpanIds::of(&id(process, count))))
        .flat_map(|ids| [ids.server, ids.upstream])
        .collect();
    assert_eq!((ids.len(), ids.contains(&[0; 8])), (2 * 2 * 4999, false));
    assert_eq!(SpanIds::of(&id(3, 4)), SpanIds::of(&id(3, 4)));
}

#[test]
fn urls_are_those_that_the_upstream_sees() {
    for (route, path, base, url) in [
        (PATH_ROUTE, "/api/openai/v1/chat", "https://h/v1", "https://h/v1/chat"),
        (PATH_ROUTE, "/api/openai/v10/chat", "https://h/v1", "https://h/v1/v10/chat"),
        (PATH_ROUTE, "/api/openai", "http://h:8080", "http://h:8080"),
        (HOST_ROUTE, "/x/y", "https://[::1]:8443", "https://[::1]:8443/x/y"),
        ("", "", "example.com:443", ""),
    ] {
        let mut record = RecordWriter::default();
        [(field::ROUTE, route), (field::PATH, path), (field::UPSTREAM_BASE, base)]
            .iter()
            .for_each(|(field, text)| record.text(*field, text));
        assert_eq!(Fields::read(record.as_bytes()).unwrap().url(), url, "{path} at {base}");
    }
    for (base, port) in [("https://h/v1", 443), ("http://h", 80), ("https://[::1]:8443", 8443), ("h:22", 22)] {
        let mut record = RecordWriter::default();
        record.text(field::UPSTREAM_BASE, base);
        assert_eq!(Fields::read(record.as_bytes()).unwrap().upstream_port(), Some(port), "{base}");
    }
    let mut v6 = RecordWriter::default();
    v6.text(field::UPSTREAM_BASE, "https://[::1]");
    assert_eq!(Fields::read(v6.as_bytes()).unwrap().upstream_port(), Some(443));
}
