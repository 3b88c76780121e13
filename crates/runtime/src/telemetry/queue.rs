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

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    TelemetryConfig,
    export::{Advice, Exporter},
    span::SpanWriter,
};

/// Most spans in one export.
const BATCH: usize = 512;
/// Most bytes in one export, except for a single larger record. gRPC servers accept 4 MiB by
/// default.
const BATCH_BYTES: usize = 1024 * 1024;

/// Pauses before a batch is retried. Retries continue for the life of the process; the queue's
/// bound limits the memory. When it is full, new spans are refused or counted as lost, and accepted
/// ones are kept.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause that a collector can request.
const MAX_SERVER_PAUSE: Duration = Duration::from_secs(60);
/// Parts of one batch that may be refused before the rest is dropped. Halving finds one bad span in
/// 512 with 10 refusals, and limits the requests to a collector that refuses everything.
const MAX_REFUSALS: u32 = 32;

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

    /// Counts spans that the collector refused permanently.
    fn refused(&self, spans: u64) {
        tracing::error!(spans, "the collector refused spans, which are lost");
        self.count_dropped(spans);
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
            send_batch(&queue, &mut exporter, bytes.into(), config.export_timeout).await;
            queue.taken.fetch_sub(spans, Relaxed);
        }
        if queue.closed.load(Relaxed) && queue.lock().is_empty() {
            break;
        }
    }
    queue.ended.store(true, Relaxed);
    queue.done.notify_waiters();
}

/// Exports until the collector has accepted or permanently refused each span. A refused batch is
/// halved while a part of it may be accepted.
async fn send_batch(queue: &Queue, exporter: &mut Exporter, batch: Bytes, export_timeout: Duration) {
    let (mut parts, mut refusals) = (vec![batch], 0);
    while let Some(part) = parts.pop() {
        let Some(split) = deliver_batch(queue, exporter, &part, export_timeout).await else { continue };
        refusals += 1;
        match split_in_half(&part) {
            Some((first, second)) if split && refusals < MAX_REFUSALS => parts.extend([second, first]),
            _ => queue.refused(span_count(&part)),
        }
    }
}

/// Exports until the collector accepts the batch: `None`. Otherwise it was refused permanently, and
/// the result is whether a part of it may be accepted.
async fn deliver_batch(
    queue: &Queue,
    exporter: &mut Exporter,
    batch: &Bytes,
    export_timeout: Duration,
) -> Option<bool> {
    let mut pause = MIN_PAUSE;
    loop {
        let server_delay = match timeout(export_timeout, exporter.export(batch.clone())).await {
            Ok(Ok(rejected)) => {
                if rejected > 0 {
                    // It has said that it will never take these: trying again would not help.
                    queue.refused(rejected.min(span_count(batch)));
                }
                return None;
            }
            Ok(Err(error)) => match error.advice {
                Advice::Retry(server_delay) => {
                    tracing::warn!(waiting = queue.len(), %error, "the collector does not accept spans");
                    server_delay
                }
                advice => {
                    tracing::error!(spans = span_count(batch), %error, "the collector refused a batch");
                    return Some(advice == Advice::Split);
                }
            },
            Err(_) => {
                tracing::warn!(waiting = queue.len(), "the collector does not answer");
                None
            }
        };
        queue.pause(server_delay.unwrap_or(pause).clamp(MIN_PAUSE, MAX_SERVER_PAUSE)).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// The number of spans in a batch.
fn span_count(batch: &Bytes) -> u64 {
    EncodedSpans(batch).count() as u64
}

/// A batch as two. `None` for a single span.
fn split_in_half(batch: &Bytes) -> Option<(Bytes, Bytes)> {
    let half = EncodedSpans(batch).count() / 2;
    let at: usize = EncodedSpans(batch).take(half).map(<[u8]>::len).sum();
    (at > 0).then(|| (batch.slice(..at), batch.slice(at..)))
}

/// Iterates over the spans of a batch. Each is a protobuf field with tag and length. Ends at
/// invalid bytes.
struct EncodedSpans<'a>(&'a [u8]);

impl<'a> Iterator for EncodedSpans<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let mut rest = self.0.get(1..)?; // the tag is one byte: the field's number is 2
        let length = prost::decode_length_delimiter(&mut rest).ok()?;
        let whole = (self.0.len() - rest.len()).checked_add(length)?;
        let (record, rest) = self.0.split_at_checked(whole)?;
        self.0 = rest;
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sizes: &[usize]) -> Bytes {
        let mut bytes = Vec::new();
        for size in sizes {
            bytes.push(0x12);
            prost::encode_length_delimiter(*size, &mut bytes).unwrap();
            bytes.resize(bytes.len() + size, b's');
        }
        bytes.into()
    }

    #[test]
    fn a_batch_is_halved_between_its_spans() {
        let whole = batch(&[0, 3, 200, 70_000, 5]);
        assert_eq!(span_count(&whole), 5);
        let (first, second) = split_in_half(&whole).unwrap();
        assert_eq!((first, second), (batch(&[0, 3]), batch(&[200, 70_000, 5])));
        assert!(split_in_half(&batch(&[9])).is_none() && split_in_half(&Bytes::new()).is_none());
    }
}
