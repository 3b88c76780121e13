//! The activity of a connection, and its idle timeouts.

use std::{
    future::Future as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use seks_runtime::connections::ListenerSlot;
use tokio::time::{Instant, Sleep};

use super::upgrade::Upgrade;

/// Requests in flight at one connection.
pub struct Activity {
    began: Instant,
    in_flight: AtomicU32,
    /// Milliseconds from `began`.
    idle_since: AtomicU64,
    /// The connection is HTTP's no longer: what comes is for the upgrade.
    switched: AtomicBool,
    upgrade: Mutex<Option<Box<dyn Upgrade>>>,
    /// Its place at the listener: not to be closed for others while a request is in flight.
    slot: Option<Arc<ListenerSlot>>,
}

impl Activity {
    pub(super) fn new(slot: Option<Arc<ListenerSlot>>) -> Self {
        Self {
            began: Instant::now(),
            in_flight: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            switched: AtomicBool::new(false),
            upgrade: Mutex::default(),
            slot,
        }
    }

    /// The response that is about to go out ends HTTP on this connection; then comes `upgrade`.
    pub fn switch(&self, upgrade: Box<dyn Upgrade>) {
        *self.upgrade.lock() = Some(upgrade);
        self.switched.store(true, Ordering::Release);
    }

    /// Whether it has been [`switch`](Self::switch)ed.
    pub(super) fn is_switched(&self) -> bool {
        self.switched.load(Ordering::Acquire)
    }

    /// What the connection has become.
    pub(super) fn take_upgrade(&self) -> Option<Box<dyn Upgrade>> {
        self.upgrade.lock().take()
    }

    fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.idle_since.store(now, Ordering::Relaxed);
    }

    /// A request begins.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if let Some(slot) = &self.slot {
            slot.mark_busy();
        }
    }

    /// A request had a valid token.
    pub fn prove(&self) {
        if let Some(slot) = &self.slot {
            slot.mark_authenticated();
        }
    }

    /// It has ended.
    pub fn end(&self) {
        self.touch();
        self.in_flight.fetch_sub(1, Ordering::Release);
        if let Some(slot) = &self.slot {
            slot.mark_idle();
        }
    }

    /// Since when nothing is in flight; `None`: something is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.in_flight.load(Ordering::Acquire) == 0)
            .then(|| self.began + Duration::from_millis(self.idle_since.load(Ordering::Relaxed)))
    }
}

/// How long a connection may wait for a head. One timer a connection, moved only when it goes off:
/// a request costs no timer.
pub(super) struct Waiting {
    header_timeout: Duration,
    keep_alive: Duration,
    head_since: Instant,
    first: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Waiting {
    pub(super) fn new(began: Instant, header_timeout: Duration, keep_alive: Duration) -> Self {
        Self { header_timeout, keep_alive, head_since: began, first: true, timer: None }
    }

    /// The first byte of a head came, but not all of it. The first head's time counts from the
    /// connection's beginning.
    pub(super) fn head_began(&mut self) {
        if !self.first {
            self.head_since = Instant::now();
        }
    }

    /// A whole head came.
    pub(super) fn head_done(&mut self) {
        self.first = false;
    }

    fn deadline(&self, activity: &Activity, in_head: bool) -> Instant {
        match activity.idle_since() {
            _ if in_head || self.first => self.head_since + self.header_timeout,
            Some(since) => since + self.keep_alive,
            None => Instant::now() + self.keep_alive,
        }
    }

    /// Ready when a timeout has passed: the head is late, or the connection was idle for too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, activity: &Activity, in_head: bool) -> Poll<()> {
        let deadline = self.deadline(activity, in_head);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
