//! `seks dev`: a control plane with the embedded store and one node, in one process on one machine.
//! They use the same stream over the same mutual TLS as in production.

mod args;
mod config;
mod data_dir;
mod demo;
mod node;
mod operator;
mod ready;
mod requests;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use seks_control_plane::{ControlPlane, PageLink, StartError};
use seks_data_plane::Node;
use seks_runtime::{descriptors, logs, shutdown::Shutdown, telemetry::Telemetry};

pub use self::args::DevArgs;
pub(crate) use self::ready::Ready;
use self::{config::DevConfig, data_dir::DataDir, demo::Demo};
use crate::{
    context::ContextSelector,
    error::{CliError, Exit, Result, one_line, plain_io},
    known,
    registration::{self, Registration},
    user,
};

/// Longest wait for the node's first table.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the collector at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Starts both planes and serves until SIGTERM or SIGINT.
///
/// # Errors
/// Exit code 2 for invalid arguments, configuration, data directory or addresses.
pub async fn run(args: DevArgs) -> Result<()> {
    let mut shutdown = Shutdown::listen().map_err(|e| CliError::new(Exit::Failed, "signals", plain_io(&e)))?;
    let config = DevConfig::load(&args)?;
    args.ready_file.as_deref().map_or(Ok(()), ready::check_folder)?;
    start_logs()?;
    descriptors::raise();
    let dir = DataDir::open(&data_dir(&args)?)?;
    let running = tokio::select! {
        started = Running::start(&args, config, &dir) => started?,
        _ = shutdown.requested() => return Ok(()),
    };
    if let Some(path) = &args.ready_file {
        running.ready.write(path)?;
    }
    let link = running.page_link().await?;
    logs::write_stdout(&running.ready.greeting(link.as_ref().map(|link| link.url.as_str())));
    let demo = if args.demo {
        tokio::select! {
            demo = Demo::run(&running.ready) => Some(demo?),
            _ = shutdown.requested() => None,
        }
    } else {
        None
    };
    if demo.is_some() || !args.demo {
        tracing::info!("serving until SIGTERM or Ctrl-C");
        running.serve(&args, &mut shutdown).await;
    }
    tokio::select! {
        () = running.stop() => {}
        _ = shutdown.requested() => {} // asked twice: at once
    }
    drop((demo, dir));
    Ok(())
}

/// The former default, in the current folder. An agent with that working folder could read the
/// keys.
const OLD_DATA_DIR: &str = "./.seks-data";

fn data_dir(args: &DevArgs) -> Result<PathBuf> {
    if let Some(dir) = &args.data_dir {
        return Ok(dir.clone());
    }
    if Path::new(OLD_DATA_DIR).join("store.redb").exists() {
        write_line(&format!(
            "hint: {OLD_DATA_DIR} is no longer the default; `seks dev --data-dir {OLD_DATA_DIR}` serves it"
        ));
    }
    user::dev_data_dir().ok_or_else(|| {
        CliError::usage("data directory", "neither XDG_STATE_HOME nor HOME is an absolute path")
            .hint("pass a directory with --data-dir")
    })
}

/// Writes a line to stderr, beside the log. It is lost when stderr is not read.
fn write_line(text: &str) {
    logs::write_stderr_line(&one_line(text));
}

/// At a terminal only warnings and errors are logged.
fn start_logs() -> Result<()> {
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    logs::init_with_default(if terminal { "warn" } else { "info" }).map_err(|e| CliError::usage("logs", e))
}

/// Both planes, and their registration for this user's other commands.
struct Running {
    control: ControlPlane,
    node: Node,
    telemetry: Telemetry,
    ready: Ready,
    registration: Option<Registration>,
}

impl Running {
    async fn start(args: &DevArgs, config: DevConfig, dir: &DataDir) -> Result<Self> {
        let scheme = config.proxy_scheme();
        let telemetry = Telemetry::start(config.telemetry(), "seks-dev", "dev").map_err(|e| start_error(&e))?;
        let started = ControlPlane::start(config.control(args, dir), telemetry.clone()).await;
        let control = started.map_err(|e| match e {
            StartError::Store { .. } | StartError::Seal { .. } | StartError::Authority(_) => {
                start_error(&e).exit(e.exit()).hint(dir.hint())
            }
            _ => start_error(&e).exit(e.exit()),
        })?;
        match node::join(&control, config, dir, telemetry.clone()).await {
            Ok(node) => {
                let metrics = control.metrics().clone();
                node.metrics().append(move || metrics.text()); // one process, one page
                let page = node.metrics().clone();
                telemetry.export_metrics(move || page.render());
                let ready = Ready {
                    proxy: format!("{scheme}://{}", reachable(node.proxy_addr())),
                    forward_proxy: node.forward_addr().map(|address| format!("http://{}", reachable(address))),
                    admin: format!("https://{}", reachable(control.admin_addr())),
                    metrics: format!("http://{}", reachable(node.metrics_addr())),
                    page: control.page_url().map(str::to_owned),
                    context_file: dir.context(),
                    found_by_default: false,
                };
                let mut running = Self { control, node, telemetry, ready, registration: None };
                match running.register_context(dir).await {
                    Ok(()) => Ok(running),
                    Err(error) => {
                        running.stop().await;
                        Err(error)
                    }
                }
            }
            Err(error) => {
                control.shutdown().await;
                Err(error)
            }
        }
    }

    /// A link to the page, for the first operator.
    async fn page_link(&self) -> Result<Option<PageLink>> {
        let link = self.control.page_link(&operator::name()?).await;
        link.map_err(|error| CliError::new(Exit::Failed, "page", error))
    }

    /// Writes the context of the first operator, and registers it for this user's other commands.
    async fn register_context(&mut self, dir: &DataDir) -> Result<()> {
        operator::write_context(&self.control, &self.ready).await?;
        let ports = [self.control.admin_addr(), self.control.distribution_addr(), self.node.metrics_addr()];
        let page = self.control.page_addr();
        let running = registration::Running {
            context_file: dir.context(),
            data_dir: dir.path().into(),
            closed_ports: ports.iter().chain(&page).map(SocketAddr::port).collect(),
        };
        if let Some(Err(error)) = user::state_dir().map(|state| known::remember(&state, dir.path())) {
            write_line(&format!(
                "warning: `seks run` will not hide {} once this has ended: {error}",
                dir.path().display()
            ));
        }
        // Without a home that can be written there is nowhere to register: then the file has to be
        // named.
        match user::state_dir().map(|state| registration::register(&state, &running)) {
            Some(Ok(registration)) => self.registration = Some(registration),
            Some(Err(error)) => write_line(&format!("warning: other commands cannot find this process: {error}")),
            None => {}
        }
        self.ready.found_by_default = ContextSelector::is_default(&self.ready.context_file);
        Ok(())
    }

    /// Serves until it is asked to end. Prints a line for each request, unless `--quiet`.
    async fn serve(&self, args: &DevArgs, shutdown: &mut Shutdown) {
        let trail = self.control.distribution().trail().filter(|_| !args.quiet);
        match trail.cloned() {
            Some(trail) => tokio::select! {
                () = requests::print(trail) => {}
                _ = shutdown.requested() => {}
            },
            None => drop(shutdown.requested().await),
        }
    }

    /// Drains the node first, because its requests may need the control plane.
    async fn stop(self) {
        drop(self.registration);
        self.node.shutdown().await;
        self.control.shutdown().await;
        self.telemetry.shutdown(FLUSH_TIMEOUT).await;
    }
}

/// A failed start, as one line with the cause at its end, and exit code 2.
fn start_error(error: &(dyn std::error::Error + 'static)) -> CliError {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = source.source();
    }
    let text = text.split(" (os error ").next().unwrap_or_default();
    let error = match text.split_once(": ") {
        Some((what, why)) => CliError::usage(what, why),
        None => CliError::usage("start", text),
    };
    if text.contains("in use") {
        return error
            .hint("--proxy-listen, --admin-listen and --metrics-listen take another address; port 0 is any free one");
    }
    error
}

/// An address that a client on this machine can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_address_is_reached_over_loopback() {
        for (bound, reached) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1")] {
            assert_eq!(reachable(bound.parse().unwrap()), reached.parse().unwrap());
        }
    }

    #[test]
    fn a_start_error_keeps_its_key_in_front_and_loses_the_number() {
        let error =
            std::io::Error::other("admin.listen: cannot listen on 127.0.0.1:1: Address already in use (os error 98)");
        let error = start_error(&error);
        let line = "error: admin.listen: cannot listen on 127.0.0.1:1: Address already in use";
        assert_eq!(error.lines().lines().next(), Some(line));
        assert_eq!(error.exit as u8, 2);
    }
}
