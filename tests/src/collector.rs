//! An OpenTelemetry collector in the test's own process.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, any_value::Value},
};
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
    /// Its attributes as text.
    pub attributes: BTreeMap<String, String>,
}

impl Span {
    /// An attribute's value, empty when it is absent.
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// Receives spans over OTLP/gRPC on a free loopback port.
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

struct Sink(Arc<Mutex<Vec<Span>>>);

impl Collector {
    /// Starts one.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let spans = Arc::new(Mutex::default());
        let service = TraceServiceServer::new(Sink(Arc::clone(&spans))).accept_compressed(CompressionEncoding::Gzip);
        crate::runtime().spawn(async move {
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            drop(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await);
        });
        Self { address, spans }
    }

    /// What goes into `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Span>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All spans received so far.
    pub fn spans(&self) -> Vec<Span> {
        self.lock().clone()
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

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request.into_inner().resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
        let spans = spans.map(|span| Span {
            name: span.name,
            kind: span.kind,
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            trace: hex(&span.trace_id),
            attributes: span
                .attributes
                .into_iter()
                .map(|kv| (kv.key, kv.value.map(text).unwrap_or_default()))
                .collect(),
        });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
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
