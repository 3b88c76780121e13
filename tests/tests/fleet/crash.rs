//! `SIGKILL` of each kind of process.

use std::time::Instant;

use seks_tests::{Forwarder, forwarder::Mode, runtime};

use crate::{
    LONG, SHORT, alone,
    rig::{Fleet, NODES, Replica},
};

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_killed_node_holds_a_revocation_up_for_one_lease_and_comes_back_without_the_token() {
    let _alone = alone();
    let mut fleet = Fleet::start("a killed node", SHORT);
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
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_killed_replica_is_nothing_to_agents_and_its_nodes_obey_the_other() {
    let _alone = alone();
    let mut fleet = Fleet::start("a killed replica", LONG);
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

/// All replicas at once, just after they wrote what no node has heard of yet. Two that start on a
/// busy machine take their time: the lease is longer.
#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn nodes_of_replicas_that_were_all_killed_go_on_with_deltas_and_agents_notice_nothing() {
    let _alone = alone();
    let mut fleet = Fleet::start("all replicas killed", LONG * 3);
    let (revoked, doomed) = fleet.agents();
    let (_kept, kept) = fleet.agents();
    let begun = Instant::now();
    (0..NODES).for_each(|node| fleet.link(node, Mode::Closed));
    fleet.nodes.iter().flat_map(|node| &node.links).for_each(Forwarder::cut);
    let cli = &fleet.replicas[0].cli;
    let issued = cli.issue("bot", &["openai"], &["--no-wait"]);
    let unheard = cli.json(&["token", "revoke", &revoked.id, "--yes", "--no-wait"]);
    assert_eq!(unheard["enforced"], false, "{unheard}");
    fleet.replicas.iter_mut().for_each(|replica| replica.process.kill());
    fleet.replicas.iter_mut().for_each(Replica::restart);
    (0..NODES).for_each(|node| fleet.link(node, Mode::Open));
    fleet.hammer(&issued).accepted_everywhere(Instant::now());
    doomed.refused(0..NODES, Instant::now(), "token_revoked");
    kept.accepted_everywhere(Instant::now());
    kept.none_refused(0..NODES, begun, Instant::now());
    for node in &fleet.nodes {
        let begun: Vec<bool> = node.resumed();
        assert!(begun.len() >= 2 && begun[1..].iter().all(|resumed| *resumed), "{begun:?}");
    }
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_killed_etcd_leader_is_nothing_to_agents_and_a_revocation_goes_through() {
    let _alone = alone();
    let mut fleet = Fleet::start("a killed leader of etcd", LONG);
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
