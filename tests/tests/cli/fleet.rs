//! What an operator on call uses: doctor, top, lines of requests, completions, operators.

use std::{fs, process::Command};

use seks_tests::{
    Sandbox, Upstream,
    process::{binary, run, wait_for},
    sandbox::Cli,
};
use serde_json::Value;

use super::{KEY, failure, succeed};

#[test]
fn the_doctor_finds_nothing_wrong_and_says_what_it_looked_at() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let healthy = sandbox.cli().json(&["doctor"]);
    assert_eq!(healthy["healthy"], true, "{healthy}");
    let names: Vec<&str> = healthy["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    for name in ["operator certificate", "admin certificate", "clocks", "versions", "store", "audit", "credentials"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    assert!(names.iter().any(|name| name.starts_with("node ")), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("disk of the ")) && names.contains(&"open files"), "{names:?}");
    let table = succeed(sandbox.cli().run(&["doctor"], "")).stdout;
    assert!(table.contains("ok    store") && !table.contains('\u{1b}'), "no colours in a pipe: {table}");
    // Another destination: the credential is of no use any more.
    let other = Upstream::ok();
    sandbox.cli().enable("openai", "openai", &other);
    let sick = sandbox.cli().run(&["doctor", "-o", "json"], "");
    let found: Value = serde_json::from_str(&sick.stdout).unwrap();
    assert_eq!((sick.code, &found["healthy"]), (Some(1), &Value::Bool(false)), "{found}");
    let failed = found["checks"].as_array().unwrap().iter().find(|c| c["state"] == "failed").unwrap();
    assert_eq!(failed["name"], "credential openai", "{found}");
    assert!(failed["advice"].as_str().unwrap().contains("seks credential put openai --service openai"), "{found}");
}

#[test]
fn the_doctor_says_that_there_is_no_control_plane() {
    let mut sandbox = Sandbox::start();
    sandbox.control().terminate();
    let finished = sandbox.cli().run(&["doctor"], "");
    assert_eq!(finished.code, Some(6), "{finished:?}");
    assert!(finished.stdout.contains("FAIL  control plane") && finished.stdout.contains("-> "), "{finished:?}");
}

#[test]
fn top_shows_nodes_rates_and_refusals_once_without_a_terminal() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]).secret;
    for _ in 0..5 {
        assert_eq!(sandbox.get("/api/openai/v1/models", &token).status, 200);
    }
    assert_eq!(sandbox.get("/api/other/v1/models", &token).status, 404);
    let top = wait_for("six requests in the trail", || {
        let top = sandbox.cli().json(&["top", "--once", "--window", "10m"]);
        let count: u64 = top["services"].as_array().unwrap().iter().map(|s| s["requests"].as_u64().unwrap()).sum();
        (count == 6).then_some(top)
    });
    let openai = top["services"].as_array().unwrap().iter().find(|s| s["service"] == "openai").unwrap();
    assert_eq!((&openai["requests"], &openai["refused"]), (&5.into(), &0.into()), "{top}");
    assert!(openai["p50_ms"].as_f64().unwrap() > 0.0, "{top}");
    assert_eq!(top["refusals"][0]["reason"], "service_unknown", "{top}");
    assert_eq!(top["nodes"][0]["connected"], true, "{top}");
    let table = succeed(sandbox.cli().run(&["top", "--once"], "")).stdout;
    assert!(table.contains("REQ/S") && table.contains("service_unknown") && !table.contains('\u{1b}'), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
}

#[test]
fn dev_prints_a_line_for_each_request_and_no_secret() {
    let (mut sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]).secret;
    sandbox.get("/api/openai/v1/models?key=QUERY-CANARY", &token);
    sandbox.get("/api/other/x", &token);
    let output = wait_for("two lines", || {
        let output = sandbox.process().output();
        (output.contains(" 200 GET /api/openai/v1/models") && output.contains("service_unknown")).then_some(output)
    });
    let line = output.lines().find(|line| line.contains(" 200 GET ")).unwrap();
    assert!(line.contains(" bot ") && line.ends_with(" ms"), "{line}");
    assert!(!output.contains(&token) && !output.contains("CANARY"), "{output}");
}

#[test]
fn completions_offer_names_from_the_server_and_the_catalogue() {
    let sandbox = Sandbox::start();
    sandbox.cli().create_agent("ci-bot");
    let words = |typed: &[&str]| {
        let mut command = Command::new(binary("seks"));
        let count = (typed.len() - 1).to_string();
        command.env("SEKS_COMPLETE", "bash").env("SEKS_CONTEXT_FILE", sandbox.context_file());
        command.env("_CLAP_COMPLETE_INDEX", count).env("_CLAP_COMPLETE_COMP_TYPE", "9").arg("--").args(typed);
        succeed(run(&mut command, b"")).stdout
    };
    assert!(words(&["seks", "token", "issue", "--agent", "ci"]).contains("ci-bot"));
    assert!(words(&["seks", "policy", "show", ""]).contains("granted-services"));
    assert!(words(&["seks", "service", "enable", "opena"]).contains("openai"));
    assert!(words(&["seks", "tok"]).contains("token"));
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = succeed(sandbox.cli().run(&["completions", shell], "")).stdout;
        assert!(script.contains("SEKS_COMPLETE") && script.contains("seks"), "{shell}: {script}");
    }
}

#[test]
fn an_owner_of_a_tenant_looks_after_its_operators_and_renews_certificates() {
    let sandbox = Sandbox::start();
    sandbox.cli().json(&["tenant", "create", "acme"]);
    let folder = sandbox.data_dir().join("..");
    let context = |name: &str| folder.join(format!("{name}.toml"));
    let path = |name: &str| context(name).display().to_string();
    sandbox.cli().json(&["operator", "create", "ann", "--role", "owner:acme", "--out", &path("ann")]);
    sandbox.cli().json(&["operator", "create", "eve", "--role", "editor:default", "--out", &path("eve")]);
    let ann = Cli::new(&folder, &context("ann"));
    ann.json(&["operator", "create", "bob", "--role", "editor:acme", "--out", &path("bob")]);
    let names = |list: Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|o| o["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(ann.json(&["operator", "list"])), ["ann", "bob"], "eve is out of sight");
    assert_eq!(ann.json(&["agent", "list"]), serde_json::json!([]), "its context has its tenant");
    ann.json(&["operator", "update", "bob", "--role", "viewer:acme"]);
    let out = path("x");
    for refused in [
        &["operator", "create", "joe", "--role", "editor:default", "--out", &out][..],
        &["operator", "create", "joe", "--role", "viewer", "--out", &out],
        &["operator", "create", "eve", "--out", &out],
        &["operator", "create", "dev", "--out", &out],
        &["operator", "update", "bob", "--role", "editor:default"],
        &["operator", "update", "ann", "--role", "owner"],
    ] {
        let (code, line) = failure(&ann.run(refused, ""));
        assert!(code == 4, "{refused:?}: {line}");
    }
    for unseen in [&["operator", "delete", "eve", "--yes"][..], &["operator", "update", "eve", "--role", "viewer:acme"]]
    {
        assert_eq!(failure(&ann.run(unseen, "")).0, 3, "{unseen:?}");
    }
    let bob = Cli::new(&folder, &context("bob"));
    assert_eq!(failure(&bob.run(&["operator", "create", "joe", "--role", "viewer:acme", "--out", &out], "")).0, 4);
    bob.json(&["operator", "renew", "--out", &path("bob-2")]);
    assert_eq!(Cli::new(&folder, &context("bob-2")).json(&["operator", "whoami"])["name"], "bob");
    ann.json(&["operator", "renew", "bob", "--out", &path("bob-3")]);
    let own = ann.run(&["operator", "delete", "ann", "--yes"], "");
    assert_eq!(failure(&own).0, 2);
    assert!(own.stderr.contains("--yes-delete-myself"), "{own:?}");
    ann.json(&["operator", "delete", "bob", "--yes"]);
    ann.json(&["operator", "delete", "ann", "--yes", "--yes-delete-myself"]);
    assert_eq!(failure(&ann.run(&["operator", "whoami"], "")).0, 4);
    assert!(fs::metadata(context("x")).is_err(), "nothing was written for what was refused");
}
