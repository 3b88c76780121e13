//! One connection of a node: HTTP/2 and all calls on it, driven by one task.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use h2::{Ping, PingPong, Reason, RecvStream, server};
use http::Request;
use seks_runtime::http2::FrameMonitor;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::http2_limits::{
    CONCURRENT_STREAMS, CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
    STREAM_WINDOW_BYTES,
};

/// HTTP/2 begins within this time after TLS.
const PREFACE: Duration = Duration::from_secs(5);
/// What a call has said and the socket hasn't taken; one message may come on top. It is what a node
/// that doesn't read costs.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// A connection without a call is closed after this time at the latest, and after half of it at the
/// earliest.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// How long calls may take to notice that their connection is gone.
const PARTING: Duration = Duration::from_secs(5);

/// Serves a call. What it says is sent by the connection's task, which drives it.
pub(super) trait Serve: Fn(Request<RecvStream>, server::SendResponse<Bytes>) -> Call {}

impl<F: Fn(Request<RecvStream>, server::SendResponse<Bytes>) -> Call> Serve for F {}

/// A call that is being served.
pub(super) type Call = BoxFuture<'static, ()>;

/// What happens to a connection, beside HTTP/2.
enum Event {
    /// The replica stops: what runs may finish.
    Stop,
    /// The peer is gone, or the connection's slot was evicted.
    Dead,
    /// Half of [`IDLE`] has passed: time to look whether there was a call.
    Idle,
}

struct Connection<T, S> {
    http2: server::Connection<T, Bytes>,
    serve: S,
    /// Whether there was a call since it was last looked at.
    used: bool,
    /// Each of these is polled when it has been woken, and not with everything that comes or goes.
    calls: FuturesUnordered<Call>,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
}

/// Runs until the peer closes, stops answering or goes idle, until its calls are done after `stop`,
/// or until the connection slot is `evicted`.
pub(super) async fn drive_connection<T>(
    io: T,
    serve: impl Serve,
    evicted: impl Future<Output = ()> + Send + 'static,
    stop: CancellationToken,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(CONCURRENT_STREAMS)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    let frames = FrameMonitor::new(io, |refused| tracing::debug!(?refused, "a connection's HTTP/2 was refused"));
    let Ok(Ok(mut http2)) = timeout(PREFACE, builder.handshake(frames)).await else {
        tracing::debug!("a connection did not begin with HTTP/2");
        return;
    };
    let events = FuturesUnordered::from_iter([stop.cancelled_owned().map(|()| Event::Stop).boxed(), idle()]);
    events.push(evicted.map(|()| Event::Dead).boxed());
    if let Some(ping) = http2.ping_pong() {
        events.push(keep_alive(ping).boxed());
    }
    let calls = FuturesUnordered::new();
    let mut connection = Connection { http2, serve, used: false, calls, events };
    poll_fn(|context| connection.poll(context)).await;
    let Connection { http2, mut calls, .. } = connection;
    drop(http2); // whoever still reads from it is told
    let _ = timeout(PARTING, async { while calls.next().await.is_some() {} }).await;
}

impl<T: AsyncRead + AsyncWrite + Unpin, S: Serve> Connection<T, S> {
    /// Ready when it is over.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(Some(event)) = self.events.poll_next_unpin(context) {
            match event {
                Event::Stop => self.http2.graceful_shutdown(),
                Event::Dead => return Poll::Ready(()),
                Event::Idle if self.used || !self.calls.is_empty() => {
                    self.used = !self.calls.is_empty();
                    self.events.push(idle());
                }
                Event::Idle => self.http2.abrupt_shutdown(Reason::NO_ERROR),
            }
        }
        loop {
            // Before HTTP/2, which sends what they say.
            while let Poll::Ready(Some(())) = self.calls.poll_next_unpin(context) {}
            match self.http2.poll_accept(context) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.used = true;
                    self.calls.push((self.serve)(request, respond));
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn idle() -> BoxFuture<'static, Event> {
    sleep(IDLE / 2).map(|()| Event::Idle).boxed()
}

/// Sends keep-alive pings until the peer no longer responds.
async fn keep_alive(mut ping: PingPong) -> Event {
    loop {
        sleep(KEEPALIVE_INTERVAL).await;
        if !matches!(timeout(KEEPALIVE_TIMEOUT, ping.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return Event::Dead;
        }
    }
}
