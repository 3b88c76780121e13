//! Sends encoded spans to the collector: OTLP over gRPC or over HTTP.

mod failure;
mod grpc;
mod http;

use std::{env, fs, time::Duration};

use ::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use bytes::Bytes;
use opentelemetry_proto::{
    tonic::{common::v1::InstrumentationScope, resource::v1, trace::v1::ScopeSpans},
    transform::common::tonic::ResourceAttributesWithSchema,
};
use opentelemetry_sdk::Resource;
use prost::Message as _;
use serde::Deserialize;

pub(super) use self::failure::{Advice, ExportError};
use self::{grpc::Grpc, http::Http};
use super::{TelemetryConfig, TelemetryError, span};

/// The protocol of the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    /// OTLP over gRPC, port 4317 by convention.
    #[serde(rename = "grpc")]
    Grpc,
    /// OTLP over HTTP in protobuf, port 4318 by convention.
    #[serde(rename = "http/protobuf", alias = "http")]
    Http,
}

/// What a connection to the collector carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    /// The last part of the resource over HTTP.
    fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }

    /// The method over gRPC.
    fn method(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        }
    }
}

/// Sends batches to one collector.
pub(super) struct Exporter {
    transport: Transport,
    /// `ResourceSpans.resource`, encoded.
    resource: Vec<u8>,
    /// `ScopeSpans.scope`, encoded.
    scope: Vec<u8>,
}

enum Transport {
    Grpc(Box<Grpc>),
    Http(Box<Http>),
}

/// The address of the collector, and the options of its connection.
struct Target {
    uri: Uri,
    signal: Signal,
    /// The path is the complete resource, and [`Signal::path`] is not appended.
    is_resource: bool,
    /// TLS, with these PEM roots or the system's.
    tls: Option<Option<Vec<u8>>>,
    headers: HeaderMap,
    gzip: bool,
    timeout: Duration,
}

impl Exporter {
    /// Opens no connection. The first export does, and each export after a failure.
    pub(super) fn new(
        config: &TelemetryConfig,
        endpoint: &str,
        resource: &Resource,
        signal: Signal,
    ) -> Result<Self, TelemetryError> {
        let target = Target::new(config, endpoint, signal)?;
        let transport = match protocol(config)? {
            Protocol::Grpc => Transport::Grpc(Box::new(Grpc::new(target)?)),
            Protocol::Http => Transport::Http(Box::new(Http::new(target)?)),
        };
        let attributes = ResourceAttributesWithSchema::from(resource).attributes.0;
        let resource = v1::Resource { attributes, ..Default::default() };
        let scope = InstrumentationScope { name: "seks".into(), ..Default::default() };
        let scope = ScopeSpans { scope: Some(scope), ..Default::default() };
        Ok(Self { transport, resource: span::message(1, &resource.encode_to_vec()), scope: scope.encode_to_vec() })
    }

    /// Sends `spans` (`ScopeSpans.spans`, or `ScopeMetrics.metrics`, which have the same number;
    /// repeated). Returns how many of them the collector refused permanently.
    pub(super) async fn export(&mut self, spans: Bytes) -> Result<u64, ExportError> {
        let scope_spans = span::message_header(2, self.scope.len() + spans.len());
        let length = self.resource.len() + scope_spans.len() + self.scope.len() + spans.len();
        let head = [&span::message_header(1, length)[..], &self.resource, &scope_spans, &self.scope].concat().into();
        let reply = match &mut self.transport {
            Transport::Grpc(grpc) => grpc.send(head, spans).await?,
            Transport::Http(http) => http.send(head, spans).await?,
        };
        Ok(reply.partial_success.map_or(0, |p| u64::try_from(p.rejected_spans).unwrap_or(0)))
    }
}

impl Target {
    fn new(config: &TelemetryConfig, endpoint: &str, signal: Signal) -> Result<Self, TelemetryError> {
        let uri: Uri = endpoint.parse().map_err(|_| invalid("otlp_endpoint", "not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(roots(config)?),
            _ => return Err(invalid("otlp_endpoint", "expected `http://…` or `https://…`")),
        };
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(invalid(
                "otlp_endpoint",
                "the URL must not contain credentials; use OTEL_EXPORTER_OTLP_HEADERS",
            ));
        }
        let gzip = match otlp_variable("COMPRESSION").as_deref() {
            None | Some("none") => false,
            Some("gzip") => true,
            Some(_) => return Err(invalid("otlp_endpoint", "OTEL_EXPORTER_OTLP_COMPRESSION: `gzip` or `none`")),
        };
        // The variable for traces names their very resource. Metrics go beside it.
        let is_named =
            config.otlp_endpoint.is_none() && non_empty_variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some();
        let is_resource = is_named && signal == Signal::Traces;
        Ok(Self { uri, signal, is_resource, tls, headers: headers()?, gzip, timeout: config.export_timeout })
    }
}

fn invalid(key: &'static str, reason: impl Into<String>) -> TelemetryError {
    TelemetryError::Invalid { key, reason: reason.into() }
}

fn non_empty_variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.is_empty())
}

/// A standard variable. The one for traces is preferred to the general one.
fn otlp_variable(name: &str) -> Option<String> {
    non_empty_variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
        .or_else(|| non_empty_variable(&format!("OTEL_EXPORTER_OTLP_{name}")))
}

fn protocol(config: &TelemetryConfig) -> Result<Protocol, TelemetryError> {
    match (config.otlp_protocol, otlp_variable("PROTOCOL").as_deref()) {
        (Some(protocol), _) => Ok(protocol),
        (None, None | Some("grpc")) => Ok(Protocol::Grpc),
        (None, Some("http/protobuf")) => Ok(Protocol::Http),
        (None, Some(_)) => Err(invalid("otlp_protocol", "OTEL_EXPORTER_OTLP_PROTOCOL: `grpc` or `http/protobuf`")),
    }
}

fn roots(config: &TelemetryConfig) -> Result<Option<Vec<u8>>, TelemetryError> {
    let Some(path) = &config.otlp_ca_file else { return Ok(None) };
    fs::read(path).map(Some).map_err(|e| invalid("otlp_ca_file", format!("{}: {e}", path.display())))
}

/// `OTEL_EXPORTER_OTLP_HEADERS`: `key=value,key=value`, values percent-encoded. Errors do not
/// repeat it, because it often holds a key.
fn headers() -> Result<HeaderMap, TelemetryError> {
    let mut map = HeaderMap::new();
    let wrong = || invalid("otlp_endpoint", "OTEL_EXPORTER_OTLP_HEADERS: expected `key=value,key=value`");
    for pair in otlp_variable("HEADERS").unwrap_or_default().split(',').filter(|p| !p.trim().is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        let key = HeaderName::from_bytes(key.trim().as_bytes()).map_err(|_| wrong())?;
        let value = percent_decode(value.trim()).and_then(|v| HeaderValue::from_bytes(&v).ok());
        let mut value = value.ok_or_else(wrong)?;
        value.set_sensitive(true);
        map.insert(key, value);
    }
    Ok(map)
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.get(..2).filter(|_| *first == b'%').and_then(|d| std::str::from_utf8(d).ok());
        rest = match escaped.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                tail.get(2..)?
            }
            None => {
                out.push(*first);
                tail
            }
        };
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_are_percent_decoded() {
        assert_eq!(percent_decode("Bearer%20a%2Fb%").unwrap(), b"Bearer a/b%");
        assert_eq!(percent_decode("%zz%4").unwrap(), b"%zz%4");
    }
}
