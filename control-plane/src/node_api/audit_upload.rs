//! What nodes hand in of their audit records: checked, written, and acknowledged when it is
//! durable.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use seks_audit::{
    chain::{ChainId, Head},
    trail::{Arrival, IngestError, OpenedSegment, Trail as Blocks},
};
use seks_proto::wire::{
    self, AuditHead, AuditReceipt, AuditUpload, OpenSegmentsRequest, OpenSegmentsResponse,
    audit_trail_server::{self, AuditTrailServer},
    audit_upload::Message,
};
use seks_types::id::NodeId;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::stream_end::StreamEnd;
use crate::{
    authority::Peer,
    clock,
    fleet::membership::Member,
    node_api::session::Shared,
    rate::{Rate, RateLimits},
    trail::Trail,
};

/// Largest message, in bytes: a frame of 1 MiB and what is around it.
const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// A node says Hello at once.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Chains in Hello.
const MAX_CHAINS: usize = 1024;
/// Bytes of frames that are written together for one node.
const GROUP_BYTES: usize = 2 * 1024 * 1024;
/// Receipts that may wait for the node.
const RECEIPTS: usize = 16;
/// Uploads that one node may begin.
const STARTS: Rate = Rate { per_second: 1.0, burst: 30.0 };

/// Segments that are opened for one call, and calls of one node. Each opening costs 0.1 ms.
const MAX_OPENED: usize = 64;
const OPENINGS: Rate = Rate { per_second: 5.0, burst: 60.0 };

/// The gRPC service.
pub struct AuditUploads {
    shared: Arc<Shared>,
    trail: Trail,
    starts: RateLimits<NodeId>,
    openings: RateLimits<NodeId>,
}

impl AuditUploads {
    /// The service, for a tonic server.
    pub(crate) fn service(shared: Arc<Shared>, trail: Trail) -> AuditTrailServer<Self> {
        AuditTrailServer::new(Self { shared, trail, starts: RateLimits::default(), openings: RateLimits::default() })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn member<T>(&self, request: &Request<T>) -> Result<(NodeId, Member, Peer), Status> {
        let peer = self.shared.identities.of(request.extensions()).filter(|peer| !peer.is_expired());
        let admitted = peer.and_then(|peer| {
            let (node, member) = self.shared.fleet.members.admit(&peer)?;
            Some((node, member, peer))
        });
        admitted.ok_or_else(|| Status::unauthenticated("the certificate of a node of the fleet is needed"))
    }
}

#[tonic::async_trait]
impl audit_trail_server::AuditTrail for AuditUploads {
    type UploadStream = ReceiverStream<Result<AuditReceipt, Status>>;

    async fn open_segments(
        &self,
        request: Request<OpenSegmentsRequest>,
    ) -> Result<Response<OpenSegmentsResponse>, Status> {
        let (node, ..) = self.member(&request)?;
        if self.openings.try_acquire(&node, OPENINGS).is_err() {
            return Err(Status::resource_exhausted("segments of this node are opened too often"));
        }
        let headers = request.into_inner().headers;
        if headers.len() > MAX_OPENED {
            return Err(Status::invalid_argument(format!("at most {MAX_OPENED} segments")));
        }
        let blocks = self.trail.blocks();
        // A header that is damaged, or sealed to another key, has no key.
        let key = |header: &Vec<u8>| blocks.segment_key(node.as_str(), header).ok().flatten();
        let keys = headers.iter().map(|header| key(header).map_or(Vec::new(), |key| key.to_vec())).collect();
        Ok(Response::new(OpenSegmentsResponse { keys }))
    }

    async fn upload(&self, request: Request<Streaming<AuditUpload>>) -> Result<Response<Self::UploadStream>, Status> {
        let (node, member, peer) = self.member(&request)?;
        if self.starts.try_acquire(&node, STARTS).is_err() {
            return Err(Status::resource_exhausted("uploads of this node begin too often"));
        }
        let (receipts, answer) = mpsc::channel(RECEIPTS);
        let upload = Upload {
            node: node.as_str().into(),
            trail: self.trail.clone(),
            received: request.into_inner(),
            receipts: receipts.clone(),
            segment: None,
            refused: HashSet::new(),
        };
        let (revoked, stop) = (member.revoked.clone(), self.shared.lifecycle.stop.clone());
        self.shared.lifecycle.spawn(async move {
            let end = tokio::select! {
                end = upload.run() => end,
                () = revoked.cancelled() => Err(Status::permission_denied("the node was revoked")),
                () = clock::wait_until(peer.expires_at) => Err(Status::from(&StreamEnd::Expired)),
                () = stop.cancelled() => Err(Status::unavailable("this replica is about to stop")),
            };
            if let Err(status) = end {
                tracing::info!(seks.node = %node, reason = status.message(), "an upload of audit records has ended");
                let _ = receipts.send(Err(status)).now_or_never(); // a node that does not read learns it by the end
            }
        });
        Ok(Response::new(ReceiverStream::new(answer)))
    }
}

/// One node's upload.
struct Upload {
    node: Arc<str>,
    trail: Trail,
    received: Streaming<AuditUpload>,
    receipts: mpsc::Sender<Result<AuditReceipt, Status>>,
    /// The segment that frames are of. `None`: it is sealed to another key, or was refused.
    segment: Option<Arc<OpenedSegment>>,
    refused: HashSet<ChainId>,
}

impl Upload {
    async fn run(mut self) -> Result<(), Status> {
        let hello = timeout(HELLO_LIMIT, self.received.message()).await;
        let hello = hello.map_err(|_| Status::deadline_exceeded("no Hello"))??;
        let Some(Message::Hello(hello)) = hello.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("the first message is Hello"));
        };
        if *hello.node != *self.node || hello.chains.len() > MAX_CHAINS {
            return Err(Status::invalid_argument("the Hello names another node than the certificate, or too much"));
        }
        let chains: Vec<ChainId> = hello.chains.iter().filter_map(|chain| ChainId::from_bytes(chain)).collect();
        let heads = self.trail.blocks().heads(&self.node, &chains);
        let (trail, mut keys) = (self.trail.clone(), self.trail.key_changes());
        self.answer(AuditReceipt { audit_key: trail.public_key(), ..receipt(&heads, &[]) }).await?;
        loop {
            let message = tokio::select! {
                message = self.received.message() => message?,
                Ok(()) = keys.changed() => {
                    self.answer(AuditReceipt { audit_key: trail.public_key(), ..AuditReceipt::default() }).await?;
                    continue;
                }
            };
            let Some(message) = message else { return Ok(()) };
            let _turn = trail.upload_turn().await;
            // What has arrived with it is written with it.
            let (mut group, mut bytes) = (Vec::new(), 0);
            bytes += self.take(message, &mut group)?;
            while bytes < GROUP_BYTES {
                match self.received.message().now_or_never() {
                    Some(Ok(Some(message))) => bytes += self.take(message, &mut group)?,
                    Some(Ok(None)) | None => break,
                    Some(Err(status)) => return Err(status),
                }
            }
            if !group.is_empty() {
                self.write(group).await?;
            }
        }
    }

    /// Takes a segment or a frame. Returns the bytes of the frame.
    fn take(&mut self, message: AuditUpload, group: &mut Vec<Arrival>) -> Result<usize, Status> {
        match message.message {
            Some(Message::Segment(header)) => {
                let opened = self.trail.blocks().open_segment(&header);
                let opened = opened.map_err(|error| Status::failed_precondition(format!("a segment: {error}")))?;
                self.segment = Some(Arc::new(opened));
                Ok(0)
            }
            Some(Message::Frame(frame)) => self.take_frame(frame, group),
            Some(Message::Hello(_)) | None => Err(Status::invalid_argument("a segment or a frame is expected")),
        }
    }

    fn take_frame(&self, frame: Bytes, group: &mut Vec<Arrival>) -> Result<usize, Status> {
        let segment = self.segment.as_ref().ok_or_else(|| Status::invalid_argument("a frame without its segment"))?;
        let length = frame.len();
        if self.refused.contains(&segment.chain()) {
            return Ok(length);
        }
        let arrival = Blocks::open_frame(&self.node, segment, frame);
        group.push(arrival.map_err(|error| Status::invalid_argument(format!("a frame: {error}")))?);
        Ok(length)
    }

    async fn write(&mut self, group: Vec<Arrival>) -> Result<(), Status> {
        let count = group.len();
        let chains: Vec<ChainId> = group.iter().map(Arrival::chain).collect();
        let results = self.trail.ingest(group).await;
        if results.len() != count {
            return Err(Status::unavailable("this replica is about to stop"));
        }
        let (mut heads, mut refused): (Vec<Head>, Vec<ChainId>) = (Vec::new(), Vec::new());
        for (chain, result) in chains.into_iter().zip(results) {
            match result {
                Ok(head) => {
                    heads.retain(|known| known.chain != head.chain);
                    heads.push(head);
                }
                Err(IngestError::Trail(error)) => return Err(Status::unavailable(error.to_string())),
                Err(error) => {
                    if self.refused.insert(chain) {
                        tracing::error!(seks.node = &*self.node, %error, "a node's audit records were refused");
                        refused.push(chain);
                    }
                }
            }
        }
        heads.iter().for_each(|head| self.trail.acknowledged(&self.node, *head));
        self.answer(receipt(&heads, &refused)).await
    }

    async fn answer(&self, receipt: AuditReceipt) -> Result<(), Status> {
        let sent = self.receipts.send(Ok(receipt)).await;
        sent.map_err(|_| Status::cancelled("the node has closed the stream"))
    }
}

fn receipt(heads: &[Head], refused: &[ChainId]) -> AuditReceipt {
    let refused = refused.iter().map(|chain| chain.0.to_vec()).collect();
    AuditReceipt { durable: heads.iter().map(to_wire).collect(), refused, ..AuditReceipt::default() }
}

fn to_wire(head: &Head) -> AuditHead {
    wire::AuditHead { chain: head.chain.0.to_vec(), sequence: head.sequence, digest: head.digest.0.to_vec() }
}
