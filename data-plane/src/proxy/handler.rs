//! The proxy as the handler of a listener's requests, and of those inside a tunnel.

use std::{future::Future, pin::Pin, sync::Arc};

use http::{Request, Response};
use seks_runtime::http2::Refused;
use tokio::time::Instant;

use super::{Proxy, recycled_future::RecycledFuture};
use crate::{
    http::server::{self, Handler, Peer, Protocol, RequestBody, Stream, Upgraded, Violation},
    pipeline::{
        response_body::AnswerBody,
        route::{Entry, Via},
    },
    tunnel::interception::{Leaves, ServeWithin},
};

/// Gives requests to the proxy, and says how they came to the node.
#[derive(Clone)]
pub(crate) struct ProxyHandler {
    proxy: Arc<Proxy>,
    entry: Entry,
}

impl ProxyHandler {
    pub(crate) fn new(proxy: Arc<Proxy>, entry: Entry) -> Self {
        Self { proxy, entry }
    }
}

impl Handler for ProxyHandler {
    type Body = AnswerBody;
    type Handling = RecycledFuture;

    fn handle(&self, request: Request<RequestBody>, peer: &Peer) -> RecycledFuture {
        let (proxy, entry, activity) = (self.proxy.clone(), self.entry.clone(), peer.activity.clone());
        let caller = proxy.caller(peer.source, peer.tls);
        RecycledFuture::new(async move { proxy.handle(request, caller, &entry, activity).await })
    }

    fn refuse(&self, violation: Violation) -> Response<AnswerBody> {
        self.proxy.refuse(&violation.into())
    }

    fn refuse_stream(&self, violation: Violation) -> Response<AnswerBody> {
        self.proxy.refuse_stream(&violation.into())
    }

    fn record_refused(&self, refused: Refused) {
        self.proxy.record_refused(refused);
    }
}

impl ServeWithin for Proxy {
    fn certificates(&self) -> &Leaves {
        &self.certificates
    }

    fn serve_within<'a>(
        self: Arc<Self>,
        via: Arc<Via>,
        stream: Stream,
        protocol: Protocol,
        connection: Upgraded<'a>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let handler = ProxyHandler::new(self, Entry::Within(via));
            server::serve(&handler, stream, protocol, Instant::now(), connection).await;
        })
    }
}
