//! Nodes that lie, stall, or are somebody else.

use std::time::Duration;

use seks_proto::wire::{
    self, distribution_client::DistributionClient, node_enforcement::State, node_message::Message as ToReplica,
    replica_message::Message as FromReplica,
};
use seks_tests::wait::wait_until;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{
    node::TestNode,
    peer::{Peer, channel, hello},
    replica::{LEASE, Replica},
};

const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_nodes_certificate_gets_nothing() {
    let (_host, replica) = Replica::with_fixtures().await;
    let operator = replica.foundation.operator_identity(&"root".parse().unwrap(), "e1").unwrap();
    let operator = (operator.cert_pem.clone(), operator.key_pem.to_string());
    for pems in [None, Some(operator)] {
        let (outbox, messages) = tokio::sync::mpsc::channel(1);
        let first = wire::NodeMessage { message: Some(ToReplica::Hello(hello("n1"))) };
        outbox.send(first).await.unwrap();
        let mut client = DistributionClient::new(channel(&replica, pems).await);
        let refused = client.sync(ReceiverStream::new(messages)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    assert!(replica.distribution.nodes().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_is_not_the_certificates_or_out_of_bounds_ends_the_stream() {
    let (_host, replica) = Replica::with_fixtures().await;
    type Spoil = fn(&mut wire::Hello);
    let cases: [(Spoil, Code); 6] = [
        (|h| h.node = "n2".into(), Code::InvalidArgument),
        (|h| h.protocol = 99, Code::InvalidArgument),
        (|h| h.version = "x".repeat(10_000), Code::InvalidArgument),
        (|h| h.features = vec!["x".into(); 1000], Code::InvalidArgument),
        (|h| h.session_key = vec![1, 2, 3], Code::InvalidArgument),
        (|h| h.epoch = "another".into(), Code::FailedPrecondition),
    ];
    for (spoil, code) in cases {
        let mut spoilt = hello("n1");
        spoil(&mut spoilt);
        let mut peer = Peer::say(&replica, "n1", spoilt).await.unwrap();
        assert_eq!(peer.end().await.code(), code);
    }
    let huge = wire::Hello { table_hash: vec![0; 4 * 1024 * 1024], ..hello("n1") };
    let refused = match Peer::say(&replica, "n1", huge).await {
        Ok(mut peer) => peer.end().await,
        Err(status) => status,
    };
    assert_ne!(refused.code(), Code::Ok);
    assert!(replica.distribution.nodes().iter().all(|n| n.first_seen_at == 0), "none of them was a node");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_of_what_was_not_sent_ends_the_stream_and_counts_for_nothing() {
    let (_host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    let (mut peer, revision) = Peer::loaded(&replica, "liar").await;
    peer.ack(revision).await;
    peer.lease().await;
    peer.ack(revision + 1000).await;
    assert_eq!(peer.end().await.code(), Code::PermissionDenied);
    let revision = replica.revoke(&token).await;
    let early = replica.distribution.await_enforced(revision, Duration::from_millis(100)).await;
    assert!(!early.enforced, "it may hold a lease: {early:?}");
    assert!(replica.distribution.await_enforced(revision, LONG).await.enforced);
    assert_eq!(replica.state(revision, "liar"), State::LeaseExpired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_can_be_acknowledged_before_the_snapshot_is_whole() {
    let (_host, replica) = Replica::with_fixtures().await;
    replica.issue_many(20_000).await; // more than fits on the way: it can't be whole
    let mut peer = Peer::welcome(&replica, "n1").await;
    peer.ack(1).await;
    assert_eq!(peer.end().await.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stream_of_a_node_fences_the_first() {
    let (_host, replica) = Replica::with_fixtures().await;
    let (mut first, revision) = Peer::loaded(&replica, "n1").await;
    let (second, same) = Peer::loaded(&replica, "n1").await;
    loop {
        match first.next().await {
            Ok(FromReplica::Fence(_)) => break,
            Ok(_) => {}
            Err(status) => panic!("no fence: {status}"),
        }
    }
    assert_eq!(first.end().await.code(), Code::Aborted);
    second.ack(same).await;
    wait_until("the second speaks", || replica.distribution.nodes()[0].applied_revision == same).await;
    first.ack(revision).await;
    assert_eq!(replica.distribution.streams(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_never_reads_is_dropped_and_disturbs_nobody() {
    let (_host, replica) = Replica::with_fixtures().await;
    replica.issue_many(20_000).await;
    let mut stuck = Peer::welcome(&replica, "stuck").await;
    let node = TestNode::of(&replica, "n1").await;
    for _ in 0..20 {
        let token = replica.issue().await;
        node.reaches(token.revision).await;
    }
    let connected = |name: &str| replica.distribution.nodes().iter().any(|n| n.id == name && n.connected);
    wait_until("the stuck node is dropped", || !connected("stuck")).await;
    assert!(connected("n1") && node.serves());
    // Nothing is kept for it but what is on its way.
    let mut chunks = 0;
    let end = loop {
        match stuck.next().await {
            Ok(FromReplica::Chunk(_)) => chunks += 1,
            Ok(_) => {}
            Err(end) => break end,
        }
    };
    assert!(chunks <= 1 && end.code() == Code::Cancelled, "{chunks} chunks, then {end}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_overtakes_a_snapshot_that_is_on_its_way() {
    let (_host, replica) = Replica::with_fixtures().await;
    let digests = replica.issue_many(20_000).await;
    let mut peer = Peer::welcome(&replica, "n1").await;
    assert!(matches!(peer.next().await, Ok(FromReplica::SnapshotBegin(_))));
    let token = replica.issue().await;
    let revision = replica.revoke(&token).await;
    wait_until("the replica knows", || replica.distribution.applied() >= revision).await;
    let (mut chunks, mut after) = (0, None);
    loop {
        match peer.next().await.unwrap() {
            FromReplica::Chunk(_) => chunks += 1,
            FromReplica::Delta(delta) if delta.revision == revision => after = Some(chunks),
            FromReplica::SnapshotEnd(_) => break,
            _ => {}
        }
    }
    let after = after.expect("the revocation came before the end");
    assert!(chunks > 20 && after < chunks / 2, "after {after} of {chunks} chunks of {} tokens", digests.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_takes_no_snapshot_is_given_up() {
    let (_host, replica) = Replica::with_fixtures().await;
    let (mut peer, _) = Peer::loaded(&replica, "n1").await;
    let mut snapshots = 1;
    let status = loop {
        peer.send(ToReplica::Nack(wire::Nack { revision: 1, reason: "no\u{7}".into() })).await;
        match peer.next().await {
            Ok(FromReplica::SnapshotEnd(_)) => snapshots += 1,
            Ok(_) => {}
            Err(status) => break status,
        }
        assert!(snapshots < 10);
    };
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(!status.message().contains('\u{7}'));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_opens_streams_and_says_nothing_has_few_of_them_and_disturbs_nobody() {
    let (_host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    let (certificate, key, _) = replica.pems("flood").await;
    let client = DistributionClient::new(channel(&replica, Some((certificate, key))).await);
    let (mut outboxes, mut opening) = (Vec::new(), Vec::new());
    for _ in 0..50 {
        let (outbox, messages) = tokio::sync::mpsc::channel::<wire::NodeMessage>(1);
        outboxes.push(outbox);
        let mut client = client.clone();
        opening.push(tokio::spawn(async move { client.sync(ReceiverStream::new(messages)).await }));
    }
    let mut refused = 0;
    let mut open = Vec::new();
    for stream in opening {
        match stream.await.unwrap() {
            Ok(stream) => open.push(stream.into_inner()),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                refused += 1;
            }
        }
    }
    assert!(refused >= 40 && !open.is_empty(), "{refused} of 50 refused");
    let node = TestNode::of(&replica, "n1").await;
    assert!(node.honours(&token.digest));
    // Who says nothing is shown out, and may try again.
    for stream in &mut open {
        assert_eq!(stream.message().await.unwrap_err().code(), Code::InvalidArgument);
    }
    let mut again = Peer::say(&replica, "flood", hello("flood")).await.unwrap();
    assert!(matches!(again.next().await, Ok(FromReplica::Welcome(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_never_longer_than_the_configured_one() {
    let (_host, replica) = Replica::with_fixtures().await;
    let (mut peer, revision) = Peer::loaded(&replica, "n1").await;
    peer.ack(revision).await;
    for _ in 0..20 {
        let grant = peer.lease().await;
        assert!(grant.ttl_left_ms > 0 && grant.ttl_left_ms <= LEASE.as_millis() as u64 && grant.nonce == 7);
    }
    let nodes = replica.foundation.registry.nodes().await.unwrap();
    assert!(nodes.iter().any(|n| n.id == "n1" && n.lease_ttl_ms == 2000), "recorded before the first grant: {nodes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_many_connections_loses_its_oldest_and_disturbs_nobody() {
    let (_host, replica) = Replica::with_fixtures().await;
    let node = TestNode::of(&replica, "n1").await;
    let (mut oldest, _) = Peer::loaded(&replica, "flood").await;
    let mut newer = Vec::new();
    for _ in 0..8 {
        let (certificate, key, _) = replica.pems("flood").await;
        newer.push(channel(&replica, Some((certificate, key))).await);
    }
    let end = oldest.end().await;
    assert!(end.code() != Code::Ok && !end.message().contains("stuck"), "{end:?}");
    let token = replica.issue().await;
    node.reaches(token.revision).await;
    assert!(node.serves());
}
