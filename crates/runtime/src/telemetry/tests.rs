use super::*;

#[test]
fn out_of_bounds_keys_are_named() {
    let bad = TelemetryConfig { queue_spans: 0, ..Default::default() };
    assert_eq!(bad.check().unwrap_err().to_string(), "telemetry.queue_spans: 1 to 10000000");
    let bad = TelemetryConfig { export_interval: Duration::ZERO, ..Default::default() };
    assert_eq!(bad.check().unwrap_err().to_string(), "telemetry.export_interval: 1ms to 60s");
}

#[tokio::test]
async fn an_endpoint_that_is_no_url_is_refused_at_start() {
    for endpoint in ["collector:4317", "ftp://c", "http://", "http://user:pass@c:4317", "\u{1b}"] {
        let config = TelemetryConfig { otlp_endpoint: Some(endpoint.into()), ..Default::default() };
        let error = Telemetry::start(&config, "test", "t").err().unwrap().to_string();
        assert!(error.starts_with("telemetry.otlp_endpoint: ") && !error.contains("pass"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_collector_costs_nothing_but_what_is_counted() {
    let config = TelemetryConfig {
        otlp_endpoint: Some("http://127.0.0.1:1".into()),
        queue_spans: 10,
        export_interval: Duration::from_millis(1),
        ..Default::default()
    };
    let telemetry = Telemetry::start(&config, "test", "t").unwrap();
    let reservation = telemetry.queue().reserve().unwrap();
    for _ in 0..100 {
        telemetry.create_span(|| drop(tracing::info_span!("s")));
    }
    let queue = telemetry.queue();
    assert_eq!((queue.len() as u64 + queue.dropped(), queue.len()), (101, 11));
    assert!(queue.reserve().is_none(), "a full queue gives no place away");
    drop(reservation);
    assert!(!telemetry.shutdown(Duration::from_millis(50)).await, "what is queued can't have gone out");
}

#[tokio::test]
async fn without_a_collector_nothing_is_made() {
    let telemetry = Telemetry::disabled();
    assert!(telemetry.create_span(|| tracing::info_span!("s").is_disabled()));
    assert!(telemetry.shutdown(Duration::from_secs(1)).await);
}

#[test]
fn libraries_do_not_ask_about_what_nobody_records() {
    let subscriber = registry(tracing_subscriber::layer::Identity::new());
    assert_eq!(tracing::Subscriber::max_level_hint(&subscriber), Some(LevelFilter::INFO));
}
