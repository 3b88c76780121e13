//! Connections to one destination.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    UpstreamError,
    destination::Destination,
    dial::{self, Stage},
    gauge::{ConnectionGauge, Gauge},
    h1::H1,
    h2::{self, Connections, H2},
    owner_limits::{IdleSlot, PoolSlot},
};

/// Most HTTP/2 connections to one destination. An upstream that allows one request a connection is
/// then asked 64 at a time, and one that allows 100, as most do, 6,400.
const MAX_H2_CONNECTIONS: usize = 64;

/// The connections to one destination.
pub struct Pool {
    destination: Destination,
    max_idle: usize,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<SharedConnections>,
    /// A stream is free, a connection was opened, or opening one has failed.
    changed: Arc<Notify>,
    /// Requests that wait for a connection.
    waiting: AtomicUsize,
    closed: AtomicBool,
    gauge: Arc<dyn Gauge>,
    place: PoolSlot,
}

struct Idle {
    h1: Box<H1>,
    since: Instant,
    _place: IdleSlot,
}

/// A connection that is ready for one request.
pub(super) enum Ready {
    H1(Box<H1>),
    H2(H2),
}

/// Connections of HTTP/2, and those that are being opened.
struct SharedConnections {
    open: Connections,
    opening: usize,
    protocol: Protocol,
}

/// What the upstream speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// ALPN will tell.
    Unknown,
    Http1,
    Http2,
}

/// A connection that is being opened, until it can be used or has failed.
struct Opening<'a>(&'a Pool);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.shared.lock().opening -= 1;
        self.0.changed.notify_waiters();
    }
}

/// A request that waits for a connection, until this is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::AcqRel);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl SharedConnections {
    /// Whether another connection may be opened while `waiting` requests wait, those whose
    /// connections are being opened included.
    ///
    /// HTTP/1 takes one a request. HTTP/2 takes as many as the streams are for that wait, as far as
    /// the upstream's limit is known.
    fn may_open(&self, waiting: usize) -> bool {
        match self.protocol {
            Protocol::Http1 => true,
            // The first tells: with HTTP/2, the others may use it as well.
            Protocol::Unknown => self.opening == 0,
            Protocol::Http2 => {
                let expected = self.opening.saturating_mul(self.open.streams_each().unwrap_or(usize::MAX));
                self.open.settled() + self.opening < MAX_H2_CONNECTIONS && expected < waiting
            }
        }
    }
}

impl Pool {
    /// An empty pool that keeps at most `max_idle` unused connections, and no more than the share
    /// of `place` has room for.
    #[must_use]
    pub fn new(destination: Destination, max_idle: usize, place: PoolSlot, gauge: Arc<dyn Gauge>) -> Self {
        let protocol = match (destination.http2_only, &destination.tls) {
            (true, _) => Protocol::Http2,
            (false, None) => Protocol::Http1,
            (false, Some(_)) => Protocol::Unknown,
        };
        let shared = SharedConnections { open: Connections::default(), opening: 0, protocol };
        Self {
            destination,
            max_idle,
            idle: Mutex::default(),
            shared: Mutex::new(shared),
            changed: Arc::default(),
            waiting: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            gauge,
            place,
        }
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
        if shared.open.len() == 0 { None } else { shared.open.take(cx).map(Ready::H2) }
    }

    /// A new connection, or one that has become free meanwhile. `stage` says what is waited for.
    pub(super) async fn wait(&self, stage: &Stage) -> Result<Acquired, UpstreamError> {
        let _waiting = Waiting::begin(&self.waiting);
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(ready) = poll_fn(|cx| Poll::Ready(self.take(cx))).await {
                return Ok(Acquired { ready, fresh: false });
            }
            if let Some(opening) = self.begin_opening() {
                return self.open(opening, stage).await;
            }
            stage.waiting();
            changed.await;
        }
    }

    fn begin_opening(&self) -> Option<Opening<'_>> {
        let mut shared = self.shared.lock();
        shared.may_open(self.waiting.load(Ordering::Acquire)).then(|| {
            shared.opening += 1;
            Opening(self)
        })
    }

    /// A new connection, to an address that was resolved and checked for it.
    pub(super) async fn open_new(&self, stage: &Stage) -> Result<Acquired, UpstreamError> {
        self.shared.lock().opening += 1;
        self.open(Opening(self), stage).await
    }

    async fn open(&self, opening: Opening<'_>, stage: &Stage) -> Result<Acquired, UpstreamError> {
        let Destination { tls, http2_only, resolve, .. } = &self.destination;
        stage.resolving();
        let stream = dial::connect(resolve.resolve().await?, tls.as_ref(), stage).await?;
        let chose_h2 = stream.is_h2();
        if *http2_only && tls.is_some() && !chose_h2 {
            return Err(UpstreamError::NoHttp2);
        }
        let counted = ConnectionGauge::new(self.gauge.clone());
        if !chose_h2 && !*http2_only {
            self.shared.lock().protocol = Protocol::Http1;
            return Ok(Acquired { ready: Ready::H1(Box::new(H1::new(stream, counted))), fresh: true });
        }
        let fresh = h2::shake_hands(stream, self.changed.clone(), counted).await?;
        {
            let mut shared = self.shared.lock();
            shared.protocol = Protocol::Http2;
            // Checked under the lock that `close` takes: nothing is put back behind its back.
            if !self.is_closed() {
                fresh.share(&mut shared.open);
            }
        }
        let h2 = fresh.settled().await?;
        drop(opening); // not before: whoever waits counts on its streams
        Ok(Acquired { ready: Ready::H2(h2), fresh: true })
    }

    /// A new connection for HTTP/1.1, whatever else the upstream speaks: HTTP/2 has no `Upgrade`.
    pub(super) async fn open_h1(&self, stage: &Stage) -> Result<Acquired, UpstreamError> {
        let Destination { tls, resolve, .. } = &self.destination;
        stage.resolving();
        let addresses = resolve.resolve().await?;
        let tls = tls.as_ref().map(|(connector, name)| (dial::only_h1(connector), name.clone()));
        let stream = dial::connect(addresses, tls.as_ref(), stage).await?;
        let h1 = H1::new(stream, ConnectionGauge::new(self.gauge.clone()));
        Ok(Acquired { ready: Ready::H1(Box::new(h1)), fresh: true })
    }

    /// Takes a connection back.
    pub(super) fn put(&self, mut h1: Box<H1>) {
        let mut idle = self.idle.lock();
        // Checked under the lock that `close` takes: nothing is put back behind its back.
        if !self.is_closed()
            && idle.len() < self.max_idle
            && let Some(place) = self.place.owner().keep()
        {
            h1.counted.set_active(false);
            idle.push(Idle { h1, since: Instant::now(), _place: place });
        }
    }

    /// Closes connections that the upstream has closed or that were unused for `keep_alive`. Tells
    /// how many are left.
    pub fn sweep(&self, keep_alive: Duration) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut idle = self.idle.lock();
        idle.retain_mut(|i| i.since.elapsed() < keep_alive && i.h1.is_idle(&mut cx));
        let mut shared = self.shared.lock();
        shared.open.sweep(self.max_idle.max(1), &self.place);
        idle.len() + shared.open.len()
    }

    /// Closes what is idle now and whatever comes back later.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.idle.lock().clear();
        self.shared.lock().open.clear();
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// A connection for one request, and whether it is new.
pub(super) struct Acquired {
    pub(super) ready: Ready,
    /// No request was sent on it before, and none but this is.
    pub(super) fresh: bool,
}
