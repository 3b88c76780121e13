//! An OpenTelemetry collector in the test's own process.

use std::{collections::BTreeMap, convert::Infallible, io::Read as _, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    metrics::v1::Metric,
};
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, codec::CompressionEncoding};

use crate::process;

/// One finished span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// `SPAN_KIND_…` as a number: 2 is a server, 3 a client.
    pub kind: i32,
    /// Its own id, in hex.
    pub id: String,
    /// Its parent's, empty for a root.
    pub parent: String,
    /// Its trace, in hex.
    pub trace: String,
    /// Whether its status is an error.
    pub is_error: bool,
    /// The traces that it links to, in hex.
    pub links: Vec<String>,
    /// Its attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// The attributes of the process that made it, as text.
    pub resource: BTreeMap<String, String>,
}

impl Span {
    /// An attribute's value, empty when it is absent.
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// Receives spans over OTLP on a free loopback port.
pub struct Collector {
    address: SocketAddr,
    sink: Sink,
}

/// What a collector over gRPC does with the spans that it gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Keeps and acknowledges them.
    #[default]
    Well,
    /// Refuses them for now, as one that is about to stop.
    Away,
    /// Keeps them and says that it is about to stop, as one whose acknowledgement is lost.
    Forgetful,
}

#[derive(Clone, Default)]
struct Sink {
    spans: Arc<Mutex<Vec<Span>>>,
    metrics: Arc<Mutex<Vec<Metric>>>,
    mood: Arc<Mutex<Mood>>,
}

impl Collector {
    /// Starts one that speaks gRPC.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start() -> Self {
        let (listener, collector) = Self::listen();
        let service = TraceServiceServer::new(collector.sink()).accept_compressed(CompressionEncoding::Gzip);
        let metrics = MetricsServiceServer::new(collector.sink()).accept_compressed(CompressionEncoding::Gzip);
        crate::runtime().spawn(async move {
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            let server = tonic::transport::Server::builder().add_service(service).add_service(metrics);
            drop(server.serve_with_incoming(incoming).await);
        });
        collector
    }

    /// Starts one that speaks HTTP, at `/v1/traces`.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start_http() -> Self {
        let (listener, collector) = Self::listen();
        let sink = collector.sink();
        crate::runtime().spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let sink = sink.clone();
                let service = service_fn(move |request| sink.clone().post(request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        collector
    }

    fn listen() -> (std::net::TcpListener, Self) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, Self { address, sink: Sink::default() })
    }

    fn sink(&self) -> Sink {
        self.sink.clone()
    }

    /// What it does from now on.
    pub fn set_mood(&self, mood: Mood) {
        *self.sink.mood.lock() = mood;
    }

    /// What goes into `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Span>> {
        self.sink.spans.lock()
    }

    /// All spans received so far.
    pub fn spans(&self) -> Vec<Span> {
        self.lock().clone()
    }

    /// All metrics received so far, each as often as it came.
    pub fn metrics(&self) -> Vec<Metric> {
        self.sink.metrics.lock().clone()
    }

    /// Waits for a span that satisfies a condition.
    ///
    /// # Panics
    /// After [`process::PATIENCE`].
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Span) -> bool) -> Span {
        process::wait_for(what, || self.lock().iter().find(|span| condition(span)).cloned())
    }

    /// Everything that it was told, as text.
    pub fn everything(&self) -> String {
        format!("{:?}", self.lock())
    }
}

impl Sink {
    fn take(&self, request: ExportTraceServiceRequest) {
        let spans = request.resource_spans.into_iter().flat_map(|r| {
            let resource = texts(r.resource.unwrap_or_default().attributes);
            let spans = r.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.map(move |span| (span, resource.clone())).collect::<Vec<_>>()
        });
        let spans = spans.map(|(span, resource)| Span {
            resource,
            name: span.name,
            kind: span.kind,
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            trace: hex(&span.trace_id),
            is_error: span.status.is_some_and(|status| status.code == 2),
            links: span.links.iter().map(|link| hex(&link.trace_id)).collect(),
            attributes: texts(span.attributes),
        });
        self.spans.lock().extend(spans);
    }

    async fn post(self, request: http::Request<Incoming>) -> Result<http::Response<Full<Bytes>>, Infallible> {
        let (parts, body) = request.into_parts();
        let is = |name, value: &str| parts.headers.get(name).is_some_and(|v| v == value);
        let body = body.collect().await.unwrap().to_bytes();
        let right = parts.method == "POST" && parts.uri.path() == "/v1/traces";
        let mut reply = http::Response::new(Full::default());
        if !right || !is(header::CONTENT_TYPE, "application/x-protobuf") || !is(header::AUTHORIZATION, "Bearer abc") {
            *reply.status_mut() = StatusCode::BAD_REQUEST;
            return Ok(reply);
        }
        let mut plain = Vec::new();
        if is(header::CONTENT_ENCODING, "gzip") {
            flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
        } else {
            plain.extend_from_slice(&body);
        }
        self.take(ExportTraceServiceRequest::decode(&plain[..]).unwrap());
        Ok(reply)
    }
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mood = *self.mood.lock();
        if mood != Mood::Away {
            self.take(request.into_inner());
        }
        if mood != Mood::Well {
            return Err(Status::unavailable("about to stop"));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Sink {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let resources = request.into_inner().resource_metrics.into_iter();
        self.metrics.lock().extend(resources.flat_map(|r| r.scope_metrics).flat_map(|s| s.metrics));
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|kv| (kv.key, kv.value.map(text).unwrap_or_default())).collect()
}

fn text(value: AnyValue) -> String {
    match value.value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::ArrayValue(array)) => array.values.into_iter().map(text).collect::<Vec<_>>().join(","),
        other => format!("{other:?}"),
    }
}
