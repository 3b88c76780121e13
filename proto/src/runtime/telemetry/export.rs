//! The OTLP exporter, from configuration.

use std::fs;

use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use serde::Deserialize;
use tonic::transport::{Certificate, ClientTlsConfig};

use super::{TelemetryConfig, TelemetryError};

/// How the collector is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// OTLP over gRPC, port 4317 by convention.
    #[default]
    Grpc,
}

fn invalid(key: &'static str, reason: impl Into<String>) -> TelemetryError {
    TelemetryError::Invalid { key, reason: reason.into() }
}

/// Opens no connection: that happens at the first export, and again after every failure.
pub(super) fn exporter(config: &TelemetryConfig, endpoint: &str) -> Result<SpanExporter, TelemetryError> {
    let uri: http::Uri = endpoint.parse().map_err(|_| invalid("otlp_endpoint", "not a URL"))?;
    let tls = match uri.scheme_str() {
        Some("http") => None,
        Some("https") => Some(tls(config)?),
        _ => return Err(invalid("otlp_endpoint", "expected `http://…` or `https://…`")),
    };
    if let Some(authority) = uri.authority()
        && authority.as_str().contains('@')
    {
        return Err(invalid("otlp_endpoint", "credentials don't belong in a URL; use OTEL_EXPORTER_OTLP_HEADERS"));
    }
    // Retrying is the queue's: its own retries would hold a batch that the queue doesn't count.
    let mut builder = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(config.export_timeout)
        .with_retry_policy(RetryPolicy::disabled());
    if let Some(tls) = tls {
        builder = builder.with_tls_config(tls);
    }
    builder.build().map_err(|e| invalid("otlp_endpoint", e.to_string()))
}

fn tls(config: &TelemetryConfig) -> Result<ClientTlsConfig, TelemetryError> {
    let Some(path) = &config.otlp_ca_file else { return Ok(ClientTlsConfig::new().with_native_roots()) };
    let pem = fs::read(path).map_err(|e| invalid("otlp_ca_file", format!("{}: {e}", path.display())))?;
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))
}
