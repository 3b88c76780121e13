//! Dashboards, alerts and runbooks, against a real Prometheus that scrapes real planes and a real
//! etcd under load.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed},
    thread,
    time::Duration,
};

use seks_tests::{
    Collector, Sandbox, Upstream,
    etcd::Etcd,
    process::{program, wait_for},
    prometheus::Prometheus,
    raw, runtime,
    sandbox::Options,
    upstream::Answer,
};
use serde_json::Value;

const KEY: &str = "sk-real-dashboards-0123456789abcdef";

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn alerts() -> String {
    fs::read_to_string(repository().join("deploy/prometheus/alerts.yml")).unwrap()
}

/// The queries of every panel: dashboard, panel, query.
fn queries() -> Vec<(String, String, String)> {
    let mut queries = Vec::new();
    for entry in fs::read_dir(repository().join("deploy/grafana")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                queries.push((text(&dashboard["title"]), text(&panel["title"]), text(&target["expr"])));
            }
        }
    }
    queries
}

/// A query as Grafana sends it.
fn filled_in(query: &str) -> String {
    let mut query = query.replace("$__rate_interval", "15s");
    for variable in ["$service", "$tenant", "$agent"] {
        query = query.replace(variable, ".*");
    }
    assert!(!query.contains('$'), "{query}");
    query
}

#[test]
fn each_alert_has_a_runbook_and_a_link_to_it() {
    let names: Vec<String> =
        alerts().lines().filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned)).collect();
    assert!(names.len() >= 30, "{names:?}");
    for name in &names {
        let page = format!("docs/runbooks/{name}.md");
        let runbook = fs::read_to_string(repository().join(&page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        for part in ["**What it means.**", "**Whom it affects.**", "## Where to look", "## What to do"] {
            assert!(runbook.contains(part), "{page} has no {part}");
        }
        assert!(alerts().contains(&format!("runbook_url: {page}\n")), "{name} links no runbook");
        let tests = fs::read_to_string(repository().join("deploy/prometheus/alerts.test.yml")).unwrap();
        assert!(tests.contains(&format!("- name: {name}\n")), "no test of {name}");
    }
    let pages = fs::read_dir(repository().join("docs/runbooks")).unwrap().count();
    assert_eq!(pages, names.len() + 1, "a page for each alert, and the list of them");
}

#[test]
#[cfg_attr(not(has = "promtool"), ignore = "needs promtool")]
fn each_alert_fires_in_promtool() {
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]] {
        let mut promtool = Command::new(program("promtool"));
        let done = promtool.args(arguments).current_dir(repository().join("deploy/prometheus")).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{arguments:?}: {said}");
    }
}

/// The alerts with a day, an hour and a minute that last seconds.
fn quick_alerts(directory: &Path) -> PathBuf {
    let mut quick = String::new();
    for line in alerts().lines() {
        let waits = line.trim().starts_with("for: ");
        let line = line.replace("[5m]", "[10s]").replace("[10m]", "[20s]").replace("[15m]", "[20s]");
        quick += &if waits { "        for: 1s".to_owned() } else { line };
        quick.push('\n');
    }
    let file = directory.join("alerts.yml");
    fs::write(&file, quick).unwrap();
    file
}

/// Requests of every kind, until `stop`.
fn load(sandbox: &Sandbox, token: &str, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let cookie = format!(
            "GET /api/openai/v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nCookie: a=b\r\n\
             Connection: close\r\n\r\n"
        );
        raw::exchange(sandbox.proxy(), cookie);
        for (path, token) in [("/api/openai/v1/chat", token), ("/api/none/x", token), ("/api/openai/v1/x", "nobody")] {
            raw::get(sandbox.proxy(), path, token);
        }
        thread::sleep(Duration::from_millis(20)); // the load, not a wait
    }
}

/// Changes, so that there is something to push.
fn change(sandbox: &Sandbox, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let cli = sandbox.cli();
        let issued = cli.issue("bot", &["openai"], &[]);
        cli.json(&["token", "revoke", &issued.id, "--yes"]);
        assert_eq!(cli.run(&["agent", "show", "nobody"], "").code, Some(3));
    }
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
#[cfg_attr(not(has = "prometheus"), ignore = "needs prometheus")]
fn panels_have_data_and_alerts_fire() {
    let mut etcd = runtime().block_on(Etcd::start());
    let status = std::sync::Arc::new(AtomicU16::new(200));
    let answer = status.clone();
    let upstream = Upstream::start(move |request| Answer::with(answer.load(Relaxed), &[], &request.head));
    let store = format!(
        "kind = \"etcd\"\nendpoints = [\"{}\"]\nprefix = \"/seks\"\nallow_plaintext = true\n[audit]\ndir = \"trail\"\n",
        etcd.url()
    );
    let collector = Collector::start();
    let sandbox = Sandbox::with(Options::planes(store).collector(&collector));
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]).secret;
    let folder = tempfile::tempdir().unwrap();
    let jobs = [
        ("seks-data-plane", vec![sandbox.metrics()]),
        ("seks-control-plane", vec![sandbox.control_metrics().unwrap()]),
        ("etcd", vec![etcd.address()]),
    ];
    let prometheus = Prometheus::start(folder.path(), &jobs, &quick_alerts(folder.path()));
    let (stop, settled) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| load(&sandbox, &token, &stop));
        scope.spawn(|| change(&sandbox, &settled));
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            every_panel_has_data(&prometheus);
            settled.store(true, Relaxed);
            // The upstream refuses its credential, then fails.
            fires(&prometheus, "SeksUpstreamRefusesCredential", || status.store(401, Relaxed));
            fires(&prometheus, "SeksUpstreamErrors", || status.store(503, Relaxed));
            // The store is lost: requests to it fail, and leases run out.
            fires(&prometheus, "SeksStoreFailing", || etcd.kill());
            fires(&prometheus, "SeksLeaseEnded", || {});
            fires(&prometheus, "SeksDenialReasonNew", || {});
        }));
        settled.store(true, Relaxed);
        stop.store(true, Relaxed);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let failures = sandbox.control_metrics().map(|address| raw::exchange(address, METRICS).text()).unwrap();
    let failed = |line: &str| line.starts_with("seks_store_request_failures_total") && !line.ends_with(" 0");
    assert!(failures.lines().any(failed), "{failures}");
}

const METRICS: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn every_panel_has_data(prometheus: &Prometheus) {
    let mut left: BTreeSet<(String, String, String)> = queries().into_iter().collect();
    assert!(left.len() > 60, "{}", left.len());
    let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("every panel to have data", || {
            left.retain(|(.., query)| prometheus.query(&filled_in(query)).is_empty());
            left.is_empty().then_some(())
        });
    }));
    assert!(waited.is_ok(), "panels without data: {left:#?}");
}

fn fires(prometheus: &Prometheus, alert: &str, cause: impl FnOnce()) {
    if alert != "SeksLeaseEnded" && alert != "SeksDenialReasonNew" {
        assert!(!prometheus.firing().iter().any(|name| name == alert), "{alert} fires without a cause");
    }
    cause();
    wait_for(alert, || prometheus.firing().iter().any(|name| name == alert).then_some(()));
}
