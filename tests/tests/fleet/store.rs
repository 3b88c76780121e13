//! etcd without its majority, full, or slow.

use std::time::{Duration, Instant};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use seks_tests::{process::PATIENCE, runtime};
use serde_json::json;

use crate::{
    LONG, SHORT, alone,
    rig::{Fleet, NODES},
};

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn without_a_majority_of_the_store_nothing_is_revoked_and_nothing_is_served_past_its_lease() {
    let _alone = alone();
    let mut fleet = Fleet::start("etcd without its majority", SHORT);
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
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_token_is_revoked_although_the_store_is_full() {
    let _alone = alone();
    let quota = "--quota-backend-bytes=8388608";
    let fleet = Fleet::with("a full etcd", LONG, &[quota]);
    let (token, agents) = fleet.agents();
    let (_kept, kept) = fleet.agents();
    let begun = Instant::now();
    fill(&fleet);
    let refused = fleet.replicas[0].cli.run(&["agent", "create", "one-more"], "");
    assert_ne!(refused.code, Some(0), "the store is full");
    let revoked = fleet.revoke(0, &token);
    agents.none_accepted(0..NODES, revoked.at);
    kept.none_refused(0..NODES, begun, Instant::now());
}

/// Puts what isn't ours until etcd raises its alarm.
fn fill(fleet: &Fleet) {
    let begun = Instant::now();
    let value = BASE64_STANDARD.encode(vec![b'x'; 256 * 1024]);
    for n in 0.. {
        let put = json!({"key": BASE64_STANDARD.encode(format!("/filler/{n}")), "value": value});
        let answer = runtime().block_on(fleet.etcd.call(0, "kv/put", put)).unwrap();
        let alarms = runtime().block_on(fleet.etcd.call(0, "maintenance/alarm", json!({"action": "GET"}))).unwrap();
        if alarms["alarms"].as_array().is_some_and(|alarms| !alarms.is_empty()) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "etcd takes everything: {answer} {alarms}");
    }
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_slow_etcd_leader_is_nothing_to_agents_and_a_revocation_goes_through() {
    let _alone = alone();
    let fleet = Fleet::start("a slow leader of etcd", LONG);
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
