//! Listeners whose connections are held by clients that say nothing, or next to nothing.

use std::{net::SocketAddr, time::Duration};

use seks_tests::{Sandbox, Upstream, raw, sandbox::Options, upstream::Answer};

use super::attackers::{Attack, says, timed, used};

/// How long a single call of someone else may take while a listener is attacked, on a slow and
/// shared machine.
const ANSWERED: Duration = Duration::from_secs(10);

fn get(address: SocketAddr, path: &str) -> u16 {
    raw::exchange(address, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).status
}

#[test]
fn one_byte_on_many_connections_costs_no_cpu() {
    let mut sandbox = Sandbox::start();
    let (proxy, pid) = (sandbox.proxy(), sandbox.process().id());
    // A head must be whole within 10 s: these begin with the byte that HTTP/2, POST and PUT share.
    let attack = Attack::start(proxy, 800, 40, says("P"));
    let (before, _) = used(pid);
    std::thread::sleep(Duration::from_secs(3)); // what is measured is a time without anything to do
    let (after, _) = used(pid);
    let spent = after - before;
    println!("800 connections with one byte: {spent:?} of CPU in 3 s");
    assert!(spent < Duration::from_millis(1000), "{spent:?}");
    assert_eq!(get(proxy, "/api/"), 401);
    drop(attack);
}

#[test]
fn silent_connections_keep_neither_operators_nor_nodes_nor_agents_out() {
    let upstream = Upstream::start(|_| Answer::text("hello"));
    let mut sandbox = Sandbox::with(Options::planes(""));
    sandbox.service("openai", &upstream, "sk-real-0123456789abcdef");
    let token = sandbox.token("agent", &["openai"]);
    let (admin, proxy) = (sandbox.admin(), sandbox.proxy());
    let distribution = sandbox.distribution().unwrap();
    // From one address, which is also the operator's, and from many.
    let attacks = [
        Attack::start(admin, 1500, 1, says("")),
        Attack::start(distribution, 1500, 30, says("")),
        Attack::start(proxy, 1500, 30, says("")),
    ];
    for _ in 0..3 {
        let (took, status) = timed(|| sandbox.cli().json(&["status"]));
        assert!(took < ANSWERED, "`seks status` took {took:?}");
        assert_eq!(status["store"]["healthy"], true);
    }
    // The node comes back through the attack, and agents reach it.
    sandbox.restart();
    let (took, reply) = timed(|| sandbox.get("/api/openai/v1/models", &token.secret));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(took < ANSWERED, "a request took {took:?}");
    let revoked = sandbox.cli().revoke(&token.id);
    assert_eq!(revoked["enforced"], true, "{revoked}");
    drop(attacks);
}

#[test]
fn probes_are_answered_while_others_hold_every_connection() {
    let mut sandbox = Sandbox::with(Options::planes(""));
    for metrics in [sandbox.metrics(), sandbox.control_metrics().unwrap()] {
        // From the very address of the probe, and from others.
        let attacks = [Attack::start(metrics, 200, 1, says("")), Attack::start(metrics, 200, 20, says("GET /heal"))];
        for path in ["/healthz", "/readyz", "/metrics"] {
            for _ in 0..10 {
                let (took, status) = timed(|| get(metrics, path));
                assert_eq!(status, 200, "{path}");
                assert!(took < ANSWERED, "{path} took {took:?}");
            }
        }
        drop(attacks);
    }
    assert!(sandbox.process().is_alive());
}
