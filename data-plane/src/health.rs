//! `/healthz`, `/readyz` and `/metrics`, on a listener of their own: agents never reach it, and it holds no secret.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{table::Table, telemetry::Metrics};

/// Scrapers and probes at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// A probe says what it wants within this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node says of itself.
#[derive(Clone)]
pub(crate) struct Health {
    table: Arc<Table>,
    metrics: Metrics,
    stop: CancellationToken,
}

impl Health {
    pub(crate) fn new(table: Arc<Table>, metrics: Metrics, stop: CancellationToken) -> Self {
        Self { table, metrics, stop }
    }

    /// What `/metrics` shows.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether agents are served: there is a table, its lease is valid, and the node isn't stopping.
    pub(crate) fn is_ready(&self) -> bool {
        self.table.is_loaded() && self.table.lease().valid() && !self.stop.is_cancelled()
    }

    /// Binds and serves until `end`.
    pub(crate) async fn start(self, listen: SocketAddr, end: CancellationToken) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        tokio::spawn(self.serve(listener, end));
        Ok(address)
    }

    async fn serve(self, listener: TcpListener, end: CancellationToken) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = end.cancelled() => return,
            };
            let Ok((tcp, _)) = accepted else {
                tokio::time::sleep(HEAD_TIMEOUT / 50).await; // out of descriptors
                continue;
            };
            let (health, end) = (self.clone(), end.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let response = health.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
                tokio::select! {
                    _ = builder.serve_connection(TokioIo::new(tcp), service) => {}
                    () = end.cancelled() => {}
                }
                drop(permit);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            _ if !read => text(StatusCode::METHOD_NOT_ALLOWED, "read only\n".into()),
            "/healthz" => text(StatusCode::OK, "ok\n".into()),
            "/readyz" if self.is_ready() => text(StatusCode::OK, "ready\n".into()),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, self.why_not().into()),
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.metrics.render());
                let version = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, version);
                response
            }
            _ => text(StatusCode::NOT_FOUND, "/healthz, /readyz, /metrics\n".into()),
        }
    }

    fn why_not(&self) -> &'static str {
        match (self.stop.is_cancelled(), self.table.is_loaded()) {
            (true, _) => "stopping\n",
            (false, false) => "no table yet\n",
            (false, true) => "the lease has run out\n",
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
