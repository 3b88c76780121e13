//! Exports the spool's records to the collector, as spans.
//!
//! Records are read from disk, oldest first, so memory does not grow while the collector is away. A
//! segment stays in the spool until the collector has accepted all of it, or until room is needed
//! for new records. What was exported is saved at most once a second: a process that is killed
//! exports the spans of that second again, with the same ids.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use seks_audit::{
    chain::ChainId,
    frame::{Frame, Frames, HEADER_BYTES, MAX_RECORDS_BYTES},
    record::Kind,
    recorder::Recorder,
    spool::{SegmentInfo, Segments},
};
use seks_runtime::{
    run_blocking,
    telemetry::{SpanSender, SpanWriter},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    spans::{self, Fields, Recorded, SpanNode},
    spool::Spool,
};

/// Most spans in one request to the collector.
const BATCH_SPANS: usize = 256;
/// Bytes at which a request to the collector is full. gRPC servers accept 4 MiB by default.
const BATCH_BYTES: usize = 1024 * 1024;
/// Bytes read from disk at a time: little enough for the processor's second cache, which requests
/// need as well.
const READ_BYTES: usize = 128 * 1024;
/// The same, where a frame is longer than that. Every frame fits.
const LONG_READ_BYTES: usize = 2 * MAX_RECORDS_BYTES;
/// How long records collect before they are read.
const COLLECT: Duration = Duration::from_millis(200);
/// How often a spool is looked for that was not there.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often it is saved what was exported.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How long the last records may take when the node stops. What is left goes out after the next
/// start.
const FINISH_LIMIT: Duration = Duration::from_secs(2);

/// The task that exports. Dropping it stops it at once.
pub(crate) struct SpanExport {
    task: JoinHandle<()>,
    finish: CancellationToken,
}

impl SpanExport {
    /// Starts it. Records of `spool` become spans of `node`.
    pub(crate) fn start(spool: Spool, sender: SpanSender, node: SpanNode) -> Self {
        let finish = CancellationToken::new();
        let exporter = Exporter {
            spool,
            sender,
            node,
            offsets: HashMap::new(),
            intents: HashMap::new(),
            batch: Batch::default(),
            saved: Instant::now(),
        };
        Self { task: tokio::spawn(exporter.run(finish.clone())), finish }
    }

    /// Exports what is in the spool, within [`FINISH_LIMIT`].
    pub(crate) async fn finish(mut self) {
        self.finish.cancel();
        let _ = timeout(FINISH_LIMIT, &mut self.task).await; // what is left is on the disk
    }
}

impl Drop for SpanExport {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Spans for one request to the collector, and how far each segment is exported with them.
#[derive(Default)]
struct Batch {
    spans: SpanWriter,
    marks: Vec<(String, u64)>,
}

impl Batch {
    fn mark(&mut self, segment: &str, sequence: u64) {
        match self.marks.last_mut() {
            Some((last, mark)) if last == segment => *mark = sequence,
            _ => self.marks.push((segment.to_owned(), sequence)),
        }
    }

    fn is_full(&self) -> bool {
        self.spans.count() >= BATCH_SPANS || self.spans.as_bytes().len() >= BATCH_BYTES
    }
}

/// The intent of a request whose outcome was not read yet.
struct Intent {
    chain: ChainId,
    segment: String,
    record: Box<[u8]>,
}

struct Exporter {
    spool: Spool,
    sender: SpanSender,
    node: SpanNode,
    /// How far each segment was read.
    offsets: HashMap<String, u64>,
    /// By request id. As many as there are requests in progress, or were when a process died.
    intents: HashMap<[u8; 16], Intent>,
    batch: Batch,
    saved: Instant,
}

impl Exporter {
    async fn run(mut self, finish: CancellationToken) {
        loop {
            let is_last = finish.is_cancelled();
            let recorder = self.spool.recorder().clone();
            if let Some(recorder) = &recorder {
                self.export(recorder).await;
                self.save(recorder.segments(), is_last).await;
            }
            if is_last {
                return;
            }
            let _ = timeout(COLLECT, finish.cancelled()).await; // more collects
            let grown = async {
                match &recorder {
                    // Looks again from time to time, because the recorder may be replaced.
                    Some(recorder) => {
                        drop(timeout(Duration::from_secs(1), recorder.segments().grown_for_export()).await)
                    }
                    None => sleep(LOOK_EVERY).await,
                }
            };
            tokio::select! {
                () = grown => {}
                () = finish.cancelled() => {}
            }
        }
    }

    /// Exports everything that is durable and that can be opened.
    async fn export(&mut self, recorder: &Recorder) {
        // In this order: a chain that is not the current one has ended before its segments are
        // listed.
        let (current, segments) = (recorder.head().chain, recorder.segments().clone());
        let list = segments.list();
        self.offsets.retain(|name, _| list.iter().any(|segment| segment.name == *name));
        // A chain is read in order: an outcome comes after its intent.
        let waiting: HashSet<ChainId> = segments.sealed().iter().map(|segment| segment.chain).collect();
        for (at, segment) in list.iter().enumerate() {
            if waiting.contains(&segment.chain) || segments.key(&segment.name).is_none() {
                continue; // it waits for its key, or there is nothing in it to export
            }
            let is_last_of_chain = !list.iter().skip(at + 1).any(|later| later.chain == segment.chain);
            self.export_segment(&segments, segment).await;
            let is_read = self.offsets.get(&segment.name).is_some_and(|offset| *offset >= segment.bytes);
            if is_last_of_chain && is_read && segment.chain != current {
                self.end_chain(segment.chain);
            }
        }
        self.flush(&segments).await;
        self.keep_intents(&segments, &list).await;
    }

    /// Keeps segments with intents whose outcome is missing, for the case that this process dies,
    /// too.
    async fn keep_intents(&self, segments: &Arc<Segments>, list: &[SegmentInfo]) {
        let read = list.iter().filter(|segment| self.offsets.contains_key(&segment.name));
        let open = self.open_requests(read.map(|segment| segment.name.clone()));
        let segments = segments.clone();
        let _ = run_blocking(move || segments.set_open_requests(open)).await; // a panic in there has been reported
    }

    /// The requests in these segments whose outcome was not read yet.
    fn open_requests(&self, segments: impl Iterator<Item = String>) -> Vec<(String, Vec<[u8; 16]>)> {
        let mut open: HashMap<String, Vec<[u8; 16]>> = segments.map(|segment| (segment, Vec::new())).collect();
        for (request, intent) in &self.intents {
            if let Some(requests) = open.get_mut(&intent.segment) {
                requests.push(*request);
            }
        }
        open.into_iter().collect()
    }

    async fn export_segment(&mut self, segments: &Arc<Segments>, segment: &SegmentInfo) {
        let Some(key) = segments.key(&segment.name) else { return };
        let mut offset = self.offsets.get(&segment.name).copied().unwrap_or(HEADER_BYTES as u64);
        let mut length = READ_BYTES;
        while offset < segment.bytes {
            let (from, of, key) = (segments.clone(), segment.clone(), key.clone());
            let read = run_blocking(move || {
                let bytes = from.read(&of, offset, length)?;
                let mut used = 0;
                let frames = Frames::of(&bytes).map_while(|sealed| {
                    let frame = sealed.open(&key).ok()?;
                    used += sealed.bytes.len() as u64;
                    Some(frame)
                });
                let frames: Vec<Frame> = frames.collect();
                Ok::<_, std::io::Error>((frames, used))
            });
            let Ok(Ok((frames, used))) = read.await else { return }; // it was removed meanwhile
            if used == 0 && length < LONG_READ_BYTES {
                length = LONG_READ_BYTES;
                continue;
            }
            length = READ_BYTES;
            if used == 0 {
                // Durable bytes that are no frame: the disk has changed them. Verification of the
                // trail says what is missing.
                tracing::error!(segment = segment.name, "an audit segment is damaged: the rest of it is not exported");
                self.batch.mark(&segment.name, segment.last);
                offset = segment.bytes;
            }
            for frame in &frames {
                self.add(frame, segment, segments);
                if self.batch.is_full() {
                    self.flush(segments).await;
                }
            }
            offset += used;
            self.offsets.insert(segment.name.clone(), offset);
        }
    }

    /// Adds the spans of a frame that were not exported yet.
    fn add(&mut self, frame: &Frame, segment: &SegmentInfo, segments: &Segments) {
        for (sequence, record) in (frame.first..).zip(frame.records()) {
            let Some(fields) = Fields::read(record) else { continue };
            let (Some(kind), Some(request)) = (fields.kind(), fields.request_id) else { continue };
            let is_new = sequence > segment.exported;
            if kind == Kind::Intent {
                // The outcome of another may have been exported, and its segment removed.
                if is_new || segments.is_open_request(&segment.name, &request) {
                    let (chain, segment) = (segment.chain, segment.name.clone());
                    self.intents.insert(request, Intent { chain, segment, record: record.into() });
                }
                continue;
            }
            self.intents.remove(&request);
            if is_new {
                spans::write_fields(&fields, Recorded::Whole, &self.node, &mut self.batch.spans);
            }
        }
        self.batch.mark(&segment.name, frame.first + u64::from(frame.count) - 1);
    }

    /// The process of `chain` has died. What it had in progress has no outcome.
    fn end_chain(&mut self, chain: ChainId) {
        let Self { intents, batch, node, .. } = self;
        for (_, intent) in intents.extract_if(|_, intent| intent.chain == chain) {
            spans::write(&intent.record, Recorded::IntentAlone, node, &mut batch.spans);
        }
    }

    /// Sends what was added, for as long as it takes, and lets the spool remove it.
    async fn flush(&mut self, segments: &Arc<Segments>) {
        // A full batch is followed by another of its size.
        let room = if self.batch.is_full() { self.batch.spans.as_bytes().len() * 9 / 8 } else { 0 };
        let next = Batch { spans: SpanWriter::with_capacity(room), marks: Vec::new() };
        let Batch { spans, marks } = std::mem::replace(&mut self.batch, next);
        let count = spans.count() as u64;
        if count > 0 {
            let refused = self.sender.send(spans.into_bytes().into()).await;
            self.spool.count_exported(count.saturating_sub(refused), refused);
        }
        if !marks.is_empty() {
            let open = self.open_requests(marks.iter().map(|(segment, _)| segment.clone()));
            let segments = segments.clone();
            let marking = move || {
                segments.set_open_requests(open); // first: a segment whose records are all exported is removed
                marks.iter().for_each(|(segment, sequence)| segments.exported(segment, *sequence));
            };
            let _ = run_blocking(marking).await; // a panic in there has been reported
        }
    }

    /// Saves how far segments are exported, from time to time.
    async fn save(&mut self, segments: &Arc<Segments>, is_last: bool) {
        if self.saved.elapsed() < SAVE_EVERY && !is_last {
            return;
        }
        self.saved = Instant::now();
        let segments = segments.clone();
        if let Ok(Err(error)) = run_blocking(move || segments.save_marks()).await {
            tracing::warn!(%error, "what was exported cannot be saved: a restart exports it again");
        }
    }
}
