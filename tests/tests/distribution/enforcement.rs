//! "Enforced" means that no node serves it any more: by an acknowledgement, or because its lease is
//! over.

use std::time::{Duration, Instant};

use seks_control_plane::{registry::Admission, server::Components};
use seks_proto::wire::{node_enforcement::State, replica_message::Message as FromReplica};
use seks_tests::{Forwarder, forwarder::Mode, wait::wait_until};

use super::{
    node::TestNode,
    peer::Peer,
    replica::{LEASE, Replica, tenant},
};

const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_is_enforced_when_every_node_has_applied_it() {
    let (_host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    let (a, b) = (TestNode::of(&replica, "a").await, TestNode::of(&replica, "b").await);
    let revision = replica.revoke(&token).await;
    let enforcement = replica.distribution.await_enforced(revision, LONG).await;
    assert!(!a.knows(&token.digest) && !b.knows(&token.digest), "at the moment of the answer");
    assert!(enforcement.enforced && enforcement.waited_ms < 1000, "{enforcement:?}");
    let nodes: Vec<_> = enforcement.nodes.iter().map(|n| (n.node.as_str(), n.region.as_str(), n.state())).collect();
    assert_eq!(nodes, [("a", "eu", State::Applied), ("b", "eu", State::Applied)]);
    let again = replica.distribution.await_enforced(revision, LONG).await;
    assert!(again.enforced && again.waited_ms < 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_node_denies_by_the_time_that_a_change_is_enforced_and_heals_by_itself() {
    let (_host, replica) = Replica::with_fixtures().await;
    let (token, kept) = (replica.issue().await, replica.issue().await);
    let near = TestNode::of(&replica, "near").await;
    let wire = Forwarder::to(replica.address).await;
    let far = TestNode::follow(replica.identity("far").await, vec![format!("https://{}", wire.address())]);
    far.ready().await;
    // Half-open: what the node says arrives, what it is told doesn't.
    wire.set(Mode::Mute);
    let revision = replica.revoke(&token).await;
    let early = replica.distribution.await_enforced(revision, Duration::from_millis(300)).await;
    assert!(!early.enforced, "{early:?}");
    let outstanding: Vec<_> = early.nodes.iter().filter(|n| n.state() == State::Outstanding).collect();
    assert!(outstanding.len() == 1 && outstanding[0].node == "far", "the timeout names who is missing: {early:?}");
    assert!(far.honours(&token.digest), "it can't know, and its lease is good");

    let enforcement = replica.distribution.await_enforced(revision, LONG).await;
    assert!(!far.serves() && !far.honours(&token.digest), "at the moment of the answer");
    assert!(enforcement.enforced);
    assert_eq!(
        (replica.state(revision, "near"), replica.state(revision, "far")),
        (State::Applied, State::LeaseExpired)
    );
    assert!(near.honours(&kept.digest), "the others go on");

    wire.set(Mode::Open);
    wire.cut();
    far.ready().await;
    assert!(far.honours(&kept.digest) && !far.knows(&token.digest) && far.table.revision() >= revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_flight_is_cut_when_the_lease_ends() {
    let (_host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    let node = TestNode::of(&replica, "n1").await;
    let seks_data_plane::table::Found::Token(entry) = node.table.find(&token.digest) else { panic!("not there") };
    let cut = node.table.register(token.digest, &entry, &"api".parse().unwrap()).unwrap();
    let began = Instant::now();
    replica.stop().await;
    let reason = tokio::time::timeout(LONG, cut).await.unwrap();
    assert_eq!(reason, seks_data_plane::table::CutReason::LeaseExpired);
    assert!(began.elapsed() < LEASE * 2, "it ended with the lease, not by luck");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_flight_is_cut_before_its_revocation_is_acknowledged() {
    let (_host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    let node = TestNode::of(&replica, "n1").await;
    let seks_data_plane::table::Found::Token(entry) = node.table.find(&token.digest) else { panic!("not there") };
    let mut cut = node.table.register(token.digest, &entry, &"api".parse().unwrap()).unwrap();
    assert_eq!(cut.reason(), None);
    let revision = replica.revoke(&token).await;
    assert!(replica.distribution.await_enforced(revision, LONG).await.enforced);
    assert_eq!(cut.reason(), Some(seks_data_plane::table::CutReason::TokenRevoked));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_restarted_knows_who_may_still_serve() {
    let (host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    let node = TestNode::of(&replica, "n1").await;
    replica.stop().await;
    let replica = host.start().await;
    let revision = replica.revoke(&token).await;
    // The node is not connected to this replica, and may hold a lease of the one before.
    let early = replica.distribution.await_enforced(revision, Duration::from_millis(100)).await;
    assert!(!early.enforced && early.nodes.len() == 1 && early.nodes[0].state() == State::Outstanding, "{early:?}");
    let enforcement = replica.distribution.await_enforced(revision, LONG).await;
    assert!(enforcement.enforced && !node.honours(&token.digest), "{enforcement:?}");
    assert_eq!(replica.state(revision, "n1"), State::LeaseExpired);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_acknowledge_is_waited_for() {
    let (_host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    let (mut peer, revision) = Peer::loaded(&replica, "n1").await;
    peer.ack(revision).await;
    let grant = peer.lease().await;
    assert!(grant.ttl_left_ms <= LEASE.as_millis() as u64 && grant.revision >= revision, "{grant:?}");
    let revision = replica.revoke(&token).await;
    loop {
        if let FromReplica::Delta(delta) = peer.next().await.unwrap()
            && delta.revision >= revision
        {
            break;
        }
    }
    let early = replica.distribution.await_enforced(revision, Duration::from_millis(200)).await;
    assert!(!early.enforced, "sent is not applied: {early:?}");
    peer.ack(revision).await;
    let done = replica.distribution.await_enforced(revision, LONG).await;
    assert!(done.enforced && replica.state(revision, "n1") == State::Applied, "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revisions_that_mean_nothing_to_nodes_are_enforced_at_once() {
    let (_host, replica) = Replica::with_fixtures().await;
    let node = TestNode::of(&replica, "n1").await;
    wait_until("the node has all of it", || replica.distribution.nodes()[0].lag == 0).await;
    let token = {
        let Components { registry, authority, .. } = &replica.foundation;
        registry.create_join_token(Admission::default(), authority.pin()).await
    };
    token.unwrap();
    let revision = replica.foundation.store.revision().await.unwrap();
    let enforcement = replica.distribution.await_enforced(revision, LONG).await;
    assert!(enforcement.enforced && enforcement.waited_ms < 1000, "{enforcement:?}");
    assert!(node.serves());
    let agent = "bot".parse().unwrap();
    let deleted = replica.foundation.registry.delete_agent(&tenant(), &agent).await.unwrap();
    assert!(replica.distribution.await_enforced(deleted, LONG).await.enforced);
    assert!(node.table.agent(&tenant(), &agent).is_none());
}
