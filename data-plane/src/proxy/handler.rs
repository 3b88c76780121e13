//! The proxy as the handler of a listener's requests, and of those inside a tunnel.

use std::{future::Future, pin::Pin, sync::Arc};

use http::{Request, Response};
use seks_runtime::http2::Http2Rejection;
use tokio::time::Instant;

use super::{Proxy, recycled_future::RecycledFuture};
use crate::{
    http::server::{self, Handler, Peer, Protocol, RequestBody, Stream, Upgraded, Violation},
    pipeline::{
        response_body::ResponseBody,
        route::{ProxyMode, TunnelContext},
    },
    tunnel::interception::{CertificateCache, TunnelServer},
};

/// Gives requests to the proxy, and says how they came to the node.
#[derive(Clone)]
pub(crate) struct ProxyHandler {
    proxy: Arc<Proxy>,
    mode: ProxyMode,
}

impl ProxyHandler {
    pub(crate) fn new(proxy: Arc<Proxy>, mode: ProxyMode) -> Self {
        Self { proxy, mode }
    }
}

impl Handler for ProxyHandler {
    type Body = ResponseBody;
    type Handling = RecycledFuture;

    fn handle(&self, request: Request<RequestBody>, peer: &Peer) -> RecycledFuture {
        let (proxy, mode, activity) = (self.proxy.clone(), self.mode.clone(), peer.activity.clone());
        let caller = proxy.caller(peer);
        RecycledFuture::new(proxy.handle(request, caller, mode, activity))
    }

    fn refuse(&self, violation: Violation) -> Response<ResponseBody> {
        self.proxy.refuse(&violation.into())
    }

    fn refuse_stream(&self, violation: Violation) -> Response<ResponseBody> {
        self.proxy.refuse_stream(&violation.into())
    }

    fn record_refused(&self, refused: Http2Rejection) {
        self.proxy.record_refused(refused);
    }
}

impl TunnelServer for Proxy {
    fn certificates(&self) -> &CertificateCache {
        &self.certificates
    }

    fn serve_tunnel<'a>(
        self: Arc<Self>,
        tunnel: Arc<TunnelContext>,
        stream: Stream,
        protocol: Protocol,
        connection: Upgraded<'a>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let handler = ProxyHandler::new(self, ProxyMode::Within(tunnel));
            server::serve(&handler, stream, protocol, Instant::now(), connection).await;
        })
    }
}
