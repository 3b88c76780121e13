//! `SIGKILL` of each kind of process.

use std::time::Instant;

use seks_tests::runtime;

use crate::{
    LONG, SHORT, alone,
    rig::{Fleet, NODES},
};

#[test]
fn a_killed_node_holds_a_revocation_up_for_one_lease_and_comes_back_without_the_token() {
    let _alone = alone();
    let Some(mut fleet) = Fleet::start("a killed node", SHORT) else { return };
    let (token, agents) = fleet.agents();
    let killed = NODES - 1;
    fleet.nodes[killed].process.kill();
    let revoked = fleet.revoke(0, &token);
    agents.none_accepted(0..killed, revoked.at);
    fleet.nodes[killed].restart();
    agents.none_accepted(0..NODES, revoked.at);
    agents.refused([killed], revoked.at, "token_revoked");
    let (_token, agents) = fleet.agents();
    agents.accepted_everywhere(Instant::now());
}

#[test]
fn a_killed_replica_is_nothing_to_agents_and_its_nodes_obey_the_other() {
    let _alone = alone();
    let Some(mut fleet) = Fleet::start("a killed replica", LONG) else { return };
    let (token, doomed) = fleet.agents();
    let (_kept, kept) = fleet.agents();
    let begun = Instant::now();
    fleet.replicas[0].process.kill();
    let revoked = fleet.revoke(1, &token);
    doomed.none_accepted(0..NODES, revoked.at);
    fleet.replicas[0].restart();
    kept.accepted_everywhere(Instant::now());
    kept.none_refused(0..NODES, begun, Instant::now());
    let again = fleet.revoke(0, &token);
    assert_eq!(again.answer["nodes"].as_array().unwrap().len(), NODES, "the replica that came back knows all nodes");
}

#[test]
fn a_killed_etcd_leader_is_nothing_to_agents_and_a_revocation_goes_through() {
    let _alone = alone();
    let Some(mut fleet) = Fleet::start("a killed leader of etcd", LONG) else { return };
    let (token, doomed) = fleet.agents();
    let (_kept, kept) = fleet.agents();
    let begun = Instant::now();
    let leader = runtime().block_on(fleet.etcd.leader());
    fleet.etcd.kill(leader);
    let revoked = fleet.revoke(0, &token);
    doomed.none_accepted(0..NODES, revoked.at);
    fleet.etcd.restart(leader);
    fleet.healthy();
    kept.accepted_everywhere(Instant::now());
    kept.none_refused(0..NODES, begun, Instant::now());
}
