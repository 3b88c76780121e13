//! Connections to one destination.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use http::uri::{Authority, Scheme};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::{
    UpstreamError,
    connect::{self, Stream},
    gauge::{ConnectionGauge, Gauge},
    h1::H1,
    share::{IdleSlot, PoolPlace},
    upload::Upload,
};

/// Response heads over this are not relayed over HTTP/2.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Windows of an HTTP/2 connection to an upstream: what a hostile upstream can make a node hold for one stream, and for all.
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Where a pool's connections lead.
pub struct Destination {
    /// Host and port, as requests name them.
    pub authority: Authority,
    /// How TLS is spoken, and the name that the certificate must be for; `None`: plain TCP.
    pub tls: Option<(TlsConnector, ServerName<'static>)>,
    /// HTTP/2 alone is spoken.
    pub http2_only: bool,
    /// What finds the addresses for a new connection.
    pub resolve: Box<dyn Resolve>,
}

impl Destination {
    pub(super) fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP }
    }
}

/// Finds the addresses of a destination.
pub trait Resolve: Send + Sync {
    /// Addresses that may be dialled, in the order in which they are to be tried.
    ///
    /// # Errors
    /// When there is none.
    fn resolve(&self) -> Pin<Box<dyn Future<Output = Result<Vec<SocketAddr>, UpstreamError>> + Send + '_>>;
}

/// The connections to one destination.
pub struct Pool {
    destination: Destination,
    max_idle: usize,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Shared>>,
    closed: AtomicBool,
    gauge: Arc<dyn Gauge>,
    place: PoolPlace,
}

struct Idle {
    h1: Box<H1>,
    since: Instant,
    _place: IdleSlot,
}

/// A connection that is ready for one request.
pub(super) enum Ready {
    H1(Box<H1>),
    H2(http2::SendRequest<Upload>, StreamSlot),
}

/// A connection that carries several requests at a time.
struct Shared {
    sender: http2::SendRequest<Upload>,
    streams: Arc<Streams>,
    /// Since it was found unused.
    place: Option<IdleSlot>,
}

/// hyper's end of a connection.
type Driver = http2::Connection<TokioIo<Stream>, Upload, TokioExecutor>;

/// How many streams a connection has, and may have. A request that waits for a stream inside of hyper has its credential in it
/// already and can't be decided again, so none is given to a connection without a stream to spare.
struct Streams {
    used: AtomicUsize,
    /// Knows what the upstream allows (`SETTINGS_MAX_CONCURRENT_STREAMS`).
    driver: Mutex<Driver>,
}

/// One stream of a connection, until it is dropped.
pub(super) struct StreamSlot(Arc<Streams>);

impl Streams {
    fn new(driver: Driver) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), driver: Mutex::new(driver) })
    }

    /// Under the lock of the pool: nobody else takes the last one.
    fn take(self: &Arc<Self>) -> Option<StreamSlot> {
        if self.used() >= self.driver.lock().current_max_send_streams() {
            return None;
        }
        self.used.fetch_add(1, Ordering::AcqRel);
        Some(StreamSlot(self.clone()))
    }

    fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// Hands requests to the connection until there are no more, or it has ended.
    async fn drive(self: Arc<Self>) {
        poll_fn(|cx| Pin::new(&mut *self.driver.lock()).poll(cx).map(drop)).await;
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Pool {
    /// An empty pool that keeps at most `max_idle` unused connections, and no more than the share of `place` has room for.
    #[must_use]
    pub fn new(destination: Destination, max_idle: usize, place: PoolPlace, gauge: Arc<dyn Gauge>) -> Self {
        let (idle, shared, closed) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        Self { destination, max_idle, idle, shared, closed, gauge, place }
    }

    /// Where its connections lead.
    pub(super) fn destination(&self) -> &Destination {
        &self.destination
    }

    /// The connection that was used last, if it is still good: the others may then time out.
    pub(super) fn take(&self, cx: &mut Context<'_>) -> Option<Ready> {
        loop {
            let idle = self.idle.lock().pop();
            let Some(mut idle) = idle else { break };
            if idle.h1.is_idle(cx) {
                idle.h1.counted.set_active(true);
                return Some(Ready::H1(idle.h1));
            }
        }
        let mut shared = self.shared.lock();
        shared.retain(|s| !s.sender.is_closed());
        let mut ready = shared.iter().filter(|s| s.sender.is_ready());
        ready.find_map(|s| Some(Ready::H2(s.sender.clone(), s.streams.take()?)))
    }

    /// A new connection, to an address that was resolved and checked for it.
    pub(super) async fn open(&self) -> Result<Ready, UpstreamError> {
        let Destination { tls, http2_only, resolve, .. } = &self.destination;
        let stream = connect::connect(resolve.resolve().await?, tls.as_ref()).await?;
        let chose_h2 = stream.is_h2();
        if *http2_only && tls.is_some() && !chose_h2 {
            return Err(UpstreamError::Unreachable("no HTTP/2"));
        }
        if chose_h2 || *http2_only { self.shake_h2(stream).await } else { Ok(self.h1(stream)) }
    }

    /// A new connection for HTTP/1.1, whatever else the upstream speaks: HTTP/2 has no `Upgrade`.
    pub(super) async fn open_h1(&self) -> Result<Ready, UpstreamError> {
        let Destination { tls, resolve, .. } = &self.destination;
        let addresses = resolve.resolve().await?;
        let tls = tls.as_ref().map(|(connector, name)| (connect::only_h1(connector), name.clone()));
        Ok(self.h1(connect::connect(addresses, tls.as_ref()).await?))
    }

    fn h1(&self, stream: Stream) -> Ready {
        Ready::H1(Box::new(H1::new(stream, ConnectionGauge::new(self.gauge.clone()))))
    }

    async fn shake_h2(&self, stream: Stream) -> Result<Ready, UpstreamError> {
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(hyper_util::rt::TokioTimer::new())
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .max_frame_size(16 * 1024)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| UpstreamError::Unreachable("no HTTP/2"))?;
        // Ends when the last sender is gone: the pool's copy goes with `close` or `sweep`.
        let counted = ConnectionGauge::new(self.gauge.clone());
        let streams = Streams::new(driver);
        let slot = streams.take().ok_or(UpstreamError::Unreachable("no stream"))?;
        let driven = streams.clone();
        tokio::spawn(async move {
            driven.drive().await;
            drop(counted);
        });
        if !self.is_closed() {
            self.shared.lock().push(Shared { sender: sender.clone(), streams, place: None });
        }
        Ok(Ready::H2(sender, slot))
    }

    /// Takes a connection back.
    pub(super) fn put(&self, mut h1: Box<H1>) {
        let mut idle = self.idle.lock();
        // Checked under the lock that `close` takes: nothing is put back behind its back.
        if !self.is_closed()
            && idle.len() < self.max_idle
            && let Some(place) = self.place.share().keep()
        {
            h1.counted.set_active(false);
            idle.push(Idle { h1, since: Instant::now(), _place: place });
        }
    }

    /// Closes connections that the upstream has closed or that were unused for `keep_alive`. Tells how many are left.
    pub fn sweep(&self, keep_alive: Duration) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut idle = self.idle.lock();
        idle.retain_mut(|i| i.since.elapsed() < keep_alive && i.h1.is_idle(&mut cx));
        let (mut shared, mut unused) = (self.shared.lock(), 0);
        shared.retain_mut(|s| {
            if s.streams.used() > 0 {
                s.place = None;
                return !s.sender.is_closed();
            }
            unused += 1;
            s.place = s.place.take().or_else(|| self.place.share().keep());
            !s.sender.is_closed() && unused <= self.max_idle.max(1) && s.place.is_some()
        });
        idle.len() + shared.len()
    }

    /// Closes what is idle now and whatever comes back later.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.idle.lock().clear();
        self.shared.lock().clear();
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}
