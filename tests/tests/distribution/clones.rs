//! Two processes with one certificate: what one of them acknowledges says nothing of the other.

use std::time::Duration;

use seks_data_plane::sync::Identity;
use seks_proto::wire::{self, node_enforcement::State};
use seks_tests::{Etcd, Forwarder, forwarder::Mode, wait::wait_until};

use super::{
    node::TestNode,
    replica::{Issued, LEASE, Replica, ReplicaHost},
};

const LONG: Duration = Duration::from_secs(20);
const NAME: &str = "cloned";

/// One of the two, that hears nothing any more and has a lease yet.
struct CutOff {
    node: TestNode,
    _wire: Forwarder,
}

async fn cut_off(replica: &Replica, identity: Identity, token: &Issued) -> CutOff {
    let wire = Forwarder::to(replica.address).await;
    let node = TestNode::follow(identity, vec![format!("https://{}", wire.address())]);
    node.ready().await;
    wait_until("it has the token", || node.honours(&token.digest)).await;
    wire.set(Mode::Held);
    CutOff { node, _wire: wire }
}

async fn here(replica: &Replica, identity: Identity, token: &Issued) -> TestNode {
    let node = TestNode::follow(identity, vec![replica.endpoint()]);
    node.ready().await;
    wait_until("it has the token", || node.honours(&token.digest)).await;
    node
}

fn is_prompt(enforcement: &wire::Enforcement) -> bool {
    enforcement.enforced && enforcement.waited_ms < LEASE.as_millis() as u64 / 2
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_of_a_clone_that_is_cut_off_is_waited_for() {
    let host = ReplicaHost::new();
    let replica = host.start().await;
    replica.seed_fixtures().await;
    let token = replica.issue().await;
    let identity = replica.identity(NAME).await;
    let first = cut_off(&replica, identity.clone(), &token).await;
    let second = here(&replica, identity, &token).await;
    assert!(first.node.honours(&token.digest), "both have a lease");
    let revision = replica.revoke(&token).await;
    second.reaches(revision).await;
    let enforcement = replica.distribution.await_enforced(revision, LONG).await;
    assert!(!first.node.honours(&token.digest) && !second.honours(&token.digest), "at the moment of the answer");
    assert!(enforcement.enforced && enforcement.nodes[0].state() == State::LeaseExpired, "{enforcement:?}");
    // With that lease the first is forgotten.
    let token = replica.issue().await;
    wait_until("it has the token", || second.honours(&token.digest)).await;
    let revision = replica.revoke(&token).await;
    let enforcement = replica.distribution.await_enforced(revision, LONG).await;
    assert!(is_prompt(&enforcement) && enforcement.nodes[0].state() == State::Applied, "{enforcement:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_replica_answers_for_a_clone_although_another_answers_for_the_node() {
    let etcd = Etcd::start().await;
    let host = ReplicaHost::on_etcd(&etcd);
    let a = host.start_as("a", &[]).await;
    a.seed_fixtures().await;
    let (b, c) = (host.start_as("b", &[]).await, host.start_as("c", &[]).await);
    wait_until("they know each other", || [&a, &b, &c].iter().all(|r| r.distribution.replicas().len() == 3)).await;
    // A replica that owns no node's lease is waited for until the leases from before it started
    // have ended. No call shows that.
    tokio::time::sleep(LEASE * 5 / 4).await;
    let token = a.issue().await;
    let identity = a.identity(NAME).await;
    let first = cut_off(&a, identity.clone(), &token).await;
    let second = here(&b, identity, &token).await;
    assert!(first.node.honours(&token.digest), "both have a lease");
    let revision = a.revoke(&token).await;
    second.reaches(revision).await;
    // Each at the moment of its own answer.
    let asked = [&a, &b, &c].map(async |replica| {
        let enforcement = replica.distribution.await_enforced(revision, LONG).await;
        assert!(!first.node.honours(&token.digest) && !second.honours(&token.digest), "at the moment of the answer");
        assert!(enforcement.enforced, "{enforcement:?}");
    });
    futures_util::future::join_all(asked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_takes_the_place_of_one_that_ended_is_not_waited_for() {
    let host = ReplicaHost::new();
    let replica = host.start().await;
    replica.seed_fixtures().await;
    let (token, dir) = (replica.issue().await, tempfile::tempdir().unwrap());
    let mut identity = replica.identity(NAME).await;
    identity.save(dir.path()).unwrap();
    let first = here(&replica, identity.clone(), &token).await;
    let second = TestNode::follow(identity, vec![replica.endpoint()]);
    wait_until("it says that it waits", || second.status().alarm.is_some()).await;
    assert!(first.serves() && !second.serves() && second.status().streams == 0);
    first.stop().await;
    second.ready().await;
    assert_eq!(second.status().alarm, None);
    wait_until("it has the token", || second.honours(&token.digest)).await;
    let revision = replica.revoke(&token).await;
    let enforcement = replica.distribution.await_enforced(revision, LONG).await;
    assert!(is_prompt(&enforcement) && enforcement.nodes[0].state() == State::Applied, "{enforcement:?}");
}
