//! Snapshots: the whole table, encoded once for all nodes that need it at the same time.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::{Arc, Weak},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use seks_proto::wire;
use seks_protocol::CHUNK_BYTES;
use seks_types::id::{AgentName, CredentialName, PolicyId, TenantName};
use sha2::{Digest as _, Sha256};

use crate::{
    changefeed::{
        change::CredentialChange, checksum::Checksum, compile::MaterializedTable, log::ChangeLog, recipient::Recipient,
        scope::NodeScope,
    },
    store::Revision,
};

/// The table at one revision.
pub(crate) struct Snapshot {
    pub(crate) revision: Revision,
    /// What is the same for all nodes: encoded `Changes`.
    pub(crate) plain: Vec<Bytes>,
    /// Where each chunk of credentials begins and ends: they are sealed for each stream, in these
    /// groups.
    pub(crate) groups: Vec<Range<usize>>,
    pub(crate) credentials: Vec<CredentialChange>,
    /// Records in all.
    pub(crate) count: u64,
    /// Over all of `plain`.
    pub(crate) hash: Sha256,
    /// What its records add up to.
    pub(crate) checksum: Checksum,
}

impl Snapshot {
    fn pack(revision: Revision, checksum: Checksum, changes: &[Bytes], credentials: Vec<CredentialChange>) -> Self {
        let mut packer = Packer::default();
        changes.iter().for_each(|change| packer.add(change));
        let plain = packer.finish();
        let mut hash = Sha256::new();
        plain.iter().for_each(|chunk| hash.update(chunk));
        let count = (changes.len() + credentials.len()) as u64;
        Self { revision, plain, groups: group(&credentials), credentials, count, hash, checksum }
    }

    /// Chunks in all.
    pub(crate) fn chunks(&self) -> usize {
        self.plain.len() + self.groups.len()
    }
}

/// Packs encoded changes into encoded `Changes` of at most [`CHUNK_BYTES`]; a change that is larger
/// gets one of its own.
#[derive(Default)]
pub(crate) struct Packer {
    full: Vec<Bytes>,
    current: BytesMut,
}

impl Packer {
    pub(crate) fn add(&mut self, change: &Bytes) {
        let size = change.len() + 1 + prost::length_delimiter_len(change.len());
        if !self.current.is_empty() && self.current.len() + size > CHUNK_BYTES {
            self.full.push(self.current.split().freeze());
        }
        // Field 1 of `Changes`, length-delimited.
        self.current.put_u8(0x0a);
        let _ = prost::encode_length_delimiter(change.len(), &mut self.current); // a BytesMut grows
        self.current.put_slice(change);
    }

    pub(crate) fn finish(mut self) -> Vec<Bytes> {
        if !self.current.is_empty() {
            self.full.push(self.current.freeze());
        }
        self.full
    }
}

/// Groups that fit a chunk each when sealed.
fn group(credentials: &[CredentialChange]) -> Vec<Range<usize>> {
    let (mut groups, mut start, mut size) = (Vec::new(), 0, 0);
    for (at, credential) in credentials.iter().enumerate() {
        let more = credential.size_bound();
        if at > start && size + more > CHUNK_BYTES {
            groups.push(start..at);
            (start, size) = (at, 0);
        }
        size += more;
    }
    if start < credentials.len() {
        groups.push(start..credentials.len());
    }
    groups
}

/// The nodes that a snapshot is the same for: their scope and, where a record requires something of
/// nodes, what they can do.
#[derive(Clone, PartialEq, Eq, Hash)]
struct SharedBy {
    scope: NodeScope,
    features: Option<Arc<BTreeSet<String>>>,
}

/// The materialised table and the snapshots of it that are being sent, one for each scope.
pub(crate) struct Snapshots {
    table: Mutex<(MaterializedTable, Revision)>,
    /// Shared by the streams that are sending them; each is gone with the last of those. Held while
    /// one is made.
    latest: Mutex<HashMap<SharedBy, Weak<Snapshot>>>,
}

impl Snapshots {
    pub(crate) fn new(table: MaterializedTable, revision: Revision) -> Self {
        Self { table: Mutex::new((table, revision)), latest: Mutex::default() }
    }

    /// Changes the table. `then` runs before a snapshot with the change can be taken.
    pub(crate) fn update<T>(
        &self,
        revision: Revision,
        change: impl FnOnce(&mut MaterializedTable) -> T,
        then: impl FnOnce(T),
    ) {
        let mut table = lock(&self.table);
        let done = change(&mut table.0);
        table.1 = revision;
        then(done);
    }

    /// A snapshot for `node`. An existing snapshot is shared if `usable` says that deltas continue
    /// from it. Creating one takes up to a second for a million tokens, so it must not run on the
    /// runtime's threads. Changes wait only while references are copied.
    pub(crate) fn get_or_build(&self, node: &Recipient, usable: impl Fn(Revision) -> bool) -> Arc<Snapshot> {
        let mut latest = self.latest.lock();
        let mut table = self.table.lock();
        let features = table.0.has_requirements().then(|| node.features().clone());
        let shared_by = SharedBy { scope: node.scope.clone(), features };
        if let Some(latest) = latest.get(&shared_by).and_then(Weak::upgrade).filter(|s| usable(s.revision)) {
            return latest;
        }
        let mut changes = Vec::with_capacity(table.0.tokens() + 64);
        let wanted = |tenant: &TenantName| node.scope.includes_tenant(tenant);
        let can_enforce = |requires: &[String]| node.can_enforce(requires);
        let credentials = table.0.export(wanted, can_enforce, |change| changes.push(change.clone()));
        let (revision, checksum) = (table.1, table.0.checksum(wanted));
        drop(table);
        let snapshot = Arc::new(Snapshot::pack(revision, checksum, &changes, credentials));
        latest.retain(|_, s| s.strong_count() > 0);
        latest.insert(shared_by, Arc::downgrade(&snapshot));
        snapshot
    }

    /// What the records in `scope` added up to at `revision`; `None` when that isn't known any
    /// more.
    pub(crate) fn checksum_at(&self, revision: Revision, scope: &NodeScope, log: &ChangeLog) -> Option<Checksum> {
        // The feed moves under this lock alone: both are of one moment.
        let mut table = lock(&self.table);
        let since = log.checksum_delta_since(revision, |tenant| scope.includes_tenant(tenant))?;
        Some(table.0.checksum(|tenant| scope.includes_tenant(tenant)).minus(&since))
    }

    /// The pools whose nodes are sent a credential; `None`: it doesn't exist, or no token reaches
    /// it.
    pub(crate) fn assigned(&self, tenant: &TenantName, credential: &CredentialName) -> Option<Arc<[String]>> {
        lock(&self.table).0.assigned(tenant, credential)
    }

    /// Whether a tenant has a policy of this id, and this agent.
    pub(crate) fn has_limit(&self, tenant: &TenantName, id: &PolicyId, agent: Option<&AgentName>) -> bool {
        lock(&self.table).0.has_limit(tenant, id, agent)
    }

    /// What a tenant has, and the quotas that are set for it.
    pub(crate) fn usage(&self, tenant: &TenantName) -> Option<(wire::Usage, wire::Quota)> {
        lock(&self.table).0.usage(tenant)
    }

    pub(crate) fn tokens(&self) -> usize {
        lock(&self.table).0.tokens()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use seks_proto::wire;

    use super::*;

    #[test]
    fn chunks_are_within_bounds_and_decode_to_what_was_put_in() {
        let change = |bytes: usize| {
            let tenant = wire::TableTenant { name: "x".repeat(bytes) };
            Bytes::from(wire::Change { change: Some(wire::change::Change::Tenant(tenant)) }.encode_to_vec())
        };
        let sizes = [1, 100, 30_000, 30_000, 10_000, 200_000, 5, CHUNK_BYTES - 20, 1];
        let mut packer = Packer::default();
        sizes.iter().for_each(|bytes| packer.add(&change(*bytes)));
        let chunks = packer.finish();
        let mut read = Vec::new();
        for chunk in &chunks {
            let changes = wire::Changes::decode(chunk.clone()).unwrap().changes;
            assert!(chunk.len() <= CHUNK_BYTES || changes.len() == 1, "{} bytes", chunk.len());
            read.extend(changes.into_iter().map(|c| match c.change {
                Some(wire::change::Change::Tenant(tenant)) => tenant.name.len(),
                _ => 0,
            }));
        }
        assert_eq!(read, sizes);
        assert_eq!(chunks.len(), 5);
    }
}
