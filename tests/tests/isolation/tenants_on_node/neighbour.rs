//! The noisy neighbour: each attack at full speed, beside another tenant that goes on working.
//!
//! `tests/run isolation --strict` lasts 60 s an attack, in a release build, with the bounds of the
//! requirement.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};

use seks_tests::raw::Connection;

use super::{
    aws,
    world::{NameServer, World, service},
};
use crate::measure::{Repeating, STRICT, ask_for, duration, p99_within, revoked_within};

/// How often the other tenant revokes a token meanwhile.
const REVOKE_EVERY: Duration = Duration::from_secs(1);
/// What a debug build's other tenant may wait for.
const STALL: Duration = Duration::from_secs(1);

/// The longest that one act of an attack may take.
const ONE_ATTACK: Duration = Duration::from_secs(60);

const MEBI: usize = 1 << 20;

fn request(token: &str, path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}\r\n")
}

/// Within the budget, and no more than that: nearly as costly as is accepted.
fn at_the_budget() -> String {
    let policy = |n: usize| {
        format!(
            "@id(\"costly-{n}\")\nforbid (principal, action, resource) when {{ [context.path like \"*{}{n}\"].contains(true) }};\n",
            "a".repeat(3)
        )
    };
    (0..5).map(policy).collect()
}

const INSPECTS: &str = "@id(\"inspects\") forbid (principal, action, resource) when \
                        { context has body && context.body has model && context.body.model == \"x\" };";

/// The hostile tenant: what it is, and what it does.
struct Hostile {
    proxy: SocketAddr,
    token: String,
}

type Act = Box<dyn Fn(usize) + Send + Sync>;

impl Hostile {
    fn of(world: &World) -> Self {
        Self { proxy: world.sandbox.proxy(), token: world.hostile.secret.clone() }
    }

    /// Another path each time: nothing was decided before.
    fn costly_requests(&self) -> Act {
        let (proxy, token, count, long) = (self.proxy, self.token.clone(), AtomicUsize::new(0), "a".repeat(7000));
        Box::new(move |_| {
            let path = format!("/api/model/v1/{long}{}", count.fetch_add(1, SeqCst));
            exchange(proxy, &request(&token, &path, "Connection: close\r\n"), &[]);
        })
    }

    fn connections(&self) -> Act {
        let (proxy, head) = (self.proxy, request(&self.token, "/api/model/v1/x", "Connection: close\r\n"));
        Box::new(move |_| exchange(proxy, &head, &[]))
    }

    /// A JSON body as large as is looked into, of which `sent` bytes come.
    fn bodies(&self, sent: usize) -> Act {
        let filler: Vec<String> = (0..70_000).map(|n| format!("\"k{n}\":1")).collect();
        let mut body = format!("{{\"model\":\"y\",\"metadata\":{{{}}}}}", filler.join(",")).into_bytes();
        body.resize(MEBI - 1, b' ');
        let more = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        let head = request(&self.token, "/api/model/v1/x", &more).replacen("GET", "POST", 1);
        let (proxy, whole) = (self.proxy, sent >= body.len());
        body.truncate(sent);
        Box::new(move |_| {
            let mut connection = Connection::open(proxy);
            connection.send(&head);
            connection.send(&body);
            if whole {
                assert_eq!(connection.read_reply(false).status, 200);
            }
        })
    }

    /// Bodies of 8 MiB that nobody has signed; who sends them knows an access key id.
    fn unsigned_bodies(&self, pair: &Arc<aws::Pair>) -> Act {
        let (proxy, pair, body) = (self.proxy, pair.clone(), vec![b'a'; 8 * MEBI]);
        Box::new(move |_| exchange(proxy, &aws::forged(&pair.access_key_id, None, body.len()), &body))
    }

    /// The same, signed.
    fn signed_bodies(&self, pair: &Arc<aws::Pair>) -> Act {
        let body = [b"Action=GetCallerIdentity&Version=2011-06-15&x=".as_slice(), &vec![b'a'; 8 * MEBI]].concat();
        let (proxy, pair) = (self.proxy, pair.clone());
        Box::new(move |_| exchange(proxy, &aws::signed(&pair, &body), &body))
    }
}

fn exchange(proxy: SocketAddr, head: &str, body: &[u8]) {
    let mut connection = Connection::open(proxy);
    connection.send(head);
    connection.send(body);
    connection.read_reply(false);
}

#[test]
fn a_tenant_at_full_speed_leaves_the_others_their_latency_their_answers_and_their_revocations() {
    let world = World::start("");
    let hostile = Hostile::of(&world);
    attacked(&world, "connections", 2, hostile.connections());
    apply(&world, &at_the_budget());
    attacked(&world, "costly policies", 16, hostile.costly_requests());
}

#[test]
fn a_tenants_bodies_leave_the_others_their_latency_their_answers_and_their_revocations() {
    let world = World::start("");
    let hostile = Hostile::of(&world);
    let pair = Arc::new(aws::sts(&world, "hostile"));
    apply(&world, INSPECTS);
    attacked(&world, "bodies under inspection", 4, hostile.bodies(MEBI));
    attacked(&world, "bodies under inspection that end early", 4, hostile.bodies(400_000));
    attacked(&world, "bodies with a wrong signature", 4, hostile.unsigned_bodies(&pair));
    attacked(&world, "bodies with a signature", 4, hostile.signed_bodies(&pair));
}

#[test]
fn a_tenants_silent_name_server_leaves_the_others_their_latency_their_answers_and_their_revocations() {
    let server = NameServer::start();
    let world = World::start(&server.config());
    let port = world.upstream.address().port();
    let names: Vec<String> = (0..8).map(|n| format!("silent{n}")).collect();
    for name in &names {
        service(&world.sandbox, "hostile", name, &format!("http://{name}.test:{port}"));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (token, proxy) = (world.token("hostile", &names), world.sandbox.proxy());
    let ask = move |n| exchange(proxy, &request(&token.secret, &format!("/api/silent{}/v1/x", n % 8), ""), &[]);
    attacked(&world, "a silent name server", 32, Box::new(ask));
}

#[test]
fn a_tenants_policies_applied_in_a_loop_leave_the_others_their_latency_their_answers_and_their_revocations() {
    let world = Arc::new(World::start(""));
    let many = |round: usize| {
        let policy = |n: usize| {
            format!(
                "@id(\"n{n}\") forbid (principal, action, resource) when {{ context.path like \"/{round}/{n}/*\" }};\n"
            )
        };
        (0..100).map(policy).collect::<String>()
    };
    apply(&world, &many(0));
    let (own, round) = (world.clone(), AtomicUsize::new(1));
    let act = move |_| drop(own.apply("hostile", &many(round.fetch_add(1, SeqCst))));
    attacked(&world, "policies applied", 2, Box::new(act));
}

fn apply(world: &World, cedar: &str) {
    let applied = world.apply("hostile", cedar);
    assert_eq!(applied.code, Some(0), "{}{}", applied.stdout, applied.stderr);
}

/// Measures the other tenant before, during and after an attack by `threads` threads.
fn attacked(world: &World, what: &str, threads: usize, act: Act) {
    let (proxy, token) = (world.sandbox.proxy(), world.victim.secret.as_str());
    let quiet = || {
        let seen = ask_for(duration(2).min(Duration::from_secs(10)), proxy, token);
        assert!(seen.refused.is_empty(), "{:?}", seen.refused);
        seen.p99()
    };
    ask_for(duration(2) / 8, proxy, token); // warm
    let before = quiet();
    let attack = Repeating::start(threads, act);
    let done = attack.done.clone();
    let (seen, (revocations, slowest)) = std::thread::scope(|scope| {
        let until = Instant::now() + duration(2);
        let revoked = scope.spawn(move || revoke_until(world, until));
        let mut seen = ask_for(duration(2), proxy, token);
        // An act takes seconds where a name server is silent, or where attackers get the least of
        // two busy cores.
        let begun = Instant::now();
        while done.load(Relaxed) == 0 && begun.elapsed() < ONE_ATTACK {
            seen.add(ask_for(Duration::from_millis(200), proxy, token));
        }
        (seen, revoked.join().unwrap())
    });
    let attacks = done.load(Relaxed);
    drop(attack);
    let quiet = before.max(quiet());
    println!(
        "{what}: {attacks} attacks, {} requests of the other tenant, p99 {:?} ({:.1} x the quiet {quiet:?}), {} refused, \
         {revocations} revocations, the slowest enforced after {slowest:?}",
        seen.latencies.len(),
        seen.p99(),
        seen.p99().as_secs_f64() / quiet.as_secs_f64(),
        seen.refused.len(),
    );
    assert!(attacks > 0, "{what}: nothing was done");
    assert!(seen.refused.is_empty(), "{what}: {:?}", seen.refused);
    assert!(seen.p99() <= p99_within(quiet, STALL), "{what}: p99 {:?}, quiet {quiet:?}", seen.p99());
    let most = if STRICT { revoked_within(Duration::ZERO) } else { STALL };
    assert!(slowest <= most, "{what}: a revocation took {slowest:?}");
}

/// Revokes tokens of the other tenant: how many, and the longest that one took to be enforced.
fn revoke_until(world: &World, until: Instant) -> (usize, Duration) {
    let (mut count, mut slowest) = (0, Duration::ZERO);
    while count == 0 || Instant::now() < until {
        let doomed = world.token("default", &["model"]);
        assert_eq!(world.get(&doomed).status, 200);
        let revoked = world.sandbox.cli().revoke(&doomed.id);
        assert_eq!(world.get(&doomed).code(), "token_revoked");
        let waited = revoked["waited_ms"].as_u64().unwrap_or_else(|| panic!("{revoked}"));
        slowest = slowest.max(Duration::from_millis(waited));
        count += 1;
        std::thread::sleep(REVOKE_EVERY.min(until.saturating_duration_since(Instant::now())));
    }
    (count, slowest)
}
