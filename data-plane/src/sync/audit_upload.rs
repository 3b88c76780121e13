//! Hands the spool's records to a control plane, over a connection of its own: however much there
//! is, the table's stream never waits for it.
//!
//! Frames go out as they are on disk, oldest first. What a replica acknowledges is on its disk, and
//! a segment that is acknowledged whole is removed. A new connection begins with what the replica
//! has, so nothing is sent twice to the same replica unless an acknowledgement was lost; then the
//! replica drops it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use seks_audit::{
    chain::ChainId,
    frame::{Frames, HEADER_BYTES, MAX_RECORDS_BYTES},
    recorder::Recorder,
    seal::FileKey,
    spool::SegmentInfo,
};
use seks_proto::wire::{
    AuditReceipt, AuditUpload, AuditUploadHello, OpenSegmentsRequest, audit_trail_client::AuditTrailClient,
    audit_upload::Message,
};
use seks_runtime::run_blocking;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

use zeroize::Zeroizing;

use super::{
    Identity, Status,
    backoff::Backoff,
    channel::{ConnectError, Trust},
};
use crate::spool::Spool;

/// A replica answers Hello within this, and acknowledges within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Messages to the replica that may wait.
const OUTBOX: usize = 16;
/// Bytes that may be unacknowledged. More wait on disk.
const WINDOW_BYTES: usize = 4 * MAX_RECORDS_BYTES;
/// Bytes read from disk at a time. A frame fits.
const READ_BYTES: usize = 2 * MAX_RECORDS_BYTES;
/// Segments that are opened at a time.
const OPENED: usize = 64;
/// How often a replica is asked for segments that it has not opened.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Chains that Hello names.
const MAX_CHAINS: usize = 1024;
/// How often it is looked for a connection to a control plane, and for a key.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A replica without a trail is tried again after this time.
const NO_TRAIL_PAUSE: Duration = Duration::from_secs(60);
/// An upload that lasted this long was a good one.
const STABLE_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum UploadEnd {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the control plane keeps no audit trail")]
    NoTrail,
    #[error("the control plane says: {0}")]
    Refused(String),
    #[error("no acknowledgement within {ANSWER_LIMIT:?}")]
    Silent,
    #[error("the stream was closed")]
    Closed,
    #[error("a segment cannot be read: {0}")]
    Disk(#[from] std::io::Error),
}

impl From<tonic::Status> for UploadEnd {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            Code::Unimplemented => Self::NoTrail,
            _ => Self::Refused(format!("{}: {}", status.code(), status.message())),
        }
    }
}

/// Uploads for as long as the node runs, to the control plane that its table comes from.
pub(super) async fn run(spool: Option<Spool>, trust: &Trust, identity: &arc_swap::ArcSwap<Identity>, status: &Status) {
    let Some(spool) = spool else { return std::future::pending().await };
    let mut backoff = Backoff::default();
    loop {
        let recorder = spool.recorder().clone();
        let connected = status.0.lock().connected.clone();
        let (Some(recorder), Some(endpoint)) = (recorder, connected) else {
            sleep(LOOK_EVERY).await;
            continue;
        };
        let (begun, own) = (Instant::now(), identity.load_full());
        let end = match Upload::run(&endpoint, trust, &own, &spool, recorder).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        if begun.elapsed() >= STABLE_AFTER {
            backoff.reset();
        }
        tracing::debug!(endpoint, reason = %end, "the upload of audit records has ended");
        let pause = if matches!(end, UploadEnd::NoTrail) { NO_TRAIL_PAUSE } else { backoff.next() };
        sleep(pause).await;
    }
}

/// One connection's upload.
struct Upload<'a> {
    spool: &'a Spool,
    recorder: Arc<Recorder>,
    client: AuditTrailClient<Channel>,
    outbox: mpsc::Sender<AuditUpload>,
    receipts: Streaming<AuditReceipt>,
    /// What the replica has, by chain.
    durable: HashMap<ChainId, u64>,
    /// Chains that it never takes.
    refused: HashSet<ChainId>,
    /// What was sent and is not acknowledged: chain, last sequence, bytes.
    unacknowledged: VecDeque<(ChainId, u64, usize)>,
    window: usize,
    /// How far each segment was sent.
    sent: HashMap<String, u64>,
    /// The segment whose header was sent last.
    current: Option<String>,
    /// When segments may be opened for export.
    open_at: Instant,
}

impl<'a> Upload<'a> {
    async fn run(
        endpoint: &str,
        trust: &Trust,
        identity: &Identity,
        spool: &'a Spool,
        recorder: Arc<Recorder>,
    ) -> Result<Never, UploadEnd> {
        let channel = trust.connect(endpoint, identity).await?;
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let mut chains: Vec<ChainId> = recorder.segments().list().iter().map(|segment| segment.chain).collect();
        chains.push(recorder.head().chain);
        chains.dedup();
        let chains = chains.iter().take(MAX_CHAINS).map(|chain| chain.0.to_vec()).collect();
        let hello = AuditUploadHello { node: identity.node().to_owned(), chains };
        let _ = outbox.try_send(AuditUpload { message: Some(Message::Hello(hello)) }); // an empty queue takes it
        let mut client = AuditTrailClient::new(channel);
        let opening = timeout(ANSWER_LIMIT, client.upload(ReceiverStream::new(messages))).await;
        let receipts = opening.map_err(|_| UploadEnd::Silent)??.into_inner();
        let mut upload = Self {
            spool,
            recorder,
            client,
            outbox,
            receipts,
            durable: HashMap::new(),
            refused: HashSet::new(),
            unacknowledged: VecDeque::new(),
            window: 0,
            sent: HashMap::new(),
            current: None,
            open_at: Instant::now(),
        };
        upload.receipt().await?;
        loop {
            upload.send_all().await?;
            upload.open_segments().await?;
            upload.wait().await?;
        }
    }

    /// Sends everything that is durable here and not there.
    async fn send_all(&mut self) -> Result<(), UploadEnd> {
        let segments = self.recorder.segments().list();
        self.sent.retain(|name, _| segments.iter().any(|segment| segment.name == *name));
        for segment in segments {
            let known = self.durable.get(&segment.chain).copied().unwrap_or(0);
            if self.refused.contains(&segment.chain) || segment.last < segment.first {
                continue;
            }
            if segment.last <= known {
                self.acknowledge(segment.chain, known).await;
                continue;
            }
            self.send_segment(&segment, known).await?;
        }
        Ok(())
    }

    async fn send_segment(&mut self, segment: &SegmentInfo, known: u64) -> Result<(), UploadEnd> {
        let mut offset = self.sent.get(&segment.name).copied().unwrap_or(HEADER_BYTES as u64);
        while offset < segment.bytes {
            let bytes = self.read(segment, offset, READ_BYTES).await?;
            let start = offset;
            for frame in Frames::of(&bytes) {
                offset += frame.bytes.len() as u64;
                if frame.last() <= known {
                    continue;
                }
                if self.current.as_deref() != Some(&segment.name) {
                    let header = self.read(segment, 0, HEADER_BYTES).await?;
                    self.send(Message::Segment(header)).await?;
                    self.current = Some(segment.name.clone());
                }
                while self.window > WINDOW_BYTES {
                    self.receipt().await?;
                }
                self.unacknowledged.push_back((segment.chain, frame.last(), frame.bytes.len()));
                self.window += frame.bytes.len();
                self.send(Message::Frame(bytes.slice_ref(frame.bytes))).await?;
                self.sent.insert(segment.name.clone(), offset);
                if self.refused.contains(&segment.chain) {
                    return Ok(());
                }
            }
            if offset == start {
                // Durable bytes that are no frame: the disk has changed them. What is behind them
                // is lost, and verification says so.
                tracing::error!(segment = segment.name, "an audit segment is damaged");
                self.sent.insert(segment.name.clone(), segment.bytes);
                return Ok(());
            }
        }
        Ok(())
    }

    async fn read(&self, segment: &SegmentInfo, offset: u64, length: usize) -> Result<Bytes, UploadEnd> {
        let (segments, segment) = (self.recorder.segments().clone(), segment.clone());
        let read = run_blocking(move || segments.read(&segment, offset, length)).await;
        Ok(read.map_err(std::io::Error::other)??.into())
    }

    async fn send(&self, message: Message) -> Result<(), UploadEnd> {
        self.outbox.send(AuditUpload { message: Some(message) }).await.map_err(|_| UploadEnd::Closed)
    }

    /// Asks for the keys of segments that earlier processes have sealed and that are to be
    /// exported.
    async fn open_segments(&mut self) -> Result<(), UploadEnd> {
        if Instant::now() < self.open_at {
            return Ok(());
        }
        let sealed = self.recorder.segments().sealed();
        self.open_at = Instant::now() + OPEN_AGAIN_AFTER;
        for group in sealed.chunks(OPENED) {
            let mut headers = Vec::with_capacity(group.len());
            for segment in group {
                headers.push(self.read(segment, 0, HEADER_BYTES).await?.to_vec());
            }
            let opening = timeout(ANSWER_LIMIT, self.client.open_segments(OpenSegmentsRequest { headers })).await;
            let keys = match opening.map_err(|_| UploadEnd::Silent)? {
                Ok(opened) => opened.into_inner().keys,
                Err(status) if status.code() == Code::Unimplemented => Vec::new(), // an older replica
                Err(status) => return Err(status.into()),
            };
            for (segment, key) in group.iter().zip(keys) {
                let key = Zeroizing::new(key);
                // None: the segment is not known as this node's yet.
                if let Ok(key) = FileKey::from_bytes(&key) {
                    self.recorder.segments().give_key(&segment.name, key);
                }
            }
        }
        Ok(())
    }

    /// Waits for more to send, for a receipt, or until segments that are still sealed are asked for
    /// again.
    async fn wait(&mut self) -> Result<(), UploadEnd> {
        let recorder = self.recorder.clone();
        let (open_at, has_sealed) = (self.open_at, !recorder.segments().sealed().is_empty());
        let open_again = async { if has_sealed { sleep_until(open_at).await } else { std::future::pending().await } };
        let limit = if self.unacknowledged.is_empty() { None } else { Some(ANSWER_LIMIT) };
        let receipt = async {
            match limit {
                None => Ok(self.receipts.message().await),
                Some(limit) => timeout(limit, self.receipts.message()).await,
            }
        };
        tokio::select! {
            () = recorder.segments().grown() => Ok(()),
            () = open_again => Ok(()),
            receipt = receipt => {
                let receipt = receipt.map_err(|_| UploadEnd::Silent)??;
                self.received(receipt.ok_or(UploadEnd::Closed)?).await
            }
        }
    }

    async fn receipt(&mut self) -> Result<(), UploadEnd> {
        let receipt = timeout(ANSWER_LIMIT, self.receipts.message()).await.map_err(|_| UploadEnd::Silent)??;
        self.received(receipt.ok_or(UploadEnd::Closed)?).await
    }

    async fn received(&mut self, receipt: AuditReceipt) -> Result<(), UploadEnd> {
        if !receipt.audit_key.is_empty() {
            self.use_key(receipt.audit_key).await;
        }
        for chain in receipt.refused.iter().filter_map(|chain| ChainId::from_bytes(chain)) {
            tracing::error!(%chain, "the control plane has other audit records of this chain: the spool was copied or changed");
            self.refused.insert(chain);
        }
        for head in &receipt.durable {
            let Some(chain) = ChainId::from_bytes(&head.chain) else { continue };
            self.durable.insert(chain, head.sequence);
            self.acknowledge(chain, head.sequence).await;
        }
        let (durable, refused) = (&self.durable, &self.refused);
        let is_done = |(chain, last, _): &(ChainId, u64, usize)| {
            refused.contains(chain) || durable.get(chain).is_some_and(|durable| durable >= last)
        };
        while let Some(done) = self.unacknowledged.pop_front_if(|sent| is_done(sent)) {
            self.window -= done.2;
        }
        Ok(())
    }

    /// Seals later records to the replica's key. A key that cannot be used is reported; records go
    /// on as before.
    async fn use_key(&self, key: Vec<u8>) {
        let spool = self.spool.clone();
        // A panic in there has been reported.
        if let Ok(Err(error)) = run_blocking(move || spool.use_key(&key)).await {
            tracing::error!(%error, "audit records cannot be sealed to the replica's audit key");
        }
    }

    /// Removes segments that the replica has whole.
    async fn acknowledge(&self, chain: ChainId, sequence: u64) {
        let segments = self.recorder.segments().clone();
        let records = run_blocking(move || segments.acknowledge(chain, sequence)).await;
        self.spool.count_uploaded(records.unwrap_or(0)); // a panic in there has been reported
    }
}

/// [`Upload::run`] only ever ends for a reason.
enum Never {}
