//! What the members of etcd agree on.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};
use seks_control_plane::store::{Key, Record, Revision, StoreError, Transaction, Write};
use tokio::sync::watch;

use super::{Defect, Value};
use crate::network::HostId;

type Records = BTreeMap<String, (Key, Value)>;

/// Everything that was committed.
#[derive(Clone, Default)]
pub(crate) struct Contents {
    records: Records,
    /// The records as they stood when history was compacted: what the log leads on from.
    base: Records,
    log: Vec<(Revision, Vec<Write>)>,
    pub(crate) revision: Revision,
    pub(crate) compacted: Revision,
}

impl Contents {
    fn record((key, (value, modified)): &(Key, Value)) -> Record {
        Record { key: key.clone(), value: value.clone(), modified: *modified }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Record> {
        self.records.get(&key.to_string()).map(Self::record)
    }

    pub(crate) fn list(&self, prefix: &str) -> (Vec<Record>, Revision) {
        (Self::below(&self.records, prefix), self.revision)
    }

    /// As it stood at `revision`; `None` when that is forgotten.
    pub(crate) fn list_at(&self, prefix: &str, revision: Revision) -> Option<Vec<Record>> {
        if revision < self.compacted {
            return None;
        }
        let mut records = self.base.clone();
        for (at, changes) in self.log.iter().take_while(|(at, _)| *at <= revision) {
            for change in changes {
                Self::apply(&mut records, change, *at);
            }
        }
        Some(Self::below(&records, prefix))
    }

    fn below(records: &Records, prefix: &str) -> Vec<Record> {
        let all = records.range(prefix.to_owned()..).take_while(|(path, _)| path.starts_with(prefix));
        all.map(|(_, record)| Self::record(record)).collect()
    }

    /// Says whether anything was changed.
    fn apply(records: &mut Records, change: &Write, revision: Revision) -> bool {
        match change {
            Write::Put(key, value) => {
                records.insert(key.to_string(), (key.clone(), (value.clone(), revision)));
                true
            }
            Write::Delete(key) => records.remove(&key.to_string()).is_some(),
        }
    }

    fn commit(&mut self, transaction: Transaction) -> Result<Revision, StoreError> {
        let modified = |key: &Key| self.records.get(&key.to_string()).map_or(0, |(_, (_, modified))| *modified);
        if transaction.checks.iter().any(|(key, expected)| modified(key) != *expected) {
            return Err(StoreError::Conflict);
        }
        let revision = self.revision + 1;
        let mut done = transaction.writes;
        done.retain(|write| Self::apply(&mut self.records, write, revision));
        if !done.is_empty() {
            self.revision = revision;
            self.log.push((revision, done));
        }
        Ok(self.revision)
    }
}

/// The cluster. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cluster(Arc<Inner>);

struct Inner {
    host: HostId,
    state: Mutex<State>,
    moved: watch::Sender<Revision>,
}

struct State {
    contents: Contents,
    up: bool,
    /// Hosts whose watches bring nothing that comes after this revision, until they are begun anew.
    stalled: BTreeMap<HostId, Revision>,
    defect: Option<Defect>,
    skipped: HashSet<Revision>,
    cut_off: BTreeMap<HostId, Revision>,
}

impl Cluster {
    pub(crate) fn new(host: HostId, contents: Contents, defect: Option<Defect>) -> Self {
        let moved = watch::Sender::new(contents.revision);
        let state = State {
            contents,
            up: true,
            stalled: BTreeMap::new(),
            defect,
            skipped: HashSet::new(),
            cut_off: BTreeMap::new(),
        };
        Self(Arc::new(Inner { host, state: Mutex::new(state), moved }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }

    pub(crate) fn host(&self) -> HostId {
        self.0.host
    }

    pub(crate) fn is_up(&self) -> bool {
        self.lock().up
    }

    /// No leader, for a while.
    pub(crate) fn set_up(&self, up: bool) {
        self.lock().up = up;
    }

    /// The watches of `host` bring nothing more.
    pub(crate) fn stall(&self, host: HostId) {
        let mut state = self.lock();
        let revision = state.contents.revision;
        state.stalled.insert(host, revision);
    }

    pub(crate) fn unstall(&self, host: HostId) {
        self.lock().stalled.remove(&host);
    }

    pub(super) fn is_stalled(&self, host: HostId, after: Revision) -> bool {
        self.lock().stalled.get(&host).is_some_and(|at| after >= *at)
    }

    /// History up to the present is forgotten.
    pub(crate) fn compact(&self) {
        let mut state = self.lock();
        state.contents.compacted = state.contents.revision;
        state.contents.base = state.contents.records.clone();
        state.contents.log.clear();
    }

    /// With [`Defect::StaleReads`], what a member says that `host` talks to and that hears nothing
    /// any more.
    pub(super) fn stale_revision(&self, host: HostId) -> Option<Revision> {
        self.lock().cut_off.get(&host).copied()
    }

    /// The member that `host` talks to is cut off from the others, and with [`Defect::StaleReads`]
    /// doesn't know.
    pub(crate) fn cut_off(&self, host: HostId, cut: bool) {
        let mut state = self.lock();
        let revision = state.contents.revision;
        match cut && state.defect == Some(Defect::StaleReads) {
            true => drop(state.cut_off.insert(host, revision)),
            false => drop(state.cut_off.remove(&host)),
        }
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Contents) -> T) -> T {
        read(&self.lock().contents)
    }

    pub(crate) fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        let done = self.lock().contents.commit(transaction);
        if let Ok(revision) = done {
            self.0.moved.send_replace(revision);
        }
        done
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Revision> {
        self.0.moved.subscribe()
    }

    /// The first change after `after`.
    pub(super) fn next_change(&self, after: Revision) -> Option<(Revision, Vec<Write>)> {
        let mut state = self.lock();
        let at = state.contents.log.partition_point(|(revision, _)| *revision <= after);
        let (revision, mut changes) = state.contents.log.get(at)?.clone();
        if state.defect == Some(Defect::WatchLosesDeletes) {
            // Whoever asks first loses it.
            let delete = changes.iter().any(|change| matches!(change, Write::Delete(Key::Token(..))));
            if delete && state.skipped.insert(revision) {
                changes.clear();
            }
        }
        Some((revision, changes))
    }
}
