//! One watch over the whole prefix that survives everything but compaction.
//!
//! Where it resumes is the revision of the last *event* (or of a periodic progress note). The revision in a message's header is
//! not that: while etcd lets a watcher catch up, the header is already at the store's head and more events follow.

use std::collections::VecDeque;

use etcd_client::{Event, WatchOptions, WatchResponse, WatchStream};
use futures_util::stream::{self, Stream};

use super::{
    failure::Failure,
    link::{self, Link, Patience},
    revision, stamp,
};
use crate::store::{Revision, WatchEvent, Write};

/// Every change after `after`.
pub(super) fn watch(link: Link, after: Revision) -> impl Stream<Item = WatchEvent> + Send + 'static {
    let state =
        Watch { link, after, stream: None, ready: VecDeque::new(), ended: false, patience: Patience::endless() };
    stream::unfold(state, Watch::next)
}

struct Watch {
    link: Link,
    after: Revision,
    stream: Option<WatchStream>,
    ready: VecDeque<WatchEvent>,
    ended: bool,
    patience: Patience,
}

impl Watch {
    async fn next(mut self) -> Option<(WatchEvent, Self)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some((event, self));
            }
            if self.ended {
                return None;
            }
            match self.stream.as_mut() {
                None => self.connect().await,
                Some(stream) => match stream.message().await {
                    Ok(Some(message)) => self.take(&message),
                    Ok(None) => self.lost("the stream ended").await,
                    Err(error) => match Failure::of(error) {
                        Failure::Compacted => self.compacted(),
                        failure => self.lost(&format!("{failure:?}")).await,
                    },
                },
            }
        }
    }

    async fn connect(&mut self) {
        // From `after` itself, whose events are dropped again: a watch that starts at the very revision of a compaction is
        // accepted by etcd, although some versions have thrown that revision's deletes away.
        let start = i64::try_from(self.after.max(1)).unwrap_or(i64::MAX);
        let options = WatchOptions::new().with_prefix().with_start_revision(start).with_progress_notify();
        let (prefix, options) = (&self.link.prefix, &options);
        let opened = self
            .link
            .once(|client| async move { link::watcher(&client).watch(prefix.as_bytes(), Some(options.clone())).await });
        match opened.await {
            Ok(stream) => self.stream = Some(stream),
            Err(failure) => {
                tracing::warn!(?failure, "cannot watch the store");
                self.patience.wait().await;
            }
        }
    }

    /// The next endpoint takes over.
    async fn lost(&mut self, reason: &str) {
        tracing::info!(reason, after = self.after, "the watch was cut and is opened again");
        self.stream = None;
        self.link.leave(self.link.at.load(std::sync::atomic::Ordering::Relaxed));
        self.patience.wait().await;
    }

    fn compacted(&mut self) {
        self.stream = None;
        self.ended = true;
        self.ready.push_back(WatchEvent::Compacted);
    }

    fn take(&mut self, message: &WatchResponse) {
        if message.canceled() {
            if message.compact_revision() > 0 {
                self.compacted();
            } else {
                tracing::info!(reason = message.cancel_reason(), "etcd ended the watch");
                self.stream = None;
            }
            return;
        }
        self.patience.reset();
        if !message.events().is_empty() {
            self.events(message.events());
        } else if !message.created()
            && let Some(header) = message.header()
            && revision(header.revision()) > self.after
        {
            self.after = revision(header.revision());
            self.ready.push_back(WatchEvent::Progress(self.after));
        }
    }

    /// Without fragments, which we don't ask for, a revision is never split over messages.
    fn events(&mut self, events: &[Event]) {
        let same = |a: &Event, b: &Event| at(a) == at(b);
        for group in events.chunk_by(same) {
            let revision = group.first().map_or(0, at);
            if revision <= self.after {
                continue;
            }
            let mut changes: Vec<Write> = group.iter().filter_map(|event| self.change(event)).collect();
            changes.sort_by_key(|change| match change {
                Write::Put(key, _) | Write::Delete(key) => key.to_string(),
            });
            self.after = revision;
            self.ready.push_back(match changes.is_empty() {
                true => WatchEvent::Progress(revision),
                false => WatchEvent::Changes { revision, changes },
            });
        }
    }

    fn change(&self, event: &Event) -> Option<Write> {
        let kv = event.kv()?;
        let key = self.link.parse(kv.key())?;
        if kv.version() == 0 {
            return Some(Write::Delete(key)); // `event_type()` would panic on a kind that it doesn't know
        }
        let value = stamp::strip(kv.value().to_vec().into());
        if value.is_none() {
            tracing::error!(?key, "the store holds a value that is not ours");
        }
        value.map(|value| Write::Put(key, value))
    }
}

fn at(event: &Event) -> Revision {
    event.kv().map_or(0, |kv| revision(kv.mod_revision()))
}
