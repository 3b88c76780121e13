//! A store of an earlier version: its records are framed one batch after the other, and then none
//! without a frame counts any more.

use std::sync::atomic::Ordering::Relaxed;

use super::Inner;
use crate::{
    seal::SealError,
    store::{Key, Record, Revision, StoreError, Transaction, Write, has_frame, is_framed, key::prefix},
};

/// Records in one transaction.
const BATCH: usize = 64;
/// Bytes in one transaction, unless one record is larger.
const BATCH_BYTES: usize = 512 * 1024;

impl Inner {
    pub(super) async fn upgrade(&self) -> Result<usize, SealError> {
        let mut framed = 0;
        while !self.complete.load(Relaxed) {
            let (records, revision) = self.store.list(prefix::ALL).await?;
            let bare: Vec<Record> = records.into_iter().filter(|r| has_frame(&r.key) && !is_framed(&r.value)).collect();
            if bare.is_empty() {
                self.finish(revision).await?;
                continue;
            }
            for batch in batches(&bare) {
                framed += self.frame_batch(batch).await?;
            }
        }
        Ok(framed)
    }

    /// All of a batch; nothing when one of its records has changed meanwhile: the next pass sees
    /// what is left.
    async fn frame_batch(&self, batch: &[Record]) -> Result<usize, StoreError> {
        let base = self.base().await?;
        let checks: Vec<(Key, Revision)> = batch.iter().map(|record| (record.key.clone(), record.modified)).collect();
        let put = |record: &Record| Write::Put(record.key.clone(), self.framer.frame(&record.key, base, &record.value));
        match self.store.commit(Transaction { checks, writes: batch.iter().map(put).collect() }).await {
            Ok(revision) => {
                self.known.fetch_max(revision, Relaxed);
                Ok(batch.len())
            }
            Err(StoreError::Conflict) if batch.len() > 1 => {
                let mut framed = 0;
                for one in batch {
                    framed += Box::pin(self.frame_batch(std::slice::from_ref(one))).await?;
                }
                Ok(framed)
            }
            Err(StoreError::Conflict) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Says, under seal, that every record has a frame since `since`.
    async fn finish(&self, since: Revision) -> Result<(), SealError> {
        let store_id = self.store.store_id();
        let at = |record: Option<Record>| record.map_or(0, |record| record.modified);
        let checks = vec![
            (Key::RecordKey, at(self.store.get(&Key::RecordKey).await?)),
            (Key::Canary, at(self.store.get(&Key::Canary).await?)),
        ];
        let writes = vec![
            Write::Put(Key::RecordKey, self.key.seal(&self.sealer, store_id, Some(since)).await?),
            Write::Put(Key::Canary, self.sealer.canary(store_id, true).await?),
        ];
        match self.store.commit(Transaction { checks, writes }).await {
            Ok(revision) => {
                self.known.fetch_max(revision, Relaxed);
                self.completed(since);
                Ok(())
            }
            Err(StoreError::Conflict) => Ok(()), // another replica does the same
            Err(error) => Err(error.into()),
        }
    }

    /// From here on only framed records verify.
    pub(super) fn completed(&self, since: Revision) {
        self.since.fetch_max(since, Relaxed);
        self.complete.store(true, Relaxed);
    }
}

fn batches(records: &[Record]) -> Vec<&[Record]> {
    let (mut batches, mut rest) = (Vec::new(), records);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |record: &&Record| {
            bytes += record.value.len();
            bytes <= BATCH_BYTES
        };
        let length = rest.iter().take(BATCH).take_while(fits).count().max(1);
        let (batch, left) = rest.split_at(length);
        batches.push(batch);
        rest = left;
    }
    batches
}
