//! Replicas and nodes of two versions. A version is imitated by what it says and what it leaves
//! out: the features of a node's Hello, the fields of a record, the store format of a replica.

use prost::Message as _;
use seks_control_plane::{
    registry::Issue,
    store::{Key, STORE_FORMAT, Transaction, Write},
};
use seks_proto::wire::{self, change::Change, replica_message::Message as FromReplica};
use seks_protocol::features;
use seks_tests::wait::wait_until;
use seks_types::id::ReplicaId;

use super::{
    impostor::{Impostor, change, digest, token},
    node::TestNode,
    peer::{Peer, hello},
    replica::{Replica, tenant},
};

/// A feature of a version after this one.
const LATER: &str = "later-v1";

/// Issues a token that is bound to a client certificate. Returns its id.
async fn issue_bound(replica: &Replica) -> String {
    let issue = Issue {
        is_canary: false,
        agent: "bot".parse().unwrap(),
        grants: vec![("api".parse().unwrap(), None)],
        ttl: None,
        cidrs: Vec::new(),
        shape: String::new(),
        request_id: String::new(),
        certificate: Some([7; 32]),
        by: "root".parse().unwrap(),
    };
    replica.foundation.registry.issue_token(&tenant(), issue).await.unwrap().token.id
}

/// Ids of the tokens in a snapshot, and the credentials that came with a secret.
async fn load(peer: &mut Peer) -> (Vec<String>, usize, u64) {
    let (mut tokens, mut credentials, mut revision) = (Vec::new(), 0, 0);
    loop {
        match peer.next().await.unwrap() {
            FromReplica::SnapshotBegin(begin) => revision = begin.revision,
            FromReplica::Chunk(chunk) => {
                for change in wire::Changes::decode(chunk.changes).unwrap().changes {
                    match change.change {
                        Some(Change::Token(token)) => tokens.push(String::from_utf8(token.id.to_vec()).unwrap()),
                        Some(Change::Credential(credential)) if !credential.sealed.is_empty() => credentials += 1,
                        _ => {}
                    }
                }
            }
            FromReplica::SnapshotEnd(_) => return (tokens, credentials, revision),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_node_is_sent_everything_but_the_records_that_it_cannot_enforce() {
    let (_host, replica) = Replica::with_fixtures().await;
    let plain = replica.issue().await.id.to_string();
    let bound = issue_bound(&replica).await;
    let of_this_version = || {
        let all = features::ALL.iter().chain([&features::BINDING_V1]).chain(features::OF_RECORDS);
        all.map(|&feature| feature.to_owned()).collect::<Vec<_>>()
    };
    for (node, lacks, sees_bound) in
        [("this", "", true), ("older", features::CERTIFICATE_V1, false), ("oldest", features::BINDING_V1, true)]
    {
        let mut said = hello(node);
        said.features = of_this_version().into_iter().filter(|feature| feature != lacks).collect();
        let mut peer = Peer::say(&replica, node, said).await.unwrap();
        let (tokens, credentials, revision) = load(&mut peer).await;
        assert!(tokens.contains(&plain) && credentials == 1, "{node}: {tokens:?}, {credentials} credentials");
        assert_eq!(tokens.contains(&bound), sees_bound, "{node}: {tokens:?}");
        // What is held back is not missed: the node is complete, and may serve.
        peer.ack(revision).await;
        assert!(peer.lease().await.ttl_left_ms > 0, "{node}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_node_is_served_by_this_replica() {
    let (_host, replica) = Replica::with_fixtures().await;
    let plain = replica.issue().await.id.to_string();
    let mut newer = hello("newer");
    newer.version = "99.0.0".into();
    newer.features.push(LATER.into());
    let mut peer = Peer::say(&replica, "newer", newer).await.unwrap();
    let (tokens, credentials, revision) = load(&mut peer).await;
    assert!(tokens.contains(&plain) && credentials == 1, "{tokens:?}, {credentials} credentials");
    peer.ack(revision).await;
    assert!(peer.lease().await.ttl_left_ms > 0);
}

/// `token(n)` with a rule that it `requires`.
fn ruled(n: u64, requires: &str) -> wire::Change {
    let Some(Change::Token(plain)) = token(n).change else { panic!("a token") };
    change(Change::Token(wire::TableToken { requires: vec![requires.into()], ..plain }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_this_node_lacks_or_that_an_older_replica_dropped_refuses_that_token_alone() {
    let (_host, replica) = Replica::with_fixtures().await;
    let mut impostor = Impostor::start(&replica.foundation).await;
    let endpoint = format!("https://{}", impostor.address);
    let node = TestNode::follow(replica.identity("n1").await, vec![endpoint]);
    let mut stream = impostor.stream().await;
    stream.welcome(super::impostor::EPOCH, false).await;
    stream.load(stream.snapshot(5, &[1])).await;
    // 2: of a later version. 3 and 4: the replica passed on what it knew, and not the rule itself.
    let rules = [(2, LATER), (3, features::CERTIFICATE_V1), (4, features::TRUST_V1)];
    let changes = rules.iter().map(|(n, requires)| ruled(*n, requires)).chain([token(5)]).collect();
    stream.delta(5, 9, changes).await;
    node.reaches(9).await;
    stream.grant(9).await;
    wait_until("the node may serve", || node.serves()).await;
    assert!(node.honours(&digest(1)) && node.honours(&digest(5)));
    for (n, requires) in rules {
        assert!(!node.honours(&digest(n)), "{requires}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_an_earlier_version_is_named_until_it_is_gone() {
    let (_host, replica) = Replica::with_fixtures().await;
    let older = || replica.distribution.replicas_older_than(STORE_FORMAT);
    assert!(older().is_empty(), "{:?}", older());
    let id = ReplicaId::generate("previous").unwrap();
    let record = wire::Replica {
        id: id.to_string(),
        name: "previous".into(),
        lease_ttl_ms: 10_000,
        store_format: STORE_FORMAT - 1,
        ..Default::default()
    };
    let commit = |write| {
        let transaction = Transaction { writes: vec![write], ..Transaction::default() };
        replica.foundation.store.commit(transaction)
    };
    commit(Write::Put(Key::Replica(id.clone()), record.encode_to_vec().into())).await.unwrap();
    wait_until("the older replica is known", || older() == ["previous"]).await;
    commit(Write::Delete(Key::Replica(id))).await.unwrap();
    wait_until("the older replica is gone", || older().is_empty()).await;
}
