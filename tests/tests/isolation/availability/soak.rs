//! Each attack for a while, and all of them together: other clients are served, and what the
//! process costs is bounded.
//!
//! `SEKS_ISOLATION_SECONDS=600` is the soak test; the default is a few seconds each.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use seks_tests::{Sandbox, Upstream, raw, sandbox::Options, upstream::Answer};
use seks_types::token::FreshToken;

use super::{
    attackers::{Attack, floods, frame, preface, says, trickles, used},
    joins::joins,
};
use crate::measure::{STRICT, duration, p99_within};

/// Resident memory may grow by this: the bounds of every listener together.
const MEMORY_BYTES: u64 = 300 << 20;

/// CPU time that one connection of an attacker with a wrong token costs both processes at most: a
/// handshake and 20 calls. A debug build takes ten times that of a release build.
const CPU_EACH: Duration = if STRICT { Duration::from_millis(10) } else { Duration::from_millis(100) };

/// Connections that are opened anew as soon as they are closed. Attackers share the machine with
/// the node: there are few of them where a request costs a debug build's time.
const FLOOD: usize = if STRICT { 200 } else { 20 };

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
    // Connections that are opened anew, from 2,000 addresses in turn.
    Kind { name: "wrong tokens", start: |t| Attack::start(t.proxy, FLOOD, 2000, says(wrong_token())) },
    Kind { name: "join without a token", start: |t| Attack::start(t.distribution, 20, 2000, joins("")) },
    Kind { name: "join, wrong token", start: |t| Attack::start(t.distribution, 20, 2000, joins(&wrong_join_token())) },
    Kind { name: "silent on metrics", start: |t| Attack::start(t.metrics, 200, 20, says("")) },
];

/// The beginning of a TLS record with a ClientHello of 16 kB.
fn hello() -> Vec<u8> {
    [&[22, 3, 1, 64, 0, 1, 0, 63, 252, 3, 3][..], &[7; 4096]].concat()
}

/// A request with a token that has the right form and was never issued.
fn wrong_token() -> String {
    let token = FreshToken::generate().unwrap();
    let token = token.as_str();
    format!(
        "GET /api/openai/v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
}

/// A join token that has the right form and was never created.
fn wrong_join_token() -> String {
    format!("{}.{}", "k".repeat(16), "a".repeat(64))
}

/// What other clients saw, and what the processes have cost.
#[derive(Debug)]
struct Seen {
    requests: usize,
    p99: Duration,
    probe: Duration,
    cpu: Duration,
    memory: u64,
    /// Connections of attackers that were closed.
    closed: u64,
}

impl Seen {
    fn print(&self, name: &str) {
        let Self { requests, p99, probe, cpu, memory, closed } = self;
        let mib = memory >> 20;
        println!(
            "{name:<28} {requests:>7} requests, p99 {p99:?}, slowest probe {probe:?}, CPU {cpu:?}, {mib} MiB, {closed} \
             attackers closed"
        );
    }

    /// Asserts that the attack has cost the processes no more than `cpu_each` for each connection,
    /// beside what they do when it is `quiet`.
    fn assert_cpu(&self, name: &str, cpu_each: Duration, quiet: &Self) {
        let closed = u32::try_from(self.closed).unwrap();
        assert!(closed > 0, "{name}: no attacker was answered");
        let (requests, before) = (self.requests as f64, quiet.requests as f64);
        let own = quiet.cpu.mul_f64(requests / before);
        assert!(self.cpu.saturating_sub(own) <= cpu_each * closed, "{name}: {self:?}, quiet: {quiet:?}");
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
    Seen { requests: times.len(), p99: times[times.len() * 99 / 100], probe, cpu: after - cpu, memory, closed: 0 }
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
        let mut seen = observe(&mut sandbox, &token, lasts);
        seen.closed = attack.closed();
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
        if name.contains("token") {
            seen.assert_cpu(name, CPU_EACH, &quiet);
        }
        assert!(seen.memory < quiet.memory + MEMORY_BYTES, "{name}: {seen:?}, quiet: {quiet:?}");
        assert!(seen.probe < Duration::from_secs(10), "{name}: {seen:?}");
        let bound = p99_within(quiet.p99, Duration::from_millis(500));
        assert!(seen.p99 <= bound, "{name}: {seen:?}, quiet: {quiet:?}");
    }
    assert_eq!(sandbox.cli().json(&["status"])["store"]["healthy"], true);
}
