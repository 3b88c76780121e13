//! The control plane as a process: what it says to a bad configuration, what it survives, how it
//! ends.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use seks_proto::wire;
use seks_tests::{
    ControlPlaneHost,
    control::send_bytes,
    control_plane_host::KEK,
    process::{Finished, Process, binary, run},
    runtime,
};
use tonic::Code;

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
    let host = ControlPlaneHost::embedded();
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
        host.configure(more);
        refused(&host.run(&[]), &wanted);
    }
    fs::remove_file(host.path(file)).unwrap();
    refused(&host.run(&[]), &[file, "no such file"]);
    assert!(!host.path("data").exists(), "a refused start has written something");
}

#[test]
fn environment_and_command_line_are_checked_like_the_file() {
    let host = ControlPlaneHost::embedded();
    let done = run(host.command(&[]).env("SEKS_ADMIN_LISTN", "127.0.0.1:0"), b"");
    refused(&done, &["SEKS_ADMIN_LISTN"]);
    let done = run(host.command(&[]).env("SEKS_DISTRIBUTION_LEASE", "soon"), b"");
    refused(&done, &["SEKS_DISTRIBUTION_LEASE", "distribution.lease"]);
    refused(&host.run(&["--nonsense"]), &["--nonsense"]);
    let mut command = Command::new(binary("seks-control-plane"));
    let done = run(command.env_clear().args(["--admin-listen", "nowhere"]), b"");
    refused(&done, &["admin.listen"]);
}

#[test]
fn a_key_that_is_missing_malformed_or_exposed_stops_the_start() {
    let host = ControlPlaneHost::embedded();
    for (kek, mode) in [
        (&KEK[..62], 0o600),
        (&format!("{KEK}00"), 0o600),
        (&"0".repeat(64), 0o600),
        (&"g".repeat(64), 0o600),
        ("", 0o600),
        (KEK, 0o644),
    ] {
        host.write("kek", kek, mode);
        let done = host.run(&[]);
        refused(&done, &["seal.path", "kek"]);
        assert!(kek.len() < 10 || !done.stderr.contains(&kek[..10]), "the key is in the message: {done:?}");
    }
    host.write("kek", KEK, 0o644);
    fs::rename(host.path("kek"), host.path("exposed")).unwrap();
    symlink(host.path("exposed"), host.path("kek")).unwrap();
    refused(&host.run(&[]), &["seal.path", "kek"]);
    fs::remove_file(host.path("kek")).unwrap();
    refused(&host.run(&[]), &["seal.path", "kek"]);

    host.configure_with(&format!("[store]\npath = {:?}\n", host.path("data/store")));
    refused(&host.run(&[]), &["seal.path", "missing"]);
    host.configure_with(&format!(
        "[store]\npath = {:?}\n[seal]\nkind = \"env\"\nvariable = \"MY_KEK\"\n",
        host.path("data/store")
    ));
    refused(&host.run(&[]), &["seal.variable", "MY_KEK"]);
    assert!(!host.path("data").exists(), "a refused start has written something");
}

#[test]
fn another_key_than_the_stores_is_refused_and_harms_nothing() {
    let host = ControlPlaneHost::embedded();
    host.bootstrap();
    host.write("kek", &KEK.replace('0', "1"), 0o600);
    refused(&host.run(&[]), &["seal", "is not the one that this store was sealed with"]);
    host.write("kek", &format!("{KEK}\n"), 0o600); // an editor's newline
    let running = host.start();
    runtime().block_on(host.client(&running).who_am_i(wire::WhoAmIRequest {})).unwrap();
}

#[test]
fn a_key_is_rotated_offline_and_the_old_one_is_not_needed_any_more() {
    let host = ControlPlaneHost::embedded();
    host.bootstrap();
    host.write("old", KEK, 0o600);
    fs::remove_file(host.path("kek")).unwrap();
    assert_eq!(host.run(&["create-kek", "--out", host.path("kek").to_str().unwrap()]).code, Some(0));
    refused(&host.run(&["create-kek", "--out", host.path("kek").to_str().unwrap()]), &["--out"]);
    let seal = |older: &str| {
        let (store, kek) = (host.path("data/store"), host.path("kek"));
        host.configure_with(&format!("[store]\npath = {store:?}\n[seal]\npath = {kek:?}\nolder = [{older}]\n"));
    };
    seal(&format!("{:?}", host.path("old")));
    let done = host.run(&["rotate-kek"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.contains("re-wrapped"), "{done:?}");
    seal("");
    let running = host.start();
    runtime().block_on(host.client(&running).who_am_i(wire::WhoAmIRequest {})).unwrap();
}

#[test]
fn a_store_has_one_process() {
    let host = ControlPlaneHost::embedded();
    host.bootstrap();
    let running = host.start();
    refused(&host.run(&[]), &["store.path", "in use by another process"]);
    let out = host.path("second");
    let done = host.run(&["bootstrap-operator", "--name", "second", "--out", out.to_str().unwrap()]);
    refused(&done, &["store.path", "in use by another process"]);
    runtime().block_on(host.client(&running).who_am_i(wire::WhoAmIRequest {})).unwrap();
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let host = ControlPlaneHost::embedded();
    fs::create_dir(host.path("data")).unwrap();
    fs::set_permissions(host.path("data"), fs::Permissions::from_mode(0o700)).unwrap();
    host.write("data/store", "something else entirely\n", 0o600);
    refused(&host.run(&[]), &["store.path", "not a store"]);
    assert_eq!(fs::read_to_string(host.path("data/store")).unwrap(), "something else entirely\n");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let host = ControlPlaneHost::embedded();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, key) in [
        ("--admin-listen", "admin.listen"),
        ("--distribution-listen", "distribution.listen"),
        ("--metrics-listen", "telemetry.metrics_listen"),
    ] {
        let mut command = Command::new(binary("seks-control-plane"));
        command.env_clear().arg("--config").arg(host.path("control-plane.toml"));
        for listen in ["--admin-listen", "--distribution-listen", "--metrics-listen"] {
            command.args([listen, if listen == flag { address.as_str() } else { "127.0.0.1:0" }]);
        }
        refused(&run(&mut command, b""), &[key, &address]);
    }
}

#[test]
fn listener_certificates_that_are_expired_foreign_or_exposed_stop_the_start() {
    let host = ControlPlaneHost::embedded();
    let pair = |until: u64| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.not_after = (std::time::UNIX_EPOCH + std::time::Duration::from_secs(until)).into();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let (expired, expired_key) = pair(1_000_000_000);
    let (good, good_key) = pair(4_000_000_000);
    let (cert, key) = (host.path("cert.pem"), host.path("key.pem"));
    host.configure(&format!("[admin.tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n"));
    for (certificate, private, mode, wanted) in [
        (expired.as_str(), expired_key.as_str(), 0o600, "valid from"),
        (&good, &expired_key, 0o600, "admin.tls"),
        (&good, &good_key, 0o644, "readable by others"),
        ("", &good_key, 0o600, "no certificate"),
        (&good, "", 0o600, "no private key"),
    ] {
        host.write("cert.pem", certificate, 0o644);
        host.write("key.pem", private, mode);
        refused(&host.run(&[]), &["admin.tls", wanted]);
    }
    fs::remove_file(&cert).unwrap();
    refused(&host.run(&[]), &["admin.tls", "cert_file"]);
    host.write("cert.pem", &good, 0o644);
    host.write("key.pem", &good_key, 0o600);
    host.start();
}

#[test]
fn sigterm_ends_it_with_zero_and_what_was_acknowledged_survives_a_kill() {
    let host = ControlPlaneHost::embedded();
    host.bootstrap();
    let running = host.start();
    runtime().block_on(host.client(&running).create_agent(agent("first"))).unwrap();
    running.process.signal(Signal::KILL);
    drop(running);
    let mut running = host.start();
    runtime().block_on(host.client(&running).create_agent(agent("second"))).unwrap();
    assert_eq!(running.process.terminate().code(), Some(0));
    let running = host.start();
    let list = wire::ListRequest { tenant: "default".into(), ..Default::default() };
    let agents = runtime().block_on(host.client(&running).list_agents(list)).unwrap().into_inner().agents;
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
    let host = ControlPlaneHost::embedded();
    let _mounted = Mounted::tmpfs(&host.path("data"), "ro,mode=0700");
    refused(&host.run(&[]), &["store.path"]);
}

#[test]
#[cfg_attr(not(has = "mount"), ignore = "needs mount")]
fn a_full_disk_refuses_writes_keeps_revoking_and_loses_nothing() {
    let host = ControlPlaneHost::embedded();
    let _mounted = Mounted::tmpfs(&host.path("data"), "size=6m,mode=0700");
    host.bootstrap();
    let mut running = host.start();
    let mut client = host.client(&running);
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
    let running = host.start();
    let list = wire::ListRequest { tenant: "default".into(), ..Default::default() };
    let agents = runtime().block_on(host.client(&running).list_agents(list)).unwrap().into_inner().agents;
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
    let host = ControlPlaneHost::embedded();
    host.bootstrap();
    let running = host.start();
    let channel = host.channel(&running);
    let send = |method: &str, message: Vec<u8>| runtime().block_on(send_bytes(channel.clone(), method, message));
    // What the allocator and the threads take for themselves comes with the first calls, whatever
    // is in them.
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
