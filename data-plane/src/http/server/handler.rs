//! The interface between a server and the code that answers its requests.

use std::{future::Future, net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use seks_runtime::http2::Http2Rejection;

use super::{abortable_body::AbortableBody, activity::Activity, h1::Violation, request_body::RequestBody};

/// The other end of a connection.
pub struct Peer {
    /// The address that it came from.
    pub source: IpAddr,
    /// The connection is TLS.
    pub tls: bool,
    /// SHA-256 of the certificate that the client has shown, and has the key of.
    pub certificate: Option<[u8; 32]>,
    /// Its requests in flight.
    pub activity: Arc<Activity>,
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// A response's body.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + Unpin>
        + AbortableBody
        + Send
        + Unpin
        + 'static;
    /// A request that is being handled. Dropped before it is done when its agent goes.
    type Handling: Future<Output = Response<Self::Body>> + Send + Unpin + 'static;

    /// Handles a request.
    fn handle(&self, request: Request<RequestBody>, peer: &Peer) -> Self::Handling;

    /// Answers what isn't a request. The connection ends with this answer.
    fn refuse(&self, violation: Violation) -> Response<Self::Body>;

    /// Answers a malformed request on a stream of an HTTP/2 connection. The connection continues.
    fn refuse_stream(&self, violation: Violation) -> Response<Self::Body>;

    /// The HTTP/2 library, or the frame budget, has refused something by itself.
    fn record_refused(&self, refused: Http2Rejection);
}
