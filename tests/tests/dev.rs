//! `seks dev`: what it leaves on disk, what survives a restart, and how it refuses to start.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use seks_tests::{
    Sandbox, Upstream,
    process::{Finished, Process, binary, run, wait_for},
    raw,
};
use serde_json::Value;

const PORTS: [&str; 6] =
    ["--proxy-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];

fn dev(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("seks"));
    command.current_dir(folder).env_clear().env("HOME", folder).arg("dev").args(PORTS).args(arguments);
    command
}

/// Runs a `seks dev` that can't start; the error line.
#[track_caller]
fn refused(command: &mut Command) -> String {
    failed(command, 2)
}

/// Runs what ends with `exit` and one line. Returns that line.
fn failed(command: &mut Command, exit: i32) -> String {
    let Finished { code, stderr, .. } = run(command, b"");
    let lines: Vec<_> = stderr.lines().filter(|l| !l.starts_with('{')).collect();
    assert_eq!(code, Some(exit), "{stderr}");
    assert!(lines[0].starts_with("error: "), "{stderr}");
    assert!(lines.len() == 1 || (lines.len() == 2 && lines[1].starts_with("hint: ")), "{stderr}");
    lines[0].into()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_data_directory_is_private_and_the_ready_file_says_where_everything_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::spawn("dev", folder.path(), &mut dev(folder.path(), &["--ready-file", "ready.json"]));
    let ready: Value = process.wait_for("the ready file", || {
        Some(serde_json::from_slice(&fs::read(folder.path().join("ready.json")).ok()?).unwrap())
    });
    let data = folder.path().join(".local/state/seks/dev");
    assert_eq!(mode(&data), 0o700);
    for file in ["kek", "context.toml", "store.redb"] {
        assert_eq!(mode(&data.join(file)), 0o600, "{file}");
    }
    assert_eq!(
        Path::new(ready["context_file"].as_str().unwrap()),
        fs::canonicalize(data.join("context.toml")).unwrap()
    );
    let metrics = ready["metrics"].as_str().unwrap().trim_start_matches("http://").parse().unwrap();
    for path in ["/healthz", "/readyz"] {
        let answer =
            raw::exchange(metrics, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.status, 200, "{path}");
    }
    // Wherever this user is, `seks` finds the context by itself.
    let mut status = Command::new(binary("seks"));
    status.current_dir("/").env_clear().env("HOME", folder.path()).args(["status", "-o", "json"]);
    let status = run(&mut status, b"");
    assert_eq!(status.code, Some(0), "{status:?}");
    assert!(process.terminate().success());
}

#[test]
fn both_signals_end_it_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut sandbox = Sandbox::start();
        sandbox.process().signal(signal);
        let process = sandbox.process();
        wait_for("it to end", || (!process.is_alive()).then_some(()));
        assert!(process.terminate().success(), "{signal:?}: {}", process.output());
    }
}

/// A list without the times at which tokens were used: the requests of the test change them.
fn without_uses(mut list: Value) -> Value {
    for object in list.as_array_mut().unwrap() {
        object.as_object_mut().unwrap().remove("last_used_at");
    }
    list
}

#[test]
fn a_restart_keeps_everything() {
    let upstream = Upstream::ok();
    let mut sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, "sk-real-restart-key-0000000001");
    let token = sandbox.token("bot", &["openai"]);
    let lists = |sandbox: &Sandbox| -> Vec<Value> {
        ["service", "credential", "agent", "token", "policy", "operator", "tenant"]
            .map(|noun| without_uses(sandbox.cli().json(&[noun, "list"])))
            .into()
    };
    let node = |sandbox: &Sandbox| sandbox.cli().json(&["node", "list"]).as_array().unwrap().len();
    let before = lists(&sandbox);
    for _ in 0..2 {
        sandbox.restart();
        assert_eq!(lists(&sandbox), before);
        assert_eq!(node(&sandbox), 1, "it is the same node, not another");
        assert_eq!(sandbox.get("/api/openai/v1/models", &token.secret).status, 200);
    }
    sandbox.crash();
    assert_eq!(lists(&sandbox), before);
    assert_eq!(sandbox.get("/api/openai/v1/models", &token.secret).status, 200);
}

#[test]
fn a_node_that_rested_for_longer_than_its_certificate_lives_is_enrolled_again_as_the_same() {
    let mut sandbox = Sandbox::start();
    assert!(sandbox.process().terminate().success());
    let path = sandbox.data_dir().join("node/identity.json");
    let mut identity: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["x".into()]).unwrap();
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2020, 1, 2));
    identity["certificate_pem"] = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().into();
    fs::write(&path, identity.to_string()).unwrap();
    sandbox.crash(); // it has ended already: this starts it again
    let nodes = sandbox.cli().json(&["node", "list"]);
    assert_eq!((nodes.as_array().unwrap().len(), &nodes[0]["id"]), (1, &identity["node"]), "{nodes}");
    assert_eq!(nodes[0]["connected"], true, "{nodes}");
}

#[test]
fn a_lost_context_file_is_made_anew() {
    let mut sandbox = Sandbox::start();
    sandbox.cli().create_agent("bot");
    let context = sandbox.data_dir().join("context.toml");
    fs::remove_file(&context).unwrap();
    sandbox.restart();
    assert_eq!(mode(&context), 0o600);
    assert_eq!(sandbox.cli().json(&["agent", "show", "bot"])["name"], "bot");
}

#[test]
fn a_second_one_on_the_same_data_is_refused_and_the_first_goes_on() {
    let sandbox = Sandbox::start();
    let folder = sandbox.data_dir();
    let line = refused(&mut dev(&folder, &["--data-dir", "."]));
    assert!(line.contains("in use by another `seks dev`"), "{line}");
    sandbox.cli().create_agent("still-there");
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--proxy-listen", "--admin-listen", "--metrics-listen"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary("seks"));
        command.current_dir(&folder).env_clear().env("HOME", folder.path()).arg("dev");
        for listener in PORTS.chunks(2) {
            command.args([listener[0], if listener[0] == flag { &address } else { listener[1] }]);
        }
        let line = refused(&mut command);
        assert!(line.contains(&address) && line.to_lowercase().contains("in use"), "{flag}: {line}");
    }
}

#[test]
fn bad_configuration_names_the_file_the_key_and_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dev.toml");
    for (text, expect) in [
        ("[proxy]\nnope = 1\n", "nope"),
        ("[nope]\n", "nope"),
        ("[store]\nkind = \"etcd\"\n", "store"),
        ("[upstream]\nconnect_timeout = 3\n", "upstream.connect_timeout"),
        ("[audit]\nmode = \"sometimes\"\n", "audit.mode"),
        ("[proxy\n", "line 1"),
        ("[proxy.limits]\nheader_bytes = \"many\"\n", "proxy.limits.header_bytes"),
        ("[proxy.limits]\nheader_bytes = 0\n", "proxy.limits.header_bytes"),
        ("[proxy]\nhosts = [\"a b\"]\n", "proxy.hosts"),
        ("[proxy]\nhost_suffix = \".x\"\n", "proxy.host_suffix"),
        ("[proxy]\ntls = { cert_file = \"/nope\", key_file = \"/nope\" }\n", "proxy.tls"),
        ("[audit]\nspool_bytes = 0\n", "audit.spool_bytes"),
        ("[upstream]\nca_file = \"/nope\"\n", "upstream.ca_file"),
    ] {
        fs::write(&file, text).unwrap();
        let line = refused(&mut dev(folder.path(), &["--config", "dev.toml"]));
        assert!(line.contains("dev.toml") && line.contains(expect), "{text:?}: {line}");
        let logged = run(&mut dev(folder.path(), &["--config", "dev.toml"]), b"").stderr;
        assert!(!logged.lines().any(|line| line.starts_with('{')), "{text:?}: {logged}");
        assert!(!folder.path().join(".local").exists(), "nothing is made for a start that fails");
    }
    let mut command = dev(folder.path(), &[]);
    let line = refused(command.env("SEKS_PROXY_NOPE", "1"));
    assert!(line.contains("SEKS_PROXY_NOPE"), "{line}");
    let line = refused(&mut dev(folder.path(), &["--ready-file", "/nope/ready.json"]));
    assert!(line.contains("/nope/ready.json"), "{line}");
    assert!(!folder.path().join(".local").exists(), "nothing is made for a start that fails");
}

/// A command in a mount namespace of its own, with a small file system at `at`; it goes away with
/// the command.
fn on_a_small_disk(at: &Path, options: &str, command: &Command) -> Command {
    let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_str().unwrap());
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
    let script = format!("mount -t tmpfs -o {options} tmpfs '{}' && exec {}", at.display(), words.join(" "));
    let mut wrapped = Command::new("unshare");
    // As bare as the command's own environment, but for what finds the tools.
    wrapped.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    wrapped.current_dir(at.parent().unwrap()).args(["-rm", "sh", "-c", &script]);
    wrapped
}

fn empty_folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    (folder, data)
}

#[test]
#[cfg_attr(not(has = "namespaces"), ignore = "needs namespaces")]
fn a_read_only_data_directory_is_named() {
    let (folder, data) = empty_folder();
    let mut command = on_a_small_disk(&data, "ro,size=1m", &dev(folder.path(), &["--data-dir", "data"]));
    let line = refused(&mut command);
    assert!(line.contains("data: read-only file system"), "{line}");
}

#[test]
#[cfg_attr(not(has = "namespaces"), ignore = "needs namespaces")]
fn a_full_disk_at_the_first_start_is_one_line_and_leaves_no_half_key() {
    for size in ["4k", "16k", "64k"] {
        let (folder, data) = empty_folder();
        let mut command = on_a_small_disk(&data, &format!("size={size}"), &dev(folder.path(), &["--data-dir", "data"]));
        let line = failed(&mut command, 1);
        let full = ["no space left", "No space left", "the store is full"];
        assert!(full.iter().any(|f| line.contains(f)), "{size}: {line}");
    }
}

#[test]
fn a_damaged_or_missing_key_is_refused_and_nothing_is_overwritten() {
    let mut sandbox = Sandbox::start();
    sandbox.cli().create_agent("bot");
    assert!(sandbox.process().terminate().success());
    let (data, kek) = (sandbox.data_dir(), sandbox.data_dir().join("kek"));
    let good = fs::read(&kek).unwrap();
    let start = || refused(&mut dev(&data, &["--data-dir", "."]));
    let other = format!("{}\n", "5a".repeat(32));
    for (bytes, expect) in [(&b"short"[..], "key"), (other.as_bytes(), "key-encryption key")] {
        fs::write(&kek, bytes).unwrap();
        let line = start();
        assert!(line.contains(expect) && !line.contains("5a5a"), "{line}");
    }
    fs::remove_file(&kek).unwrap();
    assert!(start().contains("missing"));
    assert!(!kek.exists(), "no new key is made for an old store");
    fs::write(&kek, &good).unwrap();
    fs::set_permissions(&kek, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(start().contains("kek"), "readable by others");
    fs::set_permissions(&kek, fs::Permissions::from_mode(0o600)).unwrap();
    sandbox.crash(); // it has ended already: this starts it again
    assert_eq!(sandbox.cli().json(&["agent", "show", "bot"])["name"], "bot");
}

#[test]
fn an_accepted_host_name_can_be_added() {
    let upstream = Upstream::ok();
    let sandbox = Sandbox::with(seks_tests::sandbox::Options { hosts: vec!["seks.test".into()], ..Default::default() });
    sandbox.service("openai", &upstream, "sk-real-host-key-00000000000001");
    let token = sandbox.token("bot", &["openai"]).secret;
    let ask = |host: &str| {
        let head = format!(
            "GET /api/openai/v1/models HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        raw::exchange(sandbox.proxy(), head).status
    };
    assert_eq!((ask("seks.test"), ask("localhost")), (200, 200));
    let refused = ask("other.test");
    assert!(matches!(refused, 400 | 421), "{refused}");
}
