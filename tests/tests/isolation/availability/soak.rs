//! Each attack for a while, and all of them together: other clients are served, and what the
//! process costs is bounded.
//!
//! `SEKS_ISOLATION_SECONDS=600` is the soak test; the default is a few seconds each.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use seks_tests::{Sandbox, Upstream, raw, sandbox::Options, upstream::Answer};

use super::attackers::{Attack, floods, frame, preface, says, trickles, used};
use crate::measure::{duration, p99_within};

/// Resident memory may grow by this: the bounds of every listener together.
const MEMORY_BYTES: u64 = 300 << 20;

/// An attack and where it goes.
struct Kind {
    name: &'static str,
    start: fn(&Targets) -> Attack,
}

struct Targets {
    proxy: SocketAddr,
    admin: SocketAddr,
    distribution: SocketAddr,
    metrics: SocketAddr,
}

const KINDS: &[Kind] = &[
    Kind { name: "silent on proxy", start: |t| Attack::start(t.proxy, 500, 50, says("")) },
    Kind { name: "one byte on proxy", start: |t| Attack::start(t.proxy, 500, 50, says("P")) },
    Kind {
        name: "slow head on proxy",
        start: |t| {
            Attack::start(t.proxy, 200, 20, trickles("GET / HTTP/1.1\r\nHost: x\r\nX: ", Duration::from_millis(50)))
        },
    },
    Kind {
        name: "PING flood on proxy",
        start: |t| Attack::start(t.proxy, 4, 4, floods(preface(), frame(6, 0, 0, &[0; 8]).repeat(100))),
    },
    Kind { name: "silent on admin", start: |t| Attack::start(t.admin, 500, 50, says("")) },
    Kind {
        name: "no TLS on distribution",
        start: |t| Attack::start(t.distribution, 200, 20, says("GET / HTTP/1.1\r\n\r\n")),
    },
    Kind {
        name: "slow hello on distribution",
        start: |t| Attack::start(t.distribution, 200, 20, trickles(hello(), Duration::from_millis(50))),
    },
    Kind { name: "silent on metrics", start: |t| Attack::start(t.metrics, 200, 20, says("")) },
];

/// The beginning of a TLS record with a ClientHello of 16 kB.
fn hello() -> Vec<u8> {
    [&[22, 3, 1, 64, 0, 1, 0, 63, 252, 3, 3][..], &[7; 4096]].concat()
}

/// What other clients saw, and what the processes have cost.
#[derive(Debug)]
struct Seen {
    requests: usize,
    p99: Duration,
    probe: Duration,
    cpu: Duration,
    memory: u64,
}

impl Seen {
    fn print(&self, name: &str) {
        let Self { requests, p99, probe, cpu, memory } = self;
        let mib = memory >> 20;
        println!("{name:<28} {requests:>7} requests, p99 {p99:?}, slowest probe {probe:?}, CPU {cpu:?}, {mib} MiB");
    }
}

fn observe(sandbox: &mut Sandbox, token: &str, lasts: Duration) -> Seen {
    let pids = [sandbox.process().id(), sandbox.control().id()];
    let cost = || pids.iter().map(|pid| used(*pid)).fold((Duration::ZERO, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let (cpu, _) = cost();
    let (mut times, mut probe, began) = (Vec::new(), Duration::ZERO, Instant::now());
    while began.elapsed() < lasts || times.len() < 100 {
        let asked = Instant::now();
        assert_eq!(sandbox.get("/api/openai/v1/models", token).status, 200);
        times.push(asked.elapsed());
        let asked = Instant::now();
        let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert_eq!(raw::exchange(sandbox.metrics(), request).status, 200);
        probe = probe.max(asked.elapsed());
    }
    times.sort_unstable();
    let (after, memory) = cost();
    Seen { requests: times.len(), p99: times[times.len() * 99 / 100], probe, cpu: after - cpu, memory }
}

#[test]
fn other_clients_are_served_under_each_attack_and_under_all() {
    let upstream = Upstream::start(|_| Answer::text("hello"));
    let mut sandbox = Sandbox::with(Options::planes(""));
    sandbox.service("openai", &upstream, "sk-real-0123456789abcdef");
    let token = sandbox.token("agent", &["openai"]).secret;
    let targets = Targets {
        proxy: sandbox.proxy(),
        admin: sandbox.admin(),
        distribution: sandbox.distribution().unwrap(),
        metrics: sandbox.metrics(),
    };
    let lasts = duration(3);
    let quiet = observe(&mut sandbox, &token, lasts);
    quiet.print("quiet");
    let mut worst: Vec<(&str, Seen)> = Vec::new();
    for kind in KINDS {
        let attack = (kind.start)(&targets);
        let seen = observe(&mut sandbox, &token, lasts);
        drop(attack);
        seen.print(kind.name);
        worst.push((kind.name, seen));
    }
    let attacks: Vec<_> = KINDS.iter().map(|kind| (kind.start)(&targets)).collect();
    let seen = observe(&mut sandbox, &token, lasts);
    drop(attacks);
    seen.print("all together");
    worst.push(("all together", seen));

    for (name, seen) in &worst {
        assert!(seen.memory < quiet.memory + MEMORY_BYTES, "{name}: {seen:?}, quiet: {quiet:?}");
        assert!(seen.probe < Duration::from_secs(10), "{name}: {seen:?}");
        let bound = p99_within(quiet.p99, Duration::from_millis(500));
        assert!(seen.p99 <= bound, "{name}: {seen:?}, quiet: {quiet:?}");
    }
    assert_eq!(sandbox.cli().json(&["status"])["store"]["healthy"], true);
}
