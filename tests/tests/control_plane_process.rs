//! The control plane as a process: what it says to a bad configuration, what it survives, how it ends.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use seks_proto::wire::{self, admin_client::AdminClient};
use seks_tests::{
    control::{Pair, connect, send_bytes},
    process::{Finished, Process, binary, run},
    runtime,
};
use tempfile::TempDir;
use tonic::{Code, transport::Channel};

/// Somebody's machine: a directory with a configuration and a key.
struct Machine {
    dir: TempDir,
}

const GOOD_KEK: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        machine.kek(GOOD_KEK, 0o600);
        machine.configure("");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn kek(&self, text: &str, mode: u32) {
        self.write("kek", text, mode);
    }

    /// A configuration that works, and `more` behind it.
    fn configure(&self, more: &str) {
        let store = self.path("data/store");
        self.configure_with(&format!("[store]\npath = {store:?}\n[seal]\npath = {:?}\n{more}", self.path("kek")));
    }

    fn configure_with(&self, text: &str) {
        self.write("control-plane.toml", text, 0o600);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("seks-control-plane"));
        command.env_clear().arg("--config").arg(self.path("control-plane.toml"));
        for listen in ["--admin-listen", "--distribution-listen", "--metrics-listen"] {
            command.args([listen, "127.0.0.1:0"]);
        }
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        run(&mut self.command(arguments), b"")
    }

    fn start(&self) -> Running {
        let name = format!("control-plane-{}", fs::read_dir(self.dir.path()).unwrap().count());
        // Memory that is free goes back at once, so that what a test measures is what is used.
        let mut command = self.command(&[]);
        command.env("MIMALLOC_PURGE_DELAY", "0");
        let mut process = Process::spawn(&name, self.dir.path(), &mut command);
        let serving = |text: String| {
            let line = text.lines().find(|l| l.contains("\"serving\""))?.to_owned();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            Some(line["admin"].as_str().unwrap().to_owned())
        };
        let log = self.path(&format!("{name}.err"));
        let admin =
            process.wait_for("the control plane to serve", || serving(fs::read_to_string(&log).unwrap_or_default()));
        Running { process, admin }
    }

    /// Makes the first operator, while nothing runs.
    fn bootstrap(&self) {
        let out = self.path("root");
        let done = self.run(&["bootstrap-operator", "--name", "root", "--out", out.to_str().unwrap()]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }

    fn channel(&self, running: &Running) -> Channel {
        let read = |name: &str| fs::read_to_string(self.path("root").join(name)).unwrap();
        let pair = Pair { certificate: read("operator.pem"), key: read("operator.key") };
        let _runtime = runtime().enter();
        connect(&running.admin, &read("ca.pem"), &pair)
    }

    fn client(&self, running: &Running) -> AdminClient<Channel> {
        AdminClient::new(self.channel(running))
    }
}

struct Running {
    process: Process,
    admin: String,
}

/// One line on standard error that holds `wanted`, and exit code 2.
#[track_caller]
fn refused(done: &Finished, wanted: &[&str]) {
    assert_eq!(done.code, Some(2), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
    assert!(done.stdout.is_empty(), "{done:?}");
    for word in wanted {
        assert!(done.stderr.contains(word), "`{word}` is missing: {done:?}");
    }
}

fn agent(name: &str) -> wire::CreateAgentRequest {
    wire::CreateAgentRequest { tenant: "default".into(), name: name.into(), attributes: Default::default() }
}

#[test]
fn a_bad_configuration_is_one_line_that_names_file_key_and_reason() {
    let machine = Machine::new();
    let file = "control-plane.toml";
    for (more, wanted) in [
        ("[nonsense]\na = 1\n", vec![file, "nonsense"]),
        ("[admin]\nlisten_on = 1\n", vec![file, "admin.listen_on"]),
        ("[admin.tls]\ncert = \"x\"\n", vec![file, "admin.tls.cert"]),
        ("[distribution]\nlease = 5\n", vec![file, "distribution.lease"]),
        ("[distribution]\nlease = \"1s\"\n", vec![file, "distribution.lease", "2s to 60s"]),
        ("[admin]\nnames = \"a\"\n", vec![file, "admin.names"]),
        ("[telemetry]\nqueue_spans = \"many\"\n", vec![file, "telemetry.queue_spans"]),
        ("[admin\n", vec![file, "line 5"]),
    ] {
        machine.configure(more);
        refused(&machine.run(&[]), &wanted);
    }
    fs::remove_file(machine.path(file)).unwrap();
    refused(&machine.run(&[]), &[file, "no such file"]);
    assert!(!machine.path("data").exists(), "a refused start has written something");
}

#[test]
fn environment_and_command_line_are_checked_like_the_file() {
    let machine = Machine::new();
    let done = run(machine.command(&[]).env("SEKS_ADMIN_LISTN", "127.0.0.1:0"), b"");
    refused(&done, &["SEKS_ADMIN_LISTN"]);
    let done = run(machine.command(&[]).env("SEKS_DISTRIBUTION_LEASE", "soon"), b"");
    refused(&done, &["SEKS_DISTRIBUTION_LEASE", "distribution.lease"]);
    refused(&machine.run(&["--nonsense"]), &["--nonsense"]);
    let mut command = Command::new(binary("seks-control-plane"));
    let done = run(command.env_clear().args(["--admin-listen", "nowhere"]), b"");
    refused(&done, &["admin.listen"]);
}

#[test]
fn a_key_that_is_missing_malformed_or_exposed_stops_the_start() {
    let machine = Machine::new();
    for (kek, mode) in [
        (&GOOD_KEK[..62], 0o600),
        (&format!("{GOOD_KEK}00"), 0o600),
        (&"0".repeat(64), 0o600),
        (&"g".repeat(64), 0o600),
        ("", 0o600),
        (GOOD_KEK, 0o644),
    ] {
        machine.kek(kek, mode);
        let done = machine.run(&[]);
        refused(&done, &["seal.path", "kek"]);
        assert!(kek.len() < 10 || !done.stderr.contains(&kek[..10]), "the key is in the message: {done:?}");
    }
    machine.kek(GOOD_KEK, 0o644);
    fs::rename(machine.path("kek"), machine.path("exposed")).unwrap();
    symlink(machine.path("exposed"), machine.path("kek")).unwrap();
    refused(&machine.run(&[]), &["seal.path", "kek"]);
    fs::remove_file(machine.path("kek")).unwrap();
    refused(&machine.run(&[]), &["seal.path", "kek"]);

    machine.configure_with(&format!("[store]\npath = {:?}\n", machine.path("data/store")));
    refused(&machine.run(&[]), &["seal.path", "missing"]);
    machine.configure_with(&format!(
        "[store]\npath = {:?}\n[seal]\nkind = \"env\"\nvariable = \"MY_KEK\"\n",
        machine.path("data/store")
    ));
    refused(&machine.run(&[]), &["seal.variable", "MY_KEK"]);
    assert!(!machine.path("data").exists(), "a refused start has written something");
}

#[test]
fn another_key_than_the_stores_is_refused_and_harms_nothing() {
    let machine = Machine::new();
    machine.bootstrap();
    machine.kek(&GOOD_KEK.replace('0', "1"), 0o600);
    refused(&machine.run(&[]), &["seal", "is not the one that this store was sealed with"]);
    machine.kek(&format!("{GOOD_KEK}\n"), 0o600); // an editor's newline
    let running = machine.start();
    runtime().block_on(machine.client(&running).who_am_i(wire::WhoAmIRequest {})).unwrap();
}

#[test]
fn a_key_is_rotated_offline_and_the_old_one_is_not_needed_any_more() {
    let machine = Machine::new();
    machine.bootstrap();
    machine.write("old", GOOD_KEK, 0o600);
    fs::remove_file(machine.path("kek")).unwrap();
    assert_eq!(machine.run(&["create-kek", "--out", machine.path("kek").to_str().unwrap()]).code, Some(0));
    refused(&machine.run(&["create-kek", "--out", machine.path("kek").to_str().unwrap()]), &["--out"]);
    let seal = |older: &str| {
        let (store, kek) = (machine.path("data/store"), machine.path("kek"));
        machine.configure_with(&format!("[store]\npath = {store:?}\n[seal]\npath = {kek:?}\nolder = [{older}]\n"));
    };
    seal(&format!("{:?}", machine.path("old")));
    let done = machine.run(&["rotate-kek"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.contains("re-wrapped"), "{done:?}");
    seal("");
    let running = machine.start();
    runtime().block_on(machine.client(&running).who_am_i(wire::WhoAmIRequest {})).unwrap();
}

#[test]
fn a_store_has_one_process() {
    let machine = Machine::new();
    machine.bootstrap();
    let running = machine.start();
    refused(&machine.run(&[]), &["store.path", "in use by another process"]);
    let out = machine.path("second");
    let done = machine.run(&["bootstrap-operator", "--name", "second", "--out", out.to_str().unwrap()]);
    refused(&done, &["store.path", "in use by another process"]);
    runtime().block_on(machine.client(&running).who_am_i(wire::WhoAmIRequest {})).unwrap();
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let machine = Machine::new();
    fs::create_dir(machine.path("data")).unwrap();
    fs::set_permissions(machine.path("data"), fs::Permissions::from_mode(0o700)).unwrap();
    machine.write("data/store", "something else entirely\n", 0o600);
    refused(&machine.run(&[]), &["store.path", "not a store"]);
    assert_eq!(fs::read_to_string(machine.path("data/store")).unwrap(), "something else entirely\n");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let machine = Machine::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, key) in [
        ("--admin-listen", "admin.listen"),
        ("--distribution-listen", "distribution.listen"),
        ("--metrics-listen", "telemetry.metrics_listen"),
    ] {
        let mut command = Command::new(binary("seks-control-plane"));
        command.env_clear().arg("--config").arg(machine.path("control-plane.toml"));
        for listen in ["--admin-listen", "--distribution-listen", "--metrics-listen"] {
            command.args([listen, if listen == flag { address.as_str() } else { "127.0.0.1:0" }]);
        }
        refused(&run(&mut command, b""), &[key, &address]);
    }
}

#[test]
fn listener_certificates_that_are_expired_foreign_or_exposed_stop_the_start() {
    let machine = Machine::new();
    let pair = |until: u64| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.not_after = (std::time::UNIX_EPOCH + std::time::Duration::from_secs(until)).into();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let (expired, expired_key) = pair(1_000_000_000);
    let (good, good_key) = pair(4_000_000_000);
    let (cert, key) = (machine.path("cert.pem"), machine.path("key.pem"));
    machine.configure(&format!("[admin.tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n"));
    for (certificate, private, mode, wanted) in [
        (expired.as_str(), expired_key.as_str(), 0o600, "valid from"),
        (&good, &expired_key, 0o600, "admin.tls"),
        (&good, &good_key, 0o644, "readable by others"),
        ("", &good_key, 0o600, "no certificate"),
        (&good, "", 0o600, "no private key"),
    ] {
        machine.write("cert.pem", certificate, 0o644);
        machine.write("key.pem", private, mode);
        refused(&machine.run(&[]), &["admin.tls", wanted]);
    }
    fs::remove_file(&cert).unwrap();
    refused(&machine.run(&[]), &["admin.tls", "cert_file"]);
    machine.write("cert.pem", &good, 0o644);
    machine.write("key.pem", &good_key, 0o600);
    machine.start();
}

#[test]
fn sigterm_ends_it_with_zero_and_what_was_acknowledged_survives_a_kill() {
    let machine = Machine::new();
    machine.bootstrap();
    let running = machine.start();
    runtime().block_on(machine.client(&running).create_agent(agent("first"))).unwrap();
    running.process.signal(Signal::KILL);
    drop(running);
    let mut running = machine.start();
    runtime().block_on(machine.client(&running).create_agent(agent("second"))).unwrap();
    assert_eq!(running.process.terminate().code(), Some(0));
    let running = machine.start();
    let list = wire::ListRequest { tenant: "default".into(), ..Default::default() };
    let agents = runtime().block_on(machine.client(&running).list_agents(list)).unwrap().into_inner().agents;
    assert_eq!(agents.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
}

/// A file system of its own that goes away with the value.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        Self(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
#[cfg_attr(not(has = "mount"), ignore = "needs mount")]
fn a_read_only_data_directory_is_one_line() {
    let machine = Machine::new();
    let _mounted = Mounted::tmpfs(&machine.path("data"), "ro,mode=0700");
    refused(&machine.run(&[]), &["store.path"]);
}

#[test]
#[cfg_attr(not(has = "mount"), ignore = "needs mount")]
fn a_full_disk_refuses_writes_keeps_revoking_and_loses_nothing() {
    let machine = Machine::new();
    let _mounted = Mounted::tmpfs(&machine.path("data"), "size=6m,mode=0700");
    machine.bootstrap();
    let mut running = machine.start();
    let mut client = machine.client(&running);
    let (written, refusal) = runtime().block_on(async {
        let mut written = 0;
        loop {
            let attributes = (0..64).map(|n| (format!("k{n}"), "v".repeat(250))).collect();
            let request = wire::CreateAgentRequest { attributes, ..agent(&format!("a{written}")) };
            match client.create_agent(request).await {
                Ok(_) => written += 1,
                Err(status) => return (written, status),
            }
            assert!(written < 2000, "6 MiB never get full");
        }
    });
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal:?}");
    let delete = wire::DeleteRequest { tenant: "default".into(), name: "a0".into(), wait: None };
    runtime().block_on(client.delete_agent(delete)).unwrap();
    assert!(running.process.is_alive());
    running.process.kill();
    let running = machine.start();
    let list = wire::ListRequest { tenant: "default".into(), ..Default::default() };
    let agents = runtime().block_on(machine.client(&running).list_agents(list)).unwrap().into_inner().agents;
    assert_eq!(agents.len(), written - 1, "an acknowledged write is missing, or a refused one is there");
}

/// The most memory that a process has had at once, in KiB.
fn peak(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn hostile_messages_cost_little_memory() {
    let machine = Machine::new();
    machine.bootstrap();
    let running = machine.start();
    let channel = machine.channel(&running);
    let send = |method: &str, message: Vec<u8>| runtime().block_on(send_bytes(channel.clone(), method, message));
    // What the allocator and the threads take for themselves comes with the first calls, whatever is in them.
    for _ in 0..20 {
        send("WhoAmI", Vec::new()).unwrap();
        drop(send("CheckPolicies", [&b"\x0a\x07default\x12\xa0\x8d\x06"[..], &[b'x'; 100_000]].concat()));
    }
    let before = peak(&running.process);
    for _ in 0..3 {
        for (method, message) in [
            ("IssueToken", b"\x1a\x00".repeat(1_000_000)),
            ("IssueToken", b"\x1a\x00".repeat(8_000)),
            ("CreateAgent", b"\x1a\x00".repeat(2_000_000)),
            ("ApplyPolicies", vec![b'x'; 5 << 20]),
            ("ApplyService", b"\x0a\x02\x3a\x00".repeat(500_000)),
        ] {
            assert!(send(method, message).is_err());
        }
    }
    let grown = peak(&running.process).saturating_sub(before);
    assert!(grown <= 16 * 1024, "{grown} KiB more than before");
}
