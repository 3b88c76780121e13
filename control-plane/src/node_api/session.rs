//! One node's stream: Hello, Welcome, possibly a snapshot, then deltas, grants and acknowledgements
//! until it ends.
//!
//! A session keeps a position in the change log and a few messages in front of HTTP/2, nothing
//! else. A node that doesn't read costs the same as one that does. Its stream ends when it has read
//! nothing for two leases or has fallen behind the log. Deltas go first, also between the chunks of
//! a snapshot, so a revocation waits for one chunk at most. Entries that have piled up go in one
//! message: a busy store costs one message a flush, not one a change.

mod checksum_tracker;
mod data_keys;
mod handshake;
mod next_message;
mod reports;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use h2::{RecvStream, server::SendResponse};
use http::Extensions;
use seks_lease::BootInstant;
use seks_proto::wire::{self, node_message::Message as FromNode, replica_message::Message as ToNode};
use seks_protocol::{SessionKey, features};
use seks_types::id::NodeId;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::WatchStream;
use tonic::Status;

use self::{
    checksum_tracker::ChecksumTracker,
    handshake::{AcceptedHello, accept_hello},
    next_message::{NextMessage, SnapshotCursor, SnapshotTransfer},
};
use crate::{
    authority::{Identities, Identity, Peer},
    changefeed::{ChangeFeed, scope::NodeScope},
    clock::{self, unix_now},
    epoch::Epoch,
    fleet::{Fleet, membership::Member, registration},
    lifecycle::Lifecycle,
    node_api::{
        grpc_stream::{self, Inbound, Outbound},
        handshake_limiter::{HandshakeLimiter, HandshakePermit},
        limit_shares::LimitShares,
        stream_end::StreamEnd,
    },
    rate::{Rate, RateLimits, Repeated},
    registry::Registry,
    seal::Sealer,
    store::{Revision, Store},
    trail::{self, Trail},
};

/// A node that rejects this many snapshots on one stream won't take the next one either.
const MAX_NACKS: u32 = 3;
/// The time before the end of a node's certificate at which the replica asks the node to reconnect.
/// The node has renewed at half of the certificate's lifetime.
const RENEWAL_SECONDS: i64 = 30;
/// In how many groups nodes are sent away.
const DRAIN_SLOTS: u64 = 64;
/// Streams that one node may begin. Each costs a read of the store, and may cost a write.
const STREAM_STARTS: Rate = Rate { per_second: 5.0, burst: 100.0 };
/// Barriers ahead of time that one stream may ask for. A node that begins needs one; the period
/// brings the rest.
const MAX_BARRIER_REQUESTS: u32 = 8;
/// How often a warning that a node can cause is repeated.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Answers about limits and approvals that wait for a stream. More of them are dropped, and count
/// as spent.
const MAX_ANSWERS: usize = 1024;
/// How long a parting word may wait for what was said before.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves nodes' streams. Cheap to clone.
#[derive(Clone)]
pub struct Sessions(pub(super) Arc<Shared>);

/// What all sessions of a replica share.
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) epoch: Epoch,
    pub(crate) registry: Registry,
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) changes: ChangeFeed,
    pub(crate) fleet: Fleet,
    pub(crate) identities: Identities,
    /// This replica's name.
    pub(crate) replica: String,
    /// How long a lease is.
    pub(crate) lease: Duration,
    pub(crate) limits: Limits,
    /// What this replica has taken of each limit's window.
    pub(crate) limit_shares: LimitShares,
    pub(crate) lifecycle: Lifecycle,
    /// Where nodes' audit records go; `None`: nowhere.
    pub(crate) trail: Option<Trail>,
    /// The number of the next stream.
    pub(crate) streams: AtomicU64,
}

/// What one node may ask of a replica, and what all may at the same time.
pub(crate) struct Limits {
    /// Snapshots that are sent at the same time.
    snapshots: Arc<Semaphore>,
    /// Streams that have not said Hello yet, by node.
    handshakes: HandshakeLimiter,
    /// Questions about limits, by node.
    limit_questions: RateLimits<NodeId>,
    /// Questions about approvals, by node, and apart from them uses.
    approval_questions: RateLimits<(NodeId, bool)>,
    /// Streams that begin, by whose they are.
    stream_starts: RateLimits<Identity>,
    /// Reports of refused credentials, by node.
    refusals: RateLimits<NodeId>,
    /// Warnings of reports that name what the node was not sent.
    unsent_reports: Repeated,
    /// Warnings of nodes that come with another table than they should hold.
    divergences: Repeated,
}

impl Limits {
    /// Limits with room for `max_snapshots` snapshots at the same time.
    pub(crate) fn new(max_snapshots: usize) -> Self {
        Self {
            snapshots: Arc::new(Semaphore::new(max_snapshots)),
            handshakes: HandshakeLimiter::default(),
            stream_starts: RateLimits::default(),
            refusals: RateLimits::default(),
            limit_questions: RateLimits::default(),
            approval_questions: RateLimits::default(),
            unsent_reports: Repeated::new(WARN_EVERY),
            divergences: Repeated::new(WARN_EVERY),
        }
    }
}

impl Sessions {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// The peer of a connection.
    pub(crate) fn peer(&self, connection: &Extensions) -> Option<Peer> {
        self.0.identities.of(connection)
    }

    /// Serves a call of `Distribution/Sync` until its stream ends, for whom `extensions` name.
    pub(crate) async fn sync(self, extensions: Extensions, body: RecvStream, mut respond: SendResponse<Bytes>) {
        let shared = &self.0;
        let _running = shared.lifecycle.tasks.token();
        let entered = shared.lifecycle.stop.run_until_cancelled(admit_stream(shared, &extensions)).await;
        let (node, member, opening, expires_at) = match entered.unwrap_or_else(|| Err(leaving())) {
            Ok(entered) => entered,
            Err(status) => return grpc_stream::refuse(&mut respond, status),
        };
        let Ok(mut outbound) = Outbound::begin(&mut respond) else { return };
        let inbound = Inbound::new(body);
        let Err(end) =
            serve_stream(shared.clone(), node.clone(), (member, opening, expires_at), inbound, &mut outbound).await;
        if matches!(end, StreamEnd::FalseAck { .. } | StreamEnd::Diverged { .. } | StreamEnd::Rejected(_)) {
            tracing::error!(seks.node = %node, reason = %end, "a node's stream was ended");
        } else {
            tracing::info!(seks.node = %node, reason = %end, "a node's stream has ended");
        }
        let listens = match end {
            StreamEnd::Stuck => outbound.ready().now_or_never(), // what it hasn't read for so long isn't kept for it
            _ => timeout(CLOSE_TIMEOUT, outbound.ready()).await.ok(),
        };
        match listens {
            Some(Ok(())) => outbound.end(&Status::from(&end)),
            _ => outbound.drop(),
        }
    }
}

fn leaving() -> Status {
    Status::unavailable("this replica is about to stop")
}

/// Whose call it is, if it may begin.
async fn admit_stream(
    shared: &Shared,
    extensions: &Extensions,
) -> Result<(NodeId, Member, HandshakePermit, i64), Status> {
    let peer = shared.identities.of(extensions).filter(|peer| !matches!(peer.identity, Identity::Operator(_)));
    let peer = peer.ok_or_else(|| Status::unauthenticated("a node's certificate is needed"))?;
    if peer.is_expired() {
        return Err(Status::from(&StreamEnd::Expired));
    }
    if shared.lifecycle.leaving.is_cancelled() {
        return Err(leaving());
    }
    if shared.limits.stream_starts.try_acquire(&peer.identity, STREAM_STARTS).is_err() {
        return Err(Status::resource_exhausted("streams of this node begin too often"));
    }
    let Some(opening) = shared.limits.handshakes.try_acquire(&peer.identity) else {
        return Err(Status::resource_exhausted("too many streams of this node are beginning"));
    };
    let (node, member) = find_member(shared, &peer).await.map_err(|end| Status::from(&end))?;
    Ok((node, member, opening, peer.expires_at))
}

/// The membership of a node that has shown its certificate. A replica that doesn't know it yet asks
/// the store how far it is behind: enrolment may have happened at another replica just now.
async fn find_member(shared: &Shared, peer: &Peer) -> Result<(NodeId, Member), StreamEnd> {
    if let Some(member) = shared.fleet.members.admit(peer) {
        return Ok(member);
    }
    let revision = shared.store.revision().await.map_err(|_| StreamEnd::Store)?;
    handshake::wait_for_revision(shared, revision).await?;
    shared.fleet.members.admit(peer).ok_or(StreamEnd::Revoked)
}

async fn serve_stream(
    shared: Arc<Shared>,
    node: NodeId,
    (member, opening, expires_at): (Member, HandshakePermit, i64),
    mut inbound: Inbound,
    outbound: &mut Outbound,
) -> Result<Infallible, StreamEnd> {
    let (began, scope) = (BootInstant::now(), NodeScope::of_record(&member.record));
    let greeted = accept_hello(&shared, &node, member.record.region.clone(), scope, &mut inbound);
    let greeted = shared.lifecycle.stop.run_until_cancelled(greeted).await.ok_or(StreamEnd::Stopped)?;
    let AcceptedHello { hello, key, welcome, tracker } = greeted?;
    drop(opening);
    let stream = shared.streams.fetch_add(1, Relaxed);
    let fenced =
        shared.fleet.leases.open_stream(&node, stream, &hello).cancelled_owned().map(|()| ControlEvent::Fenced);
    let revoked = member.revoked.clone().cancelled_owned().map(|()| ControlEvent::Revoked);
    tracing::info!(seks.node = %node, region = hello.region, resumed = welcome.resumed, "a node's stream begins");
    let (answers, mut waiting_answers) = mpsc::channel(MAX_ANSWERS);
    let mut session = Session {
        answers,
        sent: hello.applied_revision,
        was_sent: 0,
        complete: welcome.resumed,
        tracker,
        takes_deltas: hello.features.iter().any(|feature| feature == features::DELTAS),
        chunk_is_due: false,
        loading: None,
        renew: None,
        root_after: (!welcome.resumed || !hello.was_current).then_some(began),
        nacks: 0,
        barrier_requests: 0,
        shared: shared.clone(),
        node,
        stream,
        key,
    };
    if welcome.resumed {
        // What it holds was acknowledged on a stream before, or in vain; its certificate says so
        // again.
        session.shared.fleet.leases.ack(&session.node, stream, hello.applied_revision);
    } else {
        session.sent = 0;
        session.load_snapshot(hello.applied_revision);
    }
    let stopped = shared.lifecycle.stop.clone().cancelled_owned().map(|()| ControlEvent::Stopped);
    let _guard = StreamGuard { shared, node: session.node.clone(), stream };
    outbound.send(ToNode::Welcome(welcome))?;
    let renewal = clock::wait_until(expires_at - RENEWAL_SECONDS).map(|()| ControlEvent::Renewal);
    let expired = clock::wait_until(expires_at).map(|()| ControlEvent::Expired);
    let mut control =
        vec![fenced.boxed(), revoked.boxed(), session.drain_slot().boxed(), stopped.boxed(), expired.boxed()];
    // A node that comes with a certificate that is about to end has no other: telling it to come
    // again would change nothing.
    if unix_now() < expires_at - RENEWAL_SECONDS {
        control.push(renewal.boxed());
    }
    let Err(end) = session.drive(&mut inbound, outbound, control.into_iter().collect(), &mut waiting_answers).await;
    if matches!(end, StreamEnd::Revoked) {
        let _ = timeout(CLOSE_TIMEOUT, session.fence_revoked_node(&mut inbound, outbound, member.revoked_at())).await;
    }
    Err(end)
}

/// What ends or interrupts a stream, apart from its messages.
enum ControlEvent {
    /// Another stream speaks for the node.
    Fenced,
    /// The node is not of the fleet any more.
    Revoked,
    /// The replica is about to stop, and it is this node's turn to move.
    DrainSlot,
    /// The replica stops.
    Stopped,
    /// The node's certificate is about to end. A node with a new certificate presents it on its
    /// next stream.
    Renewal,
    /// The node's certificate has ended.
    Expired,
    /// Time to look whether the stream is alive.
    LivenessCheck,
}

/// Each is looked at when it has happened, instead of with every message: a thousand streams that
/// ask the same lock whether the replica is about to stop cost more than what they send.
type ControlEvents = FuturesUnordered<BoxFuture<'static, ControlEvent>>;

/// Closes the stream in the fleet when it is dropped, however it ends.
struct StreamGuard {
    shared: Arc<Shared>,
    node: NodeId,
    stream: u64,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.shared.fleet.leases.close_stream(&self.node, self.stream);
    }
}

struct Session {
    shared: Arc<Shared>,
    node: NodeId,
    stream: u64,
    key: SessionKey,
    /// Everything up to here was sent.
    sent: Revision,
    /// What had been sent when a table that differed began to be replaced: acknowledgements of it
    /// may still come.
    was_sent: Revision,
    /// The node has a whole table, once it has applied what was sent.
    complete: bool,
    /// What the node may hold, and what that should add up to.
    tracker: ChecksumTracker,
    /// It takes several deltas in one message.
    takes_deltas: bool,
    /// Deltas were sent last: however many there are, a snapshot gets on.
    chunk_is_due: bool,
    loading: Option<SnapshotTransfer>,
    /// The nonce of a Renew that hasn't been answered; a later one replaces it.
    renew: Option<u64>,
    /// After a restart, the first lease must be based on a store read newer than this stream. The
    /// previous process may have acknowledged, to another replica, changes that this replica has
    /// not seen.
    root_after: Option<BootInstant>,
    nacks: u32,
    /// Barriers that it has asked for ahead of time.
    barrier_requests: u32,
    /// Answers about limits and approvals, from the tasks that find them.
    answers: mpsc::Sender<ToNode>,
}

impl Session {
    async fn drive(
        &mut self,
        inbound: &mut Inbound,
        outbound: &mut Outbound,
        mut control: ControlEvents,
        answers: &mut mpsc::Receiver<ToNode>,
    ) -> Result<Infallible, StreamEnd> {
        let mut news = WatchStream::from_changes(self.shared.changes.log.subscribe_entries());
        let mut barrier = WatchStream::from_changes(self.shared.fleet.barriers.subscribe());
        let patience = self.shared.lease * 2;
        // Continues if there was activity. Resetting the timer for every message would cost more
        // than this check.
        let check_at = |due| sleep_until(due).map(|()| ControlEvent::LivenessCheck).boxed();
        let (mut heard, mut moved) = (Instant::now(), Instant::now());
        control.push(check_at(heard + patience));
        let mut recording = self.record_ownership();
        let mut unwrapping = None;
        loop {
            let mut pending = self.next_message()?;
            let missing = self.missing_deks(&pending);
            if !missing.is_empty() {
                pending = NextMessage::Nothing;
                unwrapping.get_or_insert_with(|| self.load_deks(missing));
            }
            let waiting = matches!(pending, NextMessage::Nothing);
            if waiting {
                moved = Instant::now();
            }
            tokio::select! {
                biased;
                Some(event) = control.next() => match event {
                    ControlEvent::LivenessCheck => match heard.min(moved) + patience {
                        due if due <= Instant::now() => return Err(StreamEnd::Stuck),
                        due => control.push(check_at(due)),
                    },
                    event => self.handle_control_event(event, outbound).await?,
                },
                message = inbound.message() => {
                    heard = Instant::now();
                    self.receive(message?.message.ok_or(StreamEnd::Protocol("an empty message"))?)?;
                    if recording.is_none() && self.renew.is_some() {
                        recording = self.record_ownership();
                    }
                }
                Some(()) = OptionFuture::from(recording.as_mut()) => recording = None,
                Some(()) = OptionFuture::from(unwrapping.as_mut()) => unwrapping = None,
                Some(answer) = answers.recv() => {
                    // Who doesn't even read that, isn't waited for. What was granted counts as
                    // spent.
                    if let Ok(sent) = timeout(CLOSE_TIMEOUT, send(outbound, answer)).await {
                        sent?;
                    }
                }
                loaded = next_message::snapshot_prepared(&mut self.loading) => self.begin_snapshot(loaded),
                ready = outbound.ready(), if !waiting => {
                    ready?;
                    outbound.send(self.build_message(pending))?;
                    moved = Instant::now();
                }
                _ = news.next(), if waiting => {}
                _ = barrier.next(), if waiting && self.renew.is_some() => {}
            }
        }
    }

    /// Ends the stream, or asks the node to reconnect.
    async fn handle_control_event(&mut self, event: ControlEvent, outbound: &mut Outbound) -> Result<(), StreamEnd> {
        let reason = match event {
            ControlEvent::Fenced => {
                let fence = wire::Fence { epoch: self.epoch(), reason: StreamEnd::Fenced.to_string(), revision: 0 };
                let _ = timeout(CLOSE_TIMEOUT, send(outbound, ToNode::Fence(fence))).await;
                return Err(StreamEnd::Fenced);
            }
            ControlEvent::Revoked => return Err(StreamEnd::Revoked),
            ControlEvent::Stopped => return Err(StreamEnd::Stopped),
            ControlEvent::Expired => return Err(StreamEnd::Expired),
            ControlEvent::LivenessCheck => return Ok(()),
            ControlEvent::DrainSlot => "this replica is about to stop",
            ControlEvent::Renewal => "the node's certificate is about to expire",
        };
        let go = wire::GoAway { reason: reason.into() };
        // The replica does not wait for a node that does not read that.
        timeout(CLOSE_TIMEOUT, send(outbound, ToNode::GoAway(go))).await.unwrap_or(Ok(()))
    }

    /// Ready when it is this node's turn to move: a thousand at once would keep each other from it.
    fn drain_slot(&self) -> impl Future<Output = ControlEvent> + use<> {
        let leaving = self.shared.lifecycle.leaving.clone();
        let turn = registration::handover_time(self.shared.lease)
            .mul_f64((self.stream % DRAIN_SLOTS) as f64 / (4 * DRAIN_SLOTS) as f64);
        async move {
            leaving.cancelled().await;
            sleep(turn).await;
            ControlEvent::DrainSlot
        }
    }

    fn receive(&mut self, message: FromNode) -> Result<(), StreamEnd> {
        match message {
            FromNode::Ack(ack) => {
                self.acknowledged(ack.revision)?;
                if self.complete && !self.tracker.matches(ack.revision, &ack.table_hash) {
                    self.repair(ack.revision);
                }
            }
            FromNode::Nack(nack) => {
                self.nacks += 1;
                let reason: String = nack.reason.chars().filter(|c| !c.is_control()).take(200).collect();
                tracing::warn!(seks.node = %self.node, revision = nack.revision, reason, "a node asks for a snapshot");
                if self.nacks > MAX_NACKS {
                    return Err(StreamEnd::Rejected(reason));
                }
                self.complete = false;
                self.load_snapshot(self.sent);
            }
            FromNode::Renew(renew) => {
                self.renew = Some(renew.nonce);
                self.shared.fleet.leases.renewal_requested(&self.node, self.stream, renew.tokens);
                self.shared.fleet.leases.set_audit_queue(&self.node, self.stream, renew.audit_queue);
                let head = renew.audit_head.as_ref().map(|head| (&*head.chain, head.sequence, &*head.digest));
                trail::note_head(self.shared.trail.as_ref(), self.node.as_str(), head, renew.audit_kept_from);
                if self.root_after.is_some() && self.barrier_requests < MAX_BARRIER_REQUESTS {
                    self.barrier_requests += 1;
                    self.shared.fleet.barriers.request();
                }
            }
            FromNode::Refused(refused) => self.credential_refused(refused),
            FromNode::UnknownKey(unknown) => self.key_unknown(&unknown),
            FromNode::LimitQuestion(question) => self.limit_asked(question),
            FromNode::ApprovalQuestion(question) => self.approval_asked(question),
            FromNode::Hello(_) => return Err(StreamEnd::Protocol("a second Hello")),
        }
        Ok(())
    }

    fn acknowledged(&self, revision: Revision) -> Result<(), StreamEnd> {
        // Before its snapshot is whole a node has nothing to acknowledge.
        let sent = if self.complete { self.sent } else { self.was_sent };
        if revision > sent {
            return Err(StreamEnd::FalseAck { acked: revision, sent });
        }
        let news = self.shared.fleet.leases.ack(&self.node, self.stream, revision);
        // Changes from before this replica started were never pushed by it.
        if news
            && revision > self.shared.changes.started_at
            && let (Some(push), Some(observed)) =
                (&self.shared.changes.metrics.push, self.shared.changes.log.observed(revision))
            && self.shared.changes.log.effective(revision) == revision
        {
            push.observe(seks_lease::BootInstant::now().since(observed).as_secs_f64());
        }
        Ok(())
    }

    /// Tells a revoked node to stop, and waits for its confirmation. Then no change has to wait for
    /// its lease to end.
    async fn fence_revoked_node(
        &mut self,
        inbound: &mut Inbound,
        outbound: &mut Outbound,
        revision: Revision,
    ) -> Result<(), StreamEnd> {
        let fence = wire::Fence { epoch: self.epoch(), reason: StreamEnd::Revoked.to_string(), revision };
        send(outbound, ToNode::Fence(fence)).await?;
        while let Ok(message) = inbound.message().await {
            if let Some(FromNode::Ack(ack)) = message.message
                && ack.revision == revision
            {
                self.shared.fleet.leases.ack(&self.node, self.stream, revision);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Begins to write down that we answer for the node's leases; `None`: the store knows, or it is
    /// too early.
    fn record_ownership(&self) -> Option<BoxFuture<'static, ()>> {
        let effective = |revision| self.shared.changes.log.effective(revision);
        let record = self.shared.fleet.leases.ownership_to_record(&self.node, self.shared.lease, effective)?;
        let (shared, node) = (self.shared.clone(), self.node.clone());
        // A task of its own: however this stream ends, the fleet hears what became of the write.
        let write = tokio::spawn(async move {
            let known = shared.fleet.members.record_of(&node);
            match shared.registry.see_node(&node, &record, known).await {
                Ok(revision) => {
                    shared.fleet.leases.ownership_recorded(&node, &record, revision);
                    shared.fleet.barriers.request();
                }
                Err(error) => {
                    tracing::warn!(seks.node = %node, %error, "a node can't be recorded; it gets no lease");
                    shared.fleet.leases.ownership_unknown(&node, &record);
                }
            }
        });
        Some(Box::pin(async move {
            let _ = write.await; // a panic in there has been reported
        }))
    }

    /// The node's table differs from the replica's: an event was lost, or a record is damaged. The
    /// node gets a snapshot, and the difference is logged as an alarm.
    fn repair(&mut self, revision: Revision) {
        self.shared.changes.metrics.diverged("node");
        if self.tracker.may_repair() {
            tracing::error!(seks.node = %self.node, revision, "a node's table differs from what it should hold");
            self.was_sent = self.sent;
            self.complete = false;
            self.load_snapshot(self.sent);
        }
    }

    /// Prepares a snapshot that is not older than `revision`, which the node may have.
    fn load_snapshot(&mut self, revision: Revision) {
        self.loading = Some(SnapshotTransfer::new(&self.shared, self.tracker.node().clone(), revision));
    }

    fn begin_snapshot(&mut self, loaded: SnapshotCursor) {
        self.sent = loaded.revision();
        self.tracker.restart(loaded.revision(), loaded.checksum());
        self.loading = Some(SnapshotTransfer::Sending(Box::new(loaded)));
    }

    /// What the store's envelopes are bound to, and what the node's are.
    fn sealing_ids(&self) -> (&str, &str) {
        (self.shared.store.store_id(), self.shared.epoch.name())
    }

    fn epoch(&self) -> String {
        self.shared.epoch.name().to_owned()
    }
}

async fn send(outbound: &mut Outbound, message: ToNode) -> Result<(), StreamEnd> {
    outbound.ready().await?;
    outbound.send(message)
}
