//! The noisy neighbour: each attack at full speed, beside another tenant that goes on working.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::{Duration, Instant},
};

use seks_tests::raw::Connection;

use super::world::{NameServer, Repeating, World, ask_for, duration, service};

/// The longest that a revocation may take to be enforced.
const REVOKE: Duration = Duration::from_millis(250);

/// Latencies below this aren't compared. A short run is of a debug build, which wipes and copies memory byte by byte, on a machine that runs
/// other tests too: there the bound is on stalls. For the ratio, run a release build with `SEKS_ISOLATION_SECONDS=60`.
fn floor() -> Duration {
    if duration() >= Duration::from_secs(30) { Duration::from_millis(5) } else { Duration::from_secs(1) }
}

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

#[test]
fn a_tenant_at_full_speed_leaves_the_others_their_latency_their_answers_and_their_revocations() {
    let server = NameServer::start();
    let world = World::start(&server.config());
    let port = world.upstream.address().port();
    for n in 0..8 {
        service(&world.sandbox, "hostile", &format!("silent{n}"), &format!("http://silent{n}.test:{port}"));
    }
    let names: Vec<String> = (0..8).map(|n| format!("silent{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (silent, hostile, proxy) =
        (world.token("hostile", &names), world.hostile.secret.clone(), world.sandbox.proxy());
    let applied = world.apply("hostile", &at_the_budget());
    assert_eq!(applied.code, Some(0), "{}{}", applied.stdout, applied.stderr);

    ask_for(duration() / 4, proxy, &world.victim.secret); // warm
    let quiet = ask_for(duration(), proxy, &world.victim.secret);
    assert!(quiet.refused.is_empty(), "{:?}", quiet.refused);
    println!("quiet: {} requests, p99 {:?}", quiet.latencies.len(), quiet.p99());

    let long = "a".repeat(7000);
    let (token, count) = (hostile.clone(), AtomicUsize::new(0));
    // Another path each time: nothing was decided before.
    attacked(&world, quiet.p99(), "costly policies", 16, move |_| {
        let path = format!("/api/model/v1/{long}{}", count.fetch_add(1, SeqCst));
        exchange(proxy, &request(&token, &path, "Connection: close\r\n"));
    });
    attacked(&world, quiet.p99(), "a silent name server", 32, move |n| {
        exchange(proxy, &request(&silent.secret, &format!("/api/silent{}/v1/x", n % 8), ""));
    });
    let inspects = "@id(\"inspects\") forbid (principal, action, resource) when { context has body && context.body has model && context.body.model == \"x\" };";
    assert_eq!(world.apply("hostile", inspects).code, Some(0));
    let body = request(&hostile, "/api/model/v1/x", "Content-Type: application/json\r\nContent-Length: 500000\r\n")
        .replacen("GET", "POST", 1);
    attacked(&world, quiet.p99(), "bodies under inspection that end early", 2, move |_| {
        let mut connection = Connection::open(proxy);
        connection.send(&body);
        connection.send(vec![b' '; 400_000]);
    });
    let plain = request(&hostile, "/api/model/v1/x", "Connection: close\r\n");
    attacked(&world, quiet.p99(), "connections", 2, move |_| exchange(proxy, &plain));
}

fn exchange(proxy: SocketAddr, request: &str) {
    let mut connection = Connection::open(proxy);
    connection.send(request);
    connection.read_reply(false);
}

fn attacked(
    world: &World,
    quiet: Duration,
    what: &str,
    threads: usize,
    attack: impl Fn(usize) + Send + Sync + 'static,
) {
    let doomed = world.token("default", &["model"]);
    assert_eq!(world.get(&doomed).status, 200);
    let attack = Repeating::start(threads, attack);
    let done = attack.done.clone();
    let seen = ask_for(duration(), world.sandbox.proxy(), &world.victim.secret);
    let begun = Instant::now();
    let revoked = world.sandbox.cli().revoke(&doomed.id);
    let whole = begun.elapsed();
    assert_eq!(world.get(&doomed).code(), "token_revoked", "{what}");
    drop(attack);
    let took = Duration::from_millis(revoked["waited_ms"].as_u64().unwrap_or_else(|| panic!("{revoked}")));
    println!(
        "{what}: {} attacks, {} requests of the other tenant, p99 {:?} ({:.1} x quiet), {} refused, revoke enforced after {took:?} (the command took {whole:?})",
        done.load(SeqCst),
        seen.latencies.len(),
        seen.p99(),
        seen.p99().as_secs_f64() / quiet.as_secs_f64(),
        seen.refused.len(),
    );
    assert!(seen.refused.is_empty(), "{what}: {:?}", seen.refused);
    assert!(seen.p99() <= (quiet * 3).max(floor()), "{what}: p99 {:?}, quiet {quiet:?}", seen.p99());
    assert!(took <= REVOKE, "{what}: the revocation took {took:?}");
}
