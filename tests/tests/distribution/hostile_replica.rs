//! What a node makes of a control plane that loses, repeats, corrupts, goes back, or is another
//! one.

use std::time::Duration;

use seks_data_plane::table::Found;
use seks_proto::wire::{self, node_message::Message as FromNode, replica_message::Message as ToNode};
use seks_protocol::CHUNK_BYTES;
use seks_tests::wait::wait_until;

use super::{
    impostor::{EPOCH, Impostor, Session, Snapshot, agent, digest, revoke, token},
    node::TestNode,
    replica::{Replica, ReplicaHost},
};

/// A node that has tokens 1 and 2 at revision 10 from an impostor, and a lease of 9 s.
struct NodeOfImpostor {
    _host: ReplicaHost,
    _replica: Replica,
    impostor: Impostor,
    session: Session,
    node: TestNode,
}

impl NodeOfImpostor {
    async fn new() -> Self {
        let (host, replica) = Replica::with_fixtures().await;
        let mut impostor = Impostor::start(&replica.foundation).await;
        let endpoint = format!("https://{}", impostor.address);
        let node = TestNode::follow(replica.identity("n1").await, vec![endpoint]);
        let mut session = impostor.stream().await;
        session.welcome(EPOCH, false).await;
        session.load(session.snapshot(10, &[1, 2])).await;
        assert!(matches!(session.verdict().await, Some(FromNode::Ack(ack)) if ack.revision == 10));
        session.grant(10).await;
        node.ready().await;
        Self { _host: host, _replica: replica, impostor, session, node }
    }

    /// The node rejected something; nothing has changed for requests.
    async fn assert_rejected(&mut self) {
        let verdict = self.session.verdict().await;
        assert!(matches!(verdict, Some(FromNode::Nack(_))), "{verdict:?}");
        assert!(self.node.honours(&digest(1)) && self.node.honours(&digest(2)));
        assert!(!self.node.knows(&digest(3)) && self.node.table.revision() == 10);
        assert_eq!(self.node.credential(&digest(1)).as_deref(), Some("sk-REAL"));
    }

    /// A right snapshot mends everything.
    async fn assert_heals(&mut self) {
        self.session.load(self.session.snapshot(30, &[2, 3])).await;
        loop {
            match self.session.verdict().await.unwrap() {
                FromNode::Ack(ack) if ack.revision == 30 => break,
                FromNode::Nack(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(!self.node.knows(&digest(1)) && self.node.knows(&digest(2)) && self.node.knows(&digest(3)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_delta_is_noticed_and_no_lease_is_renewed_until_it_is_mended() {
    let mut rig = NodeOfImpostor::new().await;
    rig.session.delta(10, 11, vec![token(5)]).await;
    assert!(matches!(rig.session.verdict().await, Some(FromNode::Ack(ack)) if ack.revision == 11));
    // 12, the revocation of 1, is lost on the way.
    rig.session.delta(12, 13, vec![token(6)]).await;
    assert!(matches!(rig.session.verdict().await, Some(FromNode::Nack(_))));
    assert!(rig.node.table.revision() == 11 && !rig.node.knows(&digest(6)));
    let ends = rig.node.table.lease().ends();
    for nonce in 0..50 {
        rig.session.grant_as(nonce, 13).await;
    }
    rig.session.delta(13, 14, vec![token(7)]).await;
    rig.assert_heals().await;
    assert_eq!(rig.node.table.lease().ends(), ends, "a grant for what it hasn't applied is none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_does_not_add_up_is_rejected_whole() {
    type Spoil = fn(&mut Snapshot);
    let spoilt: [(&str, Spoil); 9] = [
        ("a flipped bit", |s| {
            let mut bytes = s.chunks[5].changes.to_vec();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            s.chunks[5].changes = bytes.into();
        }),
        ("a dropped chunk", |s| drop(s.chunks.remove(4))),
        ("a repeated chunk", |s| s.chunks.insert(4, s.chunks[4].clone())),
        ("chunks out of order", |s| s.chunks.swap(3, 4)),
        ("an extra chunk", |s| {
            let extra = wire::Chunk { index: s.chunks.len() as u32, ..s.chunks[4].clone() };
            s.chunks.push(extra);
        }),
        ("a truncated end", |s| s.chunks.truncate(5)),
        ("another count", |s| s.end.count += 1),
        ("another hash", |s| s.end.hash[0] ^= 1),
        ("garbage", |s| s.chunks[2].changes = vec![0xff; 100].into()),
    ];
    let mut rig = NodeOfImpostor::new().await;
    for (what, spoil) in spoilt {
        let mut snapshot = rig.session.snapshot(20, &[2, 3]);
        spoil(&mut snapshot);
        rig.session.load(snapshot).await;
        rig.assert_rejected().await;
        assert!(rig.node.status().snapshots == 1, "{what}");
    }
    rig.assert_heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_out_of_bounds_is_rejected_before_it_costs_anything() {
    let mut rig = NodeOfImpostor::new().await;
    for (chunks, count) in [(1, u64::MAX), (u32::MAX, u64::MAX), (1, 1_000_000), (5, 1)] {
        let (epoch, revision) = (EPOCH.into(), 20);
        rig.session.send(ToNode::SnapshotBegin(wire::SnapshotBegin { epoch, revision, chunks, count })).await;
        rig.assert_rejected().await;
    }
    let mut snapshot = rig.session.snapshot(20, &[]);
    let two = vec![wire::Change { change: None }; CHUNK_BYTES];
    snapshot.chunks[0].changes = prost::Message::encode_to_vec(&wire::Changes { changes: two }).into();
    rig.session.load(snapshot).await;
    rig.assert_rejected().await;
    rig.assert_heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_dies_in_the_middle_of_a_snapshot_leaves_the_old_table() {
    let mut rig = NodeOfImpostor::new().await;
    let snapshot = rig.session.snapshot(20, &[2, 3, 4]);
    rig.session.send(ToNode::SnapshotBegin(snapshot.begin)).await;
    for chunk in snapshot.chunks.into_iter().take(5) {
        rig.session.send(ToNode::Chunk(chunk)).await;
    }
    drop(rig.session);
    rig.session = rig.impostor.stream().await;
    assert_eq!((rig.session.hello.epoch.as_str(), rig.session.hello.applied_revision), (EPOCH, 10));
    assert!(rig.node.honours(&digest(1)) && !rig.node.knows(&digest(3)), "never a mixture");
    rig.session.welcome(EPOCH, false).await;
    rig.assert_heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_among_the_chunks_is_applied_at_once_and_again_to_the_new_table() {
    let mut rig = NodeOfImpostor::new().await;
    let snapshot = rig.session.snapshot(20, &[1, 2, 3]);
    rig.session.send(ToNode::SnapshotBegin(snapshot.begin)).await;
    let (first, rest) = snapshot.chunks.split_at(3);
    for chunk in first {
        rig.session.send(ToNode::Chunk(chunk.clone())).await;
    }
    rig.session.delta(20, 21, vec![revoke(1), token(9)]).await;
    wait_until("the revocation is seen", || !rig.node.knows(&digest(1))).await;
    assert!(rig.node.table.revision() == 10 && rig.node.knows(&digest(2)) && !rig.node.knows(&digest(9)));
    for chunk in rest {
        rig.session.send(ToNode::Chunk(chunk.clone())).await;
    }
    rig.session.send(ToNode::SnapshotEnd(snapshot.end)).await;
    assert!(matches!(rig.session.verdict().await, Some(FromNode::Ack(ack)) if ack.revision == 21));
    assert!(matches!(rig.node.table.find(&digest(1)), Found::Revoked(_)));
    assert!(rig.node.knows(&digest(3)) && rig.node.knows(&digest(9)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_never_goes_back_in_an_epoch() {
    let mut rig = NodeOfImpostor::new().await;
    rig.session.delta(10, 20, vec![revoke(1)]).await;
    assert!(matches!(rig.session.verdict().await, Some(FromNode::Ack(ack)) if ack.revision == 20));
    // A replica that is still at 10, with the token in it.
    rig.session.load(rig.session.snapshot(10, &[1, 2])).await;
    wait_until("the alarm is raised", || rig.node.status().alarm.is_some()).await;
    assert!(!rig.node.knows(&digest(1)) && rig.node.table.revision() == 20);
    let mut next = rig.impostor.stream().await;
    assert_eq!(next.hello.applied_revision, 20);
    next.welcome(EPOCH, true).await;
    next.delta(15, 16, vec![token(1)]).await;
    assert!(matches!(next.verdict().await, Some(FromNode::Nack(_))));
    assert!(matches!(rig.node.table.find(&digest(1)), Found::Revoked(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_another_epoch_raises_an_alarm_and_changes_nothing() {
    let mut rig = NodeOfImpostor::new().await;
    drop(rig.session);
    let mut other = rig.impostor.stream().await;
    other.welcome("e2", false).await;
    wait_until("the alarm is raised", || rig.node.status().alarm.is_some()).await;
    assert!(rig.node.honours(&digest(1)), "as long as its lease lasts");
    assert_eq!(&*rig.node.table.epoch(), EPOCH);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_does_not_understand_or_cannot_open_it_rejects() {
    let mut rig = NodeOfImpostor::new().await;
    let foreign = {
        let aad = seks_protocol::credential_aad(EPOCH, "default", "main", 2);
        let other = seks_protocol::SessionKey::generate().unwrap();
        let sealed = other.seal(&aad, &seks_types::secret::Secret::new(b"x".to_vec())).unwrap();
        let (tenant, name, service) = ("default".into(), "main".into(), "api".into());
        let credential = wire::TableCredential { tenant, name, service, version: 2, sealed, ..Default::default() };
        wire::Change { change: Some(wire::change::Change::Credential(credential)) }
    };
    let nameless =
        wire::Change { change: Some(wire::change::Change::Tenant(wire::TableTenant { name: "NOT A NAME".into() })) };
    for unknown in [wire::Change { change: None }, foreign, nameless] {
        rig.session.delta(10, 11, vec![revoke(2), token(3), unknown]).await;
        rig.assert_rejected().await;
        rig.session.load(rig.session.snapshot(10, &[1, 2])).await;
        assert!(matches!(rig.session.verdict().await, Some(FromNode::Ack(ack)) if ack.revision == 10));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_counts_from_when_the_node_asked() {
    let mut rig = NodeOfImpostor::new().await;
    let before = rig.node.table.lease().ends();
    let nonce = rig.session.renewal().await;
    rig.session.grant_as(nonce + 1000, 10).await; // never asked
    rig.session.grant_as(nonce, 11).await; // for what it hasn't applied
    rig.session.delta(10, 11, vec![agent(true)]).await;
    assert!(matches!(rig.session.verdict().await, Some(FromNode::Ack(_))));
    assert_eq!(rig.node.table.lease().ends(), before);
    let nonce = rig.session.renewal().await;
    tokio::time::sleep(Duration::from_millis(500)).await; // the answer takes its time
    rig.session.grant_as(nonce, 11).await;
    wait_until("the lease is extended", || rig.node.table.lease().ends() > before).await;
    let remaining = rig.node.table.lease().remaining();
    assert!(
        remaining <= Duration::from_millis(9_000 - 500),
        "{remaining:?} of 10 s less skew, from the moment of asking"
    );
    rig.session.grant_as(nonce, 11).await; // once is enough
    let ends = rig.node.table.lease().ends();
    rig.session.delta(11, 12, vec![agent(false)]).await;
    assert!(matches!(rig.session.verdict().await, Some(FromNode::Ack(_))));
    assert_eq!(rig.node.table.lease().ends(), ends);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_node_stops_at_once() {
    let rig = NodeOfImpostor::new().await;
    let fence = wire::Fence { epoch: EPOCH.into(), reason: "another process".into(), revision: 0 };
    rig.session.send(ToNode::Fence(fence)).await;
    wait_until("it refuses", || !rig.node.serves()).await;
}
