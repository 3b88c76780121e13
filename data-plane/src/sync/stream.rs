//! One stream, from Hello to its end.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::future::OptionFuture;
use seks_lease::{
    BootInstant,
    rules::{self, Position},
};
use seks_proto::wire::{
    self, NodeMessage, distribution_client::DistributionClient, node_message::Message as ToReplica,
    replica_message::Message as FromReplica,
};
use seks_protocol::{MESSAGE_BYTES, PROTOCOL, Recipient, SessionError, SessionKey, TableChecksum, features};
use seks_runtime::{VERSION, run_blocking, telemetry::Queue};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::{
    Identity, Status, SyncConfig,
    channel::{ConnectError, Trust},
    decode::{DecodeError, Names, decode},
    high_water_mark::HighWaterMark,
    snapshot_loader::{LoadError, SnapshotLoader},
};
use crate::{
    spool::Spool,
    table::{ApplyError, Change, Delta, Table},
};

/// A replica answers Hello within this.
const WELCOME_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for the next part of a snapshot.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(30);
/// A stream that lets the lease run down to this part of it is left,
const FAILOVER_THRESHOLD: f64 = 0.3;
/// but not before it has extended the lease by next to nothing for this part of it: where messages
/// take long a lease is never whole, and to leave what works would end it.
const STALL_WINDOW: f64 = 0.6;
/// Next to nothing, as a part of the lease: less than a renewal brings, a quarter. Grants of a
/// barrier that stands still extend it by what clocks may differ, and the first of them by what the
/// barrier was late before.
const MIN_EXTENSION: f64 = 0.2;
/// Messages to the replica that may wait.
const OUTBOX: usize = 64;
/// Renews whose answer may still come.
const MAX_ASKED: usize = 8;
/// Wall clocks that differ by more than this are reported, and how often.
const SKEW_ALARM_SECONDS: f64 = 2.0;
const SKEW_REPORT_EVERY: Duration = Duration::from_secs(60);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamEnd {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the control plane says: {0}")]
    Refused(String),
    #[error("the stream was closed")]
    Closed,
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Protocol(&'static str),
    #[error("the session's key: {0}")]
    Key(#[from] SessionError),
    #[error("{0}")]
    Fenced(String),
    /// Its store is gone, or slow: another control plane may still have what this one lacks.
    #[error("the control plane has had no lease to give, and the one it gave runs out")]
    LeaseStalled,
    #[error("the control plane says: {0}")]
    GoAway(String),
    #[error("a nearer control plane is back")]
    Nearer(usize),
    /// This node was taken out of the fleet.
    #[error("{0}")]
    Revoked(String),
    /// An old backup was restored, here or there. Nothing is applied; the lease runs out.
    #[error("{0}")]
    Diverged(String),
}

impl From<tonic::Status> for StreamEnd {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            Code::FailedPrecondition => Self::Diverged(status.message().to_owned()),
            Code::PermissionDenied => Self::Revoked(status.message().to_owned()),
            _ => Self::Refused(format!("{}: {}", status.code(), status.message())),
        }
    }
}

/// A change that isn't applied, and why: told to the replica, which answers with a snapshot.
#[derive(Debug, thiserror::Error)]
enum Reject {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// The last grant that has extended the lease by more than a morsel.
#[derive(Clone, Copy)]
struct LeaseProgress {
    ends: BootInstant,
    /// The stream is given until then at least.
    patience: Instant,
    /// How old barriers have been at most when they were granted: old, where the store is far.
    usual_age: Duration,
}

pub(super) struct Stream<'a> {
    table: &'a Arc<Table>,
    status: &'a Status,
    mark: &'a HighWaterMark,
    outbox: mpsc::Sender<NodeMessage>,
    key: SessionKey,
    epoch: String,
    ttl: Duration,
    loading: Option<SnapshotLoader>,
    names: Names,
    /// What is applied is not what the replica thinks: nothing but a snapshot helps.
    needs_snapshot: bool,
    progress: Option<LeaseProgress>,
    nonce: u64,
    audit: Option<Arc<Queue>>,
    spool: Option<Spool>,
    /// When each Renew was sent.
    renews_sent: VecDeque<(u64, BootInstant)>,
    /// When it was last said that the clocks differ.
    skew_reported: Option<BootInstant>,
}

impl LeaseProgress {
    /// After a grant that lets the lease end at `ends`, of a barrier that was so old when it was
    /// granted. The first grant of a barrier that has stood still since may come a renewal late:
    /// that much less patience it deserves.
    fn with(before: Option<Self>, ends: BootInstant, age: Duration, ttl: Duration) -> Option<Self> {
        if before.is_some_and(|before| ends < before.ends.plus(ttl.mul_f64(MIN_EXTENSION))) {
            return before;
        }
        let usual_age = before.map_or(age, |before| before.usual_age);
        let patience = Instant::now() + ttl.mul_f64(STALL_WINDOW).saturating_sub(age.saturating_sub(usual_age));
        Some(Self { ends, patience, usual_age: usual_age.max(age) })
    }
}

impl<'a> Stream<'a> {
    /// Connects to `endpoint` and follows it until something ends it.
    pub(super) async fn run(
        endpoint: &str,
        trust: &Trust,
        identity: &Identity,
        config: &SyncConfig,
        table: &'a Arc<Table>,
        status: &'a Status,
        mark: &'a HighWaterMark,
    ) -> StreamEnd {
        match Self::try_run(endpoint, trust, identity, config, table, status, mark).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_run(
        endpoint: &str,
        trust: &Trust,
        identity: &Identity,
        config: &SyncConfig,
        table: &'a Arc<Table>,
        status: &'a Status,
        mark: &'a HighWaterMark,
    ) -> Result<Never, StreamEnd> {
        let channel = trust.connect(endpoint, identity).await?;
        let mut client = DistributionClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let recipient = Recipient::generate()?;
        let hello = hello(table, mark, identity, config, &recipient);
        let _ = outbox.try_send(message(ToReplica::Hello(hello))); // an empty queue takes it
        let opening = timeout(WELCOME_LIMIT, client.sync(ReceiverStream::new(messages))).await;
        let mut inbound = opening.map_err(|_| StreamEnd::Silent(WELCOME_LIMIT))??.into_inner();
        let first = timeout(WELCOME_LIMIT, inbound.message()).await.map_err(|_| StreamEnd::Silent(WELCOME_LIMIT))??;
        let Some(FromReplica::Welcome(welcome)) = first.and_then(|m| m.message) else {
            return Err(StreamEnd::Protocol("the first answer is Welcome"));
        };
        let audit_key = welcome.audit_key.clone();
        let mut stream = Self::welcomed(table, status, mark, outbox, &recipient, welcome)?;
        stream.audit.clone_from(&config.audit);
        stream.spool.clone_from(&config.spool);
        if let (Some(spool), false) = (config.spool.clone(), audit_key.is_empty()) {
            use_audit_key(spool, audit_key);
        }
        tracing::info!(endpoint, epoch = stream.epoch, resumed = !stream.needs_snapshot, "following a control plane");
        status.update(|s| {
            s.connected = Some(endpoint.to_owned());
            s.streams += 1;
        });
        stream.receive_until_end(&mut inbound).await
    }

    fn welcomed(
        table: &'a Arc<Table>,
        status: &'a Status,
        mark: &'a HighWaterMark,
        outbox: mpsc::Sender<NodeMessage>,
        recipient: &Recipient,
        welcome: wire::Welcome,
    ) -> Result<Self, StreamEnd> {
        let (held, seen) = (table.epoch(), mark.seen());
        for known in [&*held, &*seen.epoch] {
            if !known.is_empty() && *known != *welcome.epoch && !welcome.superseded.iter().any(|s| *s == *known) {
                return Err(StreamEnd::Diverged(format!(
                    "its store is `{}`, this node has seen `{known}`",
                    welcome.epoch
                )));
            }
        }
        if welcome.resumed && (!table.is_loaded() || *held != *welcome.epoch) {
            return Err(StreamEnd::Protocol("there is nothing to resume from"));
        }
        let key = recipient.accept(&welcome.session_enc, &welcome.session_sealed)?;
        let ttl = Duration::from_millis(welcome.lease_ttl_ms).clamp(Duration::from_secs(1), Duration::from_secs(3600));
        let (needs_snapshot, renews_sent) = (!welcome.resumed, VecDeque::new());
        Ok(Self {
            table,
            status,
            mark,
            outbox,
            key,
            epoch: welcome.epoch,
            ttl,
            loading: None,
            names: Names::default(),
            needs_snapshot,
            progress: None,
            nonce: 0,
            audit: None,
            spool: None,
            renews_sent,
            skew_reported: None,
        })
    }

    async fn receive_until_end(&mut self, inbound: &mut Streaming<wire::ReplicaMessage>) -> Result<Never, StreamEnd> {
        // Four times in a lease: three answers may be lost before anything happens to the node.
        let renewal = self.ttl / 4;
        let (mut heard, mut renew_at) = (Instant::now(), Instant::now());
        loop {
            // Grants come all the time; a snapshot may have to wait until other nodes have theirs.
            let silence = if self.needs_snapshot { SNAPSHOT_LIMIT } else { self.ttl / 2 };
            // One that has no lease to give is left while there is time to get one elsewhere.
            let left = self.table.lease().remaining().saturating_sub(self.ttl.mul_f64(FAILOVER_THRESHOLD));
            let stalls_at = self.progress.map(|progress| progress.patience.max(Instant::now() + left));
            tokio::select! {
                biased;
                received = inbound.message() => {
                    heard = Instant::now();
                    let needed_snapshot = self.needs_snapshot;
                    let received = received?.ok_or(StreamEnd::Closed)?;
                    self.receive(received.message.ok_or(StreamEnd::Protocol("an empty message"))?)?;
                    if needed_snapshot && !self.needs_snapshot {
                        // What was granted before the snapshot says nothing of what comes after it.
                        (renew_at, self.progress) = (Instant::now(), None);
                    }
                }
                () = sleep_until(renew_at), if !self.needs_snapshot => {
                    self.renew()?;
                    renew_at = Instant::now() + renewal;
                }
                refused = self.table.rejected_credentials().next(), if !self.needs_snapshot => {
                    let (tenant, credential) = (refused.tenant.to_string(), refused.name.to_string());
                    self.send(ToReplica::Refused(wire::Refused { tenant, credential, version: refused.version }))?;
                }
                unknown = self.table.unknown_keys().next(), if !self.needs_snapshot => {
                    let (tenant, trust) = (unknown.tenant.to_string(), unknown.trust);
                    self.send(ToReplica::UnknownKey(wire::UnknownKey { tenant, trust }))?;
                }
                question = self.table.approvals().next_question(), if !self.needs_snapshot => {
                    self.send(ToReplica::ApprovalQuestion(question))?;
                }
                question = self.table.limit_slices().next_question(), if !self.needs_snapshot => {
                    self.send(ToReplica::LimitQuestion(question))?;
                }
                () = sleep_until(heard + silence) => return Err(StreamEnd::Silent(silence)),
                Some(()) = OptionFuture::from(stalls_at.map(sleep_until)), if !self.needs_snapshot => return Err(StreamEnd::LeaseStalled),
            }
        }
    }

    fn receive(&mut self, received: FromReplica) -> Result<(), StreamEnd> {
        match received {
            FromReplica::SnapshotBegin(begin) => self.begin(begin),
            FromReplica::Chunk(chunk) => self.load(|loading, key| loading.chunk(&chunk, key)),
            FromReplica::SnapshotEnd(end) => self.end(&end),
            FromReplica::Delta(delta) => self.deltas([delta]),
            FromReplica::Deltas(several) => self.deltas(several.deltas),
            FromReplica::Grant(grant) => {
                self.granted(&grant);
                Ok(())
            }
            FromReplica::ApprovalAnswer(answer) => {
                self.table.approvals().answered(answer);
                Ok(())
            }
            FromReplica::LimitSlice(slice) => {
                self.table.limit_slices().answered(&slice);
                Ok(())
            }
            FromReplica::GoAway(go) => Err(StreamEnd::GoAway(go.reason)),
            FromReplica::Fence(fence) => self.fenced(fence),
            FromReplica::Welcome(_) => Err(StreamEnd::Protocol("a second Welcome")),
        }
    }

    fn begin(&mut self, begin: wire::SnapshotBegin) -> Result<(), StreamEnd> {
        let (held, applied) = (self.table.epoch(), self.table.revision());
        if *begin.epoch != *self.epoch || (*held == *begin.epoch && begin.revision < applied) {
            return Err(StreamEnd::Diverged(format!(
                "a snapshot of revision {}, {applied} is applied",
                begin.revision
            )));
        }
        let seen = self.mark.seen();
        if seen.epoch == begin.epoch && begin.revision < seen.revision {
            return Err(StreamEnd::Diverged(format!(
                "a snapshot of revision {}, {} was seen",
                begin.revision, seen.revision
            )));
        }
        let revision = begin.revision;
        self.loading = None; // at most one is in memory
        self.needs_snapshot = true;
        match SnapshotLoader::begin(self.table, begin) {
            Ok(loading) => {
                self.loading = Some(loading);
                Ok(())
            }
            Err(error) => self.reject(revision, &error.into()),
        }
    }

    fn load(
        &mut self,
        step: impl FnOnce(&mut SnapshotLoader, &SessionKey) -> Result<(), LoadError>,
    ) -> Result<(), StreamEnd> {
        // After a rejected part, the rest of the same snapshot is still on its way.
        let Some(loading) = &mut self.loading else { return Ok(()) };
        match step(loading, &self.key) {
            Ok(()) => Ok(()),
            Err(error) => self.reject(0, &error.into()),
        }
    }

    fn end(&mut self, end: &wire::SnapshotEnd) -> Result<(), StreamEnd> {
        let Some(loading) = self.loading.take() else { return Ok(()) };
        let swapped = loading.end(end).and_then(|staging| Ok(self.table.swap(staging)?));
        match swapped {
            Ok(old) => {
                // Freeing a million entries takes a while.
                tokio::spawn(run_blocking(move || drop(old)));
                self.needs_snapshot = false;
                self.status.update(|s| s.snapshots += 1);
                self.ack()
            }
            Err(error) => self.reject(0, &error.into()),
        }
    }

    /// Applies one after the other, and acknowledges them together.
    fn deltas(&mut self, deltas: impl IntoIterator<Item = wire::Delta>) -> Result<(), StreamEnd> {
        let mut applied = 0;
        for delta in deltas {
            let revision = delta.revision;
            match self.delta(delta) {
                Ok(true) => applied += 1,
                Ok(false) => {}
                Err(reject) => self.reject(revision, &reject)?,
            }
        }
        if applied > 0 {
            self.status.update(|s| s.deltas += applied);
        }
        if applied > 0 && !self.needs_snapshot {
            // A full queue is a dead stream, which the next Renew will notice; the ack is lost with
            // it.
            let _ = self.ack();
        }
        Ok(())
    }

    /// Says whether the table has it now; otherwise the snapshot will.
    fn delta(&mut self, delta: wire::Delta) -> Result<bool, Reject> {
        let wire::Delta { epoch, previous, revision, changes } = delta;
        let bytes = changes.iter().map(bytes::Bytes::len).sum();
        let decode = |change| decode(change, &epoch, &self.key, &mut self.names);
        let decoded: Vec<_> = changes.into_iter().map(decode).collect::<Result<_, _>>()?;
        let (changes, marks): (Vec<Change>, Vec<_>) = decoded.into_iter().unzip();
        let marks = marks.into_iter().flatten().collect();
        if self.needs_snapshot {
            // What takes rights away doesn't wait for the snapshot, if the live table is of the
            // same store at all.
            if *self.table.epoch() == *epoch {
                self.table.narrow(&changes);
            }
            let delta = Delta { epoch, previous, revision, changes, marks };
            if let Some(loading) = &mut self.loading {
                loading.wait(delta, bytes)?;
            } // otherwise the snapshot that was asked for is later than this
            return Ok(false);
        }
        self.table.apply(Delta { epoch, previous, revision, changes, marks })?;
        Ok(true)
    }

    fn reject(&mut self, revision: u64, reject: &Reject) -> Result<(), StreamEnd> {
        let reason: String = reject.to_string().chars().take(200).collect();
        tracing::warn!(revision, reason, "rejected; the table stays as it was");
        self.loading = None;
        self.needs_snapshot = true;
        self.status.update(|s| s.rejected += 1);
        self.send(ToReplica::Nack(wire::Nack { revision, reason }))
    }

    fn renew(&mut self) -> Result<(), StreamEnd> {
        self.nonce += 1;
        if self.renews_sent.len() == MAX_ASKED {
            self.renews_sent.pop_front();
        }
        // Before it is sent: from here on the lease counts.
        self.renews_sent.push_back((self.nonce, BootInstant::now()));
        let (tokens, applied_revision) = (self.table.len() as u64, self.table.revision());
        let spooled = self.spool.as_ref().map_or(0, |spool| spool.state().export_backlog);
        let audit_queue = self.audit.as_ref().map_or(0, |queue| queue.len() as u64) + spooled;
        let (audit_head, audit_kept_from) = self.audit_head();
        let nonce = self.nonce;
        let renew = wire::Renew { nonce, tokens, applied_revision, audit_queue, audit_head, audit_kept_from };
        self.send(ToReplica::Renew(renew))
    }

    /// The end of the chain of audit records, and the first sequence of it that is still here.
    fn audit_head(&self) -> (Option<wire::AuditHead>, u64) {
        let recorder = self.spool.as_ref().map(Spool::recorder);
        let Some(recorder) = recorder.as_deref().and_then(Option::as_ref) else { return (None, 0) };
        // In this order: what is removed in between was acknowledged.
        let head = recorder.head();
        let kept =
            recorder.segments().list().iter().find(|s| s.chain == head.chain).map_or(head.sequence + 1, |s| s.first);
        let (chain, digest) = (head.chain.0.to_vec(), head.digest.0.to_vec());
        (Some(wire::AuditHead { chain, sequence: head.sequence, digest }), kept)
    }

    fn granted(&mut self, grant: &wire::LeaseGrant) {
        let Some(at) = self.renews_sent.iter().position(|(nonce, _)| *nonce == grant.nonce) else { return };
        let sent = self.renews_sent.drain(..=at).next_back().map(|(_, sent)| sent);
        // A lease is useful only to a node that has applied everything up to the lease's revision.
        let (epoch, revision) = (self.table.epoch(), self.table.revision());
        let (held, granted) =
            (Position { epoch: &epoch, revision }, Position { epoch: &grant.epoch, revision: grant.revision });
        let (Some(sent), true) = (sent, !self.needs_snapshot && rules::may_accept_grant(held, granted)) else { return };
        self.compare_clocks(grant.wall_ms, sent);
        let left = Duration::from_millis(grant.ttl_left_ms).min(self.ttl);
        let ends = rules::lease_expiry(sent, left, self.ttl);
        // The replica's barrier is as old as what is missing from a whole lease.
        let age = self.ttl.saturating_sub(left);
        self.progress = LeaseProgress::with(self.progress, ends, age, self.ttl);
        self.table.lease().extend(ends);
        self.table.lease().current_at(sent.minus(age));
    }

    /// Notes the replica's wall clock, and says from time to time that the two differ.
    fn compare_clocks(&mut self, wall_ms: u64, renew_sent_at: BootInstant) {
        let wall = self.table.wall();
        wall.heard(wall_ms, renew_sent_at);
        let (skew, now) = (wall.skew_seconds(), BootInstant::now());
        if skew.abs() > SKEW_ALARM_SECONDS && self.skew_reported.is_none_or(|at| now.since(at) >= SKEW_REPORT_EVERY) {
            self.skew_reported = Some(now);
            tracing::warn!(
                skew_seconds = skew,
                "this machine's wall clock and the control plane's differ: tokens expire by the later of the two; set the clocks"
            );
        }
    }

    /// Stops serving, and only then says that it has. The control plane ends the stream once it has
    /// heard that.
    fn fenced(&mut self, fence: wire::Fence) -> Result<(), StreamEnd> {
        self.table.lease().end();
        self.table.wake_all();
        if fence.revision == 0 {
            return Err(StreamEnd::Fenced(fence.reason));
        }
        self.needs_snapshot = true; // asks for no lease any more, and takes none
        self.send(ToReplica::Ack(wire::Ack { revision: fence.revision, ..Default::default() }))
    }

    fn ack(&self) -> Result<(), StreamEnd> {
        self.mark.note(&self.table.epoch(), self.table.revision());
        let (revision, table_hash) = (self.table.revision(), hash(self.table));
        self.send(ToReplica::Ack(wire::Ack { revision, table_hash }))
    }

    fn send(&self, to_replica: ToReplica) -> Result<(), StreamEnd> {
        self.outbox.try_send(message(to_replica)).map_err(|_| StreamEnd::Closed)
    }
}

/// [`Stream::receive_until_end`] only ever ends for a reason.
enum Never {}

/// Opening the spool reads a disk: the stream doesn't wait for it.
fn use_audit_key(spool: Spool, key: Vec<u8>) {
    tokio::spawn(run_blocking(move || {
        if let Err(error) = spool.use_key(&key) {
            tracing::error!(%error, "audit records cannot be spooled");
        }
    }));
}

/// What the table adds up to; empty when there is none.
fn hash(table: &Table) -> Vec<u8> {
    table.sum().map(TableChecksum::to_bytes).unwrap_or_default()
}

fn message(message: ToReplica) -> NodeMessage {
    NodeMessage { message: Some(message) }
}

fn hello(
    table: &Table,
    mark: &HighWaterMark,
    identity: &Identity,
    config: &SyncConfig,
    recipient: &Recipient,
) -> wire::Hello {
    let seen = mark.seen();
    wire::Hello {
        protocol: PROTOCOL,
        node: identity.node().to_owned(),
        region: config.region.clone(),
        version: VERSION.to_owned(),
        epoch: table.epoch().to_string(),
        applied_revision: table.revision(),
        table_hash: hash(table),
        features: features::ALL
            .iter()
            .chain([&features::DELTAS, &features::BINDING_V1])
            .chain(features::OF_RECORDS)
            .map(|&f| f.to_owned())
            .collect(),
        session_key: recipient.public_key().to_vec(),
        was_current: table.lease().was_current(),
        instance: identity.instance().to_vec(),
        seen_epoch: seen.epoch,
        seen_revision: seen.revision,
    }
}
