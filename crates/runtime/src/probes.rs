//! The listener of `/healthz`, `/readyz` and `/metrics`: one thread with a runtime of its own, so that neither a busy process
//! nor another listener's clients delay an answer.
//!
//! `/healthz` says whether the process is worth keeping: its main runtime has run a task within [`STUCK`]. A process that is
//! merely busy is alive. A probe that fails is answered 503 and makes an orchestrator start the process again.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{SocketAddr, TcpListener as StdListener},
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
    connections::{AcceptPause, Connections, Slot},
    descriptors,
};

/// Connections at once, and of one source that haven't sent a request yet. A probe needs one for a millisecond. The number says
/// how many clients that say nothing must come meanwhile, from many addresses, to push it out.
const CONNECTIONS: usize = 1024;
const SILENT_OF_ONE_SOURCE: usize = 16;
/// A request's head must be there within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection, from its beginning to the last byte of its one answer, takes at most this long.
const WHOLE: Duration = Duration::from_secs(10);
/// The main runtime shows that it runs this often.
const BEAT: Duration = Duration::from_secs(1);
/// Without a beat for this long, the process is stuck.
pub const STUCK: Duration = Duration::from_secs(30);

/// Answers `/readyz` and `/metrics`. Called on the listener's thread: nothing in it may block for long.
pub trait Answers: Send + Sync + 'static {
    /// Whether the process serves its clients; the text says why not.
    fn ready(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;

    /// The metrics in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// Serves `answers` on `listen` until `end` resolves. Must be called within the process's main runtime.
///
/// # Errors
/// When the address is taken or not ours, or no thread can be started.
pub fn serve(
    listen: SocketAddr,
    answers: impl Answers,
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<SocketAddr> {
    let socket = StdListener::bind(listen)?;
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    // Looks for what has arrived after every few tasks, not after every 61: each connection is one short task.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(8).build()?;
    let beat = Beat::start();
    let probes = Probes { answers: Arc::new(answers), beat };
    thread::Builder::new().name("probes".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = probes.accept(socket) => {}
                () = end => {}
            }
        });
        runtime.shutdown_background();
    })?;
    Ok(address)
}

#[derive(Clone)]
struct Probes {
    answers: Arc<dyn Answers>,
    beat: Arc<Beat>,
}

impl Probes {
    async fn accept(&self, socket: StdListener) {
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the health listener can't be used"),
        };
        let connections = Connections::new(CONNECTIONS.min(descriptors::limit() / 8), SILENT_OF_ONE_SOURCE);
        let mut pause = AcceptPause::default();
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    pause.reset();
                    let slot = connections.admit(peer.ip()).await;
                    tokio::spawn(self.clone().connection(tcp, slot));
                    // Those that are here go first: accepting more would push them out before they were looked at.
                    tokio::task::yield_now().await;
                }
                Err(error) => pause.wait("metrics_listen", &error, &connections).await,
            }
        }
    }

    async fn connection(self, tcp: TcpStream, slot: Slot) {
        let service = service_fn(|request| {
            slot.prove(); // it has asked for something: clients that say nothing give way first
            self.answer(request)
        });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(false);
        let connection = tokio::time::timeout(WHOLE, server.serve_connection(TokioIo::new(tcp), service));
        tokio::select! {
            _ = connection => {} // whoever asked has gone, or was too slow
            () = slot.evicted() => {}
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        Ok(match request.uri().path() {
            _ if !read => text(StatusCode::METHOD_NOT_ALLOWED, "read only\n".into()),
            "/healthz" if self.beat.is_stuck() => {
                text(StatusCode::SERVICE_UNAVAILABLE, "the process is stuck\n".into())
            }
            "/healthz" => text(StatusCode::OK, "ok\n".into()),
            "/readyz" => match self.answers.ready().await {
                Ok(()) => text(StatusCode::OK, "ready\n".into()),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.answers.metrics());
                let version = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, version);
                response
            }
            _ => text(StatusCode::NOT_FOUND, "/healthz, /readyz, /metrics\n".into()),
        })
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// When the main runtime last ran a task.
struct Beat {
    began: Instant,
    /// Milliseconds after `began`.
    last: AtomicU64,
}

impl Beat {
    fn start() -> Arc<Self> {
        let beat = Arc::new(Self { began: Instant::now(), last: AtomicU64::new(0) });
        let seen = Arc::downgrade(&beat);
        tokio::spawn(async move {
            while let Some(beat) = seen.upgrade() {
                beat.last.store(beat.now(), Relaxed);
                drop(beat);
                tokio::time::sleep(BEAT).await;
            }
        });
        beat
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_stuck(&self) -> bool {
        Duration::from_millis(self.now().saturating_sub(self.last.load(Relaxed))) > STUCK
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

    impl Answers for Nothing {
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
        let address =
            runtime.block_on(async { serve("127.0.0.1:0".parse().unwrap(), Nothing, std::future::pending()).unwrap() });
        // From here on nobody drives the main runtime.
        let silent: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
        for _ in 0..20 {
            assert!(get(address, "/healthz").starts_with("HTTP/1.1 200 "));
        }
        assert!(get(address, "/readyz").contains("503") && get(address, "/readyz").ends_with("not yet\n"));
        assert!(get(address, "/metrics").ends_with("m 1\n"));
        drop(silent);
    }

    #[test]
    fn a_runtime_that_runs_no_task_is_stuck() {
        let beat = Beat { began: Instant::now().checked_sub(STUCK * 2).unwrap(), last: AtomicU64::new(0) };
        assert!(beat.is_stuck());
        beat.last.store(beat.now(), Relaxed);
        assert!(!beat.is_stuck());
    }
}
