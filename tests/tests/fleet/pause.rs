//! `SIGSTOP`, and much later `SIGCONT`: a process that doesn't know how much time has passed.

use std::time::Instant;

use rustix::process::Signal;
use seks_tests::{process::wait_for, runtime};

use crate::{
    LONG, SHORT, alone,
    hammer::Outcome,
    rig::{Fleet, NODES},
};

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_frozen_node_is_waited_for_until_its_lease_is_over_and_serves_nothing_when_it_wakes() {
    let _alone = alone();
    let fleet = Fleet::start("a frozen node", SHORT);
    let (token, agents) = fleet.agents();
    let (_kept, kept) = fleet.agents();
    let frozen = NODES - 2;
    fleet.nodes[frozen].process.signal(Signal::STOP);
    let stopped = Instant::now();
    let revoked = fleet.revoke(0, &token);
    let states = revoked.answer["nodes"].as_array().unwrap().clone();
    let state = states.iter().find(|node| node["node"] == format!("node-{frozen}")).unwrap();
    assert_eq!(state["state"], "lease_expired", "{state}");
    agents.none_accepted((0..NODES).filter(|node| *node != frozen), revoked.at);

    // What was sent to it before "enforced" is still in its socket.
    let woken = Instant::now();
    fleet.nodes[frozen].process.signal(Signal::CONT);
    agents.refused([frozen], revoked.at, "token_revoked");
    kept.accepted_everywhere(Instant::now());
    let late: Vec<_> = agents.attempts().into_iter().filter(|a| a.node == frozen && a.ended >= woken).collect();
    assert!(late.iter().any(|a| a.begun < revoked.at), "a request was under way while it slept");
    // One that began before may have been frozen between its last check and the system call that
    // writes its answer.
    let accepted = late.iter().find(|a| a.begun >= stopped && a.outcome == Outcome::Accepted);
    assert!(accepted.is_none(), "{accepted:?}");
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_frozen_replica_is_nothing_to_agents_and_grants_nothing_when_it_wakes() {
    let _alone = alone();
    let fleet = Fleet::start("a frozen replica", LONG);
    let (token, doomed) = fleet.agents();
    let (_kept, kept) = fleet.agents();
    let begun = Instant::now();
    fleet.replicas[0].process.signal(Signal::STOP);
    let revoked = fleet.revoke(1, &token);
    doomed.none_accepted(0..NODES, revoked.at);
    // All nodes have gone over: from then on nobody needs it.
    wait_for("all nodes at the other replica", || {
        fleet.list(1).iter().all(|node| node["connected"] == true).then_some(())
    });
    fleet.replicas[0].process.signal(Signal::CONT);
    doomed.none_accepted(0..NODES, revoked.at);
    kept.accepted_everywhere(Instant::now());
    kept.none_refused(0..NODES, begun, Instant::now());
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_frozen_etcd_leader_is_nothing_to_agents_and_a_revocation_goes_through() {
    let _alone = alone();
    let mut fleet = Fleet::start("a frozen leader of etcd", LONG);
    let (token, doomed) = fleet.agents();
    let (_kept, kept) = fleet.agents();
    let begun = Instant::now();
    let leader = runtime().block_on(fleet.etcd.leader());
    fleet.etcd.freeze(leader);
    let revoked = fleet.revoke(0, &token);
    doomed.none_accepted(0..NODES, revoked.at);
    fleet.etcd.thaw(leader);
    fleet.healthy();
    doomed.none_accepted(0..NODES, revoked.at);
    kept.accepted_everywhere(Instant::now());
    kept.none_refused(0..NODES, begun, Instant::now());
}
