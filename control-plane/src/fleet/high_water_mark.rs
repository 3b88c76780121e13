//! Writes down how far the store has come, outside of it.

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

/// What writes the mark of one store into one file.
pub(crate) struct HighWaterMarkWriter {
    pub(crate) file: HighWaterMarkFile,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) epoch: Epoch,
    pub(crate) barriers: ReadBarriers,
    pub(crate) log: Arc<ChangeLog>,
}

impl HighWaterMarkWriter {
    /// With every barrier that brings something new, for ever. What the last second brought may be missing after a crash.
    pub(crate) async fn write_forever(self: Arc<Self>) {
        let (mut barriers, mut written) = (self.barriers.subscribe(), 0);
        while barriers.changed().await.is_ok() {
            let Some(revision) = barriers.borrow_and_update().map(|barrier| barrier.revision) else { continue };
            if revision > written && self.write_mark(revision).await {
                written = revision;
            }
        }
    }

    /// Once more at the end: what was acknowledged to anybody is in it.
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
