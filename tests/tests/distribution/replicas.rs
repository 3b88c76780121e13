//! Two replicas on one etcd: "enforced" speaks for the nodes of both, whoever is asked.

use std::time::{Duration, Instant};

use seks_proto::wire::{
    self, node_enforcement::State, node_message::Message as ToReplica, replica_message::Message as FromReplica,
};
use seks_tests::{Etcd, Forwarder, forwarder::Mode, wait::wait_until};

use super::{
    node::TestNode,
    peer::{Peer, hello},
    replica::{LEASE, Replica, ReplicaHost},
};

const LONG: Duration = Duration::from_secs(20);

/// An etcd, and two replicas on it; the wire from the second to the etcd can be cut.
struct ReplicaPair {
    a: Replica,
    b: Replica,
    wire: Forwarder,
    host: ReplicaHost,
    _etcd: Etcd,
}

async fn replica_pair() -> ReplicaPair {
    let etcd = Etcd::start().await;
    let host = ReplicaHost::on_etcd(&etcd);
    let a = host.start_as("a", &[]).await;
    a.seed_fixtures().await;
    let wire = Forwarder::to(etcd.address()).await;
    let b = host.start_as("b", &[format!("http://{}", wire.address())]).await;
    wait_until("they know each other", || [&a, &b].iter().all(|r| r.distribution.replicas().len() == 2)).await;
    ReplicaPair { a, b, wire, host, _etcd: etcd }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_change_is_enforced_on_the_nodes_of_another_replica_without_waiting_for_a_lease() {
    let pair = replica_pair().await;
    let token = pair.a.issue().await;
    let (near, far) = (TestNode::of(&pair.a, "near").await, TestNode::of(&pair.b, "far").await);
    wait_until("both have the token", || near.honours(&token.digest) && far.honours(&token.digest)).await;
    for asked in [&pair.a, &pair.b] {
        let token = pair.a.issue().await;
        wait_until("both have the token", || near.honours(&token.digest) && far.honours(&token.digest)).await;
        let revision = pair.a.revoke(&token).await;
        let enforcement = asked.distribution.await_enforced(revision, LONG).await;
        assert!(!near.honours(&token.digest) && !far.honours(&token.digest), "at the moment of the answer");
        assert!(enforcement.enforced && enforcement.waited_ms < LEASE.as_millis() as u64 / 2, "{enforcement:?}");
        assert!(enforcement.nodes.len() == 2 && enforcement.replicas.is_empty(), "{enforcement:?}");
        assert!(enforcement.nodes.iter().all(|node| node.state() == State::Applied), "{enforcement:?}");
    }
    let seen = pair.a.distribution.nodes();
    assert!(seen.iter().all(|node| node.connected && node.lease_remaining_ms > 0), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_node_that_moves_is_neither_lost_nor_waited_for() {
    let pair = replica_pair().await;
    let token = pair.a.issue().await;
    let wire = Forwarder::to(pair.a.address).await;
    let endpoints = vec![format!("https://{}", wire.address()), pair.b.endpoint()];
    let node = TestNode::follow(pair.a.identity("n1").await, endpoints);
    node.ready().await;
    // Half-open: the first replica doesn't notice.
    wire.set(Mode::Mute);
    wait_until("it has moved", || node.status().connected == Some(pair.b.endpoint())).await;
    let later = pair.a.issue().await;
    wait_until("it hears from the second", || node.honours(&later.digest)).await;
    wait_until("the first knows that it has moved", || pair.a.distribution.streams() == 0).await;
    let revision = pair.a.revoke(&token).await;
    let enforcement = pair.a.distribution.await_enforced(revision, LONG).await;
    assert!(!node.honours(&token.digest) && node.honours(&later.digest), "at the moment of the answer");
    assert!(enforcement.enforced && enforcement.waited_ms < LEASE.as_millis() as u64 / 2, "{enforcement:?}");
    assert_eq!((node.status().snapshots, node.status().rejected), (1, 0), "the second went on where the first stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_replica_that_is_cut_off_from_the_store_is_waited_for_until_its_leases_have_ended() {
    let pair = replica_pair().await;
    let token = pair.a.issue().await;
    let far = TestNode::of(&pair.b, "far").await;
    wait_until("it has the token", || far.honours(&token.digest)).await;
    pair.wire.set(Mode::Closed);
    pair.wire.cut();
    let revision = pair.a.revoke(&token).await;
    let early = pair.a.distribution.await_enforced(revision, Duration::from_millis(200)).await;
    assert!(!early.enforced && early.nodes[0].state() == State::Outstanding, "{early:?}");
    assert_eq!(early.replicas, ["b"], "the timeout names who is silent");
    let enforcement = pair.a.distribution.await_enforced(revision, LONG).await;
    assert!(!far.honours(&token.digest), "at the moment of the answer");
    assert!(enforcement.enforced && enforcement.nodes[0].state() == State::LeaseExpired, "{enforcement:?}");
    // Whoever took it for dead meanwhile: it comes back as another, and serves.
    pair.wire.set(Mode::Open);
    far.ready().await;
    let token = pair.a.issue().await;
    wait_until("it has the next token", || far.honours(&token.digest)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_node_that_was_killed_gets_no_lease_from_a_replica_that_knows_less_than_it_did() {
    let pair = replica_pair().await;
    let (begun, token) = (Instant::now(), pair.a.issue().await);
    let (certificate, key, _) = pair.a.pems("n1").await;
    let load = async |replica: &Replica| {
        let mut peer = Peer::say_as(replica, (certificate.clone(), key.clone()), hello("n1")).await.unwrap();
        let revision = peer.load().await;
        peer.ack(revision).await;
        (peer, revision)
    };
    // Until then there may have been nodes that the first has never heard of.
    wait_until("the first has been there for a lease", || begun.elapsed() > LEASE * 5 / 4).await;
    // The second answers for it, and is then cut off from the store; its last barrier is good for a
    // while.
    let (mut peer, loaded) = load(&pair.b).await;
    peer.lease().await;
    pair.wire.set(Mode::Closed);
    pair.wire.cut();
    // It moves to the first, and there it hears of a revocation, which is enforced with its
    // acknowledgement.
    let (mut peer, _) = load(&pair.a).await;
    peer.lease().await;
    let revision = pair.a.revoke(&token).await;
    while !matches!(peer.next().await.unwrap(), FromReplica::Delta(delta) if delta.revision >= revision) {}
    peer.ack(revision).await;
    let enforcement = pair.a.distribution.await_enforced(revision, LONG).await;
    assert!(enforcement.enforced && enforcement.nodes[0].state() == State::Applied, "{enforcement:?}");
    assert!(enforcement.waited_ms < LEASE.as_millis() as u64 / 2, "{enforcement:?}");
    // It is killed, knows nothing any more, and comes back to the second.
    drop(peer);
    let (mut peer, old) = load(&pair.b).await;
    assert!(loaded <= old && old < revision, "the second is behind");
    peer.send(ToReplica::Renew(wire::Renew { nonce: 7, ..Default::default() })).await;
    let granted = async {
        loop {
            match peer.next().await {
                Ok(FromReplica::Grant(_)) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    };
    let granted = tokio::time::timeout(LEASE * 2, granted).await;
    assert!(!granted.unwrap_or(false), "no lease is rooted in what was read before the node came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_replica_that_is_silent_for_long_is_forgotten_and_comes_back_as_another() {
    let pair = replica_pair().await;
    let names = |replica: &Replica| {
        let ids = replica.distribution.replicas().into_iter();
        ids.filter(|r| r.name == "b").map(|r| (r.id, r.retired)).collect::<Vec<_>>()
    };
    let before = names(&pair.a);
    pair.wire.set(Mode::Closed);
    pair.wire.cut();
    wait_until("its record is gone", || names(&pair.a).is_empty()).await;
    pair.wire.set(Mode::Open);
    wait_until("it has registered anew", || names(&pair.a).iter().any(|(id, retired)| *id != before[0].0 && !retired))
        .await;
    let node = TestNode::of(&pair.b, "n1").await;
    let token = pair.b.issue().await;
    wait_until("it has the token", || node.honours(&token.digest)).await;
    let revision = pair.b.revoke(&token).await;
    let enforcement = pair.a.distribution.await_enforced(revision, LONG).await;
    assert!(enforcement.enforced && !node.honours(&token.digest), "{enforcement:?}");
    let ReplicaPair { a, b, host, .. } = pair;
    a.stop().await;
    b.stop().await;
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_replica_that_stops_hands_its_nodes_over_and_no_lease_lapses() {
    let pair = replica_pair().await;
    let token = pair.a.issue().await;
    let endpoints = vec![pair.a.endpoint(), pair.b.endpoint()];
    let identities = [pair.a.identity("n1").await, pair.a.identity("n2").await];
    let nodes = identities.map(|identity| TestNode::follow(identity, endpoints.clone()));
    for node in &nodes {
        node.ready().await;
        wait_until("it has the token", || node.honours(&token.digest)).await;
        assert_eq!(node.status().connected, Some(pair.a.endpoint()));
    }
    let ReplicaPair { a, b, wire: _wire, host: _host, _etcd } = pair;
    let stopping = tokio::spawn(a.stop());
    while !stopping.is_finished() {
        assert!(nodes.iter().all(|node| node.honours(&token.digest)), "a request would have been refused");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    wait_until("all are with the other", || b.distribution.streams() == nodes.len()).await;
    wait_until("nothing is left of the one that stopped", || b.distribution.replicas().len() == 1).await;
    let revision = b.revoke(&token).await;
    let enforcement = b.distribution.await_enforced(revision, LONG).await;
    assert!(enforcement.enforced && enforcement.waited_ms < LEASE.as_millis() as u64 / 2, "{enforcement:?}");
    assert!(nodes.iter().all(|node| !node.honours(&token.digest) && node.status().snapshots == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_node_returns_to_a_nearer_control_plane_that_is_back() {
    let pair = replica_pair().await;
    let near = Forwarder::to(pair.a.address).await;
    let endpoint = format!("https://{}", near.address());
    near.set(Mode::Closed);
    let node = TestNode::follow(pair.a.identity("n1").await, vec![endpoint.clone(), pair.b.endpoint()]);
    node.ready().await;
    assert_eq!(node.status().connected, Some(pair.b.endpoint()));
    near.set(Mode::Open);
    wait_until("it is with the nearer one", || node.status().connected.as_ref() == Some(&endpoint)).await;
    let token = pair.b.issue().await;
    wait_until("it goes on", || node.honours(&token.digest)).await;
    assert_eq!((node.status().snapshots, node.status().rejected), (1, 0));
}
