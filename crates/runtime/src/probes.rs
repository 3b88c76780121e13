//! The listener of `/healthz`, `/readyz` and `/metrics`. It has one thread with its own runtime, so
//! neither a busy process nor other listeners' clients delay a response.
//!
//! `/healthz` fails with 503 when the main runtime has run no task for [`STUCK_AFTER`]. An
//! orchestrator then restarts the process. A process that is only busy stays healthy.

use std::{
    convert::Infallible,
    future::Future,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::{
    connections::{AcceptPause, Connections, ListenerSlot},
    descriptors, openmetrics,
};

/// Most connections, and most unauthenticated ones of one source. A probe needs one for a
/// millisecond. So many clients without a request, from many addresses, would have to connect in
/// that time to evict it.
const CONNECTIONS: usize = 1024;
const UNAUTHENTICATED_PER_SOURCE: usize = 16;
/// Longest wait for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest duration of a connection, up to the last byte of its one response.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that [`check_ready`] reads.
const ANSWER_BYTES: u64 = 4096;
/// Interval of the main runtime's heartbeat.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Time without a heartbeat after which the process is stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Provides `/readyz` and `/metrics`. Called on the listener's thread, so it must not block for
/// long.
pub trait ProbeHandler: Send + Sync + 'static {
    /// Whether the process serves its clients. The error text is the reason why not.
    fn ready(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;

    /// The metrics in Prometheus' text format, with exemplars behind their buckets as OpenMetrics
    /// has them.
    fn metrics(&self) -> String;
}

/// Serves `handler` on `listen` until `stop` completes. Must be called within the process's main
/// runtime.
///
/// # Errors
/// When the address cannot be bound, or no thread can be started.
pub fn serve_probes(
    listen: SocketAddr,
    handler: impl ProbeHandler,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<SocketAddr> {
    let socket = StdListener::bind(listen)?;
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    // Polls for I/O events after 8 tasks instead of 61, because each connection is one short task.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(8).build()?;
    let heartbeat = Heartbeat::start();
    let probes = ProbeServer { handler: Arc::new(handler), heartbeat };
    thread::Builder::new().name("probes".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = probes.accept(socket) => {}
                () = stop => {}
            }
        });
        runtime.shutdown_background();
    })?;
    Ok(address)
}

/// Asks a process that serves probes on `listen` whether it is ready: for the health checks of
/// container engines, in images without another HTTP client. Blocks, for at most 5 s.
///
/// # Errors
/// The reason why it is not ready, or cannot be asked.
pub fn check_ready(listen: SocketAddr) -> Result<(), String> {
    let mut address = listen;
    if listen.ip().is_unspecified() {
        address.set_ip(if listen.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    let ask = || {
        let mut stream = StdStream::connect_timeout(&address, HEAD_TIMEOUT)?;
        stream.set_read_timeout(Some(HEAD_TIMEOUT))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut reply = String::new();
        stream.take(ANSWER_BYTES).read_to_string(&mut reply)?;
        Ok(reply)
    };
    let reply = ask().map_err(|e: io::Error| format!("{address}: {e}"))?;
    match reply.starts_with("HTTP/1.1 200 ") {
        true => Ok(()),
        false => Err(reply.lines().last().unwrap_or("no answer").to_owned()),
    }
}

#[derive(Clone)]
struct ProbeServer {
    handler: Arc<dyn ProbeHandler>,
    heartbeat: Arc<Heartbeat>,
}

impl ProbeServer {
    async fn accept(&self, socket: StdListener) {
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot use the health listener"),
        };
        let connections = Connections::new(CONNECTIONS.min(descriptors::limit() / 8), UNAUTHENTICATED_PER_SOURCE);
        let mut pause = AcceptPause::default();
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    pause.reset();
                    let slot = connections.admit(peer.ip()).await;
                    tokio::spawn(self.clone().serve_connection(tcp, slot));
                    // Open connections run first. Accepting more could evict them before they are
                    // served.
                    tokio::task::yield_now().await;
                }
                Err(error) => pause.wait("metrics_listen", &error, &connections).await,
            }
        }
    }

    async fn serve_connection(self, tcp: TcpStream, slot: ListenerSlot) {
        let service = service_fn(|request| {
            slot.mark_authenticated(); // the client sent a request: clients without one are evicted first
            self.answer(request)
        });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(false);
        let connection = tokio::time::timeout(CONNECTION_TIMEOUT, server.serve_connection(TokioIo::new(tcp), service));
        tokio::select! {
            _ = connection => {} // the client closed the connection or was too slow
            () = slot.evicted() => {}
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        Ok(match request.uri().path() {
            _ if !read => text_response(StatusCode::METHOD_NOT_ALLOWED, "read only\n".into()),
            "/healthz" if self.heartbeat.is_stuck() => {
                text_response(StatusCode::SERVICE_UNAVAILABLE, "the process is stuck\n".into())
            }
            "/healthz" => text_response(StatusCode::OK, "ok\n".into()),
            "/readyz" => match self.handler.ready().await {
                Ok(()) => text_response(StatusCode::OK, "ready\n".into()),
                Err(why) => text_response(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            "/metrics" => {
                let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
                let (form, page) = match openmetrics::is_wanted(accept.unwrap_or_default()) {
                    true => (openmetrics::OPEN_METRICS, openmetrics::from_text(&self.handler.metrics())),
                    false => (openmetrics::TEXT, openmetrics::without_exemplars(&self.handler.metrics())),
                };
                let mut response = text_response(StatusCode::OK, page);
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(form));
                response
            }
            _ => text_response(StatusCode::NOT_FOUND, "/healthz, /readyz, /metrics\n".into()),
        })
    }
}

fn text_response(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// When the main runtime last ran a task.
struct Heartbeat {
    began: Instant,
    /// Milliseconds since `began`.
    last: AtomicU64,
}

impl Heartbeat {
    fn start() -> Arc<Self> {
        let heartbeat = Arc::new(Self { began: Instant::now(), last: AtomicU64::new(0) });
        let seen = Arc::downgrade(&heartbeat);
        tokio::spawn(async move {
            while let Some(heartbeat) = seen.upgrade() {
                heartbeat.last.store(heartbeat.now(), Relaxed);
                drop(heartbeat);
                tokio::time::sleep(HEARTBEAT_INTERVAL).await;
            }
        });
        heartbeat
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_stuck(&self) -> bool {
        Duration::from_millis(self.now().saturating_sub(self.last.load(Relaxed))) > STUCK_AFTER
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
    };

    use super::*;

    struct Nothing;

    impl ProbeHandler for Nothing {
        fn ready(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
            Box::pin(async { Err("not yet".into()) })
        }
        fn metrics(&self) -> String {
            "m 1\n".into()
        }
    }

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    #[test]
    fn probes_are_answered_while_the_main_runtime_is_busy_and_others_hold_connections() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = runtime
            .block_on(async { serve_probes("127.0.0.1:0".parse().unwrap(), Nothing, std::future::pending()).unwrap() });
        // From here on no thread drives the main runtime.
        let silent: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
        for _ in 0..20 {
            assert!(get(address, "/healthz").starts_with("HTTP/1.1 200 "));
        }
        assert_eq!(check_ready(address), Err("not yet".into()));
        assert!(get(address, "/readyz").contains("503") && get(address, "/readyz").ends_with("not yet\n"));
        assert!(get(address, "/metrics").ends_with("m 1\n"));
        drop(silent);
    }

    #[test]
    fn a_runtime_that_runs_no_task_is_stuck() {
        let heartbeat =
            Heartbeat { began: Instant::now().checked_sub(STUCK_AFTER * 2).unwrap(), last: AtomicU64::new(0) };
        assert!(heartbeat.is_stuck());
        heartbeat.last.store(heartbeat.now(), Relaxed);
        assert!(!heartbeat.is_stuck());
    }
}
