//! `/metrics`, `/healthz` and `/readyz` over plain HTTP.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use super::Metrics;
use crate::store::Store;

/// Connections at once: a scraper, a kubelet and a person.
const CONNECTIONS: usize = 64;
/// A request's head must be there within this, and an answer gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until `stop`.
pub(crate) async fn serve(socket: TcpListener, metrics: Metrics, store: Arc<dyn Store>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Some(accepted) = stop.run_until_cancelled(socket.accept()).await else { return };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (metrics, store) = (metrics.clone(), Arc::clone(&store));
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(move |request| answer(request, metrics.clone(), Arc::clone(&store)));
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            let connection = server.serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(2 * PATIENCE, connection).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    metrics: Metrics,
    store: Arc<dyn Store>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics.text()),
        (&Method::GET, "/healthz") => (StatusCode::OK, "ok\n".into()),
        (&Method::GET, "/readyz")
            if crate::status::of(store.as_ref()).await.store_problem != crate::status::UNREACHABLE =>
        {
            (StatusCode::OK, "ready\n".into())
        }
        (&Method::GET, "/readyz") => (StatusCode::SERVICE_UNAVAILABLE, "the store does not answer\n".into()),
        (&Method::GET, _) => (StatusCode::NOT_FOUND, "not found\n".into()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "GET only\n".into()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let text = "text/plain; version=0.0.4; charset=utf-8";
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(text));
    Ok(response)
}
