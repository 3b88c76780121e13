//! Chooses and builds a session's next message: deltas before chunks, chunks before grants.

use std::{future::pending, sync::Arc};

use futures_util::future::BoxFuture;
use seks_lease::{BootInstant, rules};
use seks_proto::wire::{self, replica_message::Message as ToNode};
use seks_runtime::run_blocking;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::{Session, Shared, StreamEnd};
use crate::{
    changefeed::{
        change::{CredentialChange, Payload, TableChange},
        checksum::Checksum,
        log::LogEntry,
        recipient::Recipient,
        snapshot::{Packer, Snapshot},
    },
    clock::{millis, unix_now_millis},
    fleet::read_barrier::{ReadBarrier, ttl_left},
    store::Revision,
};

/// Most that one message of several deltas holds, in bytes: what comes next waits behind no more
/// than that.
const MAX_DELTAS_BYTES: usize = seks_protocol::CHUNK_BYTES;

/// A snapshot on its way.
pub(super) enum SnapshotTransfer {
    /// Waiting for a place among those that load, and for the encoding.
    Preparing(BoxFuture<'static, SnapshotCursor>),
    /// Being sent.
    Sending(Box<SnapshotCursor>),
}

impl SnapshotTransfer {
    /// For `node`, not older than `at_least`.
    pub(super) fn new(shared: &Arc<Shared>, node: Recipient, at_least: Revision) -> Self {
        let shared = shared.clone();
        Self::Preparing(Box::pin(async move {
            let Ok(permit) = shared.limits.snapshots.clone().acquire_owned().await else { return pending().await };
            let (snapshots, feed) = (shared.changes.snapshots.clone(), shared.changes.log.clone());
            let taken = run_blocking(move || {
                snapshots.get_or_build(&node, |revision| revision >= at_least && feed.reaches(revision))
            })
            .await;
            match taken {
                Ok(snapshot) => {
                    SnapshotCursor { hash: snapshot.hash.clone(), snapshot, next: 0, begun: false, _permit: permit }
                }
                Err(_) => pending().await, // the runtime is shutting down
            }
        }))
    }
}

impl SnapshotTransfer {
    /// The credentials of the chunk that is sent next; none: it is another chunk's turn.
    pub(super) fn next_credentials(&self) -> &[CredentialChange] {
        let Self::Sending(cursor) = self else { return &[] };
        let snapshot = &cursor.snapshot;
        let group = cursor.next.checked_sub(snapshot.plain.len()).and_then(|group| snapshot.groups.get(group));
        group.and_then(|range| snapshot.credentials.get(range.clone())).unwrap_or_default()
    }
}

/// How far a snapshot has been sent.
pub(super) struct SnapshotCursor {
    snapshot: Arc<Snapshot>,
    begun: bool,
    next: usize,
    hash: Sha256,
    _permit: OwnedSemaphorePermit,
}

impl SnapshotCursor {
    pub(super) fn revision(&self) -> Revision {
        self.snapshot.revision
    }

    pub(super) fn checksum(&self) -> &Checksum {
        &self.snapshot.checksum
    }
}

/// Ready when a snapshot that is being prepared is; never otherwise.
pub(super) async fn snapshot_prepared(loading: &mut Option<SnapshotTransfer>) -> SnapshotCursor {
    match loading {
        Some(SnapshotTransfer::Preparing(ready)) => ready.await,
        _ => pending().await,
    }
}

/// What could be sent now.
pub(super) enum NextMessage {
    Nothing,
    Begin,
    Delta(Arc<LogEntry>),
    Chunk,
    /// Revisions that meant nothing to nodes; said only in front of a grant that names them.
    Advance(Revision),
    Grant(u64, ReadBarrier),
}

impl Session {
    pub(super) fn next_message(&self) -> Result<NextMessage, StreamEnd> {
        match &self.loading {
            Some(SnapshotTransfer::Preparing(_)) => return Ok(NextMessage::Nothing),
            Some(SnapshotTransfer::Sending(loaded)) if !loaded.begun => return Ok(NextMessage::Begin),
            _ => {}
        }
        // Before the look for a delta: what is up to `head` is found by it.
        let head = self.shared.changes.log.head();
        let delta = self.shared.changes.log.next(self.sent).map_err(|_| StreamEnd::Behind)?;
        match delta {
            Some(delta) if self.loading.is_none() || !self.chunk_is_due => return Ok(NextMessage::Delta(delta)),
            _ if self.loading.is_some() => return Ok(NextMessage::Chunk),
            _ => {}
        }
        let (Some(nonce), Some(barrier)) = (self.renew, self.shared.fleet.barriers.latest()) else {
            return Ok(NextMessage::Nothing);
        };
        let ttl = self.shared.lease;
        // Below half of it another barrier is due any moment; unless the store is gone, and then a
        // short lease is of little use.
        let fresh = ttl_left(barrier, ttl) >= ttl / 2;
        let known = self.shared.fleet.leases.may_grant(&self.node, ttl, barrier.revision);
        Ok(match () {
            () if !fresh || !known || !rules::may_use_barrier(self.root_after, barrier.at) => NextMessage::Nothing,
            () if head < barrier.revision => NextMessage::Nothing,
            () if self.sent < head => NextMessage::Advance(head),
            () => NextMessage::Grant(nonce, barrier),
        })
    }

    /// The message for `pending`, which is sent for certain: the session's position moves with it.
    pub(super) fn build_message(&mut self, pending: NextMessage) -> ToNode {
        match pending {
            NextMessage::Delta(first) => self.deltas(&first),
            NextMessage::Advance(head) => ToNode::Delta(self.delta(head, Vec::new())),
            NextMessage::Grant(nonce, barrier) => self.grant(nonce, barrier),
            NextMessage::Begin | NextMessage::Chunk | NextMessage::Nothing => self.snapshot_message(),
        }
    }

    /// `first`, and what has piled up behind it.
    fn deltas(&mut self, first: &LogEntry) -> ToNode {
        self.chunk_is_due = true;
        let room = MAX_DELTAS_BYTES.saturating_sub(first.changes.iter().map(TableChange::size).sum());
        let mut more = if self.takes_deltas { self.shared.changes.log.after(first.revision, room) } else { Vec::new() };
        more.truncate(more.iter().take_while(|entry| self.has_deks_of(entry)).count());
        let first = self.seal(first);
        if more.is_empty() {
            return ToNode::Delta(first);
        }
        let deltas = std::iter::once(first).chain(more.iter().map(|delta| self.seal(delta))).collect();
        ToNode::Deltas(wire::Deltas { deltas })
    }

    /// The next delta, for this stream.
    fn seal(&mut self, delta: &LogEntry) -> wire::Delta {
        let needed = delta.changes.iter().filter(|item| self.tracker.scope().includes_tenant(&item.tenant));
        let changes = needed.map(|item| match &item.payload {
            Payload::Shared { change, .. } => change.clone(),
            Payload::Requiring { change, requires, .. } if self.tracker.node().can_enforce(requires) => change.clone(),
            Payload::Requiring { withheld, .. } => withheld.clone(),
            Payload::Credential(c) if self.tracker.is_withheld(c) => c.withheld(),
            Payload::Credential(c) => self.seal_credential(c),
        });
        let changes = changes.collect();
        self.tracker.delta_sent(delta);
        self.delta(delta.revision, changes)
    }

    fn seal_credential(&self, credential: &CredentialChange) -> bytes::Bytes {
        credential.seal_to(self.sealing_ids(), &self.shared.sealer, &self.key, self.tracker.node().checks_binding())
    }

    fn delta(&mut self, revision: Revision, changes: Vec<bytes::Bytes>) -> wire::Delta {
        let previous = std::mem::replace(&mut self.sent, revision);
        wire::Delta { epoch: self.epoch(), previous, revision, changes }
    }

    fn grant(&mut self, nonce: u64, barrier: ReadBarrier) -> ToNode {
        (self.renew, self.root_after) = (None, None);
        let ttl = self.shared.lease;
        // By this replica's clock and by any clock within the allowed skew, no effect of this grant
        // outlives the grant.
        let speaks = self.shared.fleet.leases.grant(&self.node, self.stream, rules::grant_expiry(barrier.at, ttl));
        let left = if speaks { ttl_left(barrier, ttl) } else { std::time::Duration::ZERO };
        debug_assert!(BootInstant::now() >= barrier.at);
        let (epoch, wall_ms) = (self.epoch(), unix_now_millis());
        ToNode::Grant(wire::LeaseGrant { nonce, epoch, revision: self.sent, ttl_left_ms: millis(left), wall_ms })
    }

    /// The next part of the snapshot.
    fn snapshot_message(&mut self) -> ToNode {
        self.chunk_is_due = false;
        let epoch = self.epoch();
        let Some(SnapshotTransfer::Sending(loaded)) = &mut self.loading else {
            return ToNode::Fence(wire::Fence { epoch, reason: "out of step".into(), revision: 0 }); // `pending` says otherwise
        };
        let snapshot = loaded.snapshot.clone();
        if !loaded.begun {
            loaded.begun = true;
            let chunks = u32::try_from(snapshot.chunks()).unwrap_or(u32::MAX);
            let (revision, count) = (snapshot.revision, snapshot.count);
            return ToNode::SnapshotBegin(wire::SnapshotBegin { epoch, revision, chunks, count });
        }
        let at = loaded.next;
        if at == snapshot.chunks() {
            let hash = std::mem::take(&mut loaded.hash).finalize().to_vec();
            self.loading = None;
            self.complete = true;
            return ToNode::SnapshotEnd(wire::SnapshotEnd { count: snapshot.count, hash });
        }
        loaded.next += 1;
        let index = u32::try_from(at).unwrap_or(u32::MAX);
        let changes = match snapshot.plain.get(at) {
            Some(chunk) => chunk.clone(),
            None => {
                let chunk = self.seal_group(&snapshot, at - snapshot.plain.len());
                if let Some(SnapshotTransfer::Sending(loaded)) = &mut self.loading {
                    loaded.hash.update(&chunk);
                }
                chunk
            }
        };
        ToNode::Chunk(wire::Chunk { index, changes })
    }

    /// A chunk of credentials, sealed to this stream.
    fn seal_group(&self, snapshot: &Snapshot, group: usize) -> bytes::Bytes {
        let range = snapshot.groups.get(group).cloned().unwrap_or_default();
        let mut packer = Packer::default();
        for credential in snapshot.credentials.get(range).unwrap_or_default() {
            packer.add(&match self.tracker.is_withheld(credential) {
                true => credential.withheld(),
                false => self.seal_credential(credential),
            });
        }
        // Grouped by an upper bound of the size: it is one chunk.
        packer.finish().into_iter().next().unwrap_or_default()
    }
}
