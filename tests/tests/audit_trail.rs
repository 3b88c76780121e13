//! The audit trail from end to end: what agents do is on the node's disk, then at the control
//! plane, and `seks audit` finds it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use seks_tests::{Sandbox, Upstream, process::wait_for, raw, sandbox::Options, upstream::Answer};
use serde_json::Value;

const SECRET: &str = "sk-real-0123456789abcdef";
const REQUIRED: &str = "[audit]\nmode = \"required\"\n";

fn required() -> Options {
    Options { config: REQUIRED.into(), ..Options::default() }
}

fn search(sandbox: &Sandbox, arguments: &[&str]) -> Vec<Value> {
    let found = sandbox.cli().json(&[&["audit", "search", "--limit", "100000"], arguments].concat());
    found.as_array().unwrap().clone()
}

/// Waits until as many requests are found.
fn found(sandbox: &Sandbox, arguments: &[&str], count: usize) -> Vec<Value> {
    wait_for(&format!("{count} requests of {arguments:?}"), || {
        Some(search(sandbox, arguments)).filter(|found| found.len() == count)
    })
}

fn paths(found: &[Value]) -> Vec<&str> {
    found.iter().map(|record| record["path"].as_str().unwrap()).collect()
}

/// The result of `seks audit verify`, which must say by its exit code whether all is well.
fn verify(sandbox: &Sandbox) -> Value {
    let finished = sandbox.cli().run(&["audit", "verify", "-o", "json"], "");
    let verified: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
    assert_eq!(finished.code == Some(0), verified["ok"] == true, "{finished:?}");
    verified
}

fn assert_whole(sandbox: &Sandbox) {
    let verified = verify(sandbox);
    assert_eq!(
        (&verified["ok"], verified["findings"].as_array().unwrap().len()),
        (&Value::Bool(true), 0),
        "{verified}"
    );
}

fn files(directory: &Path, end: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == end)).collect();
    files.sort();
    files
}

#[test]
fn who_called_what_from_where_is_found_and_only_by_who_may_see_it() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, SECRET);
    let (bot, other) = (sandbox.token("ci-bot", &["openai"]), sandbox.token("other", &["openai"]));
    assert_eq!(sandbox.get("/api/openai/v1/models?key=not-this", &bot.secret).status, 200);
    assert_eq!(sandbox.post("/api/openai/v1/chat", &bot.secret, "{}").status, 200);
    assert_eq!(sandbox.get("/api/openai/v1/models", &other.secret).status, 200);
    assert_eq!(sandbox.get("/api/github/user", &bot.secret).status, 404);
    assert_eq!(sandbox.get("/api/openai/v1/models", "nobody").status, 401);
    assert_eq!(paths(&found(&sandbox, &[], 5))[0], "/api/openai/v1/models", "the newest first");

    let models = &found(&sandbox, &["--agent", "ci-bot", "--method", "get", "--decision", "allow"], 1)[0];
    let expected = [
        ("tenant", "default"),
        ("token", &bot.id),
        ("service", "openai"),
        ("credential", "openai"),
        ("path", "/api/openai/v1/models"),
        ("source", "127.0.0.1"),
        ("method", "GET"),
        ("upstream", "127.0.0.1"),
        ("http_version", "1.1"),
        ("route", "/api/{service}"),
        ("scheme", "http"),
        ("region", "local"),
    ];
    expected.iter().for_each(|(key, value)| assert_eq!(models[key], *value, "{key}"));
    assert_eq!(
        (&models["status"], &models["upstream_status"], &models["credential_version"]),
        (&200.into(), &200.into(), &1.into())
    );
    assert_eq!((&models["policies"][0], &models["complete"]), (&"granted-services".into(), &true.into()));
    assert!(models["whole_us"].as_u64() > models["first_byte_us"].as_u64(), "{models}");
    for (arguments, count) in [
        (["--reason", "service_unknown"], 1),
        (["--reason", "token_malformed"], 1),
        (["--decision", "deny"], 2),
        (["--token", &other.id], 1),
        (["--node", "dev"], 5),
        (["--node", "elsewhere"], 0),
        (["--source", "127.0.0.0/8"], 5),
        (["--source", "10.0.0.0/8"], 0),
        (["--credential", "openai"], 3),
        (["--policy", "granted-services"], 3),
        (["--tenant", "default"], 4),
    ] {
        assert_eq!(search(&sandbox, &arguments).len(), count, "{arguments:?}");
    }
    assert_whole(&sandbox);

    // Somebody with a role in another tenant sees nothing of it, whatever they ask for.
    let cli = sandbox.cli();
    cli.json(&["tenant", "create", "acme"]);
    cli.json(&["operator", "create", "viewer", "--role", "viewer:acme", "--out", "viewer.toml"]);
    let context = sandbox.context_file().parent().unwrap().parent().unwrap().join("viewer.toml");
    let viewer = seks_tests::sandbox::Cli::new(context.parent().unwrap(), &context);
    assert_eq!(viewer.json(&["audit", "search", "--tenant", "acme"]), Value::Array(Vec::new()));
    assert_eq!(viewer.run(&["audit", "search", "--tenant", "default"], "").code, Some(3));
    assert_eq!(viewer.json(&["audit", "search"]), Value::Array(Vec::new()), "the context's tenant is `acme`");
    assert_eq!(viewer.run(&["audit", "verify"], "").code, Some(4));
}

#[test]
fn tail_prints_the_newest_one_a_line() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, SECRET);
    let bot = sandbox.token("ci-bot", &["openai"]);
    for n in 0..7 {
        assert_eq!(sandbox.get(&format!("/api/openai/v1/{n}"), &bot.secret).status, 200);
    }
    found(&sandbox, &[], 7);
    let tail = sandbox.cli().run(&["audit", "tail", "-n", "3", "-o", "json"], "");
    let lines: Vec<Value> = tail.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(paths(&lines), ["/api/openai/v1/4", "/api/openai/v1/5", "/api/openai/v1/6"]);
    let yaml = sandbox.cli().run(&["audit", "tail", "-n", "3", "-o", "yaml"], "").stdout;
    assert_eq!((yaml.starts_with("---\n"), yaml.matches("\n---\n").count()), (true, 2), "a document each: {yaml}");
    let table = sandbox.cli().run(&["audit", "tail", "--agent", "nobody"], "");
    assert_eq!((table.code, table.stdout.as_str()), (Some(0), ""));
}

#[test]
fn periods_are_durations_or_dates_and_an_empty_one_is_an_error() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, SECRET);
    let bot = sandbox.token("ci-bot", &["openai"]);
    assert_eq!(sandbox.get("/api/openai/v1/models", &bot.secret).status, 200);
    found(&sandbox, &["--since", "2026-01-01"], 1);
    found(&sandbox, &["--since", "2026-01-01T00:00:00Z", "--until", "2026-01-02"], 0);
    found(&sandbox, &["--since", "2h", "--until", "1h"], 0);
    for source in ["::ffff:127.0.0.1", "127.0.0.1", "127.0.0.1/32", "0.0.0.0/0", "::ffff:127.0.0.0/104"] {
        assert_eq!(search(&sandbox, &["--source", source]).len(), 1, "{source}");
    }
    for (wrong, why) in [
        (["search", "--since", "1h", "--until", "2h"], "--until: not after --since"),
        (["export", "--out", "never", "--until", "2d"], "--until: not after --since"),
        (["admin", "--until", "8d", "--limit", "5"], "--until: not after --since"),
        (["search", "--limit", "0", "--since", "1h"], "a number from 1 on"),
        (["search", "--since", "2999-01-01", "--limit", "5"], "in the future"),
        (["search", "--since", "yesterday", "--limit", "5"], "a time like 2026-11-30"),
        (["search", "--source", "127.0.0.1/33", "--limit", "5"], "source: an address or a network"),
    ] {
        let refused = sandbox.cli().run(&[&["audit"], &wrong[..]].concat(), "");
        assert_eq!((refused.code, refused.stderr.contains(why)), (Some(2), true), "{wrong:?}: {refused:?}");
    }
    assert!(!sandbox.context_file().parent().unwrap().parent().unwrap().join("never").exists());
}

#[test]
fn a_node_that_must_record_and_cannot_forwards_nothing() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let mut sandbox = Sandbox::with(required());
    sandbox.service("openai", &upstream, SECRET);
    let bot = sandbox.token("ci-bot", &["openai"]).secret;
    assert_eq!(sandbox.get("/api/openai/v1/before", &bot).status, 200);
    // The next process can't make its segment, as on a disk that is read-only or full.
    let spool = sandbox.data_dir().join("node/audit");
    let last = files(&spool, "seg").pop().unwrap();
    let last: u64 = last.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let blocked: Vec<PathBuf> = (1..4).map(|n| spool.join(format!("{:020}.seg", last + n))).collect();
    blocked.iter().for_each(|path| fs::create_dir(path).unwrap());
    sandbox.restart();
    let before = upstream.received().len();
    for path in ["/api/openai/v1/models", "/api/unknown/x", "/api/"] {
        let reply = sandbox.get(path, &bot);
        assert_eq!((reply.status, reply.text().contains("audit_unavailable")), (503, true), "{path}: {}", reply.text());
    }
    assert_eq!(upstream.received().len(), before, "something was forwarded");
    assert!(
        sandbox.metrics_page().lines().any(|l| l.starts_with("seks_audit_write_failures_total") && !l.ends_with(" 0"))
    );
    blocked.iter().for_each(|path| fs::remove_dir(path).unwrap());
    wait_for("the node to record again", || (sandbox.get("/api/openai/v1/after", &bot).status == 200).then_some(()));
    let after = wait_for("the record", || {
        let found = search(&sandbox, &["--agent", "ci-bot"]);
        found.into_iter().find(|record| record["path"] == "/api/openai/v1/after" && record["complete"] == true)
    });
    assert_eq!(after["status"], 200);
    assert_whole(&sandbox);
}

/// Requests of several agents at a time until `stop`, each with a path of its own.
fn hammer(proxy: std::net::SocketAddr, token: &str, next: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let path = format!("/api/openai/v1/{}", next.fetch_add(1, Relaxed));
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        let _ = std::panic::catch_unwind(|| raw::exchange(proxy, request)); // it may be killed meanwhile
    }
}

#[test]
fn whenever_it_is_killed_each_forwarded_request_has_one_record() {
    // SEKS_TEST_KILLS=100 takes some minutes.
    let rounds: usize = std::env::var("SEKS_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(5);
    let seen: std::sync::Arc<parking_lot::Mutex<Vec<String>>> = std::sync::Arc::default();
    let log = seen.clone();
    let upstream = Upstream::start(move |request| {
        log.lock().push(request.path());
        Answer::json(200, "{}")
    });
    let mut sandbox = Sandbox::with(required());
    sandbox.service("openai", &upstream, SECRET);
    let token = sandbox.token("ci-bot", &["openai"]).secret;
    let next = AtomicU64::new(0);
    for round in 0..rounds {
        let (proxy, stop, start) = (sandbox.proxy(), AtomicBool::new(false), seen.lock().len());
        thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(|| hammer(proxy, &token, &next, &stop))));
            wait_for("requests", || (seen.lock().len() > start + 25 + 7 * (round % 8)).then_some(()));
            sandbox.stab();
            stop.store(true, Relaxed);
        });
        sandbox.crash();
    }
    assert_eq!(sandbox.get("/api/openai/v1/last", &token).status, 200);
    wait_for("the last record", || {
        search(&sandbox, &[]).iter().any(|r| r["path"] == "/api/openai/v1/last").then_some(())
    });
    let records = search(&sandbox, &[]);
    let mut recorded: BTreeMap<&str, usize> = BTreeMap::new();
    paths(&records).iter().for_each(|path| *recorded.entry(path).or_default() += 1);
    let forwarded: BTreeSet<String> = seen.lock().iter().map(|path| format!("/api/openai{path}")).collect();
    assert!(forwarded.len() > 25 * rounds, "{}", forwarded.len());
    let lost: Vec<&String> = forwarded.iter().filter(|path| !recorded.contains_key(path.as_str())).collect();
    let twice: Vec<_> = recorded.iter().filter(|(_, count)| **count > 1).collect();
    assert!(lost.is_empty() && twice.is_empty(), "lost {lost:?}, twice {twice:?} of {}", forwarded.len());
    let unknown = records.iter().filter(|record| record["complete"] == false).count();
    assert_eq!(verify(&sandbox)["open_intents"].as_u64().unwrap() as usize, unknown);
    assert_whole(&sandbox);
}

#[test]
fn what_a_node_records_while_its_control_plane_is_away_is_handed_in_later() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let mut sandbox = Sandbox::with(Options { config: REQUIRED.into(), ..Options::planes("") });
    sandbox.service("openai", &upstream, SECRET);
    let bot = sandbox.token("ci-bot", &["openai"]).secret;
    assert_eq!(sandbox.get("/api/openai/v1/before", &bot).status, 200);
    found(&sandbox, &["--agent", "ci-bot", "--decision", "allow"], 1);
    sandbox.control().kill();
    for n in 0..5 {
        assert_eq!(sandbox.get(&format!("/api/openai/v1/{n}"), &bot).status, 200, "it has a lease");
    }
    sandbox.crash();
    let all = found(&sandbox, &["--agent", "ci-bot", "--service", "openai"], 6);
    assert!(paths(&all).contains(&"/api/openai/v1/4"));
    assert_whole(&sandbox);
}

#[test]
fn a_trail_that_was_changed_or_cut_is_named() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let mut sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, SECRET);
    let bot = sandbox.token("ci-bot", &["openai"]).secret;
    for n in 0..3 {
        assert_eq!(sandbox.get(&format!("/api/openai/v1/{n}"), &bot).status, 200);
    }
    found(&sandbox, &[], 3);
    sandbox.restart(); // the log becomes a block
    assert_eq!(sandbox.get("/api/openai/v1/3", &bot).status, 200);
    found(&sandbox, &[], 4);
    assert_whole(&sandbox);
    // While it is down somebody removes the newest block of the trail and what is left in the
    // spool.
    let status = sandbox.process().terminate();
    assert!(status.success());
    let trail = sandbox.data_dir().join("store.redb.audit");
    let spool = sandbox.data_dir().join("node/audit");
    let kept: Vec<(PathBuf, Vec<u8>)> = [files(&trail, "blk"), files(&trail, "log")]
        .concat()
        .into_iter()
        .map(|p| (p.clone(), fs::read(p).unwrap()))
        .collect();
    [files(&trail, "log"), files(&spool, "seg")].concat().iter().for_each(|path| fs::remove_file(path).unwrap());
    sandbox.crash(); // it has ended; starts it again
    let verified = verify(&sandbox);
    let finding = &verified["findings"][0];
    assert_eq!((&finding["kind"], &finding["node"]), (&"cut_tail".into(), &"dev".into()), "{verified}");
    assert_eq!((&finding["from"], &finding["to"]), (&1.into(), &1.into()), "{verified}");
    // A byte of a block is changed.
    sandbox.process().terminate();
    let (block, mut bytes) = kept[0].clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&block, bytes).unwrap();
    sandbox.crash();
    let verified = verify(&sandbox);
    let kinds: Vec<&str> =
        verified["findings"].as_array().unwrap().iter().map(|f| f["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"block_damaged"), "{verified}");
}
