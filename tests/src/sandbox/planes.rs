//! The two planes as processes of their own, set up as `deploy/` describes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Options, Ready, cli};
use crate::{
    plane::{Serving, context, put_log_aside, write_private},
    process::{self, Process, binary},
    raw,
    sandbox::Cli,
};

/// Starts both, on what an earlier start has left in the directory.
pub(super) fn launch(directory: &Path, options: &Options, store: &str) -> (Vec<Process>, Ready) {
    if !directory.join("control-plane.toml").exists() {
        write_private(&directory.join("kek"), &"4b".repeat(32));
        write_control(directory, store, "127.0.0.1:0", "127.0.0.1:0");
        bootstrap(directory);
    }
    let mut control = plane("seks-control-plane", directory, options);
    let serving = Serving::wait(&mut control);
    let (admin, distribution) = (serving.at("admin"), serving.at("distribution"));
    let control_metrics = Some(serving.at("metrics"));
    // The node's configuration names these ports: a second start has to keep them.
    write_control(directory, store, &admin, &distribution);
    let context_file = write_context(directory, &admin);
    if !directory.join("data-plane.toml").exists() {
        write_node(directory, options, &context_file, &distribution);
    }
    let mut node = plane("seks-data-plane", directory, options);
    let serving = Serving::wait(&mut node);
    let ready = Ready {
        proxy: format!("http://{}", serving.at("proxy")),
        forward_proxy: None,
        admin: format!("https://{admin}"),
        metrics: format!("http://{}", serving.at("metrics")),
        distribution: Some(distribution),
        control_metrics,
        context_file,
    };
    let page = super::address(&ready.metrics);
    node.wait_for("the node to be ready", || {
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        (raw::exchange(page, request).status == 200).then_some(())
    });
    (vec![control, node], ready)
}

/// What stand-ins listen on: given to the tenant, and allowed by the node and by the control plane.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];

fn write_control(directory: &Path, store: &str, admin: &str, distribution: &str) {
    let embedded = "kind = \"embedded\"\npath = \"store/seks.redb\"\n";
    let store = if store.is_empty() { embedded } else { store };
    let config = format!(
        "[store]\n{store}\n[seal]\npath = \"kek\"\n[admin]\nlisten = \"{admin}\"\n[distribution]\n\
         listen = \"{distribution}\"\n[telemetry]\nmetrics_listen = \"127.0.0.1:0\"\n\
         [upstream]\nprivate_networks = {LOOPBACK:?}\n"
    );
    fs::write(directory.join("control-plane.toml"), config).unwrap();
}

fn bootstrap(directory: &Path) {
    let mut command = Command::new(binary("seks-control-plane"));
    command.current_dir(directory).args(["--config", "control-plane.toml", "bootstrap-operator"]);
    command.args(["--name", "root", "--out", "operator"]);
    cli::clean_environment(&mut command);
    let done = process::run(&mut command, b"");
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
}

fn write_context(directory: &Path, admin: &str) -> PathBuf {
    let path = directory.join("context.toml");
    write_private(&path, &context(admin, "operator"));
    path
}

fn write_node(directory: &Path, options: &Options, context_file: &Path, distribution: &str) {
    let cli = Cli::new(directory, context_file);
    let networks = LOOPBACK.map(|network| ["--private-network", network]);
    cli.json(&[&["tenant", "update", "default"], networks.as_flattened()].concat());
    let networks = match options.config.contains("private_networks") {
        true => String::new(), // the test says them itself
        false => format!("upstream.private_networks = {LOOPBACK:?}\n"),
    };
    let enrolled = cli.json(&["node", "enroll", "--region", "test"]);
    let join = enrolled["join_token"].as_str().unwrap_or_else(|| panic!("no `join_token`: {enrolled}"));
    write_private(&directory.join("join-token"), join);
    let hosts: Vec<String> = options.hosts.iter().map(|host| format!("\"{host}\"")).collect();
    let config = format!(
        "proxy.hosts = [{}]\n{networks}[node]\nregion = \"test\"\ndata_dir = \"node\"\n[control]\n\
         endpoints = [\"https://{distribution}\"]\njoin_token_file = \"join-token\"\n{}",
        hosts.join(", "),
        options.config
    );
    fs::write(directory.join("data-plane.toml"), config).unwrap();
}

/// Starts one plane.
fn plane(name: &str, directory: &Path, options: &Options) -> Process {
    let limit = options.open_files.filter(|_| name == "seks-data-plane");
    let mut command = super::limited(name, limit);
    command.current_dir(directory).args(["--config", &format!("{}.toml", name.trim_start_matches("seks-"))]);
    if name == "seks-data-plane" {
        command.args(["--proxy-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
    }
    cli::clean_environment(&mut command);
    command.envs(options.environment.iter().map(|(k, v)| (k, v)));
    if name == "seks-control-plane" {
        command.envs(options.control_environment.iter().map(|(k, v)| (k, v)));
    }
    put_log_aside(directory, name);
    Process::spawn(name, directory, &mut command)
}
