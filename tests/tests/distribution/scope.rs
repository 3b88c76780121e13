//! Need to know: a node holds what the tenants that it was enrolled for need, and nothing else.

use seks_proto::id::TenantName;

use super::{
    node::TestNode,
    replica::{Replica, tenant},
    until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_what_its_tenants_need_and_no_more_by_snapshot_and_by_delta() {
    let (_site, replica) = Replica::furnished().await;
    let (default, acme): (TenantName, TenantName) = (tenant(), "acme".parse().unwrap());
    replica.foundation.registry.create_tenant(&acme, false).await.unwrap();
    replica.furnish_in(&acme).await;
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
    until("no token reaches it", || holders(&default).is_empty()).await;
    let enforcement = replica.distribution.await_enforced(last, std::time::Duration::from_secs(20)).await;
    assert!(enforcement.enforced && enforcement.nodes.len() == 2, "{enforcement:?}");
    assert_eq!((narrow.status().rejected, narrow.status().snapshots), (0, 1), "and what it has adds up");
}
