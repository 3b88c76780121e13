//! A replica that starts takes up its nodes where they are, whatever was written while it was away.

use std::time::Duration;

use seks_tests::{Etcd, Forwarder, forwarder::Mode, wait::wait_until};

use super::{
    node::TestNode,
    replica::{Issued, REAL, Replica, ReplicaHost},
};

/// A node on a wire that leads to one replica after the other.
struct Follower {
    node: TestNode,
    wire: Forwarder,
}

impl Follower {
    async fn of(replica: &Replica, name: &str) -> Self {
        let wire = Forwarder::to(replica.address).await;
        let node = TestNode::follow(replica.identity(name).await, vec![format!("https://{}", wire.address())]);
        node.ready().await;
        Self { node, wire }
    }

    /// From now on it hears nothing.
    async fn cut(&self) {
        self.wire.set(Mode::Closed);
        self.wire.cut();
        wait_until("the stream is down", || self.node.status().connected.is_none()).await;
    }

    fn lead_to(&self, replica: &Replica) {
        self.wire.lead_to(replica.address);
        self.wire.set(Mode::Open);
    }
}

/// How many pushes have been measured.
fn pushes(replica: &Replica) -> u64 {
    let families = replica.distribution.collectors().iter().flat_map(|c| c.collect()).collect::<Vec<_>>();
    let push = families.iter().find(|family| family.name() == "seks_control_push_seconds").unwrap();
    push.get_metric()[0].get_histogram().get_sample_count()
}

/// Everything that may happen while nobody serves; returns a token that was issued last.
async fn meanwhile(host: &ReplicaHost, revoked: &Issued) -> Issued {
    let replica = host.start().await;
    replica.revoke(revoked).await;
    replica.put_credential("sk-REAL-next").await;
    let later = replica.issue().await;
    replica.stop().await;
    later
}

async fn goes_on_with_deltas(host: ReplicaHost) {
    let replica = host.start().await;
    replica.seed_fixtures().await;
    let (kept, revoked) = (replica.issue().await, replica.issue().await);
    let follower = Follower::of(&replica, "n1").await;
    let node = &follower.node;
    assert_eq!(node.credential(&kept.digest).as_deref(), Some(REAL));
    follower.cut().await;
    replica.stop().await;
    assert!(node.knows(&kept.digest), "the table stays");

    let later = meanwhile(&host, &revoked).await;
    let replica = host.start().await;
    follower.lead_to(&replica);
    node.reaches(later.revision).await;
    node.ready().await;
    assert!(node.honours(&kept.digest) && node.honours(&later.digest) && !node.knows(&revoked.digest));
    assert_eq!(node.credential(&kept.digest).as_deref(), Some("sk-REAL-next"));
    assert_eq!((node.status().snapshots, node.status().streams, node.status().rejected), (1, 2, 0));
    wait_until("it has said so", || replica.distribution.nodes()[0].lag == 0).await;
    assert_eq!(pushes(&replica), 0, "nobody has pushed what was written before");
    let revision = replica.revoke(&later).await;
    assert!(replica.distribution.await_enforced(revision, Duration::from_secs(20)).await.enforced);
    assert!(!node.knows(&later.digest) && pushes(&replica) == 1);
    let fresh = TestNode::of(&replica, "n2").await;
    assert_eq!(fresh.table.sum(), node.table.sum(), "a snapshot comes to the same");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_on_with_deltas_of_what_was_written_while_its_replica_was_away() {
    goes_on_with_deltas(ReplicaHost::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn and_so_it_does_on_etcd() {
    let etcd = Etcd::start().await;
    goes_on_with_deltas(ReplicaHost::on_etcd(&etcd)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn where_the_past_is_compacted_the_node_takes_a_snapshot() {
    let etcd = Etcd::start().await;
    let host = ReplicaHost::on_etcd(&etcd);
    let replica = host.start().await;
    replica.seed_fixtures().await;
    let (kept, revoked) = (replica.issue().await, replica.issue().await);
    let follower = Follower::of(&replica, "n1").await;
    follower.cut().await;
    replica.stop().await;
    let later = meanwhile(&host, &revoked).await;
    etcd.compact(later.revision).await;
    let replica = host.start().await;
    follower.lead_to(&replica);
    let node = &follower.node;
    node.reaches(later.revision).await;
    node.ready().await;
    assert!(node.honours(&kept.digest) && node.honours(&later.digest) && !node.knows(&revoked.digest));
    assert_eq!((node.status().snapshots, node.status().rejected), (2, 0));
    replica.stop().await;
}

/// An envelope of the past needs a key that is gone: to a node that is sent it, the credential
/// would be gone with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_every_node_has_the_credential_without_the_old_key() {
    let mut host = ReplicaHost::new();
    let replica = host.start().await;
    replica.seed_fixtures().await;
    let token = replica.issue().await;
    let (before, after) = (Follower::of(&replica, "before").await, Follower::of(&replica, "after").await);
    before.cut().await;
    after.node.reaches(replica.put_credential("sk-REAL-next").await).await;
    after.cut().await;
    replica.stop().await;
    host.rotate().await;
    let replica = host.start().await;
    for follower in [&before, &after] {
        follower.lead_to(&replica);
        follower.node.ready().await;
    }
    let last = replica.issue().await;
    for follower in [&before, &after] {
        follower.node.reaches(last.revision).await;
        assert_eq!(follower.node.credential(&token.digest).as_deref(), Some("sk-REAL-next"));
    }
    let snapshots = [&before, &after].map(|follower| follower.node.status().snapshots);
    assert_eq!(snapshots, [2, 1], "only who lacks what can't be opened any more starts again");
    replica.stop().await;
}
