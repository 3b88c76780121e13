//! What a node that behaves sees of a replica that behaves.

use std::time::Duration;

use seks_proto::wire::replica_message::Message as FromReplica;
use seks_protocol::features;
use seks_tests::{Forwarder, forwarder::Mode, wait::wait_until};

use super::{
    node::TestNode,
    peer::{Peer, hello},
    replica::{REAL, Replica, tenant},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_a_snapshot_and_then_every_change() {
    let (_host, replica) = Replica::with_fixtures().await;
    let first = replica.issue().await;
    let node = TestNode::of(&replica, "n1").await;
    assert!(node.honours(&first.digest));
    assert_eq!(node.credential(&first.digest).as_deref(), Some(REAL));

    let second = replica.issue().await;
    let revision = replica.put_credential("sk-REAL-next").await;
    node.reaches(revision).await;
    assert!(node.honours(&second.digest));
    assert_eq!(node.credential(&first.digest).as_deref(), Some("sk-REAL-next"), "one record, not one a token");

    let registry = &replica.foundation.registry;
    let disabled = registry.set_agent_disabled(&tenant(), &"bot".parse().unwrap(), true).await.unwrap();
    node.reaches(disabled).await;
    assert!(!node.knows(&first.digest) && !node.knows(&second.digest));
    let enabled = registry.set_agent_disabled(&tenant(), &"bot".parse().unwrap(), false).await.unwrap();
    node.reaches(enabled).await;
    assert!(node.honours(&first.digest));
    assert_eq!((node.status().snapshots, node.status().rejected), (1, 0), "everything else came as deltas");
    let seen = replica.distribution.nodes();
    assert!(seen[0].id == "n1" && seen[0].connected && seen[0].region == "eu" && seen[0].lease_remaining_ms > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_gets_what_it_missed_and_no_snapshot() {
    let (_host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    let wire = Forwarder::to(replica.address).await;
    let node = TestNode::follow(replica.identity("n1").await, vec![format!("https://{}", wire.address())]);
    node.ready().await;
    wire.set(Mode::Closed);
    wire.cut();
    wait_until("the stream is down", || node.status().connected.is_none()).await;
    let revision = replica.revoke(&token).await;
    let later = replica.issue().await;
    wire.set(Mode::Open);
    node.reaches(later.revision).await;
    assert!(!node.knows(&token.digest) && node.knows(&later.digest) && revision < later.revision);
    assert_eq!((node.status().snapshots, node.status().streams), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_goes_to_nodes_with_the_first_token_that_reaches_it_and_leaves_with_the_last() {
    let (_host, replica) = Replica::with_fixtures().await;
    let node = TestNode::of(&replica, "n1").await;
    let (tenant, main) = (tenant(), "main".parse().unwrap());
    assert!(node.table.credential(&tenant, &main).is_none(), "no token reaches it");
    let (a, b) = (replica.issue().await, replica.issue().await);
    node.reaches(b.revision).await;
    assert!(node.table.credential(&tenant, &main).is_some());
    node.reaches(replica.revoke(&a).await).await;
    assert!(node.table.credential(&tenant, &main).is_some());
    node.reaches(replica.revoke(&b).await).await;
    assert!(node.table.credential(&tenant, &main).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_node_gets_no_credential() {
    let (_host, replica) = Replica::with_fixtures().await;
    replica.issue().await;
    let mut old = hello("n1");
    old.features.retain(|feature| feature != features::POLICY_V1);
    let mut peer = Peer::say(&replica, "n1", old).await.unwrap();
    loop {
        match peer.next().await.unwrap() {
            FromReplica::Chunk(chunk) => {
                let changes = <seks_proto::wire::Changes as prost::Message>::decode(chunk.changes).unwrap().changes;
                let credential =
                    |c: &_| matches!(c, Some(seks_proto::wire::change::Change::Credential(c)) if !c.sealed.is_empty());
                assert!(!changes.iter().any(|c| credential(&c.change)));
            }
            FromReplica::SnapshotEnd(_) => break,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_tokens_arrive_and_a_resync_replaces_them_whole() {
    let (_host, replica) = Replica::with_fixtures().await;
    let digests = replica.issue_many(20_000).await;
    let node = TestNode::of(&replica, "n1").await;
    assert_eq!(node.table.len(), digests.len());
    assert!(digests.iter().all(|digest| node.knows(digest)));
    let token = node.credential(&digests[0]);
    assert_eq!(token.as_deref(), Some(REAL));
    assert!(node.table.lease().lag() < Duration::from_secs(5));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shown_of_a_node_is_measured() {
    let (_host, replica) = Replica::with_fixtures().await;
    replica.issue_many(50).await;
    let node = TestNode::of(&replica, "n1").await;
    let shown = || replica.distribution.nodes().remove(0);
    wait_until("it honours 50 tokens and says so", || shown().tokens == 50).await;
    let first = shown();
    assert!(first.connected && first.lease_remaining_ms > 0 && first.last_seen_at > 0, "{first:?}");
    let token = replica.issue().await;
    wait_until("one more", || shown().tokens == 51 && shown().applied_revision >= token.revision).await;
    assert_eq!(shown().lag, 0);
    // Nothing changes any more, and it is seen all the same.
    wait_until("it is seen again", || shown().last_seen_at > first.last_seen_at).await;
    node.stop().await;
    wait_until("it is gone", || !shown().connected).await;
    let gone = shown();
    wait_until("its lease is over", || shown().lease_remaining_ms == 0).await;
    for _ in 0..50 {
        let now = shown();
        assert!(!now.connected && now.lease_remaining_ms == 0, "{now:?}");
        assert!(now.last_seen_at <= gone.last_seen_at + 1, "{now:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    replica.stop().await;
}
