//! What a session sends next: deltas before chunks, chunks before grants.

use std::{future::pending, sync::Arc};

use futures_util::future::BoxFuture;
use seks_lease::{BootInstant, rules};
use seks_proto::wire::{self, replica_message::Message as ToNode};
use seks_runtime::blocking;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::{End, Session, Shared};
use crate::{
    changefeed::{
        change::{Body, Credential, Item},
        checksum::Sums,
        log::FeedDelta,
        scope::Scope,
        snapshot::{Packer, Snapshot},
    },
    clock::{millis, unix_now_millis},
    fleet::read_barrier::{Barrier, ttl_left},
    store::Revision,
};

/// Most that one message of several deltas holds, in bytes: what comes next waits behind no more than that.
const DELTAS_BYTES: usize = seks_protocol::CHUNK_BYTES;

/// A snapshot on its way.
pub(super) enum Loading {
    /// Waiting for a place among those that load, and for the encoding.
    Preparing(BoxFuture<'static, Loaded>),
    /// Being sent.
    Sending(Box<Loaded>),
}

impl Loading {
    /// For `scope`, not older than `at_least`.
    pub(super) fn new(shared: &Arc<Shared>, scope: Scope, at_least: Revision) -> Self {
        let shared = shared.clone();
        Self::Preparing(Box::pin(async move {
            let Ok(place) = shared.limits.snapshots.clone().acquire_owned().await else { return pending().await };
            let (snapshots, feed) = (shared.changes.snapshots.clone(), shared.changes.log.clone());
            let taken =
                blocking(move || snapshots.get(&scope, |revision| revision >= at_least && feed.reaches(revision)))
                    .await;
            match taken {
                Ok(snapshot) => Loaded { hash: snapshot.hash.clone(), snapshot, next: 0, begun: false, _place: place },
                Err(_) => pending().await, // the runtime is shutting down
            }
        }))
    }
}

/// How far a snapshot has been sent.
pub(super) struct Loaded {
    snapshot: Arc<Snapshot>,
    begun: bool,
    next: usize,
    hash: Sha256,
    _place: OwnedSemaphorePermit,
}

impl Loaded {
    pub(super) fn revision(&self) -> Revision {
        self.snapshot.revision
    }

    pub(super) fn sums(&self) -> &Sums {
        &self.snapshot.sums
    }
}

/// Ready when a snapshot that is being prepared is; never otherwise.
pub(super) async fn prepared(loading: &mut Option<Loading>) -> Loaded {
    match loading {
        Some(Loading::Preparing(ready)) => ready.await,
        _ => pending().await,
    }
}

/// What could be sent now.
pub(super) enum Pending {
    Nothing,
    Begin,
    Delta(Arc<FeedDelta>),
    Chunk,
    /// Revisions that meant nothing to nodes; said only in front of a grant that names them.
    Advance(Revision),
    Grant(u64, Barrier),
}

impl Session {
    pub(super) fn pending(&self) -> Result<Pending, End> {
        match &self.loading {
            Some(Loading::Preparing(_)) => return Ok(Pending::Nothing),
            Some(Loading::Sending(loaded)) if !loaded.begun => return Ok(Pending::Begin),
            _ => {}
        }
        // Before the look for a delta: what is up to `head` is found by it.
        let head = self.shared.changes.log.head();
        let delta = self.shared.changes.log.next(self.sent).map_err(|_| End::Behind)?;
        match delta {
            Some(delta) if self.loading.is_none() || !self.chunk_is_due => return Ok(Pending::Delta(delta)),
            _ if self.loading.is_some() => return Ok(Pending::Chunk),
            _ => {}
        }
        let (Some(nonce), Some(barrier)) = (self.renew, self.shared.fleet.barriers.latest()) else {
            return Ok(Pending::Nothing);
        };
        let ttl = self.shared.lease;
        // Below half of it another barrier is due any moment; unless the store is gone, and then a short lease is of little use.
        let fresh = ttl_left(barrier, ttl) >= ttl / 2;
        let known = self.shared.fleet.leases.may_grant(&self.node, ttl, barrier.revision);
        Ok(match () {
            () if !fresh || !known || !rules::may_root(self.root_after, barrier.at) => Pending::Nothing,
            () if head < barrier.revision => Pending::Nothing,
            () if self.sent < head => Pending::Advance(head),
            () => Pending::Grant(nonce, barrier),
        })
    }

    /// The message for `pending`, which is sent for certain: the session's place moves with it.
    pub(super) fn make(&mut self, pending: Pending) -> ToNode {
        match pending {
            Pending::Delta(first) => self.deltas(&first),
            Pending::Advance(head) => ToNode::Delta(self.delta(head, Vec::new())),
            Pending::Grant(nonce, barrier) => self.grant(nonce, barrier),
            Pending::Begin | Pending::Chunk | Pending::Nothing => self.load(),
        }
    }

    /// `first`, and what has piled up behind it.
    fn deltas(&mut self, first: &FeedDelta) -> ToNode {
        self.chunk_is_due = true;
        let room = DELTAS_BYTES.saturating_sub(first.items.iter().map(Item::size).sum());
        let more = if self.takes_deltas { self.shared.changes.log.after(first.revision, room) } else { Vec::new() };
        let first = self.seal(first);
        if more.is_empty() {
            return ToNode::Delta(first);
        }
        let deltas = std::iter::once(first).chain(more.iter().map(|delta| self.seal(delta))).collect();
        ToNode::Deltas(wire::Deltas { deltas })
    }

    /// The next delta, for this stream.
    fn seal(&mut self, delta: &FeedDelta) -> wire::Delta {
        let needed = delta.items.iter().filter(|item| self.check.scope().holds(&item.tenant));
        let changes = needed.map(|item| match &item.body {
            Body::Plain { change, .. } => change.clone(),
            Body::Credential(c) if self.check.withholds(c) => c.withheld(),
            Body::Credential(c) => self.seal_credential(c),
        });
        let changes = changes.collect();
        self.check.send(delta);
        self.delta(delta.revision, changes)
    }

    fn seal_credential(&self, credential: &Credential) -> bytes::Bytes {
        credential.seal_to(self.epochs(), &self.shared.sealer, &self.key, self.check.checks_binding())
    }

    fn delta(&mut self, revision: Revision, changes: Vec<bytes::Bytes>) -> wire::Delta {
        let previous = std::mem::replace(&mut self.sent, revision);
        wire::Delta { epoch: self.epoch(), previous, revision, changes }
    }

    fn grant(&mut self, nonce: u64, barrier: Barrier) -> ToNode {
        (self.renew, self.root_after) = (None, None);
        let ttl = self.shared.lease;
        // By this replica's clock and any that we trust, nothing that comes of this grant outlives it.
        let speaks = self.shared.fleet.leases.grant(&self.node, self.stream, rules::grant_ends(barrier.at, ttl));
        let left = if speaks { ttl_left(barrier, ttl) } else { std::time::Duration::ZERO };
        debug_assert!(BootInstant::now() >= barrier.at);
        let (epoch, wall_ms) = (self.epoch(), unix_now_millis());
        ToNode::Grant(wire::LeaseGrant { nonce, epoch, revision: self.sent, ttl_left_ms: millis(left), wall_ms })
    }

    /// The next part of the snapshot.
    fn load(&mut self) -> ToNode {
        self.chunk_is_due = false;
        let epoch = self.epoch();
        let Some(Loading::Sending(loaded)) = &mut self.loading else {
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
                if let Some(Loading::Sending(loaded)) = &mut self.loading {
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
            packer.add(&match self.check.withholds(credential) {
                true => credential.withheld(),
                false => self.seal_credential(credential),
            });
        }
        // Grouped by an upper bound of the size: it is one chunk.
        packer.finish().into_iter().next().unwrap_or_default()
    }
}
