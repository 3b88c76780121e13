//! `seks-control-plane`: reads its configuration, hardens the process, and serves until a signal
//! stops it.

mod tools;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use seks_control_plane::{Config, ControlPlane, StartError};
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

/// Freed memory is wiped: a secret doesn't outlive its last owner.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new();

/// How long the last spans may take to reach the collector.
const FLUSH: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  seks-control-plane create-kek --out /etc/seks/kek
  seks-control-plane --config /etc/seks/control-plane.toml create-kek --wrapped --out /etc/seks/kek.wrapped
  seks-control-plane --config /etc/seks/control-plane.toml
  seks-control-plane --config /etc/seks/control-plane.toml --check-config
  seks-control-plane --config control-plane.toml bootstrap-operator --name root --out ~/.config/seks
  SEKS_ADMIN_LISTEN=0.0.0.0:8301 seks-control-plane --config control-plane.toml

Configuration: the file, then the environment (SEKS_SECTION_KEY), then the command line; the last one counts.";

/// The SEKS control plane: it keeps encrypted credentials and policies, and pushes the table to
/// every proxy node.
#[derive(Parser)]
#[command(name = "seks-control-plane", version = runtime::VERSION, after_help = EXAMPLES)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "SEKS_CONTROL_PLANE_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Where operators reach it: `[admin] listen`.
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<String>,
    /// Where nodes reach it: `[distribution] listen`.
    #[arg(long, value_name = "ADDR")]
    distribution_listen: Option<String>,
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
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serves; what happens without a command as well.
    Serve,
    /// Makes a key-encryption key: a new file of mode 0600, for `[seal] path`.
    CreateKek {
        /// The file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Has the key service of the configuration's `[seal]` wrap the key: the file is of no use
        /// without the service. `[seal] path` need not exist yet.
        #[arg(long)]
        wrapped: bool,
    },
    /// Re-wraps every sealed record under the active key-encryption key. Can be interrupted and
    /// repeated. With an embedded store the control plane must be stopped meanwhile.
    RotateKek,
    /// Makes a new audit key, to which nodes seal their records from then on. Earlier records stay
    /// readable. Running replicas take it over within 10 seconds. With an embedded store the
    /// control plane must be stopped meanwhile. All replicas must have this version.
    RotateAuditKey,
    /// Writes all of the store to a new file: envelopes and metadata, of no use without the
    /// key-encryption key. With an embedded store the control plane must be stopped meanwhile.
    Backup {
        /// The file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Makes the store that the configuration names out of a backup. It is a new store, with an
    /// epoch of its own, and is served only after `accept-rollback`.
    Restore {
        /// The file.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// Replaces an embedded store that is there, and keeps it beside the new one.
        #[arg(long)]
        replace: bool,
    },
    /// Says that a store which went back (a restored backup, an old copy of the data) may be
    /// served, and why: what was revoked since then is valid again. Stop every control plane first.
    AcceptRollback {
        /// Why; kept in the store.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Makes the first operator, an owner of everything: its certificate, its key, the CA's
    /// certificate, and a `context.toml` with which `seks` uses them.
    BootstrapOperator {
        /// Its name.
        #[arg(long)]
        name: String,
        /// A directory without these files; made if it doesn't exist. `~/.config/seks` is where
        /// `seks` looks. `-` prints a context with the PEM texts in it instead, for `kubectl exec`.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How the operator reaches this control plane, `https://HOST:PORT`; repeatable, tried in
        /// this order [default: the first of `[admin] names`, with the port of `[admin] listen`]
        #[arg(long, value_name = "URL")]
        endpoint: Vec<String>,
    },
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
    match run(arguments) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            logs::write_stderr_line(&format!("error: {}", one_line(&failure.text)));
            failure.exit.into()
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    logs::init().map_err(|e| Failure::usage(&e))?;
    harden::harden_process().map_err(|e| Failure::new(Exit::Failed, &format!("cannot harden the process: {e}")))?;
    alloc::keep_memory_small();
    descriptors::require().map_err(|e| Failure::usage(&e))?;
    let file = arguments.config.as_ref().map(|path| path.display().to_string());
    if let Some(Command::CreateKek { out, wrapped: false }) = &arguments.command {
        return tools::create_kek(out); // needs no configuration: there may be none yet
    }
    let config = load(&arguments)?;
    logs::set_filter(config.telemetry.log.as_deref()).map_err(|e| Failure::usage(&format!("telemetry.log: {e}")))?;
    if arguments.check_ready {
        let listen = config.telemetry.metrics_listen;
        let listen = listen.ok_or_else(|| Failure::usage(&"telemetry.metrics_listen: is missing"))?;
        return probes::check_ready(listen).map_err(|why| Failure::new(Exit::Failed, &format!("not ready: {why}")));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().on_thread_park(release_on_park).build();
    let runtime = runtime.map_err(|e| Failure::new(Exit::Failed, &e))?;
    let located = |failure: Failure| failure.located(file.as_deref());
    if arguments.check_config {
        return runtime.block_on(async { check(&config) }).map_err(located);
    }
    let sources = loader(&arguments);
    match arguments.command {
        Some(Command::Backup { out }) => runtime.block_on(tools::backup::backup(&config, &out)).map_err(located),
        Some(Command::Restore { from, replace }) => {
            runtime.block_on(tools::backup::restore(&config, &from, replace)).map_err(located)
        }
        Some(Command::AcceptRollback { reason }) => {
            runtime.block_on(tools::backup::accept_rollback(&config, &reason)).map_err(located)
        }
        Some(Command::RotateAuditKey) => runtime.block_on(tools::rotate_audit_key(&config)).map_err(located),
        Some(Command::CreateKek { out, wrapped: true }) => {
            runtime.block_on(tools::create_wrapped_kek(&config, &out)).map_err(located)
        }
        Some(Command::RotateKek) => runtime.block_on(tools::rotate_kek(&config)).map_err(located),
        None | Some(Command::Serve | Command::CreateKek { .. }) => {
            runtime.block_on(serve(config, arguments.config.clone(), sources)).map_err(located)
        }
        Some(Command::BootstrapOperator { name, out, endpoint }) => {
            let new = tools::NewOperator { name: &name, out: &out, endpoints: endpoint };
            runtime.block_on(tools::bootstrap_operator(&config, new)).map_err(located)
        }
    }
}

fn load(arguments: &Arguments) -> Result<Config, Failure> {
    loader(arguments).load().map_err(|e: ConfigError| Failure::usage(&e))
}

fn loader(arguments: &Arguments) -> Loader {
    Loader::new()
        .file(arguments.config.as_deref())
        .process_environment()
        .flag("admin.listen", arguments.admin_listen.clone())
        .flag("distribution.listen", arguments.distribution_listen.clone())
        .flag("telemetry.metrics_listen", arguments.metrics_listen.clone())
}

/// `--check-config`.
fn check(config: &Config) -> Result<(), Failure> {
    ControlPlane::check(config)?;
    config.telemetry.check().map_err(|e| Failure::usage(&e))?;
    logs::write_stdout("the configuration is valid\n");
    Ok(())
}

async fn serve(config: Config, file: Option<PathBuf>, sources: Loader) -> Result<(), Failure> {
    let mut shutdown = Shutdown::listen().map_err(|e| Failure::new(Exit::Failed, &e))?;
    // The same sources as at the start.
    let log_filter = move || Ok(sources.clone().load::<Config>()?.telemetry.log);
    reload::listen(file, log_filter).map_err(|e| Failure::new(Exit::Failed, &e))?;
    let _watchdog = service_manager::watchdog();
    let telemetry = Telemetry::start(&config.telemetry, "seks-control-plane", "control-plane");
    let telemetry = telemetry.map_err(|e| Failure::usage(&e))?;
    let waiting = service_manager::report_waiting("opening the store");
    let plane = tokio::select! {
        plane = ControlPlane::start(config, telemetry.clone()) => plane?,
        signal = shutdown.requested() => {
            tracing::info!(signal, "stopped before it served");
            return Ok(());
        }
    };
    drop(waiting);
    let metrics = plane.metrics().clone();
    telemetry.export_metrics(move || metrics.page());
    let (admin, nodes) = (plane.admin_addr(), plane.distribution_addr());
    service_manager::ready(&format!("operators connect to {admin}, nodes to {nodes}"));
    let failed = tokio::select! {
        signal = shutdown.requested() => {
            tracing::info!(signal, "stopping");
            None
        }
        why = plane.failed() => Some(why),
    };
    service_manager::stopping();
    plane.shutdown().await;
    if !telemetry.shutdown(FLUSH).await {
        tracing::warn!("the collector did not take the last spans in time");
    }
    failed.map_or(Ok(()), |why| Err(why.into()))
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

    fn usage(text: &dyn std::fmt::Display) -> Self {
        Self::new(Exit::Usage, text)
    }

    /// The file that has the wrong key.
    fn located(self, file: Option<&str>) -> Self {
        match file {
            Some(file) if self.exit == Exit::Usage => Self { text: format!("{file}: {}", self.text), ..self },
            _ => self,
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(error.exit(), &error)
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
