//! `seks run`: runs a command with its own token, which is revoked when the command ends.

mod known_clients;

use std::{
    ffi::OsString, io::IsTerminal as _, os::unix::process::ExitStatusExt as _, process::ExitCode, time::Duration,
};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use self::known_clients::{Adaptation, UserSettings};
use super::env::{Issued, ServiceSelection, Variables};
use crate::{
    client::Client,
    duration::duration,
    error::{CliError, Exit, Result, plain_io},
    global::Global,
    output::notice,
    sandbox::{Mode, Sandbox, SandboxTargets},
    user,
};

/// The command and its agent.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  seks run --agent ci-bot -- python agent.py
  seks run --agent ci-bot --service openai --service github -- ./agent

  seks run --sandbox strict -- ./agent              reaches the proxy only

`--sandbox none` gives the command all of your own access, including your operator's key.

codex, claude, gemini and qwen get the options and variables that they need in addition. A warning
says when a known client would call its vendor directly.

The exit code is the command's, 128+N when signal N ended it, 126 or 127 when it cannot be started.")]
pub struct RunArgs {
    /// The agent that calls [default: the tenant's only one]
    #[arg(long)]
    agent: Option<String>,
    /// Which services.
    #[command(flatten)]
    what: ServiceSelection,
    /// Validity of the token, in case it cannot be revoked at the end
    #[arg(long, default_value = "8h", value_parser = duration)]
    ttl: Duration,
    /// Confinement of the command against SEKS's own files and listeners
    #[arg(long, value_enum, value_name = "FORM", default_value = "default")]
    sandbox: Mode,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Longest wait for the revocation at the end.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the command.
///
/// # Errors
/// When it cannot be started: the control plane's error. Exit codes 126 and 127 have a shell's
/// meaning.
pub async fn run(global: &Global, args: RunArgs) -> Result<ExitCode> {
    let mut signals = Signals::install()?; // before the token is issued, so that a signal cannot leave it unrevoked
    let sandbox = Sandbox::new(args.sandbox).await?;
    let context = global.load_context()?;
    let context_files = global.context_selector().files()?;
    let client = Client::connect(&context, global.tenant.as_deref(), global.timeout).await?;
    let agent = match args.agent {
        Some(agent) => agent,
        None => only_agent(&client).await?,
    };
    let chosen = args.what.services(&client).await?;
    let mut issued = args.what.issue(&client, agent, &chosen, args.ttl).await?;
    let endpoints: Vec<&str> = context.all_endpoints().collect();
    let targets = SandboxTargets { context_files: &context_files, endpoints: &endpoints, proxies: proxies(&issued) };
    let started = adapt_command(&args.command, &mut issued.variables)
        .and_then(|adapted| Ok((sandbox.command(&adapted.command, &targets)?, adapted.unset)));
    let code = match started {
        Ok(((command, forwarding), unset)) => {
            let code = match spawn(command, &issued, &unset) {
                Ok(mut child) => signals.forward_until_exit(&mut child).await,
                Err(error) => Ok(not_started(&args.command, &error)),
            };
            drop(forwarding);
            code
        }
        Err(error) => Err(error),
    };
    revoke(&client, &issued.id).await;
    code
}

async fn only_agent(client: &Client) -> Result<String> {
    let mut agents = client.list_all("agents", async |mut rpc, page| rpc.list_agents(page).await).await?;
    match (agents.pop(), agents.pop()) {
        (Some(agent), None) => Ok(agent.name),
        (None, _) => Err(CliError::new(Exit::NotFound, "agent", "there is none").hint("`seks agent create NAME`")),
        _ => Err(CliError::usage("agent", "there are several").hint("say which one with --agent NAME")),
    }
}

/// The proxy addresses that the command must reach: the node, and its HTTPS_PROXY mode.
fn proxies(issued: &Issued) -> Vec<String> {
    let token = issued.variables.get("SEKS_TOKEN").map_or("", String::as_str);
    let ours = |name: &&str| issued.variables.get(*name).filter(|url| *name == "SEKS_BASE_URL" || url.contains(token));
    ["SEKS_BASE_URL", "HTTPS_PROXY"].iter().filter_map(ours).cloned().collect()
}

/// The command as it is started, and the variables that it must not have.
struct AdaptedCommand {
    command: Vec<OsString>,
    unset: Vec<&'static str>,
}

/// Adds what a known client needs to use the node, and warns if the client would still go around
/// the node.
fn adapt_command(command: &[OsString], variables: &mut Variables) -> Result<AdaptedCommand> {
    let home = user::home().unwrap_or_default();
    let cache = user::cache_dir().unwrap_or_else(|| std::env::temp_dir().join("seks"));
    let settings = UserSettings { home: &home, cache: &cache, variable: &|name| std::env::var(name).ok() };
    let Adaptation { arguments, set, unset, warnings } = known_clients::adapt(command, variables, &settings)?;
    for warning in warnings {
        notice(&format!("warning: {warning}"));
    }
    variables.extend(set.into_iter().map(|(name, value)| (name.to_owned(), value)));
    variables.retain(|name, _| !unset.contains(&name.as_str()));
    let mut command = command.to_vec();
    if let Some((position, inserted)) = arguments {
        command.splice(position..position, inserted.into_iter().map(OsString::from));
    }
    Ok(AdaptedCommand { command, unset })
}

fn spawn(mut command: Command, issued: &Issued, unset: &[&str]) -> std::io::Result<Child> {
    // The agent must not see the operator's settings. It keeps only the SEKS variables that were
    // set for it.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"SEKS_")) {
        command.env_remove(name);
    }
    for name in unset {
        command.env_remove(name);
    }
    command.envs(&issued.variables).spawn()
}

/// The exit code of a shell for a command that cannot be started.
fn not_started(command: &[OsString], error: &std::io::Error) -> ExitCode {
    let program = command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
    notice(&format!("error: {program}: {}", plain_io(error)));
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
}

async fn revoke(client: &Client, id: &str) {
    let request = client.delete(id, false);
    let (mut rpc, what) = (client.rpc(), format!("token `{id}`"));
    let revoked = client.change(&what, rpc.revoke_token(request));
    match tokio::time::timeout(REVOKE_TIMEOUT, revoked).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => notice(&format!("warning: the token `{id}` is not revoked: {error}")),
        Err(_) => notice(&format!("warning: the token `{id}` is not known to be revoked: no answer in time")),
    }
}

/// The signals that are forwarded to the command.
struct Signals {
    received: mpsc::Receiver<Signal>,
    terminal: bool,
}

impl Signals {
    fn install() -> Result<Self> {
        let failed = |e: std::io::Error| CliError::new(Exit::Failed, "signals", plain_io(&e));
        let (sender, received) = mpsc::channel(16);
        for passed_on in [
            Signal::INT,
            Signal::TERM,
            Signal::HUP,
            Signal::QUIT,
            Signal::USR1,
            Signal::USR2,
            Signal::WINCH,
            Signal::CONT,
        ] {
            let mut stream = signal(SignalKind::from_raw(passed_on.as_raw())).map_err(failed)?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    if sender.send(passed_on).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self { received, terminal: std::io::stdin().is_terminal() })
    }

    async fn forward_until_exit(&mut self, child: &mut Child) -> Result<ExitCode> {
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        loop {
            tokio::select! {
                biased;
                ended = child.wait() => {
                    let status = ended.map_err(|e| CliError::new(Exit::Failed, "run", plain_io(&e)))?;
                    return Ok(exit_code(status));
                }
                Some(signal) = self.received.recv() => {
                    // A terminal sends these to the whole foreground group, so the command has
                    // received them.
                    let from_terminal = matches!(signal, Signal::INT | Signal::QUIT | Signal::WINCH | Signal::CONT);
                    if let (Some(pid), false) = (pid, self.terminal && from_terminal) {
                        let _ = kill_process(pid, signal); // it may have ended meanwhile
                    }
                }
            }
        }
    }
}

fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
