//! Connections to one upstream with one version of one credential.
//!
//! A connection's buffers hold copies of what was sent on it, the credential included, so a pool belongs to a credential's
//! version and is closed with it: rotation, revocation and a change of the service leave no live connection behind.

use std::{
    any::Any,
    future::{Future as _, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use seks_network::{
    address::Reach,
    resolve::{Resolver, resolve_by},
};
use seks_service::Service;
use seks_types::id::TenantName;
use tokio_rustls::TlsConnector;

use super::{
    Gauge, UpstreamError,
    connect::{self, Stream},
    exchange::Connection,
    h1::H1,
    upload::Upload,
};
use crate::upstream::tls::{self, Trust};

/// Response heads over this are not relayed over HTTP/2.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Windows of an HTTP/2 connection to an upstream: what a hostile upstream can make a node hold for one stream, and for all.
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;

/// The connections of one key.
pub struct Pool {
    upstream: seks_service::Upstream,
    reach: Reach,
    tenant: TenantName,
    resolver: Arc<Resolver>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// HTTP/2 alone is spoken.
    http2: bool,
    max_idle: usize,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Shared>>,
    closed: AtomicBool,
    beside: OnceLock<Arc<dyn Any + Send + Sync>>,
    gauge: Arc<dyn Gauge>,
}

struct Idle {
    h1: Box<H1>,
    since: Instant,
}

/// A connection that carries several requests at a time.
struct Shared {
    sender: http2::SendRequest<Upload>,
    streams: Arc<Streams>,
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
pub(crate) struct StreamSlot(Arc<Streams>);

impl Streams {
    fn new(driver: Driver) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), driver: Mutex::new(driver) })
    }

    /// Under the lock of the pool: nobody else takes the last one.
    fn take(self: &Arc<Self>) -> Option<StreamSlot> {
        if self.used() >= lock(&self.driver).current_max_send_streams() {
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
        poll_fn(|cx| Pin::new(&mut *lock(&self.driver)).poll(cx).map(drop)).await;
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Pool {
    pub(crate) fn new(
        service: &Service,
        (reach, resolver): (Reach, Arc<Resolver>),
        trust: &Trust,
        max_idle: usize,
        gauge: Arc<dyn Gauge>,
    ) -> Result<Self, UpstreamError> {
        let upstream = service.upstream.clone();
        let protocols = if service.http2 { &[tls::H2][..] } else { &[tls::H2, tls::H1] };
        let tls = match upstream.tls() {
            true => Some((trust.connector(&service.upstream_ca_pem, protocols)?, tls::server_name(&upstream)?)),
            false => None,
        };
        Ok(Self {
            upstream,
            reach,
            tenant: service.tenant.clone(),
            resolver,
            tls,
            http2: service.http2,
            max_idle,
            idle: Mutex::default(),
            shared: Mutex::default(),
            closed: AtomicBool::new(false),
            beside: OnceLock::new(),
            gauge,
        })
    }

    /// Where its connections lead.
    pub(crate) fn upstream(&self) -> &seks_service::Upstream {
        &self.upstream
    }

    /// The connection that was used last, if it is still good: the others may then time out.
    pub(crate) fn take(self: &Arc<Self>, cx: &mut Context<'_>) -> Option<Connection> {
        loop {
            let idle = lock(&self.idle).pop();
            let Some(mut idle) = idle else { break };
            if idle.h1.is_idle(cx) {
                idle.h1.counted.set_active(true);
                return Some(Connection::h1(idle.h1, self.clone()));
            }
        }
        let mut shared = lock(&self.shared);
        shared.retain(|s| !s.sender.is_closed());
        shared.iter().filter(|s| s.sender.is_ready()).find_map(|s| {
            let slot = s.streams.take()?;
            Some(Connection::h2(s.sender.clone(), slot, self.clone()))
        })
    }

    /// A new connection, to an address that was resolved and checked for it.
    pub(crate) async fn open(self: &Arc<Self>) -> Result<Connection, UpstreamError> {
        let stream = connect::connect(self.resolve().await?, self.tls.as_ref()).await?;
        let chose_h2 = stream.is_h2();
        if self.http2 && self.tls.is_some() && !chose_h2 {
            return Err(UpstreamError::Unreachable("no HTTP/2"));
        }
        if chose_h2 || self.http2 { self.shake_h2(stream).await } else { Ok(self.h1(stream)) }
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, UpstreamError> {
        let (host, port) = (self.upstream.host(), self.upstream.port());
        let addresses = resolve_by(&self.resolver, self.tenant.as_str(), host, port, &self.reach).await;
        addresses.map_err(|_| UpstreamError::Unreachable("no address that may be dialled"))
    }

    /// A new connection for HTTP/1.1, whatever else the upstream speaks: HTTP/2 has no `Upgrade`.
    pub(crate) async fn open_h1(self: &Arc<Self>) -> Result<Connection, UpstreamError> {
        let addresses = self.resolve().await?;
        let tls = self.tls.as_ref().map(|(connector, name)| (tls::only_h1(connector), name.clone()));
        Ok(self.h1(connect::connect(addresses, tls.as_ref()).await?))
    }

    fn h1(self: &Arc<Self>, stream: Stream) -> Connection {
        Connection::h1(Box::new(H1::new(stream, Counted::new(self.gauge.clone()))), self.clone())
    }

    async fn shake_h2(self: &Arc<Self>, stream: Stream) -> Result<Connection, UpstreamError> {
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
        let counted = Counted::new(self.gauge.clone());
        let streams = Streams::new(driver);
        let slot = streams.take().ok_or(UpstreamError::Unreachable("no stream"))?;
        let driven = streams.clone();
        tokio::spawn(async move {
            driven.drive().await;
            drop(counted);
        });
        if !self.is_closed() {
            lock(&self.shared).push(Shared { sender: sender.clone(), streams });
        }
        Ok(Connection::h2(sender, slot, self.clone()))
    }

    /// Takes a connection back.
    pub(super) fn put(&self, mut h1: Box<H1>) {
        let mut idle = lock(&self.idle);
        // Checked under the lock that `close` takes: nothing is put back behind its back.
        if !self.is_closed() && idle.len() < self.max_idle {
            h1.counted.set_active(false);
            idle.push(Idle { h1, since: Instant::now() });
        }
    }

    /// Closes connections that the upstream has closed or that were unused for `keep_alive`. Tells how many are left.
    pub(crate) fn sweep(&self, keep_alive: Duration) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut idle = lock(&self.idle);
        idle.retain_mut(|i| i.since.elapsed() < keep_alive && i.h1.is_idle(&mut cx));
        let (mut shared, mut unused) = (lock(&self.shared), 0);
        shared.retain(|s| {
            unused += usize::from(s.streams.used() == 0);
            !s.sender.is_closed() && unused <= self.max_idle.max(1)
        });
        idle.len() + shared.len()
    }

    /// Closes what is idle now and whatever comes back later.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        lock(&self.idle).clear();
        lock(&self.shared).clear();
    }

    /// What is kept beside the connections, made once; it goes when the pool goes.
    pub(crate) fn beside<T: Any + Send + Sync>(&self, make: impl FnOnce() -> Option<T>) -> Option<Arc<T>> {
        let kept = match self.beside.get() {
            Some(kept) => kept.clone(),
            None => {
                let made: Arc<dyn Any + Send + Sync> = Arc::new(make()?);
                self.beside.get_or_init(|| made).clone()
            }
        };
        kept.downcast().ok()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// One connection, as the gauge sees it: in use or put aside, and gone when this is dropped.
pub(crate) struct Counted {
    gauge: Arc<dyn Gauge>,
    active: bool,
}

impl Counted {
    pub(crate) fn new(gauge: Arc<dyn Gauge>) -> Self {
        gauge.connections(true, 1);
        Self { gauge, active: true }
    }

    fn set_active(&mut self, active: bool) {
        self.gauge.connections(self.active, -1);
        self.gauge.connections(active, 1);
        self.active = active;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.connections(self.active, -1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // nothing in these sections panics
}
