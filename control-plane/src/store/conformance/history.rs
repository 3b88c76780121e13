//! The past.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;

use super::*;
use crate::store::{Record, WatchEvent, key::prefix};

async fn at(store: &Arc<dyn Store>, prefix: &str, revision: Revision) -> Vec<Record> {
    store.list_at(prefix, revision).await.unwrap().unwrap_or_else(|| panic!("{revision} is not kept"))
}

pub async fn a_list_of_the_past_is_what_a_list_was_then(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let value = |n: usize| "v".repeat(n % 5 * 100);
    let changes = [
        writes(vec![put(agent(1), "created"), put(agent(3), "stays"), put(Key::Rotation, "r")]),
        writes(vec![put(agent(1), "replaced"), put(agent(0), "before all others")]),
        writes(vec![put(agent(1), ""), Write::Delete(agent(3))]),
        writes(vec![Write::Delete(agent(1)), Write::Delete(agent(7))]),
        writes(vec![put(agent(1), "created again"), put(agent_of("acme2", 1), "of another")]),
        writes(vec![put(agent(1), "and replaced"), Write::Delete(agent(0)), Write::Delete(Key::Rotation)]),
        writes((0..100).map(|n| put(agent(n), value(n))).collect()),
        writes((0..100).filter(|n| n % 3 > 0).map(|n| Write::Delete(agent(n))).collect()),
        writes((0..100).filter(|n| n % 3 < 2).map(|n| put(agent(n), value(n + 1))).collect()),
    ];
    let mut moments = vec![store.list(prefix::ALL).await.unwrap()];
    for change in changes {
        subject.disturb(&store).await;
        let revision = store.commit(change).await.unwrap();
        let (records, listed) = store.list(prefix::ALL).await.unwrap();
        assert!(listed >= revision);
        moments.push((records, revision));
    }
    for (records, revision) in &moments {
        assert_eq!(&at(&store, prefix::ALL, *revision).await, records, "at {revision}");
        for prefix in [prefix::kind(&"acme".parse().unwrap(), "agent"), "meta/".into(), "none/".into()] {
            let below: Vec<_> = records.iter().filter(|r| r.key.to_string().starts_with(&prefix)).cloned().collect();
            assert_eq!(at(&store, &prefix, *revision).await, below, "`{prefix}` at {revision}");
        }
    }
    // Between two of our revisions nothing changes, whatever others do.
    let (records, last) = &moments[9];
    assert_eq!(&at(&store, prefix::ALL, store.revision().await.unwrap()).await, records);
    assert_eq!(at(&store, prefix::ALL, last - 1).await, moments[8].0);
}

pub async fn a_long_list_of_the_past_comes_whole(subject: &dyn Subject) {
    const RECORDS: usize = 1_300;
    let store = subject.fresh().await;
    let all: Vec<usize> = (0..RECORDS).collect();
    let write = |text: &'static str| {
        let (store, all) = (Arc::clone(&store), &all);
        async move {
            let mut last = 0;
            for chunk in all.chunks(100) {
                let change = chunk.iter().map(|n| put(agent(*n), format!("{text} {n}")));
                last = store.commit(writes(change.collect())).await.unwrap();
            }
            last
        }
    };
    let (first, _) = (write("first").await, write("second").await);
    let gone = (0..120).map(|n| Write::Delete(agent(n * 10)));
    store.commit(writes(gone.collect())).await.unwrap();
    let records = at(&store, "in/", first).await;
    assert_eq!(records.len(), RECORDS);
    assert!(records.iter().enumerate().all(|(n, r)| r.key == agent(n) && r.value == format!("first {n}")));
    assert!(records.iter().all(|record| record.modified <= first));
}

/// The past and what the watch brings after it come to the present, wherever one begins.
pub async fn a_watch_leads_on_from_a_list_of_the_past(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let mut revisions = vec![store.revision().await.unwrap()];
    for n in 0..40_usize {
        let key = agent(n * n % 7);
        let write = if n % 3 == 2 { Write::Delete(key) } else { put(key, n.to_string()) };
        revisions.push(store.commit(writes(vec![write, put(Key::Rotation, n.to_string())])).await.unwrap());
    }
    let (present, _) = store.list(prefix::ALL).await.unwrap();
    let last = revisions[40];
    for from in revisions {
        let listed = at(&store, prefix::ALL, from).await;
        let mut records: BTreeMap<String, Record> = listed.into_iter().map(|r| (r.key.to_string(), r)).collect();
        let (mut watch, mut reached) = (store.watch(from), from);
        while reached < last {
            let Some(event) = watch.next().await else { panic!("the watch has ended") };
            match event {
                WatchEvent::Changes { revision, changes } => {
                    reached = revision;
                    for change in changes {
                        match change {
                            Write::Put(key, value) => {
                                records.insert(key.to_string(), Record { key, value, modified: revision });
                            }
                            Write::Delete(key) => {
                                assert!(records.remove(&key.to_string()).is_some(), "{key} wasn't there");
                            }
                        }
                    }
                }
                WatchEvent::Progress(revision) => reached = revision,
                WatchEvent::Compacted => panic!("compacted"),
            }
        }
        assert_eq!(records.into_values().collect::<Vec<_>>(), present, "from {from}");
    }
}

pub async fn a_past_that_is_forgotten_is_none(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let first = store.commit(writes(vec![put(agent(0), "x")])).await.unwrap();
    store.commit(writes(vec![put(agent(0), "y")])).await.unwrap();
    subject.compact(&store).await;
    let (records, kept) = store.list(prefix::ALL).await.unwrap();
    store.commit(writes(vec![Write::Delete(agent(0)), put(agent(1), "later")])).await.unwrap();
    for forgotten in [0, 1, first] {
        assert_eq!(store.list_at(prefix::ALL, forgotten).await.unwrap(), None, "at {forgotten}");
    }
    assert_eq!(at(&store, prefix::ALL, kept).await, records, "the last before what is kept is kept");
}

pub async fn what_is_yet_to_come_is_an_error(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let head = store.revision().await.unwrap();
    assert!(store.list_at(prefix::ALL, head + 1_000_000).await.is_err());
    assert_eq!(at(&store, prefix::ALL, head).await.len(), 1);
}
