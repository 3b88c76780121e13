//! Reading and writing.

use tokio::task::JoinSet;

use super::*;
use crate::store::{MAX_TRANSACTION, MAX_TRANSACTION_BYTES, MAX_VALUE_BYTES, key::prefix};

pub async fn a_new_store_has_an_id_of_its_own(subject: &dyn Subject) {
    let (a, b) = (subject.fresh().await, subject.fresh().await);
    assert_ne!(a.store_id(), b.store_id());
    assert_eq!(a.store_id().len(), 32);
    assert_eq!(subject.another(&a).await.store_id(), a.store_id());
    assert_eq!(read(&a, &Key::StoreId).await.unwrap().0, a.store_id());
    assert_eq!(a.list(prefix::ALL).await.unwrap().0.len(), 1);
}

pub async fn checks_decide(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let key = agent(1);
    let created = store.commit(checked(key.clone(), 0, vec![put(key.clone(), "one")])).await.unwrap();
    assert_eq!(read(&store, &key).await, Some(("one".into(), created)));
    assert_conflict(&store.commit(checked(key.clone(), 0, vec![put(key.clone(), "again")])).await);
    assert_conflict(&store.commit(checked(key.clone(), created + 1, vec![put(key.clone(), "ahead")])).await);

    subject.disturb(&store).await;
    let updated = store.commit(checked(key.clone(), created, vec![put(key.clone(), "two")])).await.unwrap();
    assert!(updated > created);
    assert_conflict(&store.commit(checked(key.clone(), created, vec![Write::Delete(key.clone())])).await);
    assert_eq!(read(&store, &key).await, Some(("two".into(), updated)));
    store.commit(checked(key.clone(), updated, vec![Write::Delete(key.clone())])).await.unwrap();
    assert_eq!(read(&store, &key).await, None);
    // A record that was created again is a different record, even with the same value.
    let again = store.commit(checked(key.clone(), 0, vec![put(key.clone(), "two")])).await.unwrap();
    assert!(again > updated);
    assert_conflict(&store.commit(checked(key.clone(), updated, vec![put(key.clone(), "three")])).await);
}

pub async fn all_is_written_at_one_revision_or_nothing(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let before = store.commit(writes(vec![put(agent(0), "x")])).await.unwrap();
    let both = vec![put(agent(1), "1"), put(agent(2), "2"), Write::Delete(agent(0))];
    let refused = Transaction { checks: vec![(agent(0), before), (agent(3), before)], writes: both.clone() };
    assert_conflict(&store.commit(refused).await);
    assert_eq!(read(&store, &agent(1)).await, None);
    assert_eq!(read(&store, &agent(0)).await, Some(("x".into(), before)));
    let made = Transaction { checks: vec![(agent(0), before), (agent(3), 0)], writes: both };
    let at = store.commit(made).await.unwrap();
    assert_eq!(read(&store, &agent(1)).await, Some(("1".into(), at)));
    assert_eq!(read(&store, &agent(2)).await, Some(("2".into(), at)));
    assert_eq!(read(&store, &agent(0)).await, None);
}

pub async fn revisions_grow_and_only_changes_take_one(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let first = store.commit(writes(vec![put(agent(1), "same")])).await.unwrap();
    let second = store.commit(writes(vec![put(agent(1), "same")])).await.unwrap();
    assert!(second > first, "a put is a change, whatever it puts");
    let nothing = store.commit(writes(vec![Write::Delete(agent(9))])).await.unwrap();
    assert_eq!(nothing, second, "a delete of what isn't there changes nothing");
    assert_eq!(store.commit(checked(agent(1), second, vec![])).await.unwrap(), second);
    assert_conflict(&store.commit(checked(agent(1), first, vec![])).await);
    assert!(store.revision().await.unwrap() >= second);
}

pub async fn a_list_is_sorted_and_ends_with_its_prefix(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let tenants = ["acme", "acme2", "acme-x", "b"];
    for chunk in (0..700).collect::<Vec<_>>().chunks(100) {
        store.commit(writes(chunk.iter().map(|n| put(agent_of("acme", *n), n.to_string())).collect())).await.unwrap();
    }
    let rest = tenants.iter().map(|t| put(Key::Tenant(t.parse().unwrap()), *t));
    let rest = rest.chain(tenants[1..].iter().map(|t| put(agent_of(t, 0), *t))).collect();
    let last = store.commit(writes(rest)).await.unwrap();

    let acme = prefix::kind(&"acme".parse().unwrap(), "agent");
    let (records, at) = store.list(&acme).await.unwrap();
    assert_eq!(records.len(), 700);
    assert!(records.is_sorted_by_key(|record| record.key.to_string()));
    assert!(records.iter().enumerate().all(|(n, record)| record.value == n.to_string() && record.key == agent(n)));
    assert!(at >= last);
    assert_eq!(store.list(&prefix::tenant(&"acme2".parse().unwrap())).await.unwrap().0.len(), 1);
    assert_eq!(store.list(prefix::TENANTS).await.unwrap().0.len(), 4);
    assert_eq!(store.list(prefix::NODES).await.unwrap().0, []);
    assert_eq!(store.list(prefix::ALL).await.unwrap().0.len(), 700 + 4 + 3 + 1);
}

pub async fn a_list_is_one_moment(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let pair = |n: usize| writes(vec![put(agent(0), n.to_string()), put(agent(9999), n.to_string())]);
    store.commit(pair(0)).await.unwrap();
    let filler = (1..100).map(|n| put(agent(n), "filler")).collect();
    store.commit(writes(filler)).await.unwrap();
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for n in 1..50 {
                store.commit(pair(n)).await.unwrap();
            }
        })
    };
    while !writer.is_finished() {
        let (records, at) = store.list("in/").await.unwrap();
        let (first, last) = (&records[0], &records[records.len() - 1]);
        assert_eq!((&first.value, first.modified), (&last.value, last.modified));
        assert!(at >= first.modified);
    }
    writer.await.unwrap();
}

pub async fn concurrent_increments_all_count(subject: &dyn Subject) {
    const WRITERS: usize = 8;
    const EACH: usize = 20;
    let store = subject.fresh().await;
    let other = subject.another(&store).await;
    store.commit(writes(vec![put(agent(0), "0")])).await.unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..WRITERS {
        let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
        tasks.spawn(async move {
            let mut done = 0;
            while done < EACH {
                let (value, at) = read(&store, &agent(0)).await.unwrap();
                let next = (value.parse::<usize>().unwrap() + 1).to_string();
                match store.commit(checked(agent(0), at, vec![put(agent(0), next)])).await {
                    Ok(_) => done += 1,
                    outcome => assert_conflict(&outcome),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(read(&store, &agent(0)).await.unwrap().0, (WRITERS * EACH).to_string());
}

pub async fn pages_lead_to_the_end_and_no_further(subject: &dyn Subject) {
    let store = subject.fresh().await;
    for tenant in ["acme", "acme2"] {
        store.commit(writes((0..25).map(|n| put(agent_of(tenant, n), "x")).collect())).await.unwrap();
    }
    let prefix = prefix::kind(&"acme".parse().unwrap(), "agent");
    let all = store.list(&prefix).await.unwrap().0;
    for most in [1, 10, 25, 26] {
        let (mut found, mut after, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = store.list_page(&prefix, &after, most).await.unwrap();
            assert!(page.records.len() <= most);
            found.extend(page.records);
            pages += 1;
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        assert_eq!((found, pages), (all.clone(), 25_usize.div_ceil(most)), "{most}");
    }
    let last = all.last().unwrap().key.to_string();
    let page = store.list_page(&prefix, &last, 10).await.unwrap();
    assert!(page.records.is_empty() && page.next.is_none(), "nothing of the next tenant: {page:?}");
}

pub async fn sizes_are_bounded(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let too_large = |outcome: Result<Revision, StoreError>| assert!(matches!(outcome, Err(StoreError::TooLarge)));
    let value = |length: usize| Write::Put(agent(0), Bytes::from(vec![0xa5; length]));
    store.commit(writes(vec![value(MAX_VALUE_BYTES)])).await.unwrap();
    let found = store.get(&agent(0)).await.unwrap().unwrap();
    assert!(found.value.len() == MAX_VALUE_BYTES && found.value.iter().all(|byte| *byte == 0xa5));
    store.commit(writes(vec![value(0)])).await.unwrap();
    assert_eq!(store.get(&agent(0)).await.unwrap().unwrap().value.len(), 0);
    too_large(store.commit(writes(vec![value(MAX_VALUE_BYTES + 1)])).await);

    let half = |n| Write::Put(agent(n), Bytes::from(vec![1; MAX_TRANSACTION_BYTES / 2 - 200]));
    store.commit(writes(vec![half(1), half(2)])).await.unwrap();
    too_large(store.commit(writes(vec![half(1), half(2), half(3)])).await);

    let full = |count: usize| Transaction {
        checks: (0..count).map(|n| (agent(1000 + n), 0)).collect(),
        writes: (0..count).map(|n| put(agent(1000 + n), "x")).collect(),
    };
    too_large(store.commit(full(MAX_TRANSACTION + 1)).await);
    let at = store.commit(full(MAX_TRANSACTION)).await.unwrap();
    assert_eq!(read(&store, &agent(1000 + MAX_TRANSACTION - 1)).await.unwrap().1, at);
    assert_conflict(&store.commit(full(MAX_TRANSACTION)).await);
}

pub async fn what_was_committed_is_seen_by_every_handle(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let other = subject.another(&store).await;
    for n in 0..20 {
        let (from, to) = if n % 2 == 0 { (&store, &other) } else { (&other, &store) };
        let at = from.commit(writes(vec![put(agent(0), n.to_string())])).await.unwrap();
        assert!(to.revision().await.unwrap() >= at);
        assert_eq!(read(to, &agent(0)).await, Some((n.to_string(), at)));
        assert!(to.list(prefix::ALL).await.unwrap().1 >= at);
    }
}
