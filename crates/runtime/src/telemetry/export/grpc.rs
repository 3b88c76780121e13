//! OTLP over gRPC, by tonic, with encoded messages.

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tonic::{
    Request, Status,
    client::Grpc as Client,
    codec::{BufferSettings, Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use super::{ExportError, Target};
use crate::telemetry::TelemetryError;

/// A collector with gRPC.
pub(super) struct Grpc {
    client: Client<Channel>,
    metadata: MetadataMap,
    method: PathAndQuery,
}

impl Grpc {
    pub(super) fn new(target: Target) -> Result<Self, TelemetryError> {
        let mut endpoint = Endpoint::from(target.uri).connect_timeout(target.timeout);
        if let Some(roots) = target.tls {
            let tls = match roots {
                Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                None => ClientTlsConfig::new().with_native_roots(),
            };
            endpoint = endpoint.tls_config(tls).map_err(|e| super::invalid("otlp_endpoint", e.to_string()))?;
        }
        let mut client = Client::new(endpoint.connect_lazy());
        if target.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let method = PathAndQuery::from_static(target.signal.method());
        Ok(Self { client, metadata: MetadataMap::from_headers(target.headers), method })
    }

    pub(super) async fn send(&mut self, head: Bytes, spans: Bytes) -> Result<ExportTraceServiceResponse, ExportError> {
        self.client.ready().await.map_err(ExportError::unreachable)?;
        let mut request = Request::new((head, spans));
        request.metadata_mut().clone_from(&self.metadata);
        let reply = self.client.unary(request, self.method.clone(), PreEncodedCodec).await;
        reply.map(tonic::Response::into_inner).map_err(|status| ExportError::status(&status))
    }
}

/// Sends encoded bytes and decodes responses. Those of other signals have the same form.
struct PreEncodedCodec;

impl Codec for PreEncodedCodec {
    type Encode = (Bytes, Bytes);
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for PreEncodedCodec {
    type Item = (Bytes, Bytes);
    type Error = Status;

    fn encode(&mut self, (head, spans): Self::Item, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.reserve(head.len() + spans.len());
        into.put(head);
        into.put(spans);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for PreEncodedCodec {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        // The server has said OK: what it took isn't sent again because of what it says beside
        // that.
        Ok(Some(ExportTraceServiceResponse::decode(bytes).unwrap_or_default()))
    }
}
