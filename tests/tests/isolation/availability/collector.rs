//! A collector that refuses, throttles or takes a part of what it gets.

use std::{collections::BTreeSet, convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
    trace::v1::Span,
};
use parking_lot::Mutex;
use prost::Message as _;
use seks_tests::{Sandbox, Upstream, process::wait_for, sandbox::Options, upstream::Answer};

/// What a collector answers to a batch: a status, seconds to wait, spans rejected.
type Verdict = (u16, Option<u64>, i64);

/// A collector over HTTP that answers as it is told, and keeps the names of what it took.
#[derive(Clone)]
struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<Span>>>>,
    taken: Arc<Mutex<BTreeSet<Vec<u8>>>>,
}

impl Collector {
    /// `decide` gets the number of the call, from 0, and its spans.
    fn start(decide: impl Fn(usize, &[Span]) -> Verdict + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let collector = Self { address: listener.local_addr().unwrap(), seen: Arc::default(), taken: Arc::default() };
        let (serving, decide) = (collector.clone(), Arc::new(decide));
        seks_tests::runtime().spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let (serving, decide) = (serving.clone(), decide.clone());
                let service = service_fn(move |request| serving.clone().answer(request, decide.clone()));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        collector
    }

    async fn answer(
        self,
        request: Request<Incoming>,
        decide: Arc<impl Fn(usize, &[Span]) -> Verdict>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let batch = ExportTraceServiceRequest::decode(body).unwrap();
        let spans: Vec<Span> =
            batch.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans).collect();
        let number = {
            let mut seen = self.seen.lock();
            seen.push(spans.clone());
            seen.len() - 1
        };
        let (status, retry_after, rejected) = decide(number, &spans);
        let mut reply = ExportTraceServiceResponse::default();
        if status == 200 {
            self.taken.lock().extend(spans.into_iter().map(|span| span.span_id));
            let error_message = "some".into();
            let partial = ExportTracePartialSuccess { rejected_spans: rejected, error_message };
            reply.partial_success = (rejected > 0).then_some(partial);
        }
        let mut response = Response::new(Full::from(reply.encode_to_vec()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        Ok(response)
    }

    fn calls(&self) -> usize {
        self.seen.lock().len()
    }

    fn taken(&self) -> usize {
        self.taken.lock().len()
    }

    /// A broker that must record, with a token for its one service.
    fn broker(&self, upstream: &Upstream) -> (Sandbox, String) {
        let config = format!(
            "[audit]\nmode = \"required\"\n[telemetry]\notlp_endpoint = \"http://{}\"\notlp_protocol = \"http/protobuf\"\n\
             export_interval = \"20ms\"\n",
            self.address
        );
        let sandbox = Sandbox::with(Options { config, ..Options::default() });
        sandbox.service("openai", upstream, "sk-real-0123456789abcdef");
        let token = sandbox.token("agent", &["openai"]).secret;
        (sandbox, token)
    }
}

fn dropped(sandbox: &Sandbox) -> u64 {
    let page = sandbox.metrics_page();
    page.lines().find_map(|line| line.strip_prefix("seks_audit_dropped_total ")).unwrap().parse().unwrap()
}

fn is_poison(span: &Span) -> bool {
    format!("{span:?}").contains("/poison")
}

#[test]
fn a_collector_that_refuses_batches_for_good_neither_stops_a_required_node_nor_is_asked_again() {
    for status in [400, 401, 403, 404, 413, 500, 501] {
        let upstream = Upstream::start(|_| Answer::text("hello"));
        let collector = Collector::start(move |_, _| (status, None, 0));
        let (sandbox, token) = collector.broker(&upstream);
        for _ in 0..3 {
            assert_eq!(sandbox.get("/api/openai/v1/models", &token).status, 200, "{status}");
        }
        wait_for("the refused spans to be counted", || (dropped(&sandbox) >= 6).then_some(()));
        let calls = collector.calls();
        let mut seen: Vec<_> =
            collector.seen.lock().iter().map(|b| b.iter().map(|s| s.span_id.clone()).collect::<Vec<_>>()).collect();
        seen.sort();
        let all = seen.len();
        seen.dedup();
        assert_eq!(seen.len(), all, "{status}: a batch was sent again, in {calls} calls");
    }
}

#[test]
fn one_bad_span_costs_itself_alone() {
    let upstream = Upstream::start(|_| Answer::text("hello"));
    let collector = Collector::start(|_, spans| (if spans.iter().any(is_poison) { 400 } else { 200 }, None, 0));
    let (sandbox, token) = collector.broker(&upstream);
    for path in ["a", "poison", "b", "c"] {
        assert_eq!(sandbox.get(&format!("/api/openai/v1/{path}"), &token).status, 200);
    }
    wait_for("the other spans", || {
        let seen = collector
            .seen
            .lock()
            .iter()
            .flatten()
            .filter(|span| !is_poison(span))
            .map(|s| s.span_id.clone())
            .collect::<BTreeSet<_>>();
        (collector.taken() >= 6 && seen == *collector.taken.lock() && dropped(&sandbox) >= 1).then_some(())
    });
}

#[test]
fn a_collector_that_is_busy_gets_everything_when_it_says_so() {
    let upstream = Upstream::start(|_| Answer::text("hello"));
    let collector = Collector::start(|call, _| match call {
        0 => (429, Some(1), 0),
        1 => (503, None, 0),
        2 => (502, None, 0),
        _ => (200, None, 0),
    });
    let (sandbox, token) = collector.broker(&upstream);
    for _ in 0..5 {
        assert_eq!(sandbox.get("/api/openai/v1/models", &token).status, 200);
    }
    wait_for("all spans", || (collector.taken() >= 10).then_some(()));
    assert_eq!(dropped(&sandbox), 0);
}

#[test]
fn what_a_collector_takes_in_part_is_counted_for_the_rest() {
    let upstream = Upstream::start(|_| Answer::text("hello"));
    let collector = Collector::start(|call, spans| (200, None, if call == 0 { spans.len() as i64 } else { 0 }));
    let (sandbox, token) = collector.broker(&upstream);
    assert_eq!(sandbox.get("/api/openai/v1/models", &token).status, 200);
    wait_for("the rejected spans to be counted", || (dropped(&sandbox) >= 1).then_some(()));
    assert_eq!(sandbox.get("/api/openai/v1/models", &token).status, 200);
}

#[test]
fn status_says_how_many_records_wait_for_the_collector() {
    let upstream = Upstream::start(|_| Answer::text("hello"));
    let collector = Collector::start(|_, _| (503, Some(60), 0));
    let (sandbox, token) = collector.broker(&upstream);
    for _ in 0..7 {
        assert_eq!(sandbox.get("/api/openai/v1/models", &token).status, 200);
    }
    // An intent and an outcome a request; spans of admin calls wait, too.
    wait_for("the backlog", || {
        (sandbox.cli().json(&["status"])["audit_backlog"].as_u64().unwrap() >= 14).then_some(())
    });
}
