//! Watching.

use futures_util::{StreamExt as _, stream::BoxStream};

use super::*;
use crate::store::{MAX_VALUE_BYTES, WatchEvent};

/// The next changes, whatever progress is reported before them.
async fn next(watch: &mut BoxStream<'static, WatchEvent>) -> (Revision, Vec<Write>) {
    in_time("the next change", async {
        loop {
            match watch.next().await {
                Some(WatchEvent::Changes { revision, changes }) => return (revision, changes),
                Some(WatchEvent::Progress(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await
}

pub async fn a_revisions_changes_come_together_and_sorted(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let start = store.revision().await.unwrap();
    let mut watch = store.watch(start);
    let changes = vec![put(Key::Rotation, "r"), put(agent(2), "2"), put(agent(1), "1")];
    let at = store.commit(writes(changes)).await.unwrap();
    // By path: `in/…` before `meta/…`.
    assert_eq!(next(&mut watch).await, (at, vec![put(agent(1), "1"), put(agent(2), "2"), put(Key::Rotation, "r")]));
    let at = store.commit(writes(vec![Write::Delete(agent(2)), put(agent(1), "one")])).await.unwrap();
    assert_eq!(next(&mut watch).await, (at, vec![put(agent(1), "one"), Write::Delete(agent(2))]));
}

pub async fn a_watch_starts_in_the_past(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let mut revisions = vec![store.revision().await.unwrap()];
    for n in 0..10 {
        subject.disturb(&store).await;
        revisions.push(store.commit(writes(vec![put(agent(0), n.to_string())])).await.unwrap());
    }
    for (from, after) in revisions.iter().enumerate().take(10) {
        let mut watch = store.watch(*after);
        for n in from..10 {
            assert_eq!(next(&mut watch).await, (revisions[n + 1], vec![put(agent(0), n.to_string())]));
        }
    }
    // From between two revisions, too: they are sparse wherever others share the store.
    let (last, before) = (revisions[10], revisions[9]);
    assert_eq!(next(&mut store.watch(last - 1)).await.0, last);
    assert!(before < last);
}

/// More than etcd hands out in one message: a watcher that trusts a message's header loses the
/// rest.
pub async fn a_long_past_comes_whole(subject: &dyn Subject) {
    const CHANGES: usize = 1_200;
    let store = subject.fresh().await;
    let start = store.revision().await.unwrap();
    let commits = (0..CHANGES).map(|n| store.commit(writes(vec![put(agent(n), n.to_string())])));
    let mut made = futures_util::future::try_join_all(commits).await.unwrap();
    made.sort_unstable();
    let mut watch = store.watch(start);
    for (n, at) in made.iter().enumerate() {
        assert_eq!(next(&mut watch).await.0, *at, "change {n}");
    }
}

pub async fn what_changes_nothing_is_no_event(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let start = store.commit(writes(vec![put(agent(0), "x")])).await.unwrap();
    let mut watch = store.watch(start);
    store.commit(writes(vec![Write::Delete(agent(5))])).await.unwrap();
    assert_conflict(&store.commit(checked(agent(0), 0, vec![put(agent(5), "refused")])).await);
    let at = store.commit(writes(vec![Write::Delete(agent(5)), put(agent(1), "y")])).await.unwrap();
    assert_eq!(next(&mut watch).await, (at, vec![put(agent(1), "y")]));
    let at = store.commit(writes(vec![Write::Delete(agent(1)), Write::Delete(agent(5))])).await.unwrap();
    assert_eq!(next(&mut watch).await, (at, vec![Write::Delete(agent(1))]));
}

pub async fn nothing_is_missed_or_repeated_whatever_happens(subject: &dyn Subject) {
    const CHANGES: usize = 120;
    let store = subject.fresh().await;
    let start = store.revision().await.unwrap();
    let watchers: Vec<_> = (0..3)
        .map(|_| {
            let mut watch = store.watch(start);
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while seen.len() < CHANGES {
                    seen.push(next(&mut watch).await);
                }
                seen
            })
        })
        .collect();
    let mut made = Vec::new();
    for n in 0..CHANGES {
        if n % 15 == 7 {
            subject.disturb(&store).await;
        }
        // Each carries the whole truth at its time: an old value that is repeated, or one left out,
        // shows.
        let change = vec![put(agent(n % 7), n.to_string())];
        made.push((store.commit(writes(change.clone())).await.unwrap(), change));
    }
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), made);
    }
    assert!(made.is_sorted_by_key(|(revision, _)| *revision));
}

pub async fn large_values_pass(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let start = store.revision().await.unwrap();
    let value = |n: u8| Bytes::from(vec![n; MAX_VALUE_BYTES]);
    for n in 0..8 {
        store.commit(writes(vec![Write::Put(agent(0), value(n))])).await.unwrap();
    }
    let mut watch = store.watch(start); // all 8 MiB at once, past the 4 MiB that gRPC takes by default
    for n in 0..8 {
        assert_eq!(next(&mut watch).await.1, vec![Write::Put(agent(0), value(n))], "{n}");
    }
}

pub async fn a_watch_of_forgotten_history_says_so(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let start = store.revision().await.unwrap();
    for n in 0..10 {
        store.commit(writes(vec![put(agent(n), "x")])).await.unwrap();
    }
    subject.compact(&store).await;
    store.commit(writes(vec![put(agent(0), "later")])).await.unwrap();
    for after in [start, start + 1] {
        let mut watch = store.watch(after);
        let first = in_time("the news of a compaction", watch.next()).await;
        assert_eq!(first, Some(WatchEvent::Compacted), "after {after}");
        assert_eq!(in_time("the end", watch.next()).await, None);
    }
}

pub async fn a_watch_from_a_list_survives_compaction(subject: &dyn Subject) {
    let store = subject.fresh().await;
    for n in 0..10 {
        store.commit(writes(vec![put(agent(0), n.to_string())])).await.unwrap();
    }
    store.commit(writes(vec![Write::Delete(agent(0))])).await.unwrap();
    subject.compact(&store).await;
    let (_, at) = store.list("in/").await.unwrap();
    let mut watch = store.watch(at);
    let made = store.commit(writes(vec![put(agent(1), "new")])).await.unwrap();
    assert_eq!(next(&mut watch).await, (made, vec![put(agent(1), "new")]));
}
