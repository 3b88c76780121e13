//! The queue between spans that have ended and the collector.
//!
//! OpenTelemetry's own batch processor drops silently above 2,048 spans. This one has a bound that is configured, counts
//! what it loses, lets a caller reserve a place before the work that must be recorded begins, and tries a batch again
//! until the collector has it.

use std::{
    fmt, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry::Context;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::TelemetryConfig;

/// Most spans in one export.
const BATCH: usize = 512;

/// A batch that the collector refuses for this long (or says it will never take) is dropped and counted, unless a
/// place was reserved: then it is kept until the process ends.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What waits for the collector. Everything here is safe to read from any thread at any time.
pub struct Queue {
    waiting: Mutex<Vec<SpanData>>,
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

    fn lock(&self) -> MutexGuard<'_, Vec<SpanData>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reserved span finds its own reservation counted, so twice the capacity is the bound of what is held: a span
    /// whose place was reserved is never the one that is dropped.
    fn push(&self, span: SpanData) {
        if self.taken.load(Relaxed) > self.capacity {
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        self.taken.fetch_add(1, Relaxed);
        let length = {
            let mut waiting = self.lock();
            waiting.push(span);
            waiting.len()
        };
        if length == 1 || length == BATCH {
            self.wake.notify_one();
        }
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

/// Puts ended spans into the queue. Its exporter runs in a task of its own.
#[derive(Debug)]
pub(super) struct Processor {
    queue: Arc<Queue>,
    /// The exporter, until the provider has said what the resource is.
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    exporter: opentelemetry_otlp::SpanExporter,
    interval: Duration,
    timeout: Duration,
}

impl Processor {
    pub(super) fn start(
        queue: Arc<Queue>,
        exporter: opentelemetry_otlp::SpanExporter,
        config: &TelemetryConfig,
    ) -> Self {
        let pending = Pending { exporter, interval: config.export_interval, timeout: config.export_timeout };
        Self { queue, pending: Some(pending) }
    }
}

impl SpanProcessor for Processor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.queue.push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.queue.wake.notify_one();
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        self.queue.close();
        Ok(())
    }

    /// Called once, when the provider is built: the exporter knows all that it needs and can start.
    fn set_resource(&mut self, resource: &Resource) {
        let Some(Pending { mut exporter, interval, timeout }) = self.pending.take() else { return };
        exporter.set_resource(resource);
        tokio::spawn(run(Arc::clone(&self.queue), exporter, interval, timeout));
    }
}

async fn run(queue: Arc<Queue>, exporter: impl SpanExporter, interval: Duration, patience: Duration) {
    loop {
        queue.wake.notified().await;
        let closing = queue.closed.load(Relaxed);
        if !closing && queue.lock().len() < BATCH {
            // A batch fills up, or its time is over, or the queue is closed.
            let _ = timeout(interval, queue.wake.notified()).await;
        }
        loop {
            let batch = take(&queue);
            if batch.is_empty() {
                break;
            }
            let count = batch.len();
            send(&queue, &exporter, batch, patience).await;
            queue.taken.fetch_sub(count, Relaxed);
        }
        if queue.closed.load(Relaxed) && queue.lock().is_empty() {
            break;
        }
    }
    queue.ended.store(true, Relaxed);
    queue.done.notify_waiters();
}

fn take(queue: &Queue) -> Vec<SpanData> {
    let mut waiting = queue.lock();
    if waiting.len() <= BATCH {
        return mem::take(&mut *waiting);
    }
    waiting.drain(..BATCH).collect()
}

/// Until the collector has it. The bound is the queue's: when it is full, new spans are refused or counted as lost, and
/// those that were accepted are kept.
async fn send(queue: &Queue, exporter: &impl SpanExporter, batch: Vec<SpanData>, patience: Duration) {
    let mut pause = FIRST_PAUSE;
    loop {
        match timeout(patience, exporter.export(batch.clone())).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::warn!(waiting = queue.len(), %error, "the collector doesn't take spans"),
            Err(_) => tracing::warn!(waiting = queue.len(), "the collector doesn't answer"),
        }
        let _ = timeout(pause, queue.wake.notified()).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        sleep(FIRST_PAUSE).await;
    }
}
