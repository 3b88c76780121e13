//! Nothing is broken.

use std::time::Instant;

use crate::{
    LONG, alone,
    rig::{Fleet, NODES, REPLICAS, caught_up},
};

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn every_replica_lists_every_node_with_region_revision_lag_lease_and_version() {
    let _alone = alone();
    let fleet = Fleet::start("a list of nodes", LONG);
    let (token, agents) = fleet.agents();
    for replica in 0..REPLICAS {
        let listed = caught_up(&fleet, replica);
        for (n, node) in listed.iter().enumerate() {
            assert_eq!(node["id"], format!("node-{n}"), "{node}");
            assert_eq!(node["region"], ["near", "mid", "far"][n / 2], "{node}");
            assert!(node["version"].as_str().is_some_and(|version| version.contains('.')), "{node}");
        }
        let own: Vec<_> = listed.iter().filter(|node| node["connected"] == true).collect();
        assert!(!own.is_empty(), "{listed:?}");
        for node in own {
            let lease = node["lease_remaining_ms"].as_u64().unwrap();
            assert!((1..=fleet.lease.as_millis() as u64 * 11 / 10).contains(&lease), "{node}");
        }
    }
    let revoked = fleet.revoke(0, &token);
    agents.none_accepted(0..NODES, revoked.at);
    let mut named: Vec<_> =
        revoked.answer["nodes"].as_array().unwrap().iter().map(|n| n["node"].as_str().unwrap()).collect();
    named.sort_unstable();
    assert_eq!(named, (0..NODES).map(|n| format!("node-{n}")).collect::<Vec<_>>());
    agents.refused(0..NODES, Instant::now(), "token_revoked");
}
