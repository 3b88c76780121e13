//! Links that are cut: nothing passes, nobody is told, and what was sent arrives when they are
//! mended.

use std::time::Instant;

use seks_tests::forwarder::Mode;

use crate::{
    LONG, SHORT, alone,
    rig::{Fleet, NODES},
};

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_node_that_is_cut_off_stops_within_a_lease_and_heals_by_itself() {
    let _alone = alone();
    let fleet = Fleet::start("nodes that are cut off", SHORT);
    let (token, doomed) = fleet.agents();
    let (_kept, kept) = fleet.agents();
    // One hears nothing and isn't heard; the other is heard and hears nothing.
    let (cut, deaf) = (1, 2);
    let ends = fleet.nodes[cut].lease_ends();
    let begun = Instant::now();
    fleet.link(cut, Mode::Held);
    fleet.link(deaf, Mode::Mute);
    let revoked = fleet.revoke(0, &token);
    doomed.none_accepted(0..NODES, revoked.at);
    kept.refused([cut, deaf], begun, "node_stale");
    kept.none_refused([cut], begun, ends);
    fleet.link(cut, Mode::Open);
    fleet.link(deaf, Mode::Open);
    kept.accepted_everywhere(Instant::now());
    doomed.refused(0..NODES, Instant::now(), "token_revoked");
    doomed.none_accepted(0..NODES, revoked.at);
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_replica_that_is_cut_off_from_the_store_loses_its_nodes_to_the_other_and_extends_nothing() {
    let _alone = alone();
    let fleet = Fleet::start("a replica that is cut off from the store", LONG);
    let (token, doomed) = fleet.agents();
    let (_kept, kept) = fleet.agents();
    let begun = Instant::now();
    fleet.replicas[0].link(Mode::Held);
    let revoked = fleet.revoke(1, &token);
    doomed.none_accepted(0..NODES, revoked.at);
    fleet.replicas[0].link(Mode::Open);
    let (_token, fresh) = fleet.agents();
    fresh.accepted_everywhere(Instant::now());
    doomed.none_accepted(0..NODES, revoked.at);
    kept.none_refused(0..NODES, begun, Instant::now());
}
