//! The control plane goes away, on purpose or not.

use std::time::Instant;

use rustix::process::Signal;
use seks_tests::process::wait_for;

use crate::{
    LONG, SHORT, alone,
    hammer::Outcome,
    rig::{Fleet, NODES},
};

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn without_a_control_plane_agents_notice_nothing_until_the_lease_ends_and_are_then_refused() {
    let _alone = alone();
    let mut fleet = Fleet::start("an outage of the control plane", SHORT);
    let (_token, agents) = fleet.agents();
    let begun = Instant::now();
    let frozen = fleet.replicas.iter().map(|replica| replica.process.signal(Signal::STOP)).count();
    assert_eq!(frozen, fleet.replicas.len());
    let ends: Vec<_> = fleet.nodes.iter().map(|node| node.lease_ends()).collect();
    agents.refused(0..NODES, begun, "node_stale");
    for (node, ends) in ends.into_iter().enumerate() {
        agents.none_refused([node], begun, ends);
    }
    let over = begun + fleet.lease;
    let late: Vec<_> = agents.attempts().into_iter().filter(|a| a.begun >= over).collect();
    assert!(late.iter().all(|a| a.outcome == Outcome::Refused("node_stale".into())), "{late:?}");
    // One wakes, the other has crashed in its sleep: no person does anything about it.
    fleet.replicas[1].process.kill();
    fleet.replicas[0].process.signal(Signal::CONT);
    agents.accepted_everywhere(Instant::now());
    fleet.replicas[1].restart();
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn replicas_are_restarted_one_after_the_other_and_no_request_fails() {
    let _alone = alone();
    let mut fleet = Fleet::start("a rolling restart", LONG);
    let (token, doomed) = fleet.agents();
    let (_kept, kept) = fleet.agents();
    let begun = Instant::now();
    for n in 0..fleet.replicas.len() {
        let status = fleet.replicas[n].process.terminate();
        assert!(status.success(), "{status}");
        wait_for("all nodes at the other replica", || {
            let listed = fleet.list(1 - n);
            listed.iter().all(|node| node["connected"] == true).then_some(())
        });
        fleet.replicas[n].restart();
    }
    let revoked = fleet.revoke(0, &token);
    doomed.none_accepted(0..NODES, revoked.at);
    kept.accepted_everywhere(Instant::now());
    kept.none_refused(0..NODES, begun, Instant::now());
}
