//! Kill points of a fleet whose nodes must record: the node, the control plane and the collector
//! fail under load, alone and together. Each forwarded request has one record, and none has two.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use parking_lot::Mutex;
use seks_tests::{
    Collector, Sandbox, Upstream, collector::Mood, process::wait_for, raw, sandbox::Options, upstream::Answer,
};
use serde_json::Value;

const SECRET: &str = "sk-real-0123456789abcdef";
const REQUIRED: &str = "[audit]\nmode = \"required\"\n";

/// What fails in a round.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Node,
    ControlPlane,
    Both,
    /// It refuses spans while the node is killed.
    Collector,
}

const VICTIMS: [Victim; 4] = [Victim::Node, Victim::ControlPlane, Victim::Both, Victim::Collector];

/// Ends the agents, also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Requests of an agent, one after another, each with a path of its own.
fn send_requests(proxy: SocketAddr, token: &str, next: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let path = format!("/api/openai/v1/{}", next.fetch_add(1, Relaxed));
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n");
        let request = format!("{head}Authorization: Bearer {token}\r\nConnection: close\r\n\r\n");
        let _ = std::panic::catch_unwind(|| raw::exchange(proxy, request)); // the node may be gone
    }
}

/// Kills one victim while requests are under way. Without a control plane the node serves until its
/// lease ends, so `attempts` counts requests that are refused, too.
fn kill(sandbox: &mut Sandbox, collector: &Collector, victim: Victim, attempts: &dyn Fn(u64)) {
    match victim {
        Victim::Node => sandbox.process().kill(),
        Victim::ControlPlane => {
            sandbox.control().kill();
            attempts(40);
        }
        Victim::Both => sandbox.stab(),
        Victim::Collector => {
            collector.set_mood(Mood::Away);
            attempts(40);
            sandbox.process().kill();
        }
    }
}

fn search(sandbox: &Sandbox) -> Vec<Value> {
    sandbox.cli().json(&["audit", "search", "--limit", "1000000"]).as_array().unwrap().clone()
}

#[test]
fn whichever_part_is_killed_each_forwarded_request_has_one_record() {
    // SEKS_TEST_KILLS=100 takes some minutes.
    let rounds: usize = std::env::var("SEKS_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(4);
    let (collector, seen) = (Collector::start(), Arc::new(Mutex::new(Vec::<String>::new())));
    let log = seen.clone();
    let upstream = Upstream::start(move |request| {
        log.lock().push(request.path());
        Answer::json(200, "{}")
    });
    let mut sandbox = Sandbox::with(Options { config: REQUIRED.into(), ..Options::planes("") }.collector(&collector));
    sandbox.service("openai", &upstream, SECRET);
    let (token, next) = (sandbox.token("ci-bot", &["openai"]).secret, AtomicU64::new(0));
    for (round, victim) in VICTIMS.iter().cycle().take(rounds).enumerate() {
        let (proxy, stop) = (sandbox.proxy(), AtomicBool::new(false));
        let start = seen.lock().len();
        let attempts = |count: u64| {
            let start = next.load(Relaxed);
            wait_for("more attempts", || (next.load(Relaxed) >= start + count).then_some(()));
        };
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            (0..4).for_each(|_| drop(scope.spawn(|| send_requests(proxy, &token, &next, &stop))));
            wait_for("requests", || (seen.lock().len() >= start + 25 + 7 * (round % 8)).then_some(()));
            kill(&mut sandbox, &collector, *victim, &attempts);
        });
        collector.set_mood(Mood::Well);
        sandbox.crash();
        if round % 50 == 49 {
            eprintln!("{} kill points, {} requests", round + 1, seen.lock().len());
        }
    }
    assert_eq!(sandbox.get("/api/openai/v1/last", &token).status, 200);
    wait_for("the last record", || search(&sandbox).iter().any(|r| r["path"] == "/api/openai/v1/last").then_some(()));
    let records = search(&sandbox);
    let mut recorded: BTreeMap<&str, usize> = BTreeMap::new();
    records.iter().for_each(|record| *recorded.entry(record["path"].as_str().unwrap()).or_default() += 1);
    let forwarded: BTreeSet<String> = seen.lock().iter().map(|path| format!("/api/openai{path}")).collect();
    assert!(forwarded.len() > 25 * rounds, "{}", forwarded.len());
    let lost: Vec<&String> = forwarded.iter().filter(|path| !recorded.contains_key(path.as_str())).collect();
    let twice: Vec<_> = recorded.iter().filter(|(_, count)| **count > 1).collect();
    assert!(lost.is_empty() && twice.is_empty(), "lost {lost:?}, twice {twice:?} of {}", forwarded.len());
    wait_for("a span for each request", || {
        let exported: BTreeSet<String> = collector.spans().iter().map(|span| span.get("url.path").to_owned()).collect();
        forwarded.iter().all(|path| exported.contains(path)).then_some(())
    });
    let verified = sandbox.cli().json(&["audit", "verify"]);
    assert!(verified["ok"] == true && verified["findings"].as_array().unwrap().is_empty(), "{verified}");
    eprintln!("{rounds} kill points: {} requests forwarded, 0 lost, 0 twice", forwarded.len());
}
