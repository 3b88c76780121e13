//! Detects records that were not written by a control plane, and old records that were put back.
//!
//! A tag alone does not say when a value was written, so a writer to the store could put an old
//! value back. Therefore a frame names a *base*: a revision that its writer knew. A record of
//! revision M with base R is fresh if
//!
//! 1. M − R is at most [`WINDOW`];
//! 2. the same key was neither written nor deleted after R and before M.
//!
//! The store assigns M, so a writer through its API cannot choose it. The guard follows the store
//! and remembers the writes of the last `WINDOW` revisions. It starts with the store as it was
//! `WINDOW` revisions ago, if the store still has that history.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::watch, time::timeout};

use crate::store::{Key, Reason, Revision, StoreError};

/// How many revisions a writer may be behind when it commits: the same history that a replica
/// replays when it starts.
pub(super) const WINDOW: Revision = 10_000;
/// Where the history before a record is not known, its base may be this much older than what was
/// last seen of the store: commits that were under way at that moment.
const UNDER_WAY: Revision = 256;
/// How long a read waits for the guard to have seen what was read.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Guard {
    state: Mutex<State>,
    head: watch::Sender<Revision>,
}

#[derive(Default)]
struct State {
    /// The last revision that wrote or deleted a key, of the keys that were in the last [`WINDOW`]
    /// revisions.
    modified: HashMap<Key, Revision>,
    /// The same writes in order, the oldest first. A key that was written several times has several
    /// entries.
    order: VecDeque<(Revision, Key)>,
    /// Records that do not verify, by key and revision; kept for as long as a reader may meet them.
    bad: HashMap<(Key, Revision), Reason>,
    bad_order: VecDeque<(Revision, Key)>,
}

/// A record whose tag was looked at.
pub(super) type Checked = Result<Revision, Reason>;

impl Guard {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), head: watch::Sender::new(0) }
    }

    /// Restarts with the store as it was at `revision`. Earlier writes are unknown. `seen` is the
    /// highest revision that is known outside of the store; 0 if none is. Returns the records that
    /// fail verification.
    pub(super) fn reset(
        &self,
        revision: Revision,
        records: impl IntoIterator<Item = (Key, Revision, Checked)>,
        seen: Revision,
    ) -> Vec<(Key, Revision, Reason)> {
        let mut state = self.lock();
        *state = State::default();
        let mut found = Vec::new();
        for (key, modified, checked) in records {
            let put_back = |base: Revision| modified > seen && base.saturating_add(UNDER_WAY) < seen;
            let checked = checked.and_then(|base| if put_back(base) { Err(Reason::Replayed) } else { Ok(base) });
            let checked = checked.and_then(|base| fits(base, modified));
            state.note(key.clone(), modified);
            if let Err(reason) = checked {
                state.condemn(key.clone(), modified, reason);
                found.push((key, modified, reason));
            }
        }
        state.forget_before(revision);
        drop(state);
        self.head.send_replace(revision);
        found
    }

    /// Takes in what `revision` did; a deletion has nothing to check. Returns what does not verify.
    pub(super) fn take(
        &self,
        revision: Revision,
        changes: impl IntoIterator<Item = (Key, Option<Checked>)>,
    ) -> Vec<(Key, Revision, Reason)> {
        let mut state = self.lock();
        let mut found = Vec::new();
        for (key, checked) in changes {
            let before = state.modified.get(&key).copied().unwrap_or_default();
            let verdict = checked.map(|checked| {
                let base = fits(checked?, revision)?;
                if base < before { Err(Reason::Replayed) } else { Ok(()) }
            });
            state.note(key.clone(), revision);
            if let Some(Err(reason)) = verdict {
                state.condemn(key.clone(), revision, reason);
                found.push((key, revision, reason));
            }
        }
        state.forget_before(revision);
        drop(state);
        self.head.send_if_modified(|head| {
            let moved = *head < revision;
            *head = revision.max(*head);
            moved
        });
        found
    }

    /// Nothing of ours happened up to `revision`.
    pub(super) fn advance(&self, revision: Revision) {
        self.take(revision, []);
    }

    /// Waits until everything up to `revision` was looked at.
    pub(super) async fn reached(&self, revision: Revision) -> Result<(), StoreError> {
        if *self.head.borrow() >= revision {
            return Ok(());
        }
        let mut head = self.head.subscribe();
        match timeout(PATIENCE, head.wait_for(|head| *head >= revision)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StoreError::Unavailable(format!("its watch has not brought revision {revision} yet"))),
        }
    }

    pub(super) fn head(&self) -> Revision {
        *self.head.borrow()
    }

    /// Whether the record that `revision` wrote at `key` does not verify.
    pub(super) fn is_bad(&self, key: &Key, revision: Revision) -> bool {
        let state = self.lock();
        !state.bad.is_empty() && state.bad.contains_key(&(key.clone(), revision))
    }

    /// The revision of the record at `key`, if it is there and does not verify.
    pub(super) fn bad_at(&self, key: &Key) -> Option<Revision> {
        let state = self.lock();
        let last = state.bad.keys().filter(|(bad, _)| bad == key).map(|(_, revision)| *revision).max()?;
        (state.modified.get(key).copied().unwrap_or_default() <= last).then_some(last)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn note(&mut self, key: Key, revision: Revision) {
        self.order.push_back((revision, key.clone()));
        self.modified.insert(key, revision);
    }

    fn condemn(&mut self, key: Key, revision: Revision, reason: Reason) {
        self.bad.insert((key.clone(), revision), reason);
        self.bad_order.push_back((revision, key));
    }

    /// Bounds what is remembered, once the store is at `head`.
    fn forget_before(&mut self, head: Revision) {
        let oldest = head.saturating_sub(WINDOW);
        while let Some((revision, key)) = self.order.pop_front_if(|(revision, _)| *revision < oldest) {
            if self.modified.get(&key) == Some(&revision) && !self.bad.contains_key(&(key.clone(), revision)) {
                self.modified.remove(&key);
            }
        }
        // Readers of history go back as far; what is still there stays known.
        let oldest = oldest.saturating_sub(WINDOW);
        while let Some((revision, key)) = self.bad_order.pop_front_if(|(revision, _)| *revision < oldest) {
            if self.modified.get(&key) == Some(&revision) {
                self.bad_order.push_front((revision, key));
                return;
            }
            self.bad.remove(&(key, revision));
        }
    }
}

/// Whether a base is one that the writer of `revision` can have known.
fn fits(base: Revision, revision: Revision) -> Checked {
    if base < revision && revision - base <= WINDOW { Ok(base) } else { Err(Reason::Stale) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::Agent("acme".parse().unwrap(), name.parse().unwrap())
    }

    fn put(guard: &Guard, revision: Revision, name: &str, base: Revision) -> Option<Reason> {
        guard.take(revision, [(key(name), Some(Ok(base)))]).first().map(|(_, _, reason)| *reason)
    }

    fn delete(guard: &Guard, revision: Revision, name: &str) {
        guard.take(revision, [(key(name), None)]);
    }

    #[test]
    fn what_was_deleted_or_replaced_is_not_put_back() {
        let guard = Guard::new();
        guard.reset(10, [], 0);
        assert_eq!(put(&guard, 11, "a", 10), None);
        assert_eq!(put(&guard, 12, "a", 11), None);
        assert_eq!(put(&guard, 13, "a", 10), Some(Reason::Replayed), "the first value again");
        assert!(guard.is_bad(&key("a"), 13) && !guard.is_bad(&key("a"), 12));
        assert_eq!(guard.bad_at(&key("a")), Some(13));
        delete(&guard, 14, "a");
        assert_eq!(guard.bad_at(&key("a")), None);
        assert_eq!(put(&guard, 15, "a", 11), Some(Reason::Replayed), "the deleted one again");
        assert_eq!(put(&guard, 16, "a", 15), None, "a creation after all that");
        assert_eq!(put(&guard, 17, "b", 12), None, "another key, by a writer that was behind");
    }

    #[test]
    fn a_base_is_neither_old_nor_of_the_future() {
        let guard = Guard::new();
        guard.reset(10, [], 0);
        assert_eq!(put(&guard, WINDOW + 11, "a", 10), Some(Reason::Stale));
        assert_eq!(put(&guard, WINDOW + 12, "a", WINDOW + 12), Some(Reason::Stale));
        assert_eq!(put(&guard, WINDOW + 13, "a", WINDOW + 99), Some(Reason::Stale));
        assert_eq!(put(&guard, WINDOW + 20, "c", 20), None);
    }

    #[test]
    fn what_is_there_at_the_start_counts_as_last_written() {
        let guard = Guard::new();
        let found = guard.reset(100, [(key("a"), 90, Ok(89)), (key("b"), 95, Err(Reason::Forged))], 0);
        assert_eq!(found, [(key("b"), 95, Reason::Forged)]);
        assert_eq!(put(&guard, 101, "a", 89), Some(Reason::Replayed));
        assert_eq!(guard.bad_at(&key("b")), Some(95));
    }

    #[test]
    fn without_history_what_was_seen_outside_of_the_store_tells() {
        let guard = Guard::new();
        let found = guard.reset(
            9_000,
            [(key("old"), 400, Ok(399)), (key("back"), 6_000, Ok(399)), (key("new"), 6_001, Ok(6_000))],
            5_000,
        );
        assert_eq!(found, [(key("back"), 6_000, Reason::Replayed)]);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_bad_stays_so() {
        let guard = Guard::new();
        guard.reset(10, [(key("bad"), 5, Err(Reason::Unframed))], 0);
        for n in 0..3 * WINDOW {
            put(&guard, 11 + n, &format!("a-{}", n % 20_000), 10 + n);
        }
        let state = guard.lock();
        assert!(state.modified.len() <= WINDOW as usize + 2 && state.order.len() <= WINDOW as usize + 2);
        drop(state);
        assert!(guard.is_bad(&key("bad"), 5));
        delete(&guard, 40_000, "bad");
        guard.advance(80_000);
        assert!(!guard.is_bad(&key("bad"), 5) && guard.lock().bad.is_empty());
    }
}
