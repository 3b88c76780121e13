//! Every metric moves: what a node, a replica and `seks dev` can show is produced for real, and
//! looked at by its value.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{collections::BTreeSet, fs, net::TcpStream, path::PathBuf, time::UNIX_EPOCH};

use seks_tests::{
    Collector, Sandbox, Upstream,
    collector::Mood,
    metrics::{NAMES, Page},
    process::wait_for,
    raw,
    sandbox::Options,
    upstream::{Answer, Gate, answer::Step},
};

const KEY: &str = "sk-real-metrics-0123456789abcdef";

/// Where a metric is shown to move.
enum Shown {
    /// In [`every_metric_moves`].
    Here,
    /// In this test of this file.
    In(&'static str, &'static str),
}
use Shown::{Here, In};

const SHARES: &str = "tests/tests/isolation/tenants_on_node/shares.rs";
const BODIES: &str = "tests/tests/isolation/tenants_on_node/bodies.rs";
const LOGS: &str = "tests/tests/isolation/availability/logs.rs";
const SPOOL: &str = "crates/audit/src/spool/tests.rs";
const TRAIL: &str = "crates/audit/src/trail/tests.rs";
const BUCKET: &str = "tests/tests/audit_object_storage.rs";
const PROCESS: &str = "crates/runtime/tests/process_metrics.rs";
const MINT: &str = "tests/tests/mint/main.rs";
const TRUST: &str = "tests/tests/trust/main.rs";
const USAGE: &str = "tests/tests/usage.rs";

/// Every metric. One that is missing here fails [`every_metric_has_a_case`].
const CASES: &[(&str, Shown)] = &[
    ("gen_ai_client_token_usage", In(USAGE, "what_models_report_is_recorded_and_adds_up")),
    ("process_cpu_seconds_total", In(PROCESS, "each_value_is_measured")),
    ("process_max_fds", In(PROCESS, "each_value_is_measured")),
    ("process_open_fds", In(PROCESS, "each_value_is_measured")),
    ("process_resident_memory_bytes", In(PROCESS, "each_value_is_measured")),
    ("process_start_time_seconds", In(PROCESS, "each_value_is_measured")),
    ("process_threads", In(PROCESS, "each_value_is_measured")),
    ("process_virtual_memory_bytes", In(PROCESS, "each_value_is_measured")),
    ("seks_admin_request_duration_seconds", Here),
    ("seks_admin_requests_total", Here),
    ("seks_agent_requests_total", Here),
    (
        "seks_audit_alarms_dropped_total",
        In("control-plane/src/trail/tripwires.rs", "alarms_beyond_the_queue_are_counted"),
    ),
    (
        "seks_audit_dropped_total",
        In("tests/tests/isolation/availability/collector.rs", "one_bad_span_costs_itself_alone"),
    ),
    ("seks_audit_expired_total", In(SPOOL, "segments_go_when_they_are_acknowledged_and_when_they_are_too_old")),
    ("seks_audit_queue", Here),
    ("seks_audit_recorded_total", Here),
    ("seks_audit_spool_bytes", Here),
    ("seks_audit_spool_limit_bytes", Here),
    ("seks_audit_spool_queue_bytes", Here),
    ("seks_audit_spool_records", Here),
    ("seks_audit_syncs_total", Here),
    ("seks_audit_trail_bytes", In(TRAIL, "retention_removes_the_oldest_and_verify_knows")),
    ("seks_audit_trail_ingested_total", Here),
    ("seks_audit_trail_lag_seconds", Here),
    ("seks_audit_trail_oldest_seconds", In(TRAIL, "retention_removes_the_oldest_and_verify_knows")),
    ("seks_audit_trail_open_intents", In(TRAIL, "intents_are_shown_only_while_their_outcome_is_unknown")),
    ("seks_audit_trail_pending_bytes", In(BUCKET, "while_the_bucket_is_away_nothing_is_lost")),
    ("seks_audit_trail_records", Here),
    ("seks_audit_trail_upload_failing_seconds", In(BUCKET, "while_the_bucket_is_away_nothing_is_lost")),
    ("seks_audit_tripwires_total", Here),
    ("seks_audit_uploaded_total", Here),
    (
        "seks_audit_write_failures_total",
        In("tests/tests/audit_trail.rs", "a_node_that_must_record_and_cannot_forwards_nothing"),
    ),
    (
        "seks_body_buffer_bytes",
        In(BODIES, "bodies_under_inspection_stay_within_their_tenants_share_and_others_go_through"),
    ),
    (
        "seks_body_buffer_refused_total",
        In(BODIES, "bodies_under_inspection_stay_within_their_tenants_share_and_others_go_through"),
    ),
    ("seks_build_info", Here),
    ("seks_certificate_expiry_timestamp_seconds", Here),
    ("seks_clock_skew_seconds", In("data-plane/src/table/wall_clock.rs", "the_later_clock_counts")),
    ("seks_connections", Here),
    ("seks_connections_evicted_total", Here),
    ("seks_control_push_seconds", Here),
    ("seks_control_streams", Here),
    (
        "seks_http2_refused_total",
        In(
            "tests/tests/isolation/availability/frames.rs",
            "what_the_library_refuses_by_itself_is_recorded_and_counted",
        ),
    ),
    ("seks_lease_lowest_seconds", Here),
    ("seks_lease_remaining_seconds", Here),
    ("seks_log_dropped_total", In(LOGS, "a_control_plane_whose_log_reader_stops_serves_counts_and_ends")),
    ("seks_log_suppressed_total", In(LOGS, "a_control_plane_whose_log_reader_stops_serves_counts_and_ends")),
    ("seks_mint_failing", In(MINT, "a_failing_endpoint_leaves_the_last_good_token_and_says_so")),
    ("seks_mint_refreshes_total", In(MINT, "a_failing_endpoint_leaves_the_last_good_token_and_says_so")),
    ("seks_otlp_records_dropped_total", In(SPOOL, "segments_wait_for_the_collector_as_long_as_there_is_room")),
    ("seks_otlp_spans_exported_total", Here),
    (
        "seks_otlp_spans_refused_total",
        In("tests/tests/isolation/availability/collector.rs", "what_a_collector_takes_in_part_is_counted_for_the_rest"),
    ),
    ("seks_policy_audited_total", Here),
    ("seks_proxy_inflight", Here),
    ("seks_proxy_overhead_seconds", Here),
    (
        "seks_proxy_protocol_rejected_total",
        In("tests/tests/proxy_protocol.rs", "the_source_of_a_request_is_the_one_that_a_listed_balancer_names"),
    ),
    ("seks_proxy_request_duration_seconds", Here),
    ("seks_proxy_requests_total", Here),
    ("seks_proxy_wrong_tokens_limited_total", Here),
    ("seks_request_headers_dropped_total", Here),
    ("seks_scrubbed_total", Here),
    ("seks_store_request_duration_seconds", Here),
    ("seks_store_request_failures_total", In("tests/tests/dashboards.rs", "panels_have_data_and_alerts_fire")),
    (
        "seks_store_unauthenticated_records_total",
        In(
            "control-plane/src/authenticated/tests.rs",
            "a_new_store_takes_no_record_without_a_frame_and_none_that_was_put_back",
        ),
    ),
    ("seks_store_watch_lag_seconds", Here),
    (
        "seks_table_divergence_total",
        In("tests/tests/distribution/divergence.rs", "a_node_whose_table_differs_gets_a_snapshot"),
    ),
    ("seks_table_lag_seconds", Here),
    ("seks_table_revision", Here),
    ("seks_table_tokens", Here),
    ("seks_tenant_limited_total", In(SHARES, "a_tenant_with_many_tokens_leaves_connections_for_the_others")),
    ("seks_trust_key_fetches_total", In(TRUST, "a_key_that_a_node_meets_first_is_fetched_without_being_asked_for")),
    ("seks_upstream_connections", Here),
    ("seks_upstream_duration_seconds", Here),
    (
        "seks_upstream_resends_total",
        In(
            "tests/tests/wire/answers_of_real_servers.rs",
            "a_get_that_an_old_connection_swallowed_is_sent_again_once_and_a_post_is_not",
        ),
    ),
    ("seks_upstream_responses_total", Here),
    ("seks_usage_unknown_total", In(USAGE, "what_models_report_is_recorded_and_adds_up")),
];

fn page(address: std::net::SocketAddr) -> Page {
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    Page::read(&raw::exchange(address, request).text())
}

fn shown(pages: &[&Page]) -> BTreeSet<String> {
    pages.iter().flat_map(|page| page.families.keys().cloned()).collect()
}

#[test]
fn every_metric_has_a_case() {
    let sandbox = Sandbox::start();
    let known: BTreeSet<&str> = CASES.iter().map(|(name, _)| *name).collect();
    let dev = page(sandbox.metrics());
    let missing: Vec<String> = shown(&[&dev]).into_iter().filter(|name| !known.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "metrics without a case: {missing:?}");
    let absent: Vec<_> = NAMES.iter().filter(|name| !known.contains(*name)).collect();
    assert!(absent.is_empty(), "of the interface, without a case: {absent:?}");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    for (name, case) in CASES {
        if let In(file, test) = case {
            let text = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{name}: {file}: {error}"));
            assert!(text.contains(&format!("fn {test}(")), "{name}: {file} has no test {test}");
        }
    }
}

/// The names that are to be shown to move here, less those that were.
struct Walk {
    left: BTreeSet<&'static str>,
}

impl Walk {
    fn start() -> Self {
        Self { left: CASES.iter().filter(|(_, shown)| matches!(shown, Here)).map(|(name, _)| *name).collect() }
    }

    #[track_caller]
    fn holds(&mut self, name: &str, holds: bool, page: &Page) {
        let samples: Vec<_> = page.samples.iter().filter(|(n, ..)| n.starts_with(name)).collect();
        assert!(holds, "{name}: {samples:?}");
        self.left.remove(name);
    }

    /// Each of these is larger than it was.
    #[track_caller]
    fn grown(&mut self, names: &[&str], before: &Page, after: &Page) {
        for name in names {
            self.holds(name, after.sum(name) > before.sum(name), after);
        }
    }
}

#[test]
fn every_metric_moves() {
    let (collector, gate) = (Collector::start(), Gate::default());
    let held = gate.clone();
    let upstream = Upstream::start(move |request| match request.path().as_str() {
        "/v1/held" => Answer::steps(vec![Step::Hold(held.clone())]),
        "/v1/401" => Answer::json(401, "{}"),
        "/v1/503" => Answer::json(503, "{}"),
        _ => Answer::text(&request.head),
    });
    let config = "[audit]\nmode = \"required\"\n[proxy.limits]\nmax_connections = 256\nwrong_tokens_per_second = 1\n";
    let options = Options { config: config.into(), ..Options::planes("") }.collector(&collector);
    let mut sandbox = Sandbox::with(options);
    let replica = sandbox.control_metrics().unwrap();
    let mut walk = Walk::start();
    let (node_before, replica_before) = (page(sandbox.metrics()), page(replica));

    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]).secret;
    let policy = sandbox.data_dir().parent().unwrap().join("watch.cedar");
    fs::write(&policy, "@id(\"watch\") @mode(\"audit\") forbid (principal, action, resource);").unwrap();
    sandbox.cli().json(&["policy", "apply", "-f", policy.to_str().unwrap()]);
    let cookie = format!(
        "GET /api/openai/v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nCookie: a=b\r\n\
         Connection: close\r\n\r\n"
    );
    assert_eq!(raw::exchange(sandbox.proxy(), cookie).status, 200);
    assert_eq!(sandbox.get("/api/openai/v1/401", &token).status, 401);
    assert_eq!(sandbox.get("/api/openai/v1/503", &token).status, 503);
    assert_eq!(sandbox.get("/api/github/user", &token).status, 404);
    let silent: Vec<TcpStream> = (0..70).map(|_| TcpStream::connect(sandbox.proxy()).unwrap()).collect();
    for _ in 0..20 {
        sandbox.get("/api/openai/v1/models", "seks_token_x");
    }
    let revoked = sandbox.token("stray", &["openai"]);
    sandbox.cli().revoke(&revoked.id);
    assert_eq!(sandbox.get("/api/openai/v1/models", &revoked.secret).status, 401);
    let node = wait_for("what was recorded to be acknowledged and exported", || {
        let page = page(sandbox.metrics());
        let is_done = page.sum("seks_audit_uploaded_total") > 0.0 && page.sum("seks_otlp_spans_exported_total") > 0.0;
        (is_done && page.sum("seks_connections_evicted_total") > 0.0).then_some(page)
    });
    drop(silent);
    let grown = [
        "seks_agent_requests_total",
        "seks_audit_recorded_total",
        "seks_audit_syncs_total",
        "seks_audit_uploaded_total",
        "seks_connections_evicted_total",
        "seks_otlp_spans_exported_total",
        "seks_policy_audited_total",
        "seks_proxy_overhead_seconds",
        "seks_proxy_request_duration_seconds",
        "seks_proxy_requests_total",
        "seks_proxy_wrong_tokens_limited_total",
        "seks_request_headers_dropped_total",
        "seks_scrubbed_total",
        "seks_table_revision",
        "seks_table_tokens",
        "seks_upstream_connections",
        "seks_upstream_duration_seconds",
        "seks_upstream_responses_total",
        "seks_connections",
    ];
    walk.grown(&grown, &node_before, &node);
    for (class, count) in [("2xx", 1.0), ("401", 1.0), ("5xx", 1.0), ("4xx", 0.0)] {
        let found = node.sum_of("seks_upstream_responses_total", &format!("service=\"openai\",class=\"{class}\""));
        assert!((found - count).abs() < 0.5, "{class}: {found}");
    }
    let of_service = node.sum_of("seks_proxy_request_duration_seconds", "service=\"openai\"");
    assert!((of_service - 3.0).abs() < 0.5, "{of_service}");
    let now = UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let ends = |page: &Page, name: &str| {
        page.sum_of("seks_certificate_expiry_timestamp_seconds", &format!("certificate=\"{name}\"")) - now
    };
    let own = ends(&node, "node");
    walk.holds("seks_certificate_expiry_timestamp_seconds", own > 3600.0 && own < 400.0 * 86400.0, &node);
    walk.holds("seks_build_info", (node.sum("seks_build_info") - 1.0).abs() < 0.1, &node);
    walk.holds(
        "seks_audit_spool_limit_bytes",
        (node.sum("seks_audit_spool_limit_bytes") - 1073741824.0).abs() < 1.0,
        &node,
    );

    // While a request is under way.
    let proxy = sandbox.proxy();
    let (agent, path) = (token.clone(), "/api/openai/v1/held");
    let asking = std::thread::spawn(move || drop(std::panic::catch_unwind(|| raw::get(proxy, path, &agent))));
    upstream.wait("the request", |log| log.requests.iter().any(|request| request.path() == "/v1/held"));
    let during = page(sandbox.metrics());
    walk.holds("seks_proxy_inflight", during.sum("seks_proxy_inflight") >= 1.0, &during);
    walk.holds("seks_audit_spool_queue_bytes", during.sum("seks_audit_spool_queue_bytes") >= 1024.0, &during);
    // The records have arrived at the trail.
    let after = wait_for("the trail to have the records", || {
        let page = page(replica);
        let has = |name: &str| page.sum(name) > 0.0;
        (has("seks_audit_trail_ingested_total") && has("seks_audit_tripwires_total")).then_some(page)
    });
    let grown = ["seks_audit_trail_ingested_total", "seks_audit_trail_records", "seks_audit_tripwires_total"];
    walk.grown(&grown, &replica_before, &after);
    let lag = after.sum("seks_audit_trail_lag_seconds");
    walk.holds("seks_audit_trail_lag_seconds", lag > 0.0 && lag < 120.0, &after);
    gate.open();

    // The replica.
    let after = page(replica);
    let grown = [
        "seks_admin_request_duration_seconds",
        "seks_admin_requests_total",
        "seks_control_push_seconds",
        "seks_store_request_duration_seconds",
    ];
    walk.grown(&grown, &replica_before, &after);
    walk.holds("seks_control_streams", (after.sum("seks_control_streams") - 1.0).abs() < 0.1, &after);
    let lag = after.sum("seks_store_watch_lag_seconds");
    walk.holds("seks_store_watch_lag_seconds", lag > 0.0 && lag < 10.0, &after);
    for name in ["admin", "distribution", "ca"] {
        assert!(ends(&after, name) > 3600.0, "{name}: {}", ends(&after, name));
    }

    // Without a control plane and a collector.
    collector.set_mood(Mood::Away);
    sandbox.control().kill();
    assert_eq!(sandbox.get("/api/openai/v1/models", &token).status, 200, "it has a lease");
    let node = wait_for("the lease to run down", || {
        let page = page(sandbox.metrics());
        (page.sum("seks_lease_remaining_seconds") < 4.0).then_some(page)
    });
    walk.holds("seks_lease_remaining_seconds", node.sum("seks_lease_remaining_seconds") < 4.0, &node);
    walk.holds("seks_lease_lowest_seconds", node.sum("seks_lease_lowest_seconds") < 4.5, &node);
    walk.holds("seks_table_lag_seconds", node.sum("seks_table_lag_seconds") > 3.0, &node);
    walk.holds("seks_audit_queue", node.sum("seks_audit_queue") >= 1.0, &node);
    walk.holds("seks_audit_spool_records", node.sum("seks_audit_spool_records") >= 1.0, &node);
    walk.holds("seks_audit_spool_bytes", node.sum("seks_audit_spool_bytes") > 100.0, &node);
    asking.join().unwrap();
    assert!(walk.left.is_empty(), "nothing has moved {:?}", walk.left);
    let known: BTreeSet<&str> = CASES.iter().map(|(name, _)| *name).collect();
    let missing: Vec<String> = shown(&[&node, &after]).into_iter().filter(|n| !known.contains(n.as_str())).collect();
    assert!(missing.is_empty(), "metrics without a case: {missing:?}");
}

#[test]
fn a_collector_is_sent_the_same_metrics_where_that_is_asked_for() {
    use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point::Value};
    let (collector, upstream) = (Collector::start(), Upstream::ok());
    let options = Options { config: "[telemetry]\nmetrics_interval = \"1s\"\n".into(), ..Options::default() };
    let sandbox = Sandbox::with(options.collector(&collector));
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]).secret;
    for _ in 0..3 {
        assert_eq!(sandbox.get("/api/openai/v1/models", &token).status, 200);
    }
    let newest = |name: &str| collector.metrics().into_iter().rfind(|metric| metric.name == name);
    wait_for("the requests", || {
        let Data::Sum(sum) = newest("seks_proxy_requests_total")?.data? else { panic!("no sum") };
        let values = sum.data_points.iter().filter_map(|point| match point.value? {
            Value::AsDouble(value) => Some(value),
            Value::AsInt(_) => None,
        });
        (sum.is_monotonic && values.sum::<f64>() >= 3.0).then_some(())
    });
    let Some(Data::Histogram(times)) = newest("seks_proxy_request_duration_seconds").unwrap().data else {
        panic!("no histogram")
    };
    assert!(times.data_points.iter().any(|point| point.count >= 3 && point.sum.unwrap() > 0.0));
    let sent: BTreeSet<String> = collector.metrics().into_iter().map(|metric| metric.name).collect();
    let page = page(sandbox.metrics());
    let used = page.samples.iter().map(|(name, ..)| name.as_str());
    let missing: Vec<&str> = used.filter(|name| page.families.contains_key(*name) && !sent.contains(*name)).collect();
    assert!(missing.is_empty(), "not sent: {missing:?}");
}

#[test]
fn buckets_name_a_trace_for_who_asks_in_openmetrics() {
    let (collector, upstream) = (Collector::start(), Upstream::ok());
    let sandbox = Sandbox::with(Options::default().collector(&collector));
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]).secret;
    let reply = sandbox.get("/api/openai/v1/models", &token);
    let id = reply.header("x-seks-request-id").unwrap().to_owned();
    let span = collector.wait_for("its span", |s| s.name == "seks.proxy" && s.get("seks.request.id") == id);
    let ask = |accept: &str| {
        let head = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
        raw::exchange(sandbox.metrics(), head)
    };
    let open = ask("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = open.text();
    let exemplar = format!("# {{trace_id=\"{}\"}}", span.trace);
    assert!(text.lines().any(|l| l.starts_with("seks_proxy_request_duration_seconds_bucket") && l.contains(&exemplar)));
    assert!(text.ends_with("# EOF\n") && text.contains("# TYPE seks_proxy_requests counter\n"), "{text}");
    let plain = ask("text/plain").text();
    assert!(!plain.contains("trace_id") && plain.contains("# TYPE seks_proxy_requests_total counter\n"));
    drop(Page::read(&plain)); // each family is there once
}
