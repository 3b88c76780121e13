//! One connection: which HTTP it speaks, and the server for that with every limit set: our own, or hyper's for HTTP/2.

use std::{
    convert::Infallible,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::Service};
use hyper_util::rt::{TokioIo, TokioTimer};
use seks_runtime::{
    connections::Slot,
    http2::{Frames, Refused},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    activity::{Activity, Waiting},
    h1::{
        End, H1, Serve,
        head::{HeadLimits, Violation},
    },
    handling::Handling,
    request_body::RequestBody,
    response_stream::{Answer, Handled},
    slow_reader::{Streams, polled},
    stream::{Inbound, Link, PREFACE_START, Prefix, Stream},
    tls::{self, Acceptor},
};
use crate::{
    config::Limits,
    pipeline::response_body::AnswerBody,
    proxy::Proxy,
    tunnel::{
        Tunnel,
        interception::{Entry, Interception, Leaves},
    },
};

/// An agent may send this much ahead on one HTTP/2 stream, and on all of a connection.
const H2_STREAM_WINDOW: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Answers waiting to be written on one HTTP/2 stream.
const H2_SEND_BUFFER: usize = 128 * 1024;
/// Streams that an agent may reset before the node has seen them, and resets for the agent's own errors: then the connection
/// is closed (rapid reset, CVE-2023-44487).
const H2_PENDING_RESETS: usize = 20;
const H2_ERROR_RESETS: usize = 64;
/// After an answer that ends a connection, what the agent still sends is read and thrown away this long and this far: closing
/// with unread bytes resets the connection, and the reset overtakes the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 1024 * 1024;

/// Serves connections.
pub(super) struct Server {
    proxy: Arc<Proxy>,
    limits: Limits,
    tls: Option<Acceptor>,
    entry: Entry,
    leaves: Leaves,
    stop: CancellationToken,
    /// Closes everything at once.
    pub(super) kill: CancellationToken,
    h2: http2::Builder<Streams>,
}

impl Server {
    pub(super) fn new(
        proxy: Arc<Proxy>,
        limits: &Limits,
        tls: Option<Acceptor>,
        entry: Entry,
        stop: CancellationToken,
    ) -> Self {
        let (h2, leaves, kill) = (h2(limits), Leaves::default(), CancellationToken::new());
        Self { proxy, limits: limits.clone(), tls, entry, leaves, stop, kill, h2 }
    }

    pub(super) async fn serve(&self, tcp: TcpStream, peer: SocketAddr, slot: &Arc<Slot>) {
        let began = Instant::now();
        let source = peer.ip().to_canonical();
        let mut certificate_left = None;
        let (stream, is_h2) = match &self.tls {
            None => {
                let read = timeout(self.limits.header_timeout, Prefix::read(tcp));
                let Some(Ok(Some((tcp, prefix)))) = self.stop.run_until_cancelled(read).await else { return };
                let is_h2 = prefix.is(PREFACE_START);
                (Stream::behind(prefix, Inbound::Plain(tcp)), is_h2)
            }
            Some(tls) => {
                let shaken = timeout(self.limits.handshake_timeout, tls.accept(tcp));
                let Some(Ok(Ok(stream))) = self.stop.run_until_cancelled(shaken).await else { return };
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                certificate_left = tls::certificate_left(&stream);
                (Stream::new(Inbound::Tls(Box::new(stream))), is_h2)
            }
        };
        let activity = Arc::new(Activity::new(Some(slot.clone())));
        let (proxy, entry, tls) = (self.proxy.clone(), self.entry.clone(), self.tls.is_some());
        let service = Handler { proxy, source, tls, entry, activity, header_bytes: self.limits.header_bytes };
        let serve = async {
            if is_h2 {
                self.serve_h2(stream, service).await;
            } else {
                self.serve_h1(stream, service, began, slot).await;
            }
        };
        match certificate_left {
            None => serve.await,
            Some(left) => drop(timeout(left, serve).await), // what runs on it ends too
        }
    }

    async fn serve_h1(&self, stream: Stream, handler: Handler, began: Instant, slot: &Arc<Slot>) {
        let limits = HeadLimits {
            bytes: self.limits.header_bytes,
            fields: self.limits.header_fields,
            uri: self.limits.uri_bytes,
        };
        let waiting = Waiting::new(began, self.limits.header_timeout, self.limits.keep_alive);
        let connection = H1::new(stream, limits, handler.activity.clone(), waiting);
        let stream = match connection.serve(&handler, &self.stop).await {
            End::Gone => None,
            End::Last(stream) => Some(stream),
            End::Switched(Tunnel::Socket(socket), mut stream) => {
                slot.busy();
                let link = stream.link();
                socket.run(stream, &link, &self.stop).await
            }
            End::Switched(Tunnel::Interception(interception), stream) => {
                return self.intercept(stream, *interception, handler.source, slot).await;
            }
            End::Switched(Tunnel::Passage(passage), mut stream) => {
                slot.busy();
                let link = stream.link();
                return passage.run(stream, &link, &self.stop).await;
            }
        };
        if let Some(stream) = stream {
            linger(stream).await;
        }
    }

    /// TLS in the name of the host that the agent asked for, and in it HTTP as anywhere. Boxed: what is inside is a connection too.
    fn intercept<'a>(
        &'a self,
        stream: Stream,
        interception: Interception,
        source: IpAddr,
        slot: &'a Arc<Slot>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let Some(opened) = interception.open(&self.leaves) else { return };
            let acceptor = TlsAcceptor::from(opened.tls.clone());
            let accepted = timeout(self.limits.handshake_timeout, acceptor.accept(stream)).await;
            let tls = match accepted {
                Ok(Ok(tls)) => tls,
                Ok(Err(error)) => return opened.failed(&error),
                Err(_) => return,
            };
            let is_h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            let (proxy, entry) = (self.proxy.clone(), Entry::Within(opened.via.clone()));
            let activity = Arc::new(Activity::new(Some(slot.clone())));
            let header_bytes = self.limits.header_bytes;
            let service = Handler { proxy, source, tls: true, entry, activity, header_bytes };
            let mut stream = Stream::new(Inbound::Intercepted(Box::new(tls)));
            let link = stream.link();
            let serve = async {
                if is_h2 {
                    self.serve_h2(stream, service).await;
                } else {
                    self.serve_h1(stream, service, Instant::now(), slot).await;
                }
            };
            opened.run(serve, &link).await;
        })
    }

    async fn serve_h2(&self, mut stream: Stream, handler: Handler) {
        let (activity, link) = (handler.activity.clone(), stream.link());
        let (proxy, told) = (self.proxy.clone(), Arc::new(AtomicBool::new(false)));
        let tell = told.clone();
        let frames = Frames::new(stream, move |refused| {
            tell.store(true, Ordering::Relaxed);
            proxy.record_refused(refused);
        });
        let service = Streamed { handler, link: link.clone() };
        let mut connection = pin!(self.h2.serve_connection(TokioIo::new(frames), service));
        let mut draining = false;
        loop {
            let idle_at = activity.idle_since().unwrap_or_else(Instant::now) + self.limits.keep_alive;
            tokio::select! {
                () = link.severed() => return,
                ended = connection.as_mut() => {
                    let code = ended.err().and_then(|error| refusal_code(&error));
                    // What ends a connection before it has begun is written nowhere.
                    if let Some(code) = code.filter(|_| !told.load(Ordering::Relaxed)) {
                        self.proxy.record_refused(Refused::Connection(code));
                    }
                    return;
                }
                () = self.stop.cancelled(), if !draining => {}
                () = sleep_until(idle_at) => {
                    let idle = activity.idle_since().is_some_and(|since| since.elapsed() >= self.limits.keep_alive);
                    if draining && idle {
                        return; // it was told to go a keep-alive ago
                    }
                    if !idle {
                        continue;
                    }
                }
            }
            draining = true;
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// With which code the library has ended a connection; `None`: the agent has, or the network.
fn refusal_code(error: &hyper::Error) -> Option<u32> {
    let error = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
    error.reason().filter(|_| error.is_library()).map(u32::from)
}

/// Whether the head of an HTTP/2 request is larger than the node takes (RFC 9113, 6.5.2: each field counts 32 bytes more).
fn is_too_large(request: &Request<Incoming>, most: usize) -> bool {
    let uri = request.uri();
    let target = uri.path_and_query().map_or(0, |p| p.as_str().len()) + uri.authority().map_or(0, |a| a.as_str().len());
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    target + fields.sum::<usize>() > most
}

async fn linger(mut stream: Stream) {
    let _ = timeout(LINGER, async {
        if stream.shutdown().await.is_ok() {
            let _ = tokio::io::copy(&mut (&mut stream).take(LINGER_BYTES), &mut tokio::io::sink()).await;
        }
    })
    .await;
}

fn h2(limits: &Limits) -> http2::Builder<Streams> {
    let mut h2 = http2::Builder::new(Streams { patience: limits.idle_timeout });
    h2.timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_frame_size(16 * 1024)
        // The node's own limit answers first, with a request id and a record; this one bounds memory.
        .max_header_list_size(u32::try_from(2 * limits.header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(H2_PENDING_RESETS)
        .max_local_error_reset_streams(H2_ERROR_RESETS)
        .max_send_buf_size(H2_SEND_BUFFER)
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.header_timeout);
    h2
}

/// Gives a connection's requests to the proxy.
struct Handler {
    proxy: Arc<Proxy>,
    source: IpAddr,
    tls: bool,
    entry: Entry,
    activity: Arc<Activity>,
    header_bytes: usize,
}

impl Handler {
    fn begin(&self, request: Request<RequestBody>) -> Handling {
        let (proxy, entry, activity) = (self.proxy.clone(), self.entry.clone(), self.activity.clone());
        let caller = proxy.caller(self.source, self.tls);
        Handling::begin(async move {
            let mut handled = pin!(proxy.handle(request, caller, &entry, activity));
            Ok(std::future::poll_fn(|cx| polled(handled.as_mut().poll(cx))).await)
        })
    }
}

impl Serve for Handler {
    type Body = AnswerBody;
    type Handling = Handling;

    fn handle(&self, request: Request<RequestBody>) -> Handling {
        self.begin(request)
    }

    fn refuse(&self, violation: Violation) -> Response<AnswerBody> {
        self.proxy.refuse(&violation.refusal())
    }
}

/// Gives the requests of an HTTP/2 connection to the proxy.
struct Streamed {
    handler: Handler,
    link: Arc<Link>,
}

impl Service<Request<Incoming>> for Streamed {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Handled;

    fn call(&self, request: Request<Incoming>) -> Handled {
        let handling = if is_too_large(&request, self.handler.header_bytes) {
            let proxy = self.handler.proxy.clone();
            Handling::begin(async move { Ok(proxy.refuse_stream(&Violation::HeadTooLarge.refusal())) })
        } else {
            self.handler.begin(request.map(RequestBody::from))
        };
        Handled::begin(handling, &self.link)
    }
}
