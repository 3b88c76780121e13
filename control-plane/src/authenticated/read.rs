//! Reading: what the guard learns, and what readers get.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use futures_util::StreamExt as _;

use super::{
    Inner,
    guard::{Checked, Guard, WINDOW},
    key_of,
};
use crate::store::{
    Key, Reason, Record, Revision, StoreError, WatchEvent, Write, has_frame, is_framed, key::prefix, strip,
};

/// The step by which the requested history is reduced if the store does not have that much.
const LESS: [Revision; 4] = [1, 4, 16, 64];
/// Pause before a store that can't be listed is listed again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(500);

impl Inner {
    /// Looks at every record: as they were [`WINDOW`] revisions ago where that is kept, and at what
    /// happened since then. Returns how far that led.
    pub(super) async fn begin(&self) -> Result<Revision, StoreError> {
        let head = self.store.revision().await?;
        self.known.fetch_max(head, Relaxed);
        let (records, from) = match self.past(head).await? {
            Some(past) => past,
            None => self.store.list(prefix::ALL).await?,
        };
        // Without history the mark tells; with it, the history does.
        let seen = if from < head { 0 } else { self.seen };
        let checked = records.into_iter().filter(|record| has_frame(&record.key)).map(|record| {
            let checked = self.check(&record.key, &record.value, record.modified);
            (record.key, record.modified, checked)
        });
        let mut found = self.guard.reset(from, checked, seen);
        let mut watch = self.store.watch(from);
        while self.guard.head() < head {
            match watch.next().await {
                Some(WatchEvent::Changes { revision, changes }) => found.extend(self.learn(revision, &changes).await),
                Some(WatchEvent::Progress(revision)) => self.guard.advance(revision),
                Some(WatchEvent::Compacted) | None => {
                    let (records, from) = self.store.list(prefix::ALL).await?;
                    let checked = records.into_iter().filter(|record| has_frame(&record.key)).map(|record| {
                        let checked = self.check(&record.key, &record.value, record.modified);
                        (record.key, record.modified, checked)
                    });
                    found = self.guard.reset(from, checked, self.seen);
                    break;
                }
            }
        }
        let reached = self.guard.head();
        self.condemn(found).await;
        Ok(reached)
    }

    /// The records as they were, and when; `None` when nothing of that is kept.
    async fn past(&self, head: Revision) -> Result<Option<(Vec<Record>, Revision)>, StoreError> {
        // Before that records had no frames, or it was another store.
        let born = self.store.get(&Key::StoreId).await?.map_or(0, |record| record.modified);
        let since = self.since.load(Relaxed).max(born);
        for less in LESS {
            let from = head.saturating_sub(WINDOW / less).max(since);
            if from < head
                && let Some(records) = self.store.list_at(prefix::ALL, from).await?
            {
                return Ok(Some((records, from)));
            }
        }
        Ok(None)
    }

    /// For ever.
    pub(super) async fn follow(&self, mut after: Revision) {
        loop {
            let mut watch = self.store.watch(after);
            while let Some(event) = watch.next().await {
                match event {
                    WatchEvent::Changes { revision, changes } => {
                        let found = self.learn(revision, &changes).await;
                        self.condemn(found).await;
                    }
                    WatchEvent::Progress(revision) => self.guard.advance(revision),
                    WatchEvent::Compacted => break,
                }
                after = self.guard.head();
            }
            drop(watch);
            match self.begin().await {
                Ok(reached) => after = reached,
                Err(error) => {
                    tracing::warn!(%error, "the store can't be listed, and so its records not be checked");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Takes in what `revision` did.
    async fn learn(&self, revision: Revision, changes: &[Write]) -> Vec<(Key, Revision, Reason)> {
        if let Some(Write::Put(_, envelope)) = changes.iter().find(|change| *key_of(change) == Key::RecordKey) {
            self.learn_key(envelope).await;
        }
        let framed = changes.iter().filter(|change| has_frame(key_of(change)));
        let checked = framed.map(|change| match change {
            Write::Put(key, value) => (key.clone(), Some(self.check(key, value, revision))),
            Write::Delete(key) => (key.clone(), None),
        });
        let checked: Vec<(Key, Option<Checked>)> = checked.collect();
        self.guard.take(revision, checked)
    }

    /// Another replica has finished the upgrade, or the key-encryption key is rotated.
    async fn learn_key(&self, envelope: &[u8]) {
        match super::key::RecordKey::open(&self.sealer, self.store.store_id(), envelope).await {
            Ok((key, complete)) if key.bytes() == self.key.bytes() => {
                if let (Some(since), false) = (complete, self.complete.load(Relaxed)) {
                    self.completed(since);
                }
            }
            Ok(_) => tracing::error!("the sealed key of the store's records was replaced by another"),
            Err(error) => tracing::error!(%error, "the sealed key of the store's records does not open any more"),
        }
    }

    /// The base of a record whose tag is right. One without a frame passes until the store is
    /// upgraded.
    fn check(&self, key: &Key, value: &[u8], modified: Revision) -> Checked {
        if !is_framed(value) && !self.complete.load(Relaxed) {
            return Ok(modified.saturating_sub(1));
        }
        self.framer.check(key, value)
    }

    /// What readers get of `records`.
    pub(super) async fn admit(&self, records: Vec<Record>) -> Result<Vec<Record>, StoreError> {
        if !self.exclusive {
            let newest = records.iter().filter(|r| has_frame(&r.key)).map(|r| r.modified).max().unwrap_or_default();
            self.guard.reached(newest).await?;
        }
        let complete = self.complete.load(Relaxed);
        let admitted = records.into_iter().filter_map(|mut record| {
            if has_frame(&record.key) {
                if self.guard.is_bad(&record.key, record.modified) {
                    return None;
                }
                record.value = match strip(&record.value) {
                    Some(value) => value,
                    None if complete => return None,
                    None => record.value,
                };
            }
            Some(record)
        });
        Ok(admitted.collect())
    }
}

/// What watchers get of an event: of what does not verify they learn that it was deleted.
pub(super) async fn admit_event(guard: Arc<Guard>, exclusive: bool, event: WatchEvent) -> WatchEvent {
    let WatchEvent::Changes { revision, changes } = event else { return event };
    while !exclusive && guard.reached(revision).await.is_err() {
        tracing::warn!(revision, "the check of the store's records is late");
    }
    let admitted = changes.into_iter().map(|change| match change {
        Write::Put(key, value) if has_frame(&key) => match guard.is_bad(&key, revision) {
            true => Write::Delete(key),
            false => {
                let value = strip(&value).unwrap_or(value);
                Write::Put(key, value)
            }
        },
        other => other,
    });
    WatchEvent::Changes { revision, changes: admitted.collect() }
}
