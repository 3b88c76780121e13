//! A whole SEKS on this machine, as a user runs it: `seks dev` on free ports with a data directory
//! of its own, and the CLI. Or, for what is about production: a control plane and a node as
//! processes of their own ([`Shape::Planes`]).

pub mod cli;

mod planes;

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use tempfile::TempDir;

pub use self::cli::{Cli, Token, clean_environment};
use crate::{
    Collector, Upstream,
    process::{self, Process, binary},
    raw::{self, Reply},
};

/// Which processes it is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// `seks dev`.
    #[default]
    Dev,
    /// `seks-control-plane` with this `[store]`, and one `seks-data-plane`.
    Planes {
        /// TOML; empty: the embedded store.
        store: String,
    },
}

/// How to start it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which processes.
    pub shape: Shape,
    /// TOML for `--config`: `[proxy]`, `[upstream]`, `[audit]`, `[telemetry]`.
    pub config: String,
    /// Accepted Host names beside the listen address.
    pub hosts: Vec<String>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// The same for a control plane of its own alone.
    pub control_environment: Vec<(String, String)>,
    /// The hard limit of open files of the process that serves agents; absent: this process's.
    pub open_files: Option<u32>,
    /// A gzipped tar that the data directory of `seks dev` is made from.
    pub data: Option<PathBuf>,
}

impl Options {
    /// Control plane and node as processes of their own, on this `[store]`.
    pub fn planes(store: impl Into<String>) -> Self {
        Self { shape: Shape::Planes { store: store.into() }, ..Self::default() }
    }

    /// Sends spans to a collector, without waiting for a batch to fill.
    #[must_use]
    pub fn collector(mut self, collector: &Collector) -> Self {
        self.environment.push(("OTEL_EXPORTER_OTLP_ENDPOINT".into(), collector.endpoint()));
        self.environment.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "100".into()));
        self
    }
}

/// What `--ready-file` says.
#[derive(Clone, Debug, Deserialize)]
struct Ready {
    proxy: String,
    forward_proxy: Option<String>,
    admin: String,
    metrics: String,
    /// Where nodes reach the control plane; of separate planes.
    #[serde(skip)]
    distribution: Option<String>,
    /// The control plane's own metrics page; of separate planes.
    #[serde(skip)]
    control_metrics: Option<String>,
    context_file: PathBuf,
}

/// A running SEKS.
pub struct Sandbox {
    directory: TempDir,
    options: Options,
    /// `seks dev`; or the control plane, then the node.
    processes: Vec<Process>,
    ready: Ready,
    cli: Cli,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::start()
    }
}

impl Sandbox {
    /// Starts one with the defaults.
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    /// Starts one.
    ///
    /// # Panics
    /// When it doesn't come up.
    pub fn with(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if let Some(archive) = &options.data {
            unpack(archive, &directory.path().join("data"));
        }
        let (processes, ready) = launch(&directory, &options);
        let cli = Cli::new(directory.path(), &ready.context_file);
        Self { directory, options, processes, ready, cli }
    }

    /// Stops it as a service manager would and starts it again on the same data.
    ///
    /// # Panics
    /// When it doesn't end with status 0, or doesn't come up again.
    pub fn restart(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let status = process.terminate();
            assert!(status.success(), "{status}: {}", process.output());
        }
        self.start_again();
    }

    /// Kills it as a crash would and starts it again on the same data.
    pub fn crash(&mut self) {
        self.processes.iter_mut().for_each(Process::kill);
        self.start_again();
    }

    /// Sends `SIGKILL` and returns at once; [`Self::crash`] brings it up again.
    pub fn stab(&self) {
        self.processes.iter().for_each(|process| process.signal(rustix::process::Signal::KILL));
    }

    fn start_again(&mut self) {
        (self.processes, self.ready) = launch(&self.directory, &self.options);
        self.cli = Cli::new(self.directory.path(), &self.ready.context_file);
    }

    /// Where agents reach it.
    pub fn proxy(&self) -> SocketAddr {
        address(&self.ready.proxy)
    }

    /// Where agents' `HTTPS_PROXY` points, where that is offered.
    pub fn forward_proxy(&self) -> Option<SocketAddr> {
        self.ready.forward_proxy.as_deref().map(address)
    }

    /// Its base URL for agents.
    pub fn proxy_url(&self) -> &str {
        &self.ready.proxy
    }

    /// Where `/metrics`, `/healthz` and `/readyz` are.
    pub fn metrics(&self) -> SocketAddr {
        address(&self.ready.metrics)
    }

    /// Where the admin API is.
    pub fn admin(&self) -> SocketAddr {
        address(&self.ready.admin)
    }

    /// Where nodes reach the control plane, where the planes are separate processes.
    pub fn distribution(&self) -> Option<SocketAddr> {
        self.ready.distribution.as_deref().map(address)
    }

    /// The control plane's own metrics page, where the planes are separate processes.
    pub fn control_metrics(&self) -> Option<SocketAddr> {
        self.ready.control_metrics.as_deref().map(address)
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The process that serves agents.
    pub fn process(&mut self) -> &mut Process {
        self.processes.last_mut().unwrap()
    }

    /// The process that serves operators; the same one in `seks dev`.
    pub fn control(&mut self) -> &mut Process {
        self.processes.first_mut().unwrap()
    }

    /// The context file of its first operator.
    pub fn context_file(&self) -> &std::path::Path {
        &self.ready.context_file
    }

    /// The administrator's command line.
    pub fn cli(&self) -> &Cli {
        &self.cli
    }

    /// Enables a catalogue service with a stand-in behind it, and stores its credential under the
    /// service's name.
    pub fn service(&self, name: &str, upstream: &Upstream, secret: &str) {
        self.cli.enable(name, name, upstream);
        self.cli.put_credential(name, name, secret);
    }

    /// Issues a token of a (new) agent for services.
    pub fn token(&self, agent: &str, services: &[&str]) -> Token {
        self.cli.create_agent(agent);
        self.cli.issue(agent, services, &[])
    }

    /// A GET as an agent makes it.
    pub fn get(&self, path: &str, token: &str) -> Reply {
        raw::get(self.proxy(), path, token)
    }

    /// A POST of JSON as an agent makes it.
    pub fn post(&self, path: &str, token: &str, body: &str) -> Reply {
        raw::post(self.proxy(), path, token, body)
    }

    /// The metrics page.
    pub fn metrics_page(&self) -> String {
        raw::exchange(self.metrics(), "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").text()
    }

    /// All that the process and the CLI have printed, and the metrics page.
    pub fn everything_emitted(&self) -> String {
        let printed: String = self.processes.iter().map(Process::output).collect();
        printed + &self.cli.everything_printed() + &self.metrics_page()
    }
}

fn address(url: &str) -> SocketAddr {
    let authority = url.split("//").nth(1).unwrap_or(url);
    authority.trim_end_matches('/').parse().unwrap_or_else(|_| panic!("`{url}` names no address"))
}

fn launch(directory: &TempDir, options: &Options) -> (Vec<Process>, Ready) {
    // For a developer who wants every test on separate planes.
    let asked = std::env::var("SEKS_TEST_PLANES").is_ok();
    match &options.shape {
        Shape::Planes { store } => planes::launch(directory.path(), options, store),
        Shape::Dev if asked => planes::launch(directory.path(), options, ""),
        Shape::Dev => launch_dev(directory, options),
    }
}

fn unpack(archive: &Path, into: &Path) {
    fs::create_dir(into).unwrap();
    fs::set_permissions(into, fs::Permissions::from_mode(0o700)).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("--no-same-owner").arg("-xzf").arg(archive).arg("-C").arg(into);
    let done = process::run(&mut tar, b"");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
}

/// A binary, to be started with a limit of open files.
fn limited(name: &str, open_files: Option<u32>) -> Command {
    let Some(limit) = open_files else { return Command::new(binary(name)) };
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -n {limit} && exec \"$0\" \"$@\"")).arg(binary(name));
    shell
}

fn launch_dev(directory: &TempDir, options: &Options) -> (Vec<Process>, Ready) {
    let ready_file = directory.path().join("ready.json");
    drop(fs::remove_file(&ready_file));
    let mut command = limited("seks", options.open_files);
    command.current_dir(directory.path()).arg("dev").args(["--data-dir", "data", "--ready-file", "ready.json"]);
    for listener in ["--proxy-listen", "--admin-listen", "--metrics-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    if !options.config.is_empty() {
        fs::write(directory.path().join("dev.toml"), &options.config).unwrap();
        command.args(["--config", "dev.toml"]);
    }
    for host in &options.hosts {
        command.args(["--host", host]);
    }
    cli::clean_environment(&mut command);
    cli::own_user_directories(&mut command, directory.path());
    command.envs(options.environment.iter().map(|(k, v)| (k, v)));
    let mut process = Process::spawn("seks-dev", directory.path(), &mut command);
    let ready: Ready =
        process.wait_for("seks dev to be ready", || serde_json::from_slice(&fs::read(&ready_file).ok()?).ok());
    let ready = Ready { context_file: directory.path().join(&ready.context_file), ..ready };
    (vec![process], ready)
}
