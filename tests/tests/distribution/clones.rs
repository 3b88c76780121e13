//! Two processes with one certificate: what one of them acknowledges says nothing of the other.

use std::time::Duration;

use seks_data_plane::sync::Identity;
use seks_proto::wire::{self, node_enforcement::State};
use seks_tests::{Etcd, Forwarder, forwarder::Mode};

use super::{
    node::TestNode,
    replica::{Issued, LEASE, Replica, Site},
    until,
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
    until("it has the token", || node.honours(&token.digest)).await;
    wire.set(Mode::Held);
    CutOff { node, _wire: wire }
}

async fn here(replica: &Replica, identity: Identity, token: &Issued) -> TestNode {
    let node = TestNode::follow(identity, vec![replica.endpoint()]);
    node.ready().await;
    until("it has the token", || node.honours(&token.digest)).await;
    node
}

fn is_prompt(enforcement: &wire::Enforcement) -> bool {
    enforcement.enforced && enforcement.waited_ms < LEASE.as_millis() as u64 / 2
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_of_a_clone_that_is_cut_off_is_waited_for() {
    let site = Site::new();
    let replica = site.start().await;
    replica.furnish().await;
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
    until("it has the token", || second.honours(&token.digest)).await;
    let revision = replica.revoke(&token).await;
    let enforcement = replica.distribution.await_enforced(revision, LONG).await;
    assert!(is_prompt(&enforcement) && enforcement.nodes[0].state() == State::Applied, "{enforcement:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_replica_answers_for_a_clone_although_another_answers_for_the_node() {
    let etcd = Etcd::start().await;
    let site = Site::on_etcd(&etcd);
    let a = site.start_as("a", &[]).await;
    a.furnish().await;
    let (b, c) = (site.start_as("b", &[]).await, site.start_as("c", &[]).await);
    until("they know each other", || [&a, &b, &c].iter().all(|r| r.distribution.replicas().len() == 3)).await;
    // From then on who answers for no node isn't waited for.
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
    let site = Site::new();
    let replica = site.start().await;
    replica.furnish().await;
    let (token, dir) = (replica.issue().await, tempfile::tempdir().unwrap());
    let mut identity = replica.identity(NAME).await;
    identity.save(dir.path()).unwrap();
    let first = here(&replica, identity.clone(), &token).await;
    let second = TestNode::follow(identity, vec![replica.endpoint()]);
    until("it says that it waits", || second.status().alarm.is_some()).await;
    assert!(first.serves() && !second.serves() && second.status().streams == 0);
    first.stop().await;
    second.ready().await;
    assert_eq!(second.status().alarm, None);
    until("it has the token", || second.honours(&token.digest)).await;
    let revision = replica.revoke(&token).await;
    let enforcement = replica.distribution.await_enforced(revision, LONG).await;
    assert!(is_prompt(&enforcement) && enforcement.nodes[0].state() == State::Applied, "{enforcement:?}");
}
