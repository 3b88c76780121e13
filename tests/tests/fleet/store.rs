//! etcd without its majority, or slow.

use std::time::{Duration, Instant};

use seks_tests::runtime;

use crate::{
    LONG, SHORT, alone,
    rig::{Fleet, NODES},
};

#[test]
fn without_a_majority_of_the_store_nothing_is_revoked_and_nothing_is_served_past_its_lease() {
    let _alone = alone();
    let Some(mut fleet) = Fleet::start("etcd without its majority", SHORT) else { return };
    let (token, agents) = fleet.agents();
    let begun = Instant::now();
    fleet.etcd.kill(0);
    fleet.etcd.kill(1);
    // Leases may have been extended up to the blow, and not after it.
    agents.refused(0..NODES, begun, "node_stale");
    let stale = Instant::now();
    let tried =
        fleet.replicas[0].cli.run(&["token", "revoke", &token.id, "--yes", "--timeout", "3s", "-o", "json"], "");
    assert_eq!(tried.code, Some(6), "{}{}", tried.stdout, tried.stderr);
    assert!(
        !tried.stdout.contains("\"enforced\":true") && !tried.stdout.contains("\"enforced\": true"),
        "{}",
        tried.stdout
    );
    agents.none_accepted(0..NODES, stale);

    fleet.etcd.restart(0);
    fleet.etcd.restart(1);
    fleet.healthy();
    let (token, agents) = fleet.agents();
    let revoked = fleet.revoke(1, &token);
    agents.none_accepted(0..NODES, revoked.at);
}

#[test]
fn a_slow_etcd_leader_is_nothing_to_agents_and_a_revocation_goes_through() {
    let _alone = alone();
    let Some(fleet) = Fleet::start("a slow leader of etcd", LONG) else { return };
    let (token, doomed) = fleet.agents();
    let (_kept, kept) = fleet.agents();
    let begun = Instant::now();
    let leader = runtime().block_on(fleet.etcd.leader());
    fleet.etcd.slow(leader, Duration::from_millis(300));
    let revoked = fleet.revoke(0, &token);
    doomed.none_accepted(0..NODES, revoked.at);
    fleet.etcd.slow(leader, Duration::ZERO);
    kept.accepted_everywhere(Instant::now());
    kept.none_refused(0..NODES, begun, Instant::now());
}
