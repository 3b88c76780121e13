//! A search over several replicas: each holds the records of its own nodes, and one that is away is
//! named.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{fs, path::Path, process::Command};

use seks_tests::{
    Sandbox, Upstream,
    etcd::Etcd,
    plane::{Serving, write_private},
    process::{Process, binary, wait_for},
    raw,
    sandbox::{Cli, Options, cli::clean_environment},
    upstream::Answer,
};
use serde_json::Value;

const SECRET: &str = "sk-real-0123456789abcdef";
const NETWORKS: &str = "[upstream]\nprivate_networks = [\"127.0.0.0/8\"]\n";

/// A second replica on the same store, with a trail and a node of its own.
struct Second {
    control: Process,
    node: Process,
    admin: String,
    proxy: String,
}

fn start(directory: &Path, name: &str, config: &str) -> (Process, Serving) {
    let file = format!("{name}-2.toml");
    fs::write(directory.join(&file), config).unwrap();
    let mut command = Command::new(binary(name));
    command.current_dir(directory).args(["--config", &file]);
    if name == "seks-data-plane" {
        command.args(["--proxy-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
    }
    clean_environment(&mut command);
    let mut process = Process::spawn(&format!("{name}-2"), directory, &mut command);
    let serving = Serving::wait(&mut process);
    (process, serving)
}

impl Second {
    fn start(directory: &Path, cli: &Cli, etcd: &Etcd) -> Self {
        let config = format!(
            "[store]\nkind = \"etcd\"\nallow_plaintext = true\nendpoints = [\"{}\"]\n[audit]\ndir = \"trail-2\"\n[seal]\npath = \"kek\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n[distribution]\nlisten = \"127.0.0.1:0\"\n\
             [telemetry]\nservice_instance = \"second\"\n{NETWORKS}",
            etcd.url()
        );
        let (control, serving) = start(directory, "seks-control-plane", &config);
        let (admin, distribution) = (serving.at("admin"), serving.at("distribution"));
        let join = cli.json(&["node", "enroll", "--region", "other"])["join_token"].as_str().unwrap().to_owned();
        write_private(&directory.join("join-token-2"), &join);
        let config = format!(
            "[node]\nregion = \"other\"\ndata_dir = \"node-2\"\n[control]\nendpoints = [\"https://{distribution}\"]\n\
             join_token_file = \"join-token-2\"\n{NETWORKS}"
        );
        let (node, serving) = start(directory, "seks-data-plane", &config);
        Self { control, node, admin, proxy: serving.at("proxy") }
    }
}

fn paths(found: &Value) -> Vec<&str> {
    found.as_array().unwrap().iter().map(|record| record["path"].as_str().unwrap()).collect()
}

/// Verification and exports ask both replicas.
fn both_are_verified_and_exported(cli: &Cli) {
    let verified = cli.json(&["audit", "verify"]);
    assert_eq!(
        (&verified["ok"], verified["replicas"].as_array().unwrap().len(), &verified["unreachable"]),
        (&true.into(), 2, &Value::Array(vec![])),
        "{verified}"
    );
    assert!(verified["records"].as_u64().unwrap() >= 5, "{verified}");
    let exported = cli.json(&["audit", "export", "--out", "both"]);
    let records: u64 = exported.as_array().unwrap().iter().map(|export| export["records"].as_u64().unwrap()).sum();
    assert_eq!((exported.as_array().unwrap().len(), records), (2, verified["records"].as_u64().unwrap()), "{exported}");
    let checked = cli.json(&["audit", "verify", "both"]);
    assert_eq!((&checked["ok"], checked["replicas"].as_array().unwrap().len()), (&true.into(), 2), "{checked}");
}

fn one_that_is_away_is_named(cli: &Cli, admin: &str) {
    let verified = cli.run(&["audit", "verify", "-o", "json"], "");
    let view: Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!((verified.code, &view["ok"]), (Some(6), &true.into()), "{verified:?}");
    assert_eq!(view["unreachable"][0], format!("https://{admin}"), "{view}");
    assert!(verified.stderr.contains("did not answer, and its records are not verified"), "{verified:?}");
    assert_eq!(cli.run(&["audit", "export", "--out", "one"], "").code, Some(6));
    let changes = cli.run(&["audit", "admin", "-o", "json"], "");
    assert_eq!(changes.code, Some(0), "the store has all of them: {changes:?}");
    assert!(changes.stderr.contains("did not answer, and its archive is not read"), "{changes:?}");
}

#[test]
fn a_search_asks_every_replica_of_the_context_and_names_one_that_is_away() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let etcd = runtime.block_on(Etcd::start());
    let store = format!(
        "kind = \"etcd\"\nallow_plaintext = true\nendpoints = [\"{}\"]\n[audit]\ndir = \"trail\"\n",
        etcd.url()
    );
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let sandbox = Sandbox::with(Options::planes(store));
    let directory = sandbox.context_file().parent().unwrap().to_path_buf();
    sandbox.service("openai", &upstream, SECRET);
    let token = sandbox.token("ci-bot", &["openai"]).secret;
    let mut second = Second::start(&directory, sandbox.cli(), &etcd);
    let proxy = second.proxy.parse().unwrap();
    wait_for("the second node to serve", || (raw::get(proxy, "/api/openai/v1/0", &token).status == 200).then_some(()));
    for n in [1, 3] {
        assert_eq!(sandbox.get(&format!("/api/openai/v1/{n}"), &token).status, 200);
        assert_eq!(raw::get(proxy, &format!("/api/openai/v1/{}", n + 1), &token).status, 200);
    }

    // One endpoint alone: the other replica is named.
    let alone = wait_for("its own records", || {
        let found = sandbox.cli().run(&["audit", "search", "--decision", "allow", "-o", "json"], "");
        (paths(&serde_json::from_str(&found.stdout).unwrap()).len() == 2).then_some(found)
    });
    assert!(alone.stderr.contains("name their addresses in `endpoints`"), "{}", alone.stderr);

    let context = fs::read_to_string(sandbox.context_file()).unwrap();
    let first = sandbox.admin();
    // Its other name leads to the first replica once more, which counts once.
    let both = context.replace(
        "\nca =",
        &format!("\nendpoints = [\"https://{}\", \"https://localhost:{}\"]\nca =", second.admin, first.port()),
    );
    write_private(&directory.join("both.toml"), &both);
    let cli = Cli::new(&directory, &directory.join("both.toml"));
    let search = ["audit", "search", "--decision", "allow", "-o", "json"];
    let found = wait_for("the records of both", || {
        let found = cli.run(&search, "");
        (paths(&serde_json::from_str(&found.stdout).unwrap()).len() == 5).then_some(found)
    });
    let merged: Value = serde_json::from_str(&found.stdout).unwrap();
    let expected = [4, 3, 2, 1, 0].map(|n| format!("/api/openai/v1/{n}"));
    assert_eq!(
        (found.code, paths(&merged)),
        (Some(0), expected.iter().map(String::as_str).collect()),
        "{}",
        found.stderr
    );
    assert!(!found.stderr.contains("others hold theirs"), "{}", found.stderr);
    let tail = cli.run(&["audit", "tail", "-n", "2", "-o", "json"], "").stdout;
    let tail: Vec<Value> = tail.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        tail.iter().map(|line| line["path"].as_str().unwrap()).collect::<Vec<_>>(),
        ["/api/openai/v1/3", "/api/openai/v1/4"]
    );

    both_are_verified_and_exported(&cli);
    let changes = |cli: &Cli| cli.json(&["audit", "admin"]);
    assert_eq!(changes(&cli), changes(sandbox.cli()), "each change is printed once");

    second.node.kill();
    second.control.kill();
    one_that_is_away_is_named(&cli, &second.admin);
    let found = cli.run(&search, "");
    assert_eq!((found.code, paths(&serde_json::from_str(&found.stdout).unwrap()).len()), (Some(6), 2));
    let line = format!("the replica at https://{} did not answer, and its records are missing", second.admin);
    assert!(found.stderr.contains(&line), "{}", found.stderr);
}
