//! OTLP over HTTP/1.1, `application/x-protobuf`, with one connection that is opened on demand.

use std::{io::Write as _, sync::Arc};

use bytes::{Bytes, BytesMut};
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt as _, Collected, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{ExportError, Target, invalid};
use crate::telemetry::TelemetryError;

/// Longest response that is read.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// A collector with HTTP.
pub(super) struct Http {
    host: String,
    port: u16,
    path: Uri,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    headers: HeaderMap,
    gzip: bool,
    /// The open connection, if there is one.
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Http {
    pub(super) fn new(target: Target) -> Result<Self, TelemetryError> {
        let no_host = || invalid("otlp_endpoint", "not a URL");
        let authority = target.uri.authority().ok_or_else(no_host)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if target.tls.is_some() { 443 } else { 80 });
        let mut headers = target.headers;
        let named = HeaderValue::from_str(authority.as_str()).map_err(|_| no_host())?;
        headers.insert(header::HOST, named);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if target.gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let tls = match target.tls {
            Some(roots) => Some((connector(roots)?, ServerName::try_from(host.clone()).map_err(|_| no_host())?)),
            None => None,
        };
        // The variable for all signals names the collector; the one for traces names the very
        // resource.
        let path = match target.uri.path() {
            path if target.is_resource => path.to_owned(),
            base => {
                let base = base.trim_end_matches('/').trim_end_matches("/v1/traces");
                format!("{base}{}", target.signal.path())
            }
        };
        let path = path.parse().map_err(|_| no_host())?;
        Ok(Self { host, port, path, tls, headers, gzip: target.gzip, sender: None })
    }

    pub(super) async fn send(&mut self, head: Bytes, spans: Bytes) -> Result<ExportTraceServiceResponse, ExportError> {
        // A connection with any failure is not used again: it is put back only after success.
        let mut sender = match self.sender.take().filter(|s| !s.is_closed()) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        sender.ready().await.map_err(unreachable)?;
        let mut request =
            Request::post(self.path.clone()).body(Full::new(self.body(head, spans)?)).map_err(unreachable)?;
        request.headers_mut().clone_from(&self.headers);
        let reply = sender.send_request(request).await.map_err(unreachable)?;
        let (parts, body) = reply.into_parts();
        let body = Limited::new(body, MAX_REPLY_BYTES).collect().await.map(Collected::to_bytes);
        if body.is_ok() {
            self.sender = Some(sender);
        }
        if !parts.status.is_success() {
            return Err(ExportError::http(parts.status, &parts.headers));
        }
        // The server has said OK: what it took isn't sent again because of what it says beside
        // that.
        Ok(body.ok().and_then(|body| ExportTraceServiceResponse::decode(body).ok()).unwrap_or_default())
    }

    fn body(&self, head: Bytes, spans: Bytes) -> Result<Bytes, ExportError> {
        if !self.gzip {
            let mut body = BytesMut::with_capacity(head.len() + spans.len());
            body.extend_from_slice(&head);
            body.extend_from_slice(&spans);
            return Ok(body.freeze());
        }
        let mut gzip = GzEncoder::new(Vec::with_capacity(spans.len() / 4), Compression::fast());
        gzip.write_all(&head).and_then(|()| gzip.write_all(&spans)).map_err(unreachable)?;
        gzip.finish().map(Bytes::from).map_err(unreachable)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ExportError> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreachable)?;
        let Some((connector, name)) = &self.tls else { return http_handshake(tcp).await };
        http_handshake(connector.connect(name.clone(), tcp).await.map_err(unreachable)?).await
    }
}

async fn http_handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, ExportError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    tokio::spawn(async move {
        let _ = connection.await; // its end is seen at the sender
    });
    Ok(sender)
}

fn unreachable(error: impl std::fmt::Display) -> ExportError {
    ExportError::unreachable(error)
}

/// Trusts `roots`, or the system's.
fn connector(roots: Option<Vec<u8>>) -> Result<TlsConnector, TelemetryError> {
    let mut store = RootCertStore::empty();
    match roots {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let bad = |_| invalid("otlp_ca_file", "not PEM certificates");
                store.add(certificate.map_err(|_| invalid("otlp_ca_file", "not PEM"))?).map_err(bad)?;
            }
        }
        None => drop(store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| invalid("otlp_endpoint", e.to_string()))?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
