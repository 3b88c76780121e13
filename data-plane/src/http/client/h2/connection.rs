//! Connections that carry several requests at a time, and how many each may carry.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong,
    client::{Builder, Connection, SendRequest},
};
use tokio::{
    sync::Notify,
    time::{Instant, Sleep, sleep_until},
};

use super::{H2, error};
use crate::http::client::{
    UpstreamError,
    dial::Stream,
    gauge::ConnectionGauge,
    owner_limits::{IdleSlot, PoolSlot},
};

/// Response heads over this are not relayed.
const MAX_HEAD_BYTES: u32 = 64 * 1024;
/// Windows of a connection: what a hostile upstream can make a node hold for one stream, and for
/// all.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The keep-alive interval of a connection in use, and the time for the response.
const PING_AFTER: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(10);

/// How many streams a connection has, and may have.
struct Streams {
    used: AtomicUsize,
    /// The upstream's limit (`SETTINGS_MAX_CONCURRENT_STREAMS`). 0 until its SETTINGS have arrived,
    /// or while it accepts no requests.
    limit: AtomicUsize,
    ended: AtomicBool,
    /// The pool's: a stream is free, or the limit has changed.
    changed: Arc<Notify>,
}

/// One stream of a connection, until it is dropped.
pub(crate) struct StreamSlot(Arc<Streams>);

impl Streams {
    /// Under the pool's lock, so that no other request takes the last stream.
    fn take(self: &Arc<Self>) -> Option<StreamSlot> {
        (self.used() < self.limit()).then(|| self.reserve())
    }

    fn reserve(self: &Arc<Self>) -> StreamSlot {
        self.used.fetch_add(1, Ordering::AcqRel);
        StreamSlot(self.clone())
    }

    fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Acquire)
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Notes what the upstream allows by now.
    fn set_limit(&self, limit: usize) {
        if self.limit.swap(limit, Ordering::AcqRel) != limit {
            self.changed.notify_waiters();
        }
    }

    /// Waits until the upstream has said how many streams it allows.
    async fn settled(&self) -> Result<(), UpstreamError> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.has_ended() {
                return Err(UpstreamError::NoHttp2);
            }
            if self.limit() > 0 {
                return Ok(());
            }
            changed.await;
        }
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

/// A connection that carries several requests at a time.
struct Shared {
    sender: SendRequest<Bytes>,
    streams: Arc<Streams>,
    /// Since it was found unused.
    place: Option<IdleSlot>,
}

impl Shared {
    /// Whether it takes new requests: it hasn't ended, and the upstream has sent no GOAWAY.
    fn is_open(&mut self, cx: &mut Context<'_>) -> bool {
        !self.streams.has_ended() && !matches!(self.sender.poll_ready(cx), Poll::Ready(Err(_)))
    }
}

/// The connections of one pool.
#[derive(Default)]
pub(crate) struct Connections(Vec<Shared>);

impl Connections {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many of them have had the upstream's SETTINGS.
    pub(crate) fn settled(&self) -> usize {
        self.0.iter().filter(|shared| shared.streams.limit() > 0).count()
    }

    /// How many requests one of them takes, as far as that is known.
    pub(crate) fn streams_each(&self) -> Option<usize> {
        self.0.iter().map(|shared| shared.streams.limit()).filter(|limit| *limit > 0).max()
    }

    /// A stream of one that has some to spare. Those that take no more requests are left to their
    /// last.
    pub(crate) fn take(&mut self, cx: &mut Context<'_>) -> Option<H2> {
        self.0.retain_mut(|shared| shared.is_open(cx));
        self.0.iter().find_map(|shared| Some(H2 { slot: shared.streams.take()?, sender: shared.sender.clone() }))
    }

    /// Closes those that have ended, and unused ones for which `most_unused` or the owner's share
    /// has no room.
    pub(crate) fn sweep(&mut self, most_unused: usize, place: &PoolSlot) {
        let (mut cx, mut unused) = (Context::from_waker(std::task::Waker::noop()), 0);
        self.0.retain_mut(|shared| {
            if shared.streams.used() > 0 {
                shared.place = None;
                return shared.is_open(&mut cx);
            }
            unused += 1;
            shared.place = shared.place.take().or_else(|| place.owner().keep());
            shared.is_open(&mut cx) && unused <= most_unused && shared.place.is_some()
        });
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A connection whose SETTINGS have yet to come, and its first stream.
pub(crate) struct Fresh {
    sender: SendRequest<Bytes>,
    slot: StreamSlot,
}

/// Begins HTTP/2 on a new connection.
pub(crate) async fn shake_hands(
    stream: Stream,
    changed: Arc<Notify>,
    counted: ConnectionGauge,
) -> Result<Fresh, UpstreamError> {
    let (sender, connection) = Builder::new()
        .initial_max_send_streams(0)
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD_BYTES)
        .max_frame_size(16 * 1024)
        .handshake(stream)
        .await
        .map_err(|e| if e.is_io() { error(&e) } else { UpstreamError::NoHttp2 })?;
    let streams = Arc::new(Streams {
        used: AtomicUsize::new(0),
        limit: AtomicUsize::new(0),
        ended: AtomicBool::new(false),
        changed,
    });
    let slot = streams.reserve();
    tokio::spawn(drive(connection, streams, counted));
    Ok(Fresh { sender, slot })
}

impl Fresh {
    /// Puts the connection to those that others may use.
    pub(crate) fn share(&self, connections: &mut Connections) {
        connections.0.push(Shared { sender: self.sender.clone(), streams: self.slot.0.clone(), place: None });
    }

    /// Waits for the upstream's SETTINGS. Before that, the number of permitted requests is unknown.
    pub(crate) async fn settled(self) -> Result<H2, UpstreamError> {
        self.slot.0.settled().await?;
        Ok(H2 { sender: self.sender, slot: self.slot })
    }
}

/// Drives a connection until it ends: with its last stream after the pool has dropped it, or when
/// the upstream disconnects.
async fn drive(mut connection: Connection<Stream, Bytes>, streams: Arc<Streams>, counted: ConnectionGauge) {
    let mut keep_alive = KeepAlive::new(connection.ping_pong());
    poll_fn(|cx| {
        let ended = Pin::new(&mut connection).poll(cx).is_ready();
        streams.set_limit(connection.max_concurrent_send_streams());
        if ended || keep_alive.poll(cx, streams.used() > 0).is_ready() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    streams.ended.store(true, Ordering::Release);
    drop((connection, counted));
    streams.changed.notify_waiters();
}

/// Finds out that the upstream is gone without having said so.
struct KeepAlive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    asked: bool,
}

impl KeepAlive {
    fn new(pings: Option<PingPong>) -> Self {
        Self { pings, timer: Box::pin(sleep_until(Instant::now() + PING_AFTER)), asked: false }
    }

    /// Ready: no sign of life came in time.
    fn poll(&mut self, cx: &mut Context<'_>, in_use: bool) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        loop {
            if self.asked && pings.poll_pong(cx).is_ready() {
                self.asked = false;
                self.timer.as_mut().reset(Instant::now() + PING_AFTER);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.asked {
                return Poll::Ready(());
            }
            self.asked = in_use && pings.send_ping(Ping::opaque()).is_ok();
            let next = if self.asked { PONG_WITHIN } else { PING_AFTER };
            self.timer.as_mut().reset(Instant::now() + next);
        }
    }
}
