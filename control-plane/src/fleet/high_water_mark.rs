//! Writes down how far the store has come, outside of it.

use std::{sync::Arc, time::Duration};

use crate::{distribution::Inner, lifetime::Mark};
use tokio::time::timeout;

/// How long the store may take to say its revision when we stop.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// With every barrier that brings something new, for ever. What the last second brought may be missing after a crash.
pub(crate) async fn keep(inner: Arc<Inner>) {
    let Some(file) = inner.config.marks.clone() else { return };
    let (mut barriers, mut written) = (inner.barrier.subscribe(), 0);
    while barriers.changed().await.is_ok() {
        let Some(revision) = barriers.borrow_and_update().map(|barrier| barrier.revision) else { continue };
        if revision <= written {
            continue;
        }
        let (file, mark) = (
            file.clone(),
            Mark {
                lifetime: inner.lifetime.name().to_owned(),
                revision,
                authenticated: inner.store.is_authenticated(),
            },
        );
        match tokio::task::spawn_blocking(move || file.write(&mark)).await {
            Ok(Ok(())) => written = revision,
            Ok(Err(error)) => tracing::error!(%error, "the highest revision can't be written down"),
            Err(_) => {} // the runtime is shutting down
        }
    }
}

/// Once more at the end: what was acknowledged to anybody is in it.
pub(crate) async fn last(inner: &Inner) {
    let Some(file) = inner.config.marks.clone() else { return };
    let Ok(Ok(revision)) = timeout(LAST_LOOK, inner.store.revision()).await else { return };
    if inner.went_back.borrow().is_some() || revision < inner.feed.head() {
        return;
    }
    let mark =
        Mark { lifetime: inner.lifetime.name().to_owned(), revision, authenticated: inner.store.is_authenticated() };
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || file.write(&mark)).await {
        tracing::error!(%error, "the highest revision can't be written down");
    }
}
