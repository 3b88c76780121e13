//! The queue between spans that have ended and the collector.
//!
//! OpenTelemetry's own batch processor drops silently above 2,048 spans. This one has a bound that is configured, counts
//! what it loses, lets a caller reserve a place before the work that must be recorded begins, and tries a batch again
//! until the collector has it. Spans wait as the bytes that are sent: a batch costs the exporting task one copy.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{TelemetryConfig, export::Exporter, span::Spans};

/// Most spans in one export.
const BATCH: usize = 512;
/// Most bytes in one, but for a single record: gRPC servers take 4 MiB unless told otherwise.
const BATCH_BYTES: usize = 1024 * 1024;

/// A batch that the collector refuses is tried again after these pauses, for as long as the process lives: the bound is the
/// queue's. When it is full, new spans are refused or counted as lost, and those that were accepted are kept.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What waits for the collector. Everything here is safe to read from any thread at any time.
pub struct Queue {
    waiting: Mutex<VecDeque<Batch>>,
    /// Places taken: waiting, in an export that isn't confirmed, and reserved by requests under way.
    taken: AtomicUsize,
    capacity: usize,
    dropped: AtomicU64,
    closed: AtomicBool,
    /// There is something to export, or the queue was closed.
    wake: Notify,
    /// The exporting task has ended.
    done: Notify,
    ended: AtomicBool,
}

/// Encoded spans that go out together.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    spans: usize,
}

/// A place in the queue, taken before the work that must be recorded begins. It goes back when this is dropped, which
/// is to be after the span has ended.
pub struct Permit(Arc<Queue>);

impl Drop for Permit {
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

    /// One that takes nothing and is drained already.
    pub(super) fn closed() -> Arc<Self> {
        let queue = Self::open(0);
        queue.closed.store(true, Relaxed);
        queue.ended.store(true, Relaxed);
        queue
    }

    /// Places taken: spans that the collector has not confirmed, and reservations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.taken.load(Relaxed)
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Spans lost since the start: the queue was full, or the process ended before the collector came back.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Takes a place for a span that ends later. `None`: the queue is full or closed, and what depends on being recorded
    /// must not begin.
    #[must_use]
    pub fn reserve(self: &Arc<Self>) -> Option<Permit> {
        if self.closed.load(Relaxed) {
            return None;
        }
        // Two threads at the last place: one of them is told that it is full, which is true a moment later.
        if self.taken.fetch_add(1, Relaxed) >= self.capacity {
            self.taken.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Permit(Arc::clone(self)))
    }

    /// Counts a record that could not even begin, so that nothing is lost silently.
    pub fn count_dropped(&self, spans: u64) {
        self.dropped.fetch_add(spans, Relaxed);
    }

    /// Takes a record's spans, all or none.
    ///
    /// A reserved record finds its own reservation counted, so twice the capacity is the bound of what is held: one whose
    /// place was reserved is never the one that is dropped.
    pub fn push(&self, spans: &Spans) {
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

    /// Returns how many spans were in the last batch before, and are now.
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
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a whole batch waits.
    fn has_batch(&self) -> bool {
        let waiting = self.lock();
        waiting.len() > 1 || waiting.front().is_some_and(|b| b.spans >= BATCH)
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
        self.wake.notify_one();
    }

    /// Resolves when the exporting task has ended, having nothing left.
    pub(super) async fn drained(&self) {
        let done = self.done.notified();
        tokio::pin!(done);
        done.as_mut().enable();
        if !self.ended.load(Relaxed) {
            done.await;
        }
    }
}

/// Exports what is queued until the queue is closed and empty.
pub(super) async fn run(queue: Arc<Queue>, mut exporter: Exporter, config: TelemetryConfig) {
    loop {
        queue.wake.notified().await;
        if !queue.closed.load(Relaxed) && !queue.has_batch() {
            // A batch fills up, or its time is over, or the queue is closed.
            let _ = timeout(config.export_interval, queue.wake.notified()).await;
        }
        loop {
            let batch = queue.lock().pop_front();
            let Some(Batch { bytes, spans }) = batch else { break };
            send(&queue, &mut exporter, bytes.into(), spans, config.export_timeout).await;
            queue.taken.fetch_sub(spans, Relaxed);
        }
        if queue.closed.load(Relaxed) && queue.lock().is_empty() {
            break;
        }
    }
    queue.ended.store(true, Relaxed);
    queue.done.notify_waiters();
}

/// Until the collector has it.
async fn send(queue: &Queue, exporter: &mut Exporter, batch: Bytes, spans: usize, patience: Duration) {
    let mut pause = FIRST_PAUSE;
    loop {
        match timeout(patience, exporter.export(batch.clone())).await {
            Ok(Ok(0)) => return,
            Ok(Ok(rejected)) => {
                // It has said that it will never take these: trying again would not help.
                let rejected = rejected.min(spans as u64);
                tracing::error!(rejected, "the collector rejects spans");
                return queue.count_dropped(rejected);
            }
            Ok(Err(error)) => tracing::warn!(waiting = queue.len(), %error, "the collector doesn't take spans"),
            Err(_) => tracing::warn!(waiting = queue.len(), "the collector doesn't answer"),
        }
        let _ = timeout(pause, queue.wake.notified()).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        sleep(FIRST_PAUSE).await;
    }
}
