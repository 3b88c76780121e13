//! A store that went back: no node takes an old table, until somebody has accepted it.

use seks_control_plane::epoch::{Epoch, HighWaterMark};
use seks_tests::wait::wait_until;

use super::{node::TestNode, replica::Replica};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_revoked_after_the_backup_comes_back_at_no_node_before_the_restore_is_accepted() {
    let (host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    let dir = tempfile::tempdir().unwrap();
    let mut identity = replica.identity("n1").await;
    identity.save(&dir.path().join("node")).unwrap();
    let node = TestNode::follow(identity.clone(), vec![replica.endpoint()]);
    node.ready().await;
    let backup = dir.path().join("backup");
    let (store, sealer) = (&replica.foundation.store, &replica.foundation.sealer);
    seks_control_plane::backup::create(store.as_ref(), sealer, &backup).await.unwrap();
    node.reaches(replica.revoke(&token).await).await;
    let mark = dir.path().join("node/mark.json");
    let seen = format!("\"revision\":{}", node.table.revision());
    wait_until("the node has written down what it saw", || {
        std::fs::read_to_string(&mark).is_ok_and(|text| text.contains(&seen))
    })
    .await;
    node.stop().await; // it will have nothing in memory
    replica.stop().await;

    host.restore(&backup).await;
    let unaccepted = host.start_anyway().await;
    let node = TestNode::follow(identity.clone(), vec![unaccepted.endpoint()]);
    wait_until("the node sees that it is another store", || node.status().alarm.is_some()).await;
    assert!(!node.serves() && !node.knows(&token.digest));
    node.stop().await;
    unaccepted.stop().await;

    host.accept("the disk was lost").await;
    let replica = host.start().await;
    let node = TestNode::follow(identity, vec![replica.endpoint()]);
    node.ready().await;
    assert!(node.honours(&token.digest), "restored, and somebody has said so");
    let later = replica.issue().await;
    node.reaches(later.revision).await;
    node.stop().await;
    replica.stop().await;
}

#[tokio::test]
async fn what_was_seen_decides_whether_a_store_went_back() {
    let (_host, replica) = Replica::with_fixtures().await;
    let (store, sealer) = (replica.foundation.store.as_ref(), &replica.foundation.sealer);
    let now = Epoch::read(store, sealer).await.unwrap();
    let mark = |lifetime: &str, revision| HighWaterMark { epoch: lifetime.into(), revision, authenticated: false };
    let seen = mark(now.name(), 10);
    assert!(now.check(10, None).is_ok() && now.check(10, Some(&seen)).is_ok() && now.check(11, Some(&seen)).is_ok());
    assert!(now.check(9, Some(&seen)).is_err() && now.check(99, Some(&mark("other", 1))).is_err());
    let next = Epoch::accept(store, sealer, Some(&mark("other", 1)), "test").await.unwrap();
    assert_eq!(Epoch::read(store, sealer).await.unwrap(), next);
    assert!(next.check(1, Some(&seen)).is_ok() && next.check(1, Some(&mark("other", 99))).is_ok());
    assert!(next.check(1, Some(&mark("third", 1))).is_err());
    assert!(next.check(1, Some(&mark(next.name(), 2))).is_err(), "each time is another");
    replica.stop().await;
}
