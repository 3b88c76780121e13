//! Who is of the fleet: who enrolled, until it is revoked.

use std::time::Duration;

use seks_control_plane::{
    authority::Request,
    registry::{Admission, Joining},
};
use seks_proto::wire::node_enforcement::State;
use tonic::Code;

use seks_tests::wait::{PATIENCE, wait_until};

use super::{
    node::TestNode,
    peer::{Peer, hello},
    replica::Replica,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_stops_at_once_and_its_certificate_is_worth_nothing_from_then_on() {
    let (_host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    let identity = replica.identity("n1").await;
    let node = TestNode::follow(identity.clone(), vec![replica.endpoint()]);
    let other = TestNode::of(&replica, "n2").await;
    node.ready().await;
    assert!(node.honours(&token.digest));
    let old = replica.pems("n1").await;
    let id = "n1".parse().unwrap();
    replica.foundation.registry.revoke_node(&id).await.unwrap();
    wait_until("the node refuses everything", || !node.serves()).await;
    assert!(other.honours(&token.digest), "nobody else is hurt");
    wait_until("it is out of the list", || replica.distribution.nodes().iter().all(|n| n.id != "n1")).await;

    let again = TestNode::follow(identity, vec![replica.endpoint()]);
    wait_until("it was turned away", || again.status().last_error.is_some_and(|e| e.contains("revoked"))).await;
    assert!(!again.serves() && again.table.revision() == 0);

    // The name is free again; the certificate of before isn't good for the node that has it now.
    replica.identity("n1").await;
    let refused = Peer::say_as(&replica, (old.0, old.1), hello("n1")).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let new = TestNode::of(&replica, "n1").await;
    assert!(new.honours(&token.digest));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_of_a_node_is_enforced_when_it_says_that_it_has_stopped_or_its_lease_is_over() {
    let (_host, replica) = Replica::with_fixtures().await;
    let (node, other) = (TestNode::of(&replica, "n1").await, TestNode::of(&replica, "n2").await);
    let revision = replica.foundation.registry.revoke_node(&"n1".parse().unwrap()).await.unwrap();
    let done = replica.distribution.await_enforced(revision, Duration::from_secs(20)).await;
    assert!(!node.serves() && other.serves(), "at the moment of the answer");
    assert!(done.enforced && done.waited_ms < 1000, "{done:?}");
    let states: Vec<_> = done.nodes.iter().map(|n| (n.node.as_str(), n.state())).collect();
    assert_eq!(states, [("n1", State::Applied), ("n2", State::Applied)]);

    // One that says nothing is waited for until its lease has ended.
    let (mut peer, loaded) = Peer::loaded(&replica, "n3").await;
    peer.ack(loaded).await;
    peer.lease().await;
    let revision = replica.foundation.registry.revoke_node(&"n3".parse().unwrap()).await.unwrap();
    let early = replica.distribution.await_enforced(revision, Duration::from_millis(100)).await;
    assert!(!early.enforced, "{early:?}");
    let done = replica.distribution.await_enforced(revision, Duration::from_secs(20)).await;
    assert!(done.enforced && done.nodes.iter().all(|n| n.state() != State::Outstanding), "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_enrolled_and_never_came_holds_nothing_up() {
    let (_host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    replica.identity("n1").await;
    let revision = replica.revoke(&token).await;
    let enforcement = replica.distribution.await_enforced(revision, Duration::from_secs(20)).await;
    assert!(enforcement.enforced && enforcement.waited_ms < 1000 && enforcement.nodes.is_empty(), "{enforcement:?}");
    let nodes = replica.distribution.nodes();
    assert!(nodes.len() == 1 && nodes[0].id == "n1" && !nodes[0].connected && nodes[0].first_seen_at == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_says_whose_secrets_a_node_may_hold() {
    let (_host, replica) = Replica::with_fixtures().await;
    let (registry, authority) = (&replica.foundation.registry, &replica.foundation.authority);
    let tenants = vec!["default".parse().unwrap()];
    let admission = Admission { region: "us".into(), tenants, ..Admission::default() };
    let token = registry.create_join_token(admission, authority.pin()).await.unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let key_sha256 = Request::parse(csr.der()).unwrap().key_sha256();
    let joining = Joining { token: &token.text, node: Some("n1".parse().unwrap()), key_sha256 };
    registry.enrol(&joining).await.unwrap();
    let node = TestNode::of(&replica, "n1").await;
    wait_until("it was seen", || replica.distribution.nodes()[0].connected).await;
    let seen = &replica.distribution.nodes()[0];
    assert_eq!(
        (seen.region.as_str(), &seen.tenants[..]),
        ("us", &["default".to_owned()][..]),
        "not what it says itself"
    );
    let stored = || async { registry.node(&"n1".parse().unwrap()).await.unwrap().unwrap() };
    let granted = async {
        while stored().await.lease_ttl_ms == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, granted).await.expect("a lease in the node's record");
    assert_eq!(stored().await.tenants, ["default"], "being seen doesn't change what was granted");
    node.stop().await;
}
