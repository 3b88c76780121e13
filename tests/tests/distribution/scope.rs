//! Need to know: a node holds what its tenants and pools need that it was enrolled for, and nothing
//! else.

use std::time::Duration;

use seks_control_plane::registry::Admission;
use seks_tests::wait::wait_until;
use seks_types::id::{CredentialName, PoolName, TenantName};

use super::{
    node::TestNode,
    replica::{Replica, tenant},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_what_its_tenants_need_and_no_more_by_snapshot_and_by_delta() {
    let (_host, replica) = Replica::with_fixtures().await;
    let (default, acme): (TenantName, TenantName) = (tenant(), "acme".parse().unwrap());
    replica.foundation.registry.create_tenant(&acme, false).await.unwrap();
    replica.seed_fixtures_in(&acme).await;
    let early = [replica.issue().await, replica.issue_in(&acme).await];
    let identity = replica.identity_within("narrow", std::slice::from_ref(&acme)).await;
    let narrow = TestNode::follow(identity, vec![replica.endpoint()]);
    narrow.ready().await;
    let wide = TestNode::of(&replica, "wide").await;
    let late = [replica.issue().await, replica.issue_in(&acme).await];
    for node in [&narrow, &wide] {
        node.reaches(late[1].revision).await;
    }
    for [of_default, of_acme] in [&early, &late] {
        assert!(wide.honours(&of_default.digest) && wide.honours(&of_acme.digest));
        assert!(!narrow.knows(&of_default.digest) && narrow.honours(&of_acme.digest));
    }
    let main = "main".parse().unwrap();
    assert!(narrow.table.credential(&default, &main).is_none() && narrow.table.credential(&acme, &main).is_some());
    assert!(
        narrow.table.policies(&default).is_none() && narrow.table.agent(&default, &"bot".parse().unwrap()).is_none()
    );

    let holders = |tenant| {
        let nodes = replica.distribution.holders(tenant, &main).into_iter();
        nodes.map(|node| node.id).collect::<Vec<_>>()
    };
    assert_eq!(
        (holders(&default), holders(&acme)),
        (vec!["wide".to_owned()], vec!["narrow".to_owned(), "wide".into()])
    );
    let last = replica.revoke(&early[0]).await.max(replica.revoke(&late[0]).await);
    wait_until("no token reaches it", || holders(&default).is_empty()).await;
    let enforcement = replica.distribution.await_enforced(last, Duration::from_secs(20)).await;
    assert!(enforcement.enforced && enforcement.nodes.len() == 2, "{enforcement:?}");
    assert_eq!((narrow.status().rejected, narrow.status().snapshots), (0, 1), "and what it has adds up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_of_a_pool_is_on_the_nodes_of_that_pool_alone() {
    let (_host, replica) = Replica::with_fixtures().await;
    let token = replica.issue().await;
    let pool = |name: &str| -> PoolName { name.parse().unwrap() };
    let follow = async |name: &str, pools: Vec<PoolName>| {
        let identity = replica.identity_for(name, Admission { pools, ..Admission::default() }).await;
        let node = TestNode::follow(identity, vec![replica.endpoint()]);
        node.ready().await;
        node
    };
    let eu = follow("eu", vec![pool("eu"), pool("gdpr")]).await;
    let us = follow("us", vec![pool("us")]).await;
    let main: CredentialName = "main".parse().unwrap();
    let held = |node: &TestNode| node.table.credential(&tenant(), &main).map(|credential| credential.version);
    let holders = || replica.distribution.holders(&tenant(), &main).into_iter().map(|n| n.id).collect::<Vec<_>>();
    assert_eq!((held(&eu), held(&us), holders()), (Some(1), Some(1), vec!["eu".to_owned(), "us".into()]));

    // Taken away from a node that had it: enforced like any revocation.
    let assign = async |pools: &[PoolName]| {
        let (credential, revision) =
            replica.foundation.registry.assign_credential(&tenant(), &main, pools).await.unwrap();
        let done = replica.distribution.await_enforced(revision, Duration::from_secs(20)).await;
        assert!(done.enforced && done.nodes.len() == 2, "{done:?}");
        credential.pools
    };
    assert_eq!(assign(&[pool("gdpr"), pool("asia"), pool("gdpr")]).await, ["asia", "gdpr"]);
    assert_eq!((held(&eu), held(&us), holders()), (Some(1), None, vec!["eu".to_owned()]));
    assert!(us.honours(&token.digest), "the token is known there; it reaches nothing");

    // The next version goes the same way, and a node that comes with nothing gets no more.
    let next = replica.put_credential("sk-REAL-next").await;
    let late = follow("late", vec![]).await;
    for node in [&eu, &us, &late] {
        node.reaches(next).await;
    }
    assert_eq!((held(&eu), held(&us), held(&late)), (Some(2), None, None));

    // Somewhere else, and everywhere again.
    late.stop().await;
    wait_until("it is gone", || replica.distribution.nodes().iter().all(|n| n.id != "late" || !n.connected)).await;
    let (credential, revision) =
        replica.foundation.registry.assign_credential(&tenant(), &main, &[pool("us")]).await.unwrap();
    assert_eq!(credential.version, 2, "it is no new version");
    for node in [&eu, &us] {
        node.reaches(revision).await;
    }
    assert_eq!((held(&eu), held(&us), holders()), (None, Some(2), vec!["us".to_owned()]));
    let revision = replica.foundation.registry.assign_credential(&tenant(), &main, &[]).await.unwrap().1;
    for node in [&eu, &us] {
        node.reaches(revision).await;
        assert_eq!(held(node), Some(2));
        assert_eq!((node.status().rejected, node.status().snapshots), (0, 1), "and what it has adds up");
    }
}
