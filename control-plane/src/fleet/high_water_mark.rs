//! Keeps the highest revision seen in a file outside the store, so that a rollback of the store is
//! noticed.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::read_barrier::ReadBarriers;
use crate::{
    changefeed::log::ChangeLog,
    epoch::{Epoch, HighWaterMark, HighWaterMarkFile},
    store::{Revision, Store},
};

/// How long the store may take to say its revision when we stop.
const LAST_READ_LIMIT: Duration = Duration::from_secs(1);

/// Writes the high-water mark of one store.
pub(crate) struct HighWaterMarkWriter {
    pub(crate) file: HighWaterMarkFile,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) epoch: Epoch,
    pub(crate) barriers: ReadBarriers,
    pub(crate) log: Arc<ChangeLog>,
}

impl HighWaterMarkWriter {
    /// Writes with each barrier that has a new revision, until it is dropped. After a crash the
    /// last second may be missing.
    pub(crate) async fn write_forever(self: Arc<Self>) {
        let (mut barriers, mut written) = (self.barriers.subscribe(), 0);
        while barriers.changed().await.is_ok() {
            let Some(revision) = barriers.borrow_and_update().map(|barrier| barrier.revision) else { continue };
            if revision > written && self.write_mark(revision).await {
                written = revision;
            }
        }
    }

    /// Writes once more at shutdown, so that the mark covers everything that was acknowledged.
    pub(crate) async fn write_last(&self) {
        let Ok(Ok(revision)) = timeout(LAST_READ_LIMIT, self.store.revision()).await else { return };
        if !self.barriers.has_gone_back() && revision >= self.log.head() {
            self.write_mark(revision).await;
        }
    }

    async fn write_mark(&self, revision: Revision) -> bool {
        let authenticated = self.store.is_authenticated();
        let mark = HighWaterMark { epoch: self.epoch.name().to_owned(), revision, authenticated };
        let file = self.file.clone();
        match tokio::task::spawn_blocking(move || file.write(&mark)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(%error, "the highest revision can't be written down");
                false
            }
            Err(_) => false, // the runtime is shutting down
        }
    }
}
