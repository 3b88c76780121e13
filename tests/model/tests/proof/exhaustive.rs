//! Everything that small systems can come to. All of them have the clocks that are worst, unless
//! they say otherwise.

use seks_model::Bounds;

use crate::run;

#[test]
fn one_replica_two_nodes_and_a_token() {
    run("1 replica, 2 nodes, 1 token", Bounds { moves: 0, ..Bounds::of(1, 2, 1) });
}

#[test]
fn a_node_that_moves_there_and_back() {
    run("2 replicas, 1 node, 2 moves", Bounds { moves: 2, peace: 64, ..Bounds::of(2, 1, 1) });
}

#[test]
fn a_node_that_moves_and_crashes() {
    run("2 replicas, 1 node, a crash", Bounds { node_crashes: 1, peace: 16, ..Bounds::of(2, 1, 1) });
}

#[test]
fn a_node_that_is_given_back() {
    run("2 replicas, 1 node, given back", Bounds { releases: 1, ttl: 1, peace: 16, ..Bounds::of(2, 1, 1) });
}

#[test]
fn two_processes_with_one_certificate() {
    run("1 replica, a clone", Bounds { cloned: true, moves: 2, ttl: 1, peace: 16, ..Bounds::of(1, 2, 1) });
}

#[test]
fn stray_messages_requests_in_flight_and_a_node_that_crashes() {
    let bounds = Bounds { stray: true, requests: true, node_crashes: 1, moves: 0, ..Bounds::of(1, 1, 2) };
    run("stray messages, requests, a crash", Bounds { peace: 8, ..bounds });
}

#[test]
fn clocks_that_differ_between_replicas() {
    for clocks in [[95, 104], [104, 95], [100, 100]] {
        let bounds = Bounds { node_clock: 95, replica_clocks: clocks, ..Bounds::of(2, 1, 1) };
        run(&format!("clocks {clocks:?}"), Bounds { peace: 64, ..bounds });
    }
}

/// Systems for which a day of somebody's machine is little: `SEKS_MODEL_FULL=1` visits them.
fn large(name: &str, bounds: Bounds) {
    if std::env::var_os("SEKS_MODEL_FULL").is_some() {
        run(name, bounds);
    }
}

#[test]
fn large_newcomers_and_a_crash() {
    let bounds = Bounds { newcomers: true, late: true, node_crashes: 1, moves: 2, ..Bounds::of(2, 1, 1) };
    large("newcomers, a crash", Bounds { peace: 64, ..bounds });
}

#[test]
fn large_given_back() {
    large("2 replicas, 1 node, given back", Bounds { releases: 1, ttl: 1, moves: 2, peace: 16, ..Bounds::of(2, 1, 1) });
}

#[test]
fn large_two_processes_with_one_certificate() {
    large("2 replicas, a clone, coarse", Bounds { cloned: true, ttl: 1, peace: 1024, ..Bounds::of(2, 2, 1) });
}

#[test]
fn large_two_processes_that_take_turns() {
    large(
        "2 replicas, a clone, two moves, coarse",
        Bounds { cloned: true, ttl: 1, moves: 2, peace: 4096, ..Bounds::of(2, 2, 1) },
    );
}

#[test]
fn large_two_tokens_coarse() {
    large("2 replicas, 1 node, 2 tokens, coarse", Bounds { ttl: 1, peace: 256, ..Bounds::of(2, 1, 2) });
}

#[test]
fn large_two_nodes_coarse() {
    large("2 replicas, 2 nodes, 1 token, coarse", Bounds { ttl: 1, peace: 256, ..Bounds::of(2, 2, 1) });
}

#[test]
fn large_two_nodes_and_a_crash() {
    let bounds = Bounds { ttl: 1, node_crashes: 1, peace: 256, ..Bounds::of(2, 2, 1) };
    large("2 replicas, 2 nodes, 1 token, a crash, coarse", bounds);
}

#[test]
fn large_two_of_each_coarse() {
    large("2 replicas, 2 nodes, 2 tokens, coarse", Bounds { ttl: 1, peace: 4096, ..Bounds::of(2, 2, 2) });
}

#[test]
fn large_two_tokens() {
    large("2 replicas, 1 node, 2 tokens", Bounds { peace: 1024, ..Bounds::of(2, 1, 2) });
}

#[test]
fn large_two_of_each() {
    large("2 replicas, 2 nodes, 2 tokens", Bounds { peace: 4096, ..Bounds::of(2, 2, 2) });
}
