//! Copies admin changes from the store to this replica's archive, so that the store may give up old
//! ones.

use std::{sync::Arc, time::Duration};

use seks_audit::admin::archive::ArchiveError;
use tokio_util::sync::CancellationToken;

use crate::{
    registry::{Registry, RegistryError, admin_archive::BATCH},
    store::key::AdminChainName,
    trail::Trail,
};

/// How often it is looked for changes. An editor that makes a thousand a second has made less by
/// then than may wait.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often what is too old is removed.
const RETAIN_EVERY: Duration = Duration::from_secs(600);

/// Why changes stay in the store.
#[derive(Debug, thiserror::Error)]
enum ArchivingError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Reported where it happened.
    #[error("the archive has panicked")]
    Panicked,
}

/// Archives the changes of every chain.
pub(super) struct Archiver {
    pub(super) trail: Trail,
    pub(super) registry: Arc<Registry>,
    pub(super) replica: String,
}

impl Archiver {
    /// Archives until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        let (mut is_failing, mut retained) = (false, None::<tokio::time::Instant>);
        loop {
            let is_due = retained.is_none_or(|at| at.elapsed() >= RETAIN_EVERY);
            let done = match self.archive_all().await {
                Ok(()) if is_due => {
                    retained = Some(tokio::time::Instant::now());
                    self.retain().await
                }
                done => done,
            };
            match done {
                Ok(()) => is_failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::error!(%error, "admin changes cannot be archived: they stay in the store");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn archive_all(&self) -> Result<(), ArchivingError> {
        // The fleet's first: by it others know that changes are archived.
        self.place(&AdminChainName::Fleet).await?;
        for (chain, head) in self.registry.admin_heads().await? {
            self.archive(&chain, head.sequence).await?;
        }
        Ok(())
    }

    /// The last change that the archive has, and the oldest that the store has.
    async fn place(&self, chain: &AdminChainName) -> Result<(u64, u64), ArchivingError> {
        let known = self.registry.admin_archive(chain).await?;
        let known = known.and_then(|archive| Some((archive.holder(&self.replica)?.last, archive.kept_from)));
        Ok(match known {
            Some(known) => known,
            None => self.registry.begin_admin_archive(chain, &self.replica).await.map(|own| (own.last, own.first))?,
        })
    }

    /// Archives the changes of a chain up to `last`, unless there are few: each note of it in the
    /// store is a revision, from whose last 10,000 nodes resume.
    async fn archive(&self, chain: &AdminChainName, last: u64) -> Result<(), ArchivingError> {
        if last < BATCH {
            return Ok(());
        }
        let (have, kept_from) = self.place(chain).await?;
        // What others have archived and removed meanwhile is theirs.
        let mut after = have.max(kept_from.saturating_sub(1));
        if last.saturating_sub(after) < BATCH {
            return Ok(());
        }
        while after < last {
            let changes = self.registry.admin_changes_after(chain, after, last).await?;
            let end = last.min(after + BATCH);
            let archive = self.trail.archive().clone();
            let written = tokio::task::spawn_blocking(move || archive.append(&changes)).await;
            written.map_err(|_| ArchivingError::Panicked)??;
            self.registry.note_admin_archive(chain, &self.replica, end).await?;
            after = end;
        }
        Ok(())
    }

    /// Removes what is too old, once the store says so.
    async fn retain(&self) -> Result<(), ArchivingError> {
        let expired = self.trail.archive().expired();
        for (chain, last) in &expired.lasts {
            let Ok(chain) = chain.parse() else { continue };
            self.registry.note_admin_retention(&chain, &self.replica, *last).await?;
        }
        let archive = self.trail.archive().clone();
        let removed = tokio::task::spawn_blocking(move || archive.remove(&expired)).await;
        Ok(removed.map_err(|_| ArchivingError::Panicked)??)
    }
}
