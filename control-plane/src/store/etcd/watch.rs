//! One watch over the whole prefix that survives everything but compaction.
//!
//! It resumes at the revision of the last *event* or of a periodic progress note. The revision in a
//! message's header cannot be used: while a watcher catches up, the header already has the store's
//! head, and more events follow.
//!
//! If others share the etcd, its revision grows without events of ours. A watch without events
//! could then not be distinguished from a late one. So a watcher that falls behind writes a
//! *pulse*, a key without a meaning. Its event brings the watcher up to date. (Requesting a
//! progress note is no alternative: before 3.4.25 and 3.5.8 the response can overtake events, etcd
//! issue 15220.)

use std::{collections::VecDeque, time::Duration};

use etcd_client::{Compare, CompareOp, Event, GetOptions, Txn, TxnOp, WatchOptions, WatchResponse, WatchStream};
use futures_util::stream::{self, Stream};
use tokio::time::{Instant, timeout_at};

use super::{
    failure::Failure,
    link::{self, Link, Patience},
    revision, stamp,
};
use crate::store::{Key, Revision, StoreError, WatchEvent, Write, key::PULSE};

/// How long a watch may be behind before it looks whether it is, and again before it pulses.
const LOOK: Duration = Duration::from_millis(250);

/// Every change after `after`.
pub(super) fn watch(link: Link, after: Revision) -> impl Stream<Item = WatchEvent> + Send + 'static {
    let (ready, patience, look) = (VecDeque::new(), Patience::endless(), Instant::now() + LOOK);
    let state = Watch { link, after, stream: None, ready, ended: false, patience, look, behind: None };
    stream::unfold(state, Watch::next)
}

struct Watch {
    link: Link,
    after: Revision,
    stream: Option<WatchStream>,
    ready: VecDeque<WatchEvent>,
    ended: bool,
    patience: Patience,
    /// When to look next.
    look: Instant,
    /// What the store's revision was at the last look, if it was ahead.
    behind: Option<Revision>,
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
                Some(stream) => match timeout_at(self.look, stream.message()).await {
                    Err(_) => self.look().await,
                    Ok(Ok(Some(message))) => self.take(&message),
                    Ok(Ok(None)) => self.lost("the stream ended").await,
                    Ok(Err(error)) => match Failure::of(error) {
                        Failure::Compacted => self.compacted(),
                        failure => self.lost(&format!("{failure:?}")).await,
                    },
                },
            }
        }
    }

    async fn connect(&mut self) {
        // From `after` itself, whose events are dropped again: a watch that starts at the very
        // revision of a compaction is accepted by etcd, although some versions have thrown that
        // revision's deletes away.
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

    /// Pulses when the store is ahead of us and was so at the last look. A failure is noticed by
    /// those who wait for us.
    async fn look(&mut self) {
        let store_id = self.link.path(&Key::StoreId.to_string());
        let options = GetOptions::new().with_keys_only();
        let read = self.link.once(|client| async move { link::kv(&client).get(store_id, Some(options)).await });
        let head = read.await.ok().and_then(|found| found.header().map(|header| revision(header.revision())));
        if self.behind.take().is_some_and(|behind| behind > self.after) {
            if let Err(failure) = pulse(&self.link).await {
                tracing::debug!(?failure, "no pulse");
            }
        } else {
            self.behind = head.filter(|head| *head > self.after);
        }
        self.look = Instant::now() + LOOK;
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
        Some(Write::Put(key, stamp::payload(kv.value().to_vec().into())))
    }
}

/// Writes the pulse. A full store refuses the put, and then a delete is used. Without either,
/// leases would end because other users have filled the etcd.
async fn pulse(link: &Link) -> Result<(), Failure> {
    let key = &link.path(PULSE);
    match link.once(|client| async move { link::kv(&client).put(key.as_str(), [], None).await }).await {
        Err(Failure::Final(StoreError::Full)) => {
            link.once(|client| async move { link::kv(&client).delete(key.as_str(), None).await }).await.map(drop)
        }
        put => put.map(drop),
    }
}

/// Sees to it that there is a pulse to be deleted. In vain where the store is full already, or
/// away: it is tried at every start.
pub(super) async fn lay_by_pulse(link: &Link) {
    let key = link.path(PULSE);
    let absent = Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
    let txn = Txn::new().when([absent]).and_then([TxnOp::put(key.as_str(), [], None)]);
    if let Err(failure) = link.once(|client| async move { link::kv(&client).txn(txn).await }).await {
        tracing::debug!(?failure, "no pulse is laid by");
    }
}

fn at(event: &Event) -> Revision {
    event.kv().map_or(0, |kv| revision(kv.mod_revision()))
}
