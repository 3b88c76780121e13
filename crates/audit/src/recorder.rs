//! The thread that writes a node's records, and the queue in front of it.
//!
//! Callers append to one buffer under a short lock. No runtime thread waits for the disk. The
//! thread takes the whole buffer, writes it in one frame or a few, and syncs once for all waiting
//! requests. During the sync the next group collects.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use crate::{
    chain::Head,
    disk::Disk,
    frame::{MAX_RECORDS_BYTES, records},
    seal::AuditPublicKey,
    spool::{Segments, SpoolError, SpoolOptions, SpoolWriter},
    varint,
};

/// How long records wait for others when nobody waits for them.
const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// Bytes at which records wait no longer.
const FLUSH_BYTES: usize = 256 * 1024;
/// How long records that nobody waits for may be lost in a power cut. A killed process loses those
/// of [`FLUSH_EVERY`].
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How long the thread pauses after a failed write before it tries again for records that nobody
/// waits for.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// A thread that has had nothing to do for this long sleeps until it is woken. Before that it looks
/// by itself every [`FLUSH_EVERY`]: a wake-up for each request would cost more than recording it.
const IDLE_AFTER: Duration = Duration::from_secs(2);
/// How often old segments are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(10);
/// A segment is closed at this age at the latest, so that the upload can remove it.
const SEGMENT_AGE: Duration = Duration::from_secs(300);
/// Longest record. A longer one is refused; the pipeline's fields are bounded far below.
pub const MAX_RECORD_BYTES: usize = 16 * 1024;
/// What a reservation takes from the queue. Records of 99 in 100 requests are shorter; a longer one
/// goes beyond the bound.
const RESERVED_BYTES: usize = 1024;
/// The part of the spool that only outcomes may use: an intent is refused while its outcome would
/// not fit.
const OUTCOME_ROOM: u64 = 2 * MAX_RECORDS_BYTES as u64;

/// Why a record that must be durable is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The queue to the disk is full.
    #[error("the audit queue is full")]
    Queue,
    /// The spool has reached its limit, because no replica takes its records.
    #[error("the audit spool is full")]
    Full,
    /// The disk refuses.
    #[error("the audit spool cannot be written")]
    Disk,
    /// The recorder has stopped, or has no audit key yet.
    #[error("the audit spool is closed")]
    Closed,
}

/// Bounds of a recorder.
#[derive(Clone, Copy, Debug)]
pub struct RecorderOptions {
    /// Most bytes of records that wait for the disk. Reservations count.
    pub queue_bytes: usize,
    /// Bounds on disk.
    pub spool: SpoolOptions,
}

impl Default for RecorderOptions {
    fn default() -> Self {
        Self { queue_bytes: 32 << 20, spool: SpoolOptions::default() }
    }
}

type Waiter = oneshot::Sender<Result<(), Unavailable>>;

/// What waits for the disk.
#[derive(Default)]
struct Batch {
    /// Records, each with its length in front.
    bytes: Vec<u8>,
    count: u32,
    /// Who waits, and where its record begins and ends.
    waiters: Vec<(usize, usize, Waiter)>,
    /// Its records and all later ones are sealed to this key.
    key: Option<AuditPublicKey>,
}

#[derive(Default)]
struct Queue {
    batch: Batch,
    closed: bool,
    /// The thread does not look by itself.
    is_asleep: bool,
}

/// What a recorder has done so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Records that were not recorded.
    pub dropped: AtomicU64,
    /// Records written.
    pub records: AtomicU64,
    /// Frames written.
    pub frames: AtomicU64,
    /// Syncs of the disk.
    pub syncs: AtomicU64,
    /// Failed writes and syncs.
    pub failures: AtomicU64,
    /// Records that were removed because of their age before a replica had them.
    pub expired: AtomicU64,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Bytes in the queue and in the batch that is being written, and reservations.
    taken: AtomicUsize,
    capacity: usize,
    counts: Counts,
    head: watch::Sender<Head>,
    /// Whether the thread has written everything and ended.
    ended: watch::Sender<bool>,
    segments: Arc<Segments>,
}

/// Records to one spool. The thread ends, with everything written, when this is
/// [closed](Self::close) or dropped.
pub struct Recorder(Arc<Shared>);

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Room in the queue for a record that comes later. Given back when dropped.
pub struct Reservation(Arc<Shared>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(RESERVED_BYTES, Relaxed);
    }
}

/// Completes when a record is durable.
pub struct Durable(oneshot::Receiver<Result<(), Unavailable>>);

impl Durable {
    /// Waits until the record is on the disk.
    ///
    /// # Errors
    /// [`Unavailable`]. The record is not on the disk then, or may be torn.
    pub async fn wait(self) -> Result<(), Unavailable> {
        self.0.await.unwrap_or(Err(Unavailable::Closed))
    }
}

impl Recorder {
    /// Opens the spool on `disk`, sealed to `key`, and starts the thread.
    ///
    /// # Errors
    /// [`SpoolError`]; [`io::Error`] when the system has no thread.
    pub fn start(disk: Arc<dyn Disk>, key: AuditPublicKey, options: RecorderOptions) -> Result<Self, SpoolError> {
        let spool = SpoolWriter::open(disk, key, options.spool)?;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            taken: AtomicUsize::new(0),
            capacity: options.queue_bytes,
            counts: Counts::default(),
            head: watch::Sender::new(spool.durable()),
            ended: watch::Sender::new(false),
            segments: spool.segments().clone(),
        });
        let writer = Writer {
            shared: shared.clone(),
            spool,
            last_sync: Instant::now(),
            last_tidy: Instant::now(),
            last_batch: Instant::now(),
            is_failing: false,
        };
        thread::Builder::new().name("seks-audit".into()).spawn(move || writer.run())?;
        Ok(Self(shared))
    }

    /// Room for the outcome of a request. `None` when the queue is full.
    #[must_use]
    pub fn reserve(&self) -> Option<Reservation> {
        if self.0.taken.fetch_add(RESERVED_BYTES, Relaxed) + RESERVED_BYTES > self.0.capacity {
            self.0.taken.fetch_sub(RESERVED_BYTES, Relaxed);
            return None;
        }
        Some(Reservation(self.0.clone()))
    }

    /// Queues a record that nobody waits for. A full queue drops it and counts it. With a
    /// `reservation` it is never dropped here.
    pub fn push(&self, record: &[u8], reservation: Option<Reservation>) {
        if self.enqueue(record, None, reservation.is_some()).is_err() {
            self.0.counts.dropped.fetch_add(1, Relaxed);
        }
        drop(reservation);
    }

    /// Queues a record that must be durable before the caller goes on.
    ///
    /// # Errors
    /// [`Unavailable::Queue`], [`Unavailable::Closed`].
    pub fn push_durable(&self, record: &[u8]) -> Result<Durable, Unavailable> {
        let (waiter, durable) = oneshot::channel();
        self.enqueue(record, Some(waiter), false)?;
        Ok(Durable(durable))
    }

    fn enqueue(&self, record: &[u8], waiter: Option<Waiter>, is_reserved: bool) -> Result<(), Unavailable> {
        let shared = &*self.0;
        if record.is_empty() || record.len() > MAX_RECORD_BYTES {
            return Err(Unavailable::Queue);
        }
        let bytes = record.len() + 3;
        if !is_reserved && shared.taken.load(Relaxed) + bytes > shared.capacity {
            return Err(Unavailable::Queue);
        }
        let is_urgent = waiter.is_some();
        let mut queue = shared.queue.lock();
        if queue.closed {
            return Err(Unavailable::Closed);
        }
        let is_asleep = queue.is_asleep;
        let batch = &mut queue.batch;
        let start = batch.bytes.len();
        varint::put_bytes(&mut batch.bytes, record);
        batch.count += 1;
        let end = batch.bytes.len();
        shared.taken.fetch_add(end - start, Relaxed);
        let wakes = is_asleep || (is_urgent && batch.waiters.is_empty()) || (start < FLUSH_BYTES && end >= FLUSH_BYTES);
        batch.waiters.extend(waiter.map(|waiter| (start, end, waiter)));
        drop(queue);
        if wakes {
            shared.wake.notify_one();
        }
        Ok(())
    }

    /// Seals later records to `key`. The chain goes on, and no request waits for it.
    pub fn seal_to(&self, key: AuditPublicKey) {
        self.0.queue.lock().batch.key = Some(key);
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Bytes that wait for the disk.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.0.taken.load(Relaxed)
    }

    /// The end of the chain on disk.
    #[must_use]
    pub fn head(&self) -> Head {
        *self.0.head.borrow()
    }

    /// The segments on disk, for the upload.
    #[must_use]
    pub fn segments(&self) -> &Arc<Segments> {
        &self.0.segments
    }

    /// Stops: what is queued is written, and nothing more is accepted.
    pub fn stop(&self) {
        self.0.queue.lock().closed = true;
        self.0.wake.notify_one();
    }

    /// Whether everything is written and the thread has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        *self.0.ended.borrow()
    }

    /// [Stops](Self::stop), and completes when everything is written.
    pub async fn close(&self) {
        self.stop();
        let mut ended = self.0.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await; // the sender lives as long as `self`
    }
}

struct Writer {
    shared: Arc<Shared>,
    spool: SpoolWriter,
    last_sync: Instant,
    last_tidy: Instant,
    last_batch: Instant,
    is_failing: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            let (mut batch, closed) = self.next_batch();
            if let Some(key) = batch.key.take() {
                let _ = self.spool.seal_to(key); // what cannot be synced is tried again with the next record
            }
            if batch.count > 0 {
                self.last_batch = Instant::now();
                self.write(batch, closed);
            }
            if self.spool.is_dirty() && (closed || self.last_sync.elapsed() >= SYNC_EVERY) {
                let _ = self.sync(); // counted there
            }
            if self.last_tidy.elapsed() >= TIDY_EVERY {
                self.last_tidy = Instant::now();
                let expired = self.spool.tidy(SEGMENT_AGE);
                if expired > 0 {
                    self.shared.counts.expired.fetch_add(expired, Relaxed);
                    tracing::error!(
                        records = expired,
                        "audit records were removed because of their age: no replica took them"
                    );
                }
            }
            if closed && self.shared.queue.lock().batch.bytes.is_empty() {
                self.shared.ended.send_replace(true);
                return;
            }
        }
    }

    /// Waits for records, and for more where nobody waits for them. May come back with none.
    fn next_batch(&self) -> (Batch, bool) {
        let until = Instant::now() + if self.is_failing { RETRY_AFTER } else { FLUSH_EVERY };
        let mut queue = self.shared.queue.lock();
        loop {
            let batch = &queue.batch;
            let is_due = !batch.waiters.is_empty() || (batch.bytes.len() >= FLUSH_BYTES && !self.is_failing);
            let is_idle = batch.bytes.is_empty() && !self.spool.is_dirty() && self.last_batch.elapsed() > IDLE_AFTER;
            if is_due || queue.closed {
                break;
            }
            if is_idle {
                queue.is_asleep = true;
                let timed_out = self.shared.wake.wait_for(&mut queue, TIDY_EVERY).timed_out();
                queue.is_asleep = false;
                if timed_out || queue.batch.waiters.is_empty() {
                    break; // the first of a group: the others get their time
                }
            } else if self.shared.wake.wait_until(&mut queue, until).timed_out() {
                break;
            }
        }
        let capacity = queue.batch.bytes.len().min(FLUSH_BYTES);
        let fresh = Batch { bytes: Vec::with_capacity(capacity), ..Batch::default() };
        (std::mem::replace(&mut queue.batch, fresh), queue.closed)
    }

    fn write(&mut self, batch: Batch, closed: bool) {
        let (bytes, waits) = (batch.bytes.len(), !batch.waiters.is_empty());
        let written = self.append(&batch, waits).and_then(|()| if waits || closed { self.sync() } else { Ok(()) });
        match written {
            Ok(()) => {
                self.is_failing = false;
                self.shared.counts.records.fetch_add(batch.count.into(), Relaxed);
                self.shared.taken.fetch_sub(bytes, Relaxed);
                for (_, _, waiter) in batch.waiters {
                    let _ = waiter.send(Ok(())); // the request was cancelled
                }
            }
            Err(error) => self.failed(batch, &error, closed),
        }
    }

    fn append(&mut self, batch: &Batch, waits: bool) -> Result<(), SpoolError> {
        let room = if waits { batch.bytes.len() as u64 + OUTCOME_ROOM } else { batch.bytes.len() as u64 };
        self.spool.check_room(room)?;
        let (mut start, mut end, mut count) = (0, 0, 0_u32);
        for record in records(&batch.bytes) {
            let next = end + varint_len(record.len()) + record.len();
            if next - start > MAX_RECORDS_BYTES {
                self.frame(batch, start, end, count)?;
                (start, count) = (end, 0);
            }
            (end, count) = (next, count + 1);
        }
        self.frame(batch, start, end, count)
    }

    fn frame(&mut self, batch: &Batch, start: usize, end: usize, count: u32) -> Result<(), SpoolError> {
        self.spool.append(count, batch.bytes.get(start..end).unwrap_or_default())?;
        self.shared.counts.frames.fetch_add(1, Relaxed);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SpoolError> {
        self.last_sync = Instant::now();
        self.shared.counts.syncs.fetch_add(1, Relaxed);
        let result = self.spool.sync();
        self.shared.head.send_replace(self.spool.durable());
        result
    }

    /// Tells who waits. Records that nobody waits for are tried again, as long as the queue has
    /// room.
    fn failed(&mut self, mut batch: Batch, error: &SpoolError, closed: bool) {
        self.shared.counts.failures.fetch_add(1, Relaxed);
        let reason = match error {
            SpoolError::Full(_) => Unavailable::Full,
            SpoolError::Disk(error) if error.kind() == io::ErrorKind::StorageFull => Unavailable::Full,
            _ => Unavailable::Disk,
        };
        if !self.is_failing {
            tracing::error!(%error, "audit records cannot be written");
        }
        self.is_failing = true;
        let all = batch.bytes.len();
        let mut kept = Vec::new();
        let mut from = 0;
        let mut count = batch.count;
        for (start, end, waiter) in batch.waiters.drain(..) {
            kept.extend_from_slice(batch.bytes.get(from..start).unwrap_or_default());
            from = end;
            count -= 1;
            let _ = waiter.send(Err(reason)); // the request was cancelled
        }
        kept.extend_from_slice(batch.bytes.get(from..).unwrap_or_default());
        let mut queue = self.shared.queue.lock();
        // At the limit of the spool only an upload helps, which may be hours away. The oldest are
        // kept, and new ones dropped.
        if closed || kept.len() > self.shared.capacity {
            self.shared.counts.dropped.fetch_add(count.into(), Relaxed);
            self.shared.taken.fetch_sub(all, Relaxed);
            return;
        }
        self.shared.taken.fetch_sub(all - kept.len(), Relaxed);
        let shift = kept.len();
        kept.extend_from_slice(&queue.batch.bytes);
        queue.batch.bytes = kept;
        queue.batch.count += count;
        queue.batch.waiters.iter_mut().for_each(|(start, end, _)| (*start, *end) = (*start + shift, *end + shift));
    }
}

fn varint_len(value: usize) -> usize {
    (usize::BITS as usize - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests;
