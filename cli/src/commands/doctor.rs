//! `seks doctor`: what is wrong, and what to do about it.

mod checks;
mod local;

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use seks_proto::wire;
use serde::Serialize;

use self::checks::{Check, State};
use crate::{
    client::{Client, peer},
    context::Context,
    duration::unix_now,
    error::{Exit, Result},
    global::Global,
    output::has_colours,
};

/// What is examined.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  seks doctor
  seks doctor -o json | jq '.checks[] | select(.state != \"ok\")'
  seks doctor --config /etc/seks/control-plane.toml    this machine, before or while the plane runs

Exit code 1 when something is wrong, 6 when the control plane cannot be reached.")]
pub struct DoctorArgs {
    /// Examine this configuration of a control plane or a node instead, with what it names on this
    /// machine: listeners, keys, certificates, disks, limits, the store, the spool
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Serialize)]
struct DoctorView {
    /// Nothing failed. Warnings are no failures.
    healthy: bool,
    checks: Vec<Check>,
}

/// Runs every check.
///
/// # Errors
/// When stdout can't be written, or the file of `--config` is of no plane. What is wrong is in the
/// output, and in the exit code.
pub async fn run(global: &Global, args: &DoctorArgs) -> Result<ExitCode> {
    let examined = match &args.config {
        Some(path) => Ok(local::examine(path).await?),
        None => examine(global).await,
    };
    let (checks, exit) = match examined {
        Ok(checks) => (checks, Exit::Failed),
        Err((mut checks, error)) => {
            checks.push(Check::failed("control plane", error.to_string()).advise(error.hint.unwrap_or_default()));
            (checks, error.exit)
        }
    };
    let view = DoctorView { healthy: checks.iter().all(|check| check.state != State::Failed), checks };
    let output = global.output();
    if output.is_table() {
        let colours = has_colours(std::io::IsTerminal::is_terminal(&std::io::stdout()));
        output.text(&view.for_people(colours))?;
    } else {
        output.data(&view)?;
    }
    Ok(if view.healthy { ExitCode::SUCCESS } else { exit.into() })
}

/// All checks; or those that were possible, and why the others were not.
async fn examine(global: &Global) -> std::result::Result<Vec<Check>, (Vec<Check>, crate::error::CliError)> {
    let mut checks = Vec::new();
    let context = global.load_context().map_err(|error| (Vec::new(), error))?;
    checks.push(checks::own_certificate(crate::client::valid_until(&context.certificate), unix_now()));
    match ask(global, &context).await {
        Ok(answers) => {
            checks.extend(answers);
            Ok(checks)
        }
        Err(error) => Err((checks, error)),
    }
}

async fn ask(global: &Global, context: &Context) -> Result<Vec<Check>> {
    let client = Client::connect(context, global.tenant.as_deref(), global.timeout).await?;
    let asked_ms = checks::now_ms();
    let status = client.call("status", client.rpc().status(wire::StatusRequest {})).await?;
    let answered_ms = checks::now_ms();
    let mut checks = vec![
        Check::good("control plane", format!("{} answers, version {}", status.replica, status.version)),
        checks::server_certificate(peer::certificate_until(context).await, unix_now()),
        checks::clock(status.now_ms, asked_ms, answered_ms),
        checks::version(&status.version, seks_runtime::VERSION),
        checks::store(&status),
    ];
    checks.extend(checks::replicas(&status));
    checks.extend(checks::nodes(&status));
    checks.extend(checks::disks(&status.disks));
    checks.extend(checks::open_files(&status));
    checks.push(checks::backlog(&status));
    checks.extend(tenant(&client).await);
    Ok(checks)
}

/// What the tenant uses of its quota, and credentials that are of no use.
async fn tenant(client: &Client) -> Vec<Check> {
    let name = client.tenant();
    let request = wire::NameRequest { tenant: String::new(), name };
    let mut found = Vec::new();
    if let Ok(tenant) = client.call("tenant", client.rpc().get_tenant(request)).await {
        found.extend(checks::quota(&tenant));
    }
    let all = client.list_all("credentials", async |mut rpc, page| rpc.list_credentials(page).await).await;
    found.extend(all.map(|credentials| checks::credentials(&credentials)).unwrap_or_default());
    found
}

impl DoctorView {
    fn for_people(&self, colours: bool) -> String {
        let width = self.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or_default();
        let mut text = String::new();
        for check in &self.checks {
            let (word, colour) = match check.state {
                State::Ok => ("ok  ", "32"),
                State::Warning => ("warn", "33"),
                State::Failed => ("FAIL", "31"),
            };
            let word = if colours { format!("\u{1b}[{colour}m{word}\u{1b}[0m") } else { word.to_owned() };
            let detail = crate::error::one_line(&check.detail);
            text.push_str(&format!("{word}  {:width$}  {detail}\n", check.name));
            if !check.advice.is_empty() {
                text.push_str(&format!("      {:width$}  -> {}\n", "", crate::error::one_line(&check.advice)));
            }
        }
        let count = |state: State| self.checks.iter().filter(|check| check.state == state).count();
        match (count(State::Failed), count(State::Warning)) {
            (0, 0) => text.push_str("\nnothing is wrong\n"),
            (failed, warnings) => text.push_str(&format!("\n{failed} failed, {warnings} warnings\n")),
        }
        text
    }
}
