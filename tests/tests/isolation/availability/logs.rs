//! A reader of standard error or standard output that stops reading.

use std::{
    fs,
    io::{PipeReader, PipeWriter, Write as _, pipe},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::fs::OFlags;
use seks_tests::{
    process::{binary, wait_for},
    raw,
    sandbox::cli,
};
use serde_json::Value;

/// Longest time to the end after SIGTERM: the drain of nothing, the flush of the log (1 s), and a
/// slow machine.
const END: Duration = Duration::from_secs(20);

/// A pipe that takes not one byte more. Its reader must be kept: without one, a write fails instead
/// of blocking.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    fill(&writer);
    (reader, writer)
}

fn fill(writer: &PipeWriter) {
    let flags = rustix::fs::fcntl_getfl(writer).unwrap();
    rustix::fs::fcntl_setfl(writer, flags | OFlags::NONBLOCK).unwrap();
    let mut file = writer.try_clone().unwrap();
    for size in [4096, 1] {
        while file.write(&vec![b'.'; size]).is_ok() {}
    }
    rustix::fs::fcntl_setfl(writer, flags).unwrap();
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Running {
    fn terminate(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.ended()
    }

    fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        let status = wait_for("the process to end", || self.0.try_wait().unwrap());
        assert!(began.elapsed() < END, "it took {:?}", began.elapsed());
        status
    }
}

fn address(ready: &Value, listener: &str) -> SocketAddr {
    ready[listener].as_str().unwrap().split("//").nth(1).unwrap().parse().unwrap()
}

fn metric(metrics: SocketAddr, name: &str) -> u64 {
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let text = raw::exchange(metrics, request).text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned);
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[test]
fn a_dev_broker_whose_output_nobody_reads_serves_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let ((_out, stdout), (_err, stderr)) = (full_pipe(), full_pipe());
    let mut command = Command::new(binary("seks"));
    command.current_dir(dir.path()).args(["dev", "--demo", "--data-dir", "data", "--ready-file", "ready.json"]);
    for listener in ["--proxy-listen", "--admin-listen", "--metrics-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    cli::clean_environment(&mut command);
    // Every request writes lines: more than the pipe, the batch in hand and the queue hold
    // together.
    command.env("SEKS_LOG", "trace");
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let mut process = Running(command.spawn().unwrap());
    let file = dir.path().join("ready.json");
    let ready: Value = wait_for("it to be ready", || serde_json::from_slice(&fs::read(&file).ok()?).ok());
    let (proxy, metrics) = (address(&ready, "proxy"), address(&ready, "metrics"));
    for _ in 0..500 {
        assert_eq!(raw::get(proxy, "/api/demo/x", "seks_token_x").status, 401);
    }
    assert_eq!(metric(metrics, "seks_log_suppressed_total"), 0);
    let _ = metric(metrics, "seks_log_dropped_total");
    assert_eq!(process.terminate().code(), Some(0));
}

#[test]
fn start_up_errors_end_a_process_whose_output_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("bad.toml"), "[nothing]\n").unwrap();
    let file = dir.path().join("bad.toml").display().to_string();
    for (name, args) in [
        ("seks-control-plane", vec!["--config", &file]),
        ("seks-control-plane", vec!["--no-such-flag"]),
        ("seks-data-plane", vec!["--config", &file]),
        ("seks", vec!["dev", "--config", &file, "--data-dir", "data"]),
        ("seks", vec!["--no-such-flag"]),
    ] {
        let (_reader, stderr) = full_pipe();
        let mut command = Command::new(binary(name));
        command.current_dir(dir.path()).args(&args).stdin(Stdio::null()).stderr(stderr).stdout(Stdio::null());
        cli::clean_environment(&mut command);
        let status = Running(command.spawn().unwrap()).ended();
        assert_eq!(status.code(), Some(2), "{name} {args:?}");
    }
}

/// Reads until a line of the log says where it serves, and not one byte after it.
fn serves(reader: &PipeReader) -> Value {
    use std::io::Read as _;
    let (mut line, mut reader, mut byte) = (Vec::new(), reader, [0]);
    while reader.read(&mut byte).unwrap() > 0 {
        line.extend(byte);
        if line.ends_with(b"\n") {
            let record: Value = serde_json::from_slice(&line).unwrap_or_default();
            if record["message"] == "serving" && record["metrics"].is_string() {
                return record;
            }
            line.clear();
        }
    }
    panic!("it never served")
}

fn control_plane(dir: &Path, stderr: PipeWriter) -> Running {
    fs::write(dir.join("kek"), "4b".repeat(32)).unwrap();
    fs::set_permissions(dir.join("kek"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let config = "[store]\nkind = \"embedded\"\npath = \"store.redb\"\n[seal]\npath = \"kek\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
                  [distribution]\nlisten = \"127.0.0.1:0\"\n[telemetry]\nmetrics_listen = \"127.0.0.1:0\"\n";
    fs::write(dir.join("control-plane.toml"), config).unwrap();
    let mut command = Command::new(binary("seks-control-plane"));
    command.current_dir(dir).args(["--config", "control-plane.toml"]).stdin(Stdio::null()).stderr(stderr);
    cli::clean_environment(&mut command);
    Running(command.spawn().unwrap())
}

#[test]
fn a_control_plane_whose_log_reader_stops_serves_counts_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, writer) = pipe().unwrap();
    let mut process = control_plane(dir.path(), writer.try_clone().unwrap());
    let metrics = serves(&reader)["metrics"].as_str().unwrap().parse().unwrap();
    fill(&writer);
    for _ in 0..50 {
        let _ = metric(metrics, "seks_log_dropped_total");
    }
    assert_eq!(process.terminate().code(), Some(0));
}
