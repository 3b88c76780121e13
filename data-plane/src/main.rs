//! `seks-data-plane`: reads its configuration, hardens the process, and serves until a signal stops
//! it.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use seks_data_plane::{Config, Enrolled, Node, StartError};
use seks_runtime::{
    self as runtime, Exit,
    alloc::{self, Allocator},
    config::{ConfigError, Loader},
    descriptors, harden, logs,
    memory_release::release_on_park,
    probes, reload, service_manager,
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
  seks-data-plane --config /etc/seks/data-plane.toml --check-config
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
    /// Checks the configuration, starts nothing and reads no secret.
    #[arg(long)]
    check_config: bool,
    /// Asks the running process of this configuration whether it is ready, as `/readyz` does: exit
    /// code 0 or 1.
    #[arg(long)]
    check_ready: bool,
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
    alloc::keep_memory_small();
    descriptors::require().map_err(|e| Failure::new(Exit::Usage, &e))?;
    let config = load(arguments)?;
    logs::set_filter(config.telemetry.log.as_deref())
        .map_err(|e| Failure::new(Exit::Usage, &format!("telemetry.log: {e}")))?;
    if arguments.check_ready {
        let listen = config.telemetry.metrics_listen.unwrap_or(seks_data_plane::METRICS_LISTEN);
        return probes::check_ready(listen).map_err(|why| Failure::new(Exit::Failed, &format!("not ready: {why}")));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().on_thread_park(release_on_park).build();
    let runtime = runtime.map_err(|e| Failure::new(Exit::Failed, &e))?;
    let file = arguments.config.clone();
    let done = match arguments.check_config {
        true => runtime.block_on(async { check(&config) }),
        false => runtime.block_on(serve(config, file.clone(), loader(arguments))),
    };
    done.map_err(|failure| match &file {
        Some(file) if failure.exit == Exit::Usage => {
            Failure::new(Exit::Usage, &format!("{}: {}", file.display(), failure.text))
        }
        _ => failure,
    })
}

fn load(arguments: &Arguments) -> Result<Config, Failure> {
    loader(arguments).load().map_err(|e: ConfigError| Failure::new(Exit::Usage, &e))
}

fn loader(arguments: &Arguments) -> Loader {
    Loader::new()
        .file(arguments.config.as_deref())
        .process_environment()
        .flag("proxy.listen", arguments.proxy_listen.clone())
        .flag("telemetry.metrics_listen", arguments.metrics_listen.clone())
}

/// `--check-config`.
fn check(config: &Config) -> Result<(), Failure> {
    config.check_for_node().map_err(|e| Failure::new(Exit::Usage, &e))?;
    config.telemetry.check().map_err(|e| Failure::new(Exit::Usage, &e))?;
    logs::write_stdout("the configuration is valid\n");
    Ok(())
}

async fn serve(config: Config, file: Option<PathBuf>, sources: Loader) -> Result<(), Failure> {
    let mut shutdown = Shutdown::listen().map_err(|e| Failure::new(Exit::Failed, &e))?;
    // The same sources as at the start.
    let log_filter = move || Ok(sources.clone().load::<Config>()?.telemetry.log);
    reload::listen(file, log_filter).map_err(|e| Failure::new(Exit::Failed, &e))?;
    config.telemetry.check().map_err(|e| Failure::new(Exit::Usage, &e))?; // before a join token is used up
    let _watchdog = service_manager::watchdog();
    let started = tokio::select! {
        started = start_node(config) => started.map_err(|e| Failure::new(e.exit(), &e))?,
        signal = shutdown.requested() => {
            tracing::info!(signal, "stopped before it served");
            return Ok(());
        }
    };
    let (node, telemetry) = started;
    let metrics = node.metrics().clone();
    telemetry.export_metrics(move || metrics.render());
    tracing::info!(proxy = %node.proxy_addr(), metrics = %node.metrics_addr(), "serving");
    service_manager::ready(&format!("agents connect to {}", node.proxy_addr()));
    let signal = shutdown.requested().await;
    service_manager::stopping();
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

/// A node, and its telemetry under the name that it enrolled with.
async fn start_node(config: Config) -> Result<(Node, Telemetry), StartError> {
    let waiting = service_manager::report_waiting("waiting for an identity from a control plane");
    let telemetry = config.telemetry.clone();
    let enrolled = Enrolled::obtain(config).await?;
    drop(waiting);
    let telemetry = Telemetry::start(&telemetry, "seks-data-plane", enrolled.name())?;
    Ok((Node::start_enrolled(enrolled, telemetry.clone()).await?, telemetry))
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
