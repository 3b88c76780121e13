//! `seks-data-plane`: reads its configuration, hardens the process, serves until it is told to stop.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use seks_data_plane::{Config, Node};
use seks_runtime::{
    self as runtime, Exit,
    alloc::Allocator,
    config::{ConfigError, Loader},
    descriptors, harden, logs,
    shutdown::Shutdown,
    telemetry::Telemetry,
};

/// Freed memory is wiped: a credential doesn't outlive its last owner.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new();

/// How long the last spans may take to reach the collector.
const FLUSH: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  seks-data-plane --config /etc/seks/data-plane.toml
  seks-data-plane --config data-plane.toml --proxy-listen 0.0.0.0:8300
  SEKS_NODE_REGION=eu-1 seks-data-plane --config data-plane.toml

Configuration: the file, then the environment (SEKS_SECTION_KEY), then the command line; the last one counts.";

/// The SEKS proxy node: agents call APIs through it with fake keys, and it puts the real ones in.
#[derive(Parser)]
#[command(name = "seks-data-plane", version = runtime::VERSION, after_help = EXAMPLES)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "SEKS_DATA_PLANE_CONFIG")]
    config: Option<PathBuf>,
    /// Where agents connect: `[proxy] listen`.
    #[arg(long, value_name = "ADDR")]
    proxy_listen: Option<String>,
    /// Where `/metrics`, `/healthz` and `/readyz` are: `[telemetry] metrics_listen`.
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<String>,
}

fn main() -> ExitCode {
    runtime::install_crypto_provider();
    harden::install_panic_hook();
    let code = start();
    logs::flush(logs::FLUSH_TIMEOUT);
    code
}

fn start() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    match run(&arguments) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            logs::write_stderr_line(&format!("error: {}", one_line(&failure.text)));
            failure.exit.into()
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    logs::init().map_err(|e| Failure::new(Exit::Usage, &e))?;
    harden::harden_process().map_err(|e| Failure::new(Exit::Failed, &format!("cannot harden the process: {e}")))?;
    descriptors::raise();
    let config = load(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(Exit::Failed, &e))?;
    runtime.block_on(serve(config)).map_err(|failure| match &arguments.config {
        Some(file) if failure.exit == Exit::Usage => {
            Failure::new(Exit::Usage, &format!("{}: {}", file.display(), failure.text))
        }
        _ => failure,
    })
}

fn load(arguments: &Arguments) -> Result<Config, Failure> {
    Loader::new()
        .file(arguments.config.as_deref())
        .process_environment()
        .flag("proxy.listen", arguments.proxy_listen.clone())
        .flag("telemetry.metrics_listen", arguments.metrics_listen.clone())
        .load()
        .map_err(|e: ConfigError| Failure::new(Exit::Usage, &e))
}

async fn serve(config: Config) -> Result<(), Failure> {
    let mut shutdown = Shutdown::listen().map_err(|e| Failure::new(Exit::Failed, &e))?;
    let telemetry = Telemetry::start(&config.telemetry, "seks-data-plane", &config.node.name);
    let telemetry = telemetry.map_err(|e| Failure::new(Exit::Usage, &e))?;
    let node = Node::start(config, telemetry.clone()).await.map_err(|e| Failure::new(e.exit(), &e))?;
    tracing::info!(proxy = %node.proxy_addr(), metrics = %node.metrics_addr(), "serving");
    let signal = shutdown.requested().await;
    tracing::info!(signal, "draining");
    tokio::select! {
        () = node.shutdown() => {}
        _ = shutdown.requested() => {} // asked twice: at once
    }
    if !telemetry.shutdown(FLUSH).await {
        tracing::warn!("the collector did not take the last spans in time");
    }
    Ok(())
}

/// What ends the process: one line, and its code.
struct Failure {
    exit: Exit,
    text: String,
}

impl Failure {
    fn new(exit: Exit, text: &dyn std::fmt::Display) -> Self {
        Self { exit, text: text.to_string() }
    }
}

/// Help and version go to stdout whole; a mistake is one line and where to read on.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print(); // a closed pipe (`--help | head`) is no failure
        return Exit::Done.into();
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    logs::write_stderr_line(&format!("{} (see --help)", one_line(first)));
    Exit::Usage.into()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
