//! HTTP/2 as a server speaks it: hyper's, with every limit set, each stream watched
//! ([`slow_reader`](super::slow_reader)) and frames counted ([`FrameMonitor`]).

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::Service};
use hyper_util::rt::{TokioIo, TokioTimer};
use seks_runtime::http2::{FrameMonitor, Http2Rejection};
use tokio::time::{Instant, sleep_until};

use super::{
    h1::Violation,
    handler::{Handler, Peer},
    request_body::RequestBody,
    response_stream::{Handling, NextStream, StreamBody, StreamFuture},
    settings::{Limits, Settings},
    slow_reader::StreamExecutor,
    stream::{ConnectionHandle, Stream},
};

/// An agent may send this much ahead on one HTTP/2 stream, and on all of a connection.
const H2_STREAM_WINDOW: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Answers waiting to be written on one HTTP/2 stream.
const H2_SEND_BUFFER: usize = 128 * 1024;
/// Streams that an agent may reset before the node has seen them, and resets for the agent's own
/// errors: then the connection is closed (rapid reset, CVE-2023-44487).
const H2_PENDING_RESETS: usize = 20;
const H2_ERROR_RESETS: usize = 64;

/// Serves one connection until it ends.
pub(super) async fn serve<H: Handler>(settings: &Settings, handler: &H, mut stream: Stream, peer: &Peer) {
    let (activity, link) = (&peer.activity, stream.link());
    let told = AtomicBool::new(false);
    let frames = FrameMonitor::new(stream, |refused| {
        told.store(true, Ordering::Relaxed);
        handler.record_refused(refused);
    });
    let next = Arc::new(NextStream::default());
    let executor = StreamExecutor { patience: settings.limits.idle_timeout, next: next.clone() };
    let head_bytes = settings.limits.head.bytes;
    let service = Streams { handler, peer, head_bytes, link: link.clone(), next };
    let mut connection = pin!(builder(&settings.limits, executor).serve_connection(TokioIo::new(frames), service));
    let mut draining = false;
    loop {
        let idle_at = activity.idle_since().unwrap_or_else(Instant::now) + settings.limits.keep_alive;
        tokio::select! {
            () = link.reset_requested() => return,
            ended = connection.as_mut() => {
                let code = ended.err().and_then(|error| refusal_code(&error));
                // What ends a connection before it has begun is written nowhere.
                if let Some(code) = code.filter(|_| !told.load(Ordering::Relaxed)) {
                    handler.record_refused(Http2Rejection::Connection(code));
                }
                return;
            }
            () = settings.stop.cancelled(), if !draining => {}
            () = sleep_until(idle_at) => {
                let idle = activity.idle_since().is_some_and(|since| since.elapsed() >= settings.limits.keep_alive);
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

/// With which code the library has ended a connection; `None`: the agent has, or the network.
fn refusal_code(error: &hyper::Error) -> Option<u32> {
    let error = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
    error.reason().filter(|_| error.is_library()).map(u32::from)
}

/// Whether the head of an HTTP/2 request is larger than the node takes (RFC 9113, 6.5.2: each field
/// counts 32 bytes more).
fn is_too_large(request: &Request<Incoming>, most: usize) -> bool {
    let uri = request.uri();
    let target = uri.path_and_query().map_or(0, |p| p.as_str().len()) + uri.authority().map_or(0, |a| a.as_str().len());
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    target + fields.sum::<usize>() > most
}

fn builder<B>(limits: &Limits, executor: StreamExecutor<B>) -> http2::Builder<StreamExecutor<B>> {
    let mut h2 = http2::Builder::new(executor);
    h2.timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_frame_size(16 * 1024)
        // The node's own limit answers first, with a request id and a record; this one bounds
        // memory.
        .max_header_list_size(u32::try_from(2 * limits.head.bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(H2_PENDING_RESETS)
        .max_local_error_reset_streams(H2_ERROR_RESETS)
        .max_send_buf_size(H2_SEND_BUFFER)
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.header_timeout);
    h2
}

/// Gives the requests of a connection to the handler.
struct Streams<'a, H: Handler> {
    handler: &'a H,
    peer: &'a Peer,
    head_bytes: usize,
    link: Arc<ConnectionHandle>,
    next: Arc<NextStream<H::Body>>,
}

impl<H: Handler> Service<Request<Incoming>> for Streams<'_, H> {
    type Response = Response<StreamBody<H::Body>>;
    type Error = Infallible;
    type Future = StreamFuture<H::Handling, H::Body>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let handling = if is_too_large(&request, self.head_bytes) {
            Handling::Refused(Some(self.handler.refuse_stream(Violation::HeadTooLarge)))
        } else {
            Handling::Handled(self.handler.handle(request.map(RequestBody::from), self.peer))
        };
        StreamFuture::begin(handling, &self.link, &self.next)
    }
}
