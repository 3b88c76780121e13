//! The queue between ended spans and the collector.
//!
//! OpenTelemetry's batch processor drops spans silently above 2,048. This queue has a configured
//! bound and counts its losses. A caller can reserve a slot before it starts work that must be
//! recorded. Batches are retried until the collector accepts them. Spans wait in their wire form,
//! so the exporting task copies a batch once.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    TelemetryConfig,
    delivery::{MIN_PAUSE, deliver},
    export::Exporter,
    span::SpanWriter,
};

/// Most spans in one export.
const BATCH: usize = 512;
/// Most bytes in one export, except for a single larger record. gRPC servers accept 4 MiB by
/// default.
const BATCH_BYTES: usize = 1024 * 1024;

/// The spans that wait for the collector. All methods are thread-safe.
pub struct Queue {
    waiting: Mutex<VecDeque<Batch>>,
    /// Used slots: waiting spans, spans in an unconfirmed export, and reservations.
    taken: AtomicUsize,
    capacity: usize,
    dropped: AtomicU64,
    closed: AtomicBool,
    /// Signalled when there is something to export, or the queue was closed.
    wake: Notify,
    /// Signalled when the exporting task has ended.
    done: Notify,
    ended: AtomicBool,
}

/// Encoded spans that go out together.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    spans: usize,
}

/// A reserved slot in the queue, for work that must be recorded. It is freed when dropped. Drop it
/// after the span has ended.
pub struct SpanReservation(Arc<Queue>);

impl Drop for SpanReservation {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Relaxed);
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("taken", &self.taken).field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

impl Queue {
    pub(super) fn open(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            taken: AtomicUsize::new(0),
            capacity,
            dropped: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            wake: Notify::new(),
            done: Notify::new(),
            ended: AtomicBool::new(false),
        })
    }

    /// A queue that accepts nothing and is drained.
    pub(super) fn closed() -> Arc<Self> {
        let queue = Self::open(0);
        queue.closed.store(true, Relaxed);
        queue.ended.store(true, Relaxed);
        queue
    }

    /// Used slots: spans that the collector has not confirmed, and reservations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.taken.load(Relaxed)
    }

    /// Whether no slot is used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Spans lost since the start, because the queue was full or the collector refused them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Reserves a slot for a span that ends later. `None` when the queue is full or closed. Work
    /// that must be recorded must then not start.
    #[must_use]
    pub fn reserve(self: &Arc<Self>) -> Option<SpanReservation> {
        if self.closed.load(Relaxed) {
            return None;
        }
        // If two threads compete for the last slot, one of them gets "full", which is true a moment
        // later.
        if self.taken.fetch_add(1, Relaxed) >= self.capacity {
            self.taken.fetch_sub(1, Relaxed);
            return None;
        }
        Some(SpanReservation(Arc::clone(self)))
    }

    /// Counts spans that could not be recorded, so that no loss is silent.
    pub fn count_dropped(&self, spans: u64) {
        self.dropped.fetch_add(spans, Relaxed);
    }

    /// Queues the spans of a record, all or none.
    ///
    /// A record with a reservation counts twice, so the queue holds at most twice its capacity.
    /// Such a record is never dropped.
    pub fn push(&self, spans: &SpanWriter) {
        let count = spans.count();
        if self.taken.load(Relaxed) > self.capacity {
            self.dropped.fetch_add(count as u64, Relaxed);
            return;
        }
        self.taken.fetch_add(count, Relaxed);
        let (before, after) = self.append(spans.as_bytes(), count);
        if before == 0 || (before < BATCH && after >= BATCH) {
            self.wake.notify_one();
        }
    }

    /// Returns the number of spans in the last batch, before and after.
    fn append(&self, bytes: &[u8], count: usize) -> (usize, usize) {
        let mut waiting = self.lock();
        let first = waiting.is_empty();
        let full = |b: &Batch| b.spans >= BATCH || b.bytes.len() + bytes.len() > BATCH_BYTES;
        if waiting.back().is_none_or(full) {
            // As large as the one before has become: batches are alike.
            let room = waiting.back().map_or(bytes.len(), |b| b.bytes.len());
            waiting.push_back(Batch { bytes: Vec::with_capacity(room), spans: 0 });
        }
        let Some(batch) = waiting.back_mut() else { return (0, 0) };
        let before = batch.spans;
        batch.bytes.extend_from_slice(bytes);
        batch.spans += count;
        (if first { 0 } else { before.max(1) }, batch.spans)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Batch>> {
        self.waiting.lock()
    }

    /// Whether a full batch waits.
    fn has_batch(&self) -> bool {
        let waiting = self.lock();
        waiting.len() > 1 || waiting.front().is_some_and(|b| b.spans >= BATCH)
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits for `pause`. When the queue is closed meanwhile, the wait ends early, so that the rest
    /// is tried once more.
    async fn pause(&self, pause: Duration) {
        let (until, was_closed) = (Instant::now() + pause, self.closed.load(Relaxed));
        while !self.closed.load(Relaxed) && Instant::now() < until {
            let _ = timeout_at(until, self.wake.notified()).await;
        }
        if was_closed {
            sleep(MIN_PAUSE).await;
        }
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
        self.wake.notify_one();
    }

    /// Completes when the exporting task has ended.
    pub(super) async fn drained(&self) {
        let done = self.done.notified();
        tokio::pin!(done);
        done.as_mut().enable();
        if !self.ended.load(Relaxed) {
            done.await;
        }
    }
}

/// Exports the queue until it is closed and empty.
pub(super) async fn export_queue(queue: Arc<Queue>, mut exporter: Exporter, config: TelemetryConfig) {
    loop {
        queue.wake.notified().await;
        if !queue.closed.load(Relaxed) && !queue.has_batch() {
            // A batch fills up, or its time is over, or the queue is closed.
            let _ = timeout(config.export_interval, queue.wake.notified()).await;
        }
        loop {
            let batch = queue.lock().pop_front();
            let Some(Batch { bytes, spans }) = batch else { break };
            let refused = deliver(&mut exporter, bytes.into(), config.export_timeout, |pause| queue.pause(pause)).await;
            queue.count_dropped(refused);
            queue.taken.fetch_sub(spans, Relaxed);
        }
        if queue.closed.load(Relaxed) && queue.lock().is_empty() {
            break;
        }
    }
    queue.ended.store(true, Relaxed);
    queue.done.notify_waiters();
}
