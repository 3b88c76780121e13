use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use seks_runtime::telemetry::TelemetryConfig;
use seks_types::id::{ServiceName, TenantName};

use super::*;
use crate::code::Code;

fn metrics(telemetry: &Telemetry) -> Metrics {
    Metrics::new(Arc::clone(telemetry.queue()), Default::default)
}

fn audit(telemetry: Telemetry, mode: AuditMode) -> Result<Audit, AuditError> {
    let metrics = metrics(&telemetry);
    Audit::new((telemetry, None), metrics, mode, SpanNode { name: "edge-1".into(), port: 1 }, "eu")
}

fn dead_collector(queue_spans: usize) -> Telemetry {
    let config =
        TelemetryConfig { otlp_endpoint: Some("http://127.0.0.1:1".into()), queue_spans, ..TelemetryConfig::default() };
    Telemetry::start(&config, "test", "t").unwrap()
}

fn open(audit: &Audit) -> Record {
    audit.open(&Method::GET, "/api/openai/v1/models", &HeaderMap::new())
}

fn call_openai(record: &mut Record, trusts_trace: bool) {
    let (tenant, service) = ("default".try_into().unwrap(), ServiceName::try_from("openai").unwrap());
    record.called(&tenant, &service, ("api.openai.com", "https://api.openai.com"), trusts_trace);
}

fn line(audit: &Audit, labels: &str) -> u64 {
    let text = audit.metrics().render();
    let line = text.lines().find(|l| l.starts_with("seks_proxy_requests_total{") && l.contains(labels));
    line.map_or(0, |l| l.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn required_records_need_a_collector() {
    assert_eq!(audit(Telemetry::disabled(), AuditMode::Required).err(), Some(AuditError::NoCollector));
    assert!(audit(Telemetry::disabled(), AuditMode::BestEffort).is_ok());
}

#[tokio::test]
async fn a_full_queue_refuses_when_records_are_required_and_counts_when_not() {
    for (mode, refusal) in [(AuditMode::Required, Some(Code::AuditUnavailable)), (AuditMode::BestEffort, None)] {
        let telemetry = dead_collector(2);
        let audit = audit(telemetry.clone(), mode).unwrap();
        let (a, b) = (open(&audit), open(&audit));
        assert_eq!((a.refusal(), b.refusal()), (None, None));
        assert_eq!((open(&audit).refusal(), telemetry.queue().dropped()), (refusal, 1));
        drop((a, b));
        assert_eq!(telemetry.queue().len(), 2, "both records wait for the collector");
    }
}

#[test]
fn a_record_closes_once_however_it_ends() {
    let audit = audit(Telemetry::disabled(), AuditMode::BestEffort).unwrap();
    let allowed = || {
        let mut record = open(&audit);
        record.identified(&TenantName::try_from("default").unwrap(), &"bot".parse().unwrap(), "tok-1");
        call_openai(&mut record, false);
        record.decided(true, &[]);
        record
    };
    let mut done = allowed();
    done.answered(http::StatusCode::OK);
    done.complete();
    let mut cut = allowed();
    cut.answered(http::StatusCode::OK);
    drop(cut);
    drop(allowed());
    let mut refused = open(&audit);
    refused.refused(Code::TokenMissing);
    refused.answered(http::StatusCode::UNAUTHORIZED);
    refused.complete();
    assert_eq!(line(&audit, r#"service="openai",decision="allow",reason="",status_class="2xx""#), 1);
    assert_eq!(line(&audit, r#"service="openai",decision="allow",reason="",status_class="aborted""#), 2);
    assert_eq!(line(&audit, r#"service="",decision="deny",reason="token_missing",status_class="4xx""#), 1);
    assert!(audit.metrics().render().contains("seks_proxy_inflight 0\n"));
}

#[tokio::test]
async fn a_body_closes_its_record_at_its_end() {
    let audit = audit(Telemetry::disabled(), AuditMode::BestEffort).unwrap();
    let answered = || {
        let mut record = open(&audit);
        record.decided(true, &[]);
        record.answered(http::StatusCode::OK);
        record
    };
    let record = answered();
    let counters = Arc::clone(record.counters());
    let body = super::Body::new(Full::new(Bytes::from_static(b"hello")), record);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
    assert!(
        format!("{counters:?}").starts_with(
            "Counters { request_bytes: 0, response_bytes: 5, scrubbed: 0, trailers: 0, upstream_error: 0, usage: "
        ),
        "{counters:?}"
    );
    drop(super::Body::new(Full::new(Bytes::new()), answered())); // nobody polls an empty body
    assert_eq!(line(&audit, r#"reason="",status_class="2xx""#), 2);
    drop(super::Body::new(Full::new(Bytes::from_static(b"never read")), answered()));
    assert_eq!(line(&audit, r#"status_class="aborted""#), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_call_is_a_child_and_may_be_passed_on() {
    let audit = audit(dead_collector(100), AuditMode::Required).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
    for (pass, trusts, traced) in [(false, true, false), (true, false, false), (true, true, true)] {
        let mut record = audit.open(&Method::GET, "/api/openai/v1/models", &headers);
        call_openai(&mut record, trusts);
        record.decided(true, &["granted-services".parse().unwrap()]);
        let parent = record.upstream_began(pass);
        let kept =
            parent.as_ref().is_some_and(|p| p.to_str().unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
        assert_eq!((parent.is_some(), kept), (pass, traced), "the agent's trace goes on where the service trusts it");
        record.upstream_answered(http::StatusCode::OK);
        record.answered(http::StatusCode::OK);
        tokio::spawn(async move { record.complete() }).await.unwrap();
    }
    assert_eq!(audit.inner.telemetry.queue().len(), 6, "a record and a child each");
}
