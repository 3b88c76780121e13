//! What an administrator changes holds for the very next request, and for every one after a restart
//! or a crash.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use seks_tests::{
    Etcd, Sandbox, Upstream,
    process::wait_for,
    raw::Connection,
    runtime,
    sandbox::{Cli, Options},
    upstream::{
        Answer, Gate,
        answer::{Step, chunk},
    },
};

const KEY: &str = "sk-real-lifecycle-key-000000000001";
const PATH: &str = "/api/openai/v1/models";

#[test]
fn a_revoked_token_is_refused_by_the_next_request() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let (token, other) = (sandbox.token("agent", &["openai"]), sandbox.cli().issue("agent", &["openai"], &[]));
    assert_eq!(sandbox.get(PATH, &token.secret).status, 200);

    let revoked = sandbox.cli().revoke(&token.id);
    assert_eq!(revoked["id"], token.id.as_str());
    assert_eq!(revoked["enforced"], true, "{revoked}");
    assert!(revoked["revision"].is_number() && revoked["waited_ms"].is_number(), "{revoked}");
    assert_eq!(revoked["nodes"][0]["state"], "applied", "{revoked}");

    let refused = sandbox.get(PATH, &token.secret);
    assert_eq!((refused.status, refused.code().as_str()), (401, "token_revoked"));
    assert_eq!(sandbox.get(PATH, &other.secret).status, 200, "another token of the agent goes on");
    assert_eq!(upstream.complete(), 2);
}

#[test]
fn a_stream_of_a_revoked_token_is_cut() {
    let upstream = Upstream::start(|_| {
        Answer::chunked(200, &[("Content-Type", "text/event-stream")], vec![chunk(b"data: 1\n\n"), Step::Stall], &[])
    });
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]);
    let mut stream = Connection::open(sandbox.proxy());
    stream.send(format!("GET {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n", token.secret));
    assert_eq!(stream.read_head().unwrap().0, 200);
    assert_eq!(stream.read_chunk().unwrap(), b"data: 1\n\n");

    sandbox.cli().revoke(&token.id);
    assert_eq!(stream.read_chunk(), None, "the answer ends");
    upstream.wait("its connection to be closed", |log| log.connections.iter().all(|c| c.closed));
}

#[test]
fn an_answer_that_only_the_connections_end_ends_is_cut_by_a_reset() {
    let upstream = Upstream::start(|_| {
        Answer::chunked(200, &[("Content-Type", "text/event-stream")], vec![chunk(b"data: 1\n\n"), Step::Stall], &[])
    });
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]);
    let mut stream = TcpStream::connect(sandbox.proxy()).unwrap();
    let request = format!("GET {PATH} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n", token.secret);
    stream.write_all(request.as_bytes()).unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"data: 1\n\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }

    sandbox.cli().revoke(&token.id);
    let ended = stream.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(ended, Err(ErrorKind::ConnectionReset), "or the agent would take what it has for the whole");
}

#[test]
fn an_answer_that_nobody_reads_is_cut_too() {
    const SIZE: usize = 1 << 30;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
    let upstream =
        Upstream::start(move |_| Answer::steps(vec![Step::Send(head.clone().into_bytes()), Step::Flood(SIZE)]));
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]);
    let mut stream = Connection::open(sandbox.proxy());
    stream.send(format!("GET {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n", token.secret));
    assert_eq!(stream.read_head().unwrap().0, 200);
    let mut seen = (0, 0);
    wait_for("what is underway to be full", || {
        let unread = stream.unread();
        seen = if unread == seen.0 { (unread, seen.1 + 1) } else { (unread, 0) };
        (unread > 0 && seen.1 == 40).then_some(())
    });

    sandbox.cli().revoke(&token.id);
    upstream.wait("its connection to be closed", |log| log.connections.iter().all(|c| c.closed));
    assert!(stream.drain(SIZE) < SIZE, "the answer broke off");
}

#[test]
fn a_disabled_agent_is_refused_until_it_is_enabled() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    for _ in 0..2 {
        sandbox.cli().json(&["agent", "disable", "agent"]);
        let refused = sandbox.get(PATH, &token);
        assert_eq!((refused.status, refused.code().as_str()), (403, "agent_disabled"));
        sandbox.cli().json(&["agent", "enable", "agent"]);
        assert_eq!(sandbox.get(PATH, &token).status, 200);
    }
    assert_eq!(upstream.complete(), 2);
}

#[test]
fn a_replaced_credential_is_not_used_again() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    assert_eq!(sandbox.get(PATH, &token).status, 200);
    for round in 2..5 {
        let fresh = format!("sk-real-lifecycle-key-00000000000{round}");
        sandbox.cli().put_credential("openai", "openai", &fresh);
        upstream.forget();
        assert_eq!(sandbox.get(PATH, &token).status, 200);
        assert_eq!(upstream.requests()[0].header("authorization"), Some(format!("Bearer {fresh}")));
    }
    sandbox.cli().json(&["credential", "rollback", "openai"]);
    assert_eq!(sandbox.get(PATH, &token).status, 200);
    let last = upstream.requests().pop().unwrap();
    assert_eq!(last.header("authorization"), Some("Bearer sk-real-lifecycle-key-000000000003".into()));
}

#[test]
fn a_credential_of_a_pool_that_the_node_is_not_of_is_not_used_there() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    assert_eq!(sandbox.get(PATH, &token).status, 200);
    let put = ["credential", "put", "openai", "--service", "openai", "--pool", "eu", "--from-stdin"];
    let put = sandbox.cli().json_with(&put, "sk-real-lifecycle-key-000000000009\n");
    assert_eq!((&put["pools"], &put["enforced"]), (&serde_json::json!(["eu"]), &true.into()), "{put}");
    let refused = sandbox.get(PATH, &token);
    assert_eq!((refused.status, refused.code().as_str()), (403, "service_not_granted"));
    assert!(refused.text().contains("this node holds no credential"), "{}", refused.text());
    assert_eq!(sandbox.cli().json(&["credential", "where", "openai"]), serde_json::json!([]));
    // A new secret alone doesn't move it.
    sandbox.cli().put_credential("openai", "openai", KEY);
    assert_eq!(sandbox.get(PATH, &token).status, 403);
    let everywhere = sandbox.cli().json(&["credential", "assign", "openai", "--every-node"]);
    assert_eq!((&everywhere["pools"], &everywhere["version"]), (&serde_json::json!([]), &3.into()), "{everywhere}");
    assert_eq!(sandbox.get(PATH, &token).status, 200);
    assert_eq!(upstream.complete(), 2);
    let nowhere = sandbox.cli().run(&["credential", "assign", "openai", "--pool", "mistyped"], "");
    assert!(nowhere.code == Some(0) && nowhere.stderr.contains("is on no node"), "{nowhere:?}");
    let unclear = sandbox.cli().run(&["credential", "assign", "openai"], "");
    assert_eq!(unclear.code, Some(2), "which nodes, it must be said: {unclear:?}");
    let wrong = sandbox.cli().run(&["credential", "assign", "openai", "--pool", "E U"], "");
    assert!(wrong.code == Some(2) && wrong.stderr.contains("pools"), "{wrong:?}");
}

#[test]
fn a_policy_holds_for_the_next_request() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    assert_eq!(sandbox.get(PATH, &token).status, 200);
    let forbid = r#"@id("no-models") forbid (principal, action, resource) when { context.path == "/v1/models" };"#;
    sandbox.cli().apply_policies(forbid);
    let refused = sandbox.get(PATH, &token);
    assert_eq!((refused.status, refused.code().as_str()), (403, "policy_denied"));
    assert!(refused.text().contains("no-models"), "{}", refused.text());
    sandbox.cli().json(&["policy", "delete", "no-models", "--yes"]);
    assert_eq!(sandbox.get(PATH, &token).status, 200);
}

#[test]
fn an_expired_token_is_refused() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    sandbox.cli().create_agent("agent");
    let token = sandbox.cli().issue("agent", &["openai"], &["--ttl", "1s"]).secret;
    let refused = wait_for("the token to expire", || Some(sandbox.get(PATH, &token)).filter(|r| r.status == 401));
    assert_eq!((refused.status, refused.code().as_str()), (401, "token_expired"));
}

#[test]
fn another_tenants_token_reaches_nothing_here() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let cli = sandbox.cli();
    cli.json(&["tenant", "create", "other"]);
    cli.json(&["agent", "create", "agent", "--tenant", "other"]);
    let (theirs, origin) = (Upstream::ok(), upstream.origin());
    cli.json(&["service", "enable", "github", "--upstream", &theirs.origin(), "--allow-private", "--tenant", "other"]);
    let put = ["credential", "put", "github", "--service", "github", "--from-stdin", "--tenant", "other"];
    cli.json_with(&put, "ghp_their-own-real-credential");
    let token = cli.issue("agent", &["github"], &["--tenant", "other"]);

    assert_eq!(sandbox.get("/api/github/user", &token.secret).status, 200);
    let refused = sandbox.get(PATH, &token.secret);
    assert!(matches!(refused.status, 403 | 404), "{} {}", refused.status, refused.text());
    assert_eq!((upstream.complete(), theirs.complete()), (0, 1));
    assert!(!refused.text().contains(&origin));
    let foreign = cli.run(&["token", "revoke", &token.id, "--yes"], "");
    assert_eq!(foreign.code, Some(3), "not found in the default tenant: {}", foreign.stderr);
}

/// Everything that was made before is there afterwards, and nothing that was taken away.
fn keeps_everything(mut sandbox: Sandbox, again: impl Fn(&mut Sandbox)) {
    let upstream = Upstream::ok();
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]);
    let revoked = sandbox.token("other", &["openai"]);
    let disabled = sandbox.token("disabled", &["openai"]);
    sandbox.cli().apply_policies(
        r#"@id("no-admin") forbid (principal, action, resource) when { context.path like "/v1/admin/*" };"#,
    );
    sandbox.cli().put_credential("openai", "openai", "sk-real-second-version-0002");
    sandbox.cli().revoke(&revoked.id);
    sandbox.cli().json(&["agent", "disable", "disabled"]);
    for _ in 0..2 {
        again(&mut sandbox);
        upstream.forget();
        assert_eq!(sandbox.get(PATH, &token.secret).status, 200);
        let seen = upstream.requests();
        assert_eq!(seen[0].header("authorization"), Some("Bearer sk-real-second-version-0002".into()));
        assert_eq!(sandbox.get(PATH, &revoked.secret).status, 401);
        assert_eq!(sandbox.get(PATH, &disabled.secret).status, 403);
        assert_eq!(sandbox.get("/api/openai/v1/admin/keys", &token.secret).status, 403);
        assert_eq!(upstream.complete(), 1);
        assert_eq!(sandbox.cli().json(&["agent", "list"]).as_array().unwrap().len(), 3);
    }
    assert!(!sandbox.everything_emitted().contains("sk-real-"));
}

#[test]
fn a_restart_keeps_everything() {
    keeps_everything(Sandbox::start(), Sandbox::restart);
}

#[test]
fn a_crash_keeps_everything() {
    keeps_everything(Sandbox::start(), Sandbox::crash);
}

#[test]
fn planes_of_their_own_keep_everything() {
    keeps_everything(Sandbox::with(Options::planes("")), Sandbox::restart);
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn planes_on_etcd_keep_everything() {
    let etcd = runtime().block_on(Etcd::start());
    let store = format!("kind = \"etcd\"\nendpoints = [\"{}\"]\nallow_plaintext = true", etcd.url());
    keeps_everything(Sandbox::with(Options::planes(store)), Sandbox::restart);
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn planes_on_etcd_survive_crashes() {
    let etcd = runtime().block_on(Etcd::start());
    let store = format!("kind = \"etcd\"\nendpoints = [\"{}\"]\nallow_plaintext = true", etcd.url());
    keeps_everything(Sandbox::with(Options::planes(store)), Sandbox::crash);
}

/// Creates agents one after the other until told to stop, and notes those that the CLI reported as
/// done.
fn write_until(cli: &Cli, round: u64, stop: &AtomicBool, acknowledged: &Mutex<Vec<String>>) {
    for n in 0.. {
        let name = format!("agent-{round}-{n}");
        if cli.run(&["agent", "create", &name], "").code == Some(0) {
            acknowledged.lock().push(name);
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
}

/// `SEKS_CRASH_ROUNDS` says how often; `tests/run` has it done a hundred times.
#[test]
fn every_acknowledged_write_survives_a_crash_amid_writes() {
    let rounds = std::env::var("SEKS_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let mut sandbox = Sandbox::start();
    let mut acknowledged = Vec::new();
    for round in 0..rounds {
        let stop = AtomicBool::new(false);
        let written = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| write_until(sandbox.cli(), round, &stop, &written));
            wait_for("the first write of the round", || (!written.lock().is_empty()).then_some(()));
            // Not a wait for anything: it spreads the blow over the whole of a write, some 50 ms
            // long.
            std::thread::sleep(Duration::from_millis(7 * (round % 17)));
            sandbox.stab();
            stop.store(true, Ordering::Relaxed);
        });
        acknowledged.extend(written.into_inner());
        sandbox.crash();
    }
    let listed = sandbox.cli().json(&["agent", "list"]);
    let listed: Vec<&str> = listed.as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap()).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !listed.contains(&name.as_str())).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
}

#[test]
fn a_drain_lets_a_running_answer_end() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| {
        Answer::chunked(200, &[], vec![chunk(b"first"), Step::Hold(held.clone()), chunk(b"second")], &[])
    });
    let mut sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    let mut stream = Connection::open(sandbox.proxy());
    stream.send(format!("GET {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"));
    assert_eq!(stream.read_head().unwrap().0, 200);
    assert_eq!(stream.read_chunk().unwrap(), b"first");
    sandbox.process().signal(rustix::process::Signal::TERM);
    wait_for("the listener to close", || std::net::TcpStream::connect(sandbox.proxy()).err());
    gate.open();
    assert_eq!(stream.read_chunk().unwrap(), b"second");
    assert_eq!(stream.read_chunk(), None);
    // A second signal would end it at once.
    assert!(sandbox.process().ended().success());
}
