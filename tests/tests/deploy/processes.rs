//! The planes and the command line as people run them: signals, full disks, draining, names,
//! several control planes.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use seks_tests::{
    Collector, ControlPlaneHost, Sandbox, Upstream,
    plane::write_private,
    process::{Finished, Process, binary, run, wait_for},
    raw,
    sandbox::{Options, clean_environment},
};

/// A node's configuration with a join token for a control plane that nobody runs.
fn lonely_node() -> (tempfile::TempDir, Process) {
    let directory = tempfile::tempdir().unwrap();
    // Bound and never listened on: connections are refused, and nobody else gets the port.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    write_private(&directory.path().join("token"), &format!("seks_join_id.secret.{}", "ab".repeat(32)));
    let config = format!(
        "[node]\nregion = \"eu\"\ndata_dir = \"data\"\n[control]\nendpoints = [\"https://{closed}\"]\njoin_token_file = \"token\"\n"
    );
    fs::write(directory.path().join("data-plane.toml"), config).unwrap();
    let mut command = Command::new(binary("seks-data-plane"));
    command.current_dir(directory.path()).env_clear().args(["--config", "data-plane.toml"]);
    let mut node = Process::spawn("node", directory.path(), &mut command);
    node.wait_for_output("a first attempt", |log| log.contains("no control plane can be reached").then_some(()));
    (directory, node)
}

#[test]
fn a_node_that_waits_to_enrol_ends_on_sigterm_and_sigint() {
    for signal in [Signal::TERM, Signal::INT] {
        let (_directory, mut node) = lonely_node();
        node.signal(signal);
        assert_eq!(node.ended().code(), Some(0), "{signal:?}: {}", node.output());
    }
}

#[test]
#[cfg_attr(not(has = "mount"), ignore = "needs mount")]
fn a_full_disk_at_the_start_is_a_failure_and_no_bad_configuration() {
    let host = ControlPlaneHost::embedded();
    host.configure("");
    fs::create_dir(host.path("data")).unwrap();
    let control = host.command(&[]);
    let mut command = Command::new("unshare");
    // The page cache of a tmpfs of 16 KiB is full before the store is made.
    command.args(["--mount", "sh", "-c", "mount -t tmpfs -o mode=700,size=16k tmpfs \"$0\" && exec \"$@\""]);
    command.arg(host.path("data")).arg(control.get_program()).args(control.get_args()).current_dir(host.path("."));
    clean_environment(&mut command);
    let done = run(&mut command, b"");
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.lines().last().unwrap().contains("No space left"), "{done:?}");
}

#[test]
fn a_node_that_drains_is_not_ready_and_serves_on_for_the_drain_delay() {
    let config = "[proxy.limits]\ndrain_delay = \"3s\"\n";
    let mut sandbox = Sandbox::with(Options { config: config.into(), ..Options::planes("") });
    let upstream = Upstream::ok();
    sandbox.service("openai", &upstream, "REAL");
    let token = sandbox.token("bot", &["openai"]);
    let (proxy, metrics) = (sandbox.proxy(), sandbox.metrics());
    let began = Instant::now();
    sandbox.process().signal(Signal::TERM);
    let ready = || raw::exchange(metrics, "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    wait_for("a node that is not ready", || (ready().status == 503).then_some(()));
    assert_eq!(sandbox.get("/api/openai/v1/models", &token.secret).status, 200, "a new connection is served");
    assert!(began.elapsed() < Duration::from_secs(3), "the request came too late to show anything");
    wait_for("a closed listener", || TcpStream::connect(proxy).is_err().then_some(()));
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(sandbox.process().ended().code(), Some(0));
}

#[test]
fn spans_of_a_node_name_it_as_it_is_enrolled() {
    let collector = Collector::start();
    let sandbox = Sandbox::with(Options::planes("").collector(&collector));
    let nodes = sandbox.cli().json(&["node", "list"]);
    let name = nodes[0]["id"].as_str().unwrap().to_owned();
    sandbox.get("/api/nothing/x", "seks_token_nonsense");
    let span = collector.wait_for("a request's span", |span| span.name == "seks.proxy");
    assert_eq!(span.resource.get("service.instance.id"), Some(&name), "{span:?}");
}

/// A context file with these endpoints and the sandbox's operator.
fn context(sandbox: &Sandbox, endpoints: &[String]) -> PathBuf {
    let text = fs::read_to_string(sandbox.context_file()).unwrap();
    let lines =
        text.lines().filter(|line| !line.starts_with("endpoint")).map(|line| match line.starts_with("[contexts.") {
            true => format!("{line}\nendpoints = {endpoints:?}\n"),
            false => format!("{line}\n"),
        });
    let path = sandbox.context_file().with_file_name("several.toml");
    write_private(&path, &lines.collect::<String>());
    path
}

/// `seks` with this context file.
fn seks(context_file: &Path, arguments: &[&str]) -> Finished {
    let mut command = Command::new(binary("seks"));
    let home = context_file.parent().unwrap();
    command.env_clear().env("HOME", home).arg("--context-file").arg(context_file).args(arguments);
    run(&mut command, b"")
}

#[test]
fn a_command_uses_the_first_control_plane_that_it_can_connect_to() {
    let sandbox = Sandbox::start();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = |address| format!("https://{address}");
    let file = context(&sandbox, &[url(closed), url(silent.local_addr().unwrap()), url(sandbox.admin())]);
    let began = Instant::now();
    let done = seks(&file, &["--timeout", "9s", "agent", "list"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    let file = context(&sandbox, &[url(closed), url(closed)]);
    let done = seks(&file, &["agent", "list"]);
    assert_eq!(done.code, Some(6), "{done:?}");
    assert!(done.stderr.contains(&closed.to_string()), "{done:?}");
}

#[test]
fn the_timeout_of_a_command_is_kept() {
    let sandbox = Sandbox::start();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap(); // its queue accepts connections, and nobody answers
    let url = format!("https://{}", silent.local_addr().unwrap());
    for endpoints in [vec![url.clone()], vec![url.clone(), url.replace("127.0.0.1", "127.0.0.2"), url.clone()]] {
        let file = context(&sandbox, &endpoints);
        let began = Instant::now();
        let done = seks(&file, &["--timeout", "1s", "status"]);
        assert_eq!(done.code, Some(6), "{done:?}");
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
}

#[test]
fn the_first_operators_context_is_one_that_seks_takes() {
    let host = ControlPlaneHost::embedded();
    host.configure("[admin]\nlisten = \"127.0.0.1:0\"\n");
    let out = host.path("root");
    let bootstrap = |endpoint: &str| {
        host.run(&["bootstrap-operator", "--name", "root", "--out", out.to_str().unwrap(), "--endpoint", endpoint])
    };
    assert_eq!(bootstrap("http://127.0.0.1:1").code, Some(2), "an endpoint without TLS");
    assert!(!out.exists());
    assert_eq!(bootstrap("https://127.0.0.1:1").code, Some(0));
    let running = host.start();
    let text = fs::read_to_string(out.join("context.toml")).unwrap();
    write_private(&out.join("context.toml"), &text.replace("127.0.0.1:1", &running.admin));
    let done = seks(&out.join("context.toml"), &["operator", "list", "-o", "json"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.contains("root"), "{done:?}");
    drop(running);
    let again = bootstrap("https://127.0.0.1:1");
    assert_eq!(again.code, Some(2), "{again:?}");
    assert!(again.stderr.contains("is there already") && out.join("operator.key").exists(), "{again:?}");
}

#[test]
fn a_configuration_is_checked_without_a_start() {
    let host = ControlPlaneHost::embedded();
    let done = host.run(&["--check-config"]);
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "the configuration is valid\n"), "{done:?}");
    assert!(!host.path("data").exists());
    host.configure("[telemetry]\nlog = \"seks=loud\"\n");
    let done = host.run(&["--check-config"]);
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.stderr.contains("telemetry.log"), "{done:?}");
    let mut node = Command::new(binary("seks-data-plane"));
    let done = run(node.env_clear().args(["--check-config"]), b"");
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.stderr.contains("control.endpoints"), "{done:?}");
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_refused() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 300 && exec \"$0\" --check-config"]).arg(binary("seks-data-plane"));
    let done = run(command.env_clear(), b"");
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.stderr.contains("300 open files are allowed"), "{done:?}");
}

#[test]
fn a_self_check_says_what_protects_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let done = seks(&directory.path().join("none.toml"), &["self-check", "-o", "json"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let properties: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let of =
        |name: &str| properties.as_array().unwrap().iter().find(|p| p["name"] == name).cloned().unwrap_or_default();
    assert!(of("version")["detail"].as_str().unwrap().starts_with(env!("CARGO_PKG_VERSION")), "{properties}");
    assert_eq!((&of("process")["on"], &of("memory")["on"]), (&true.into(), &true.into()), "{properties}");
    assert!(of("sandbox")["on"].is_boolean(), "{properties}");
}
