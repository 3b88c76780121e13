//! A lost watch event is noticed, wherever it was lost, and put right.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::BoxStream};
use seks_control_plane::store::{Key, Record, Revision, Store, StoreError, Transaction, WatchEvent, Write};
use seks_proto::wire::{self, node_message::Message as ToReplica, replica_message::Message as FromReplica};
use seks_tests::wait::wait_until;

use super::{
    node::TestNode,
    peer::{Peer, hello},
    replica::{Replica, ReplicaHost},
};

/// A store whose watch loses the deletes of tokens, while it is told to.
struct Forgetful {
    store: Arc<dyn Store>,
    forgets: Arc<AtomicBool>,
}

impl Store for Forgetful {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    fn is_exclusive(&self) -> bool {
        self.store.is_exclusive()
    }
    fn store_id(&self) -> &str {
        self.store.store_id()
    }
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        self.store.get(key)
    }
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Record>, Revision), StoreError>> {
        self.store.list(prefix)
    }
    fn list_at<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> BoxFuture<'a, Result<Option<Vec<Record>>, StoreError>> {
        self.store.list_at(prefix, revision)
    }
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.store.commit(transaction)
    }
    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent> {
        let forgets = self.forgets.clone();
        let lose = move |event| match event {
            WatchEvent::Changes { revision, mut changes } if forgets.load(SeqCst) => {
                let of_token = |key: &Key| matches!(key, Key::Token(..) | Key::Tombstone(..));
                changes.retain(|change| match change {
                    Write::Delete(key) | Write::Put(key, _) => !of_token(key),
                });
                WatchEvent::Changes { revision, changes }
            }
            event => event,
        };
        self.store.watch(after).map(lose).boxed()
    }
    fn is_full(&self) -> BoxFuture<'_, bool> {
        self.store.is_full()
    }
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.store.revision()
    }
}

fn divergences(replica: &Replica, of: &str) -> u64 {
    let families = replica.distribution.collectors().iter().flat_map(|c| c.collect()).collect::<Vec<_>>();
    let family = families.iter().find(|f| f.name() == "seks_table_divergence_total").unwrap();
    let metric = family.get_metric().iter().find(|m| m.get_label()[0].value() == of).unwrap();
    metric.get_counter().get_value() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_the_watch_lost_is_found_and_the_token_goes() {
    let host = ReplicaHost::new();
    let forgets = Arc::new(AtomicBool::new(false));
    let lossy = forgets.clone();
    let wrap = move |store| Arc::new(Forgetful { store, forgets: lossy }) as Arc<dyn Store>;
    let replica = host.start_on(wrap, Duration::from_millis(300)).await;
    replica.seed_fixtures().await;
    let (lost, kept) = (replica.issue().await, replica.issue().await);
    let node = TestNode::of(&replica, "n1").await;
    assert!(node.honours(&lost.digest));
    forgets.store(true, SeqCst);
    let revision = replica.revoke(&lost).await;
    wait_until("the change is said to be enforced", || replica.distribution.enforcement(revision).enforced).await;
    forgets.store(false, SeqCst);
    wait_until("the token is gone", || !node.knows(&lost.digest)).await;
    wait_until("the node serves", || node.honours(&kept.digest)).await;
    assert!(divergences(&replica, "replica") > 0, "and somebody is told");
    // Once put right it stays so: everything else comes as deltas.
    let (snapshots, alarms) = (node.status().snapshots, divergences(&replica, "replica"));
    let next = replica.issue().await;
    node.reaches(next.revision).await;
    assert_eq!((node.status().snapshots, node.status().rejected), (snapshots, 0));
    assert_eq!((divergences(&replica, "replica"), divergences(&replica, "node")), (alarms, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_table_differs_gets_a_snapshot() {
    let (_host, replica) = Replica::with_fixtures().await;
    let (mut peer, revision) = Peer::loaded(&replica, "n1").await;
    peer.send(ToReplica::Ack(wire::Ack { revision, table_hash: vec![7; 32] })).await;
    let mut again = 0;
    loop {
        match peer.next().await.unwrap() {
            FromReplica::SnapshotBegin(begin) => again = begin.revision,
            FromReplica::SnapshotEnd(_) => break,
            _ => {}
        }
    }
    assert!(again >= revision && divergences(&replica, "node") == 1);
    // It says so once more: another snapshot wouldn't help either, but the alarm stays on.
    peer.send(ToReplica::Ack(wire::Ack { revision: again, table_hash: vec![7; 32] })).await;
    wait_until("the alarm", || divergences(&replica, "node") == 2).await;
    drop(peer);

    let came = wire::Hello {
        epoch: replica.foundation.store.store_id().into(),
        applied_revision: again,
        table_hash: vec![7; 32],
        ..hello("n1")
    };
    let mut peer = Peer::say(&replica, "n1", came).await.unwrap();
    let Ok(FromReplica::Welcome(welcome)) = peer.next().await else { panic!("no welcome") };
    assert!(!welcome.resumed, "a node that comes with another table starts again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_holds_adds_up_after_every_kind_of_change() {
    let (_host, replica) = Replica::with_fixtures().await;
    let node = TestNode::of(&replica, "n1").await;
    let (registry, tenant, bot) = (&replica.foundation.registry, super::replica::tenant(), "bot".parse().unwrap());
    let tokens = [replica.issue().await, replica.issue().await];
    replica.put_credential("sk-next").await;
    registry.set_agent_disabled(&tenant, &bot, true).await.unwrap();
    registry.set_agent_disabled(&tenant, &bot, false).await.unwrap();
    replica.revoke(&tokens[0]).await;
    let other = "other".parse().unwrap();
    registry.create_tenant(&other, false).await.unwrap();
    registry.create_agent(&other, &bot, Default::default()).await.unwrap();
    registry.delete_tenant(&other).await.unwrap();
    let last = registry.delete_agent(&tenant, &bot).await.unwrap();
    node.reaches(last).await;
    wait_until("it has said so", || replica.distribution.nodes()[0].lag == 0).await;
    assert_eq!((divergences(&replica, "node"), node.status().snapshots), (0, 1));
    let resumed = TestNode::of(&replica, "n2").await;
    assert_eq!(resumed.table.sum(), node.table.sum(), "a snapshot comes to the same");
}
