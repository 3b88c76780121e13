//! `seks`: the administrator's command line over gRPC, and `seks dev`, the whole broker in one
//! process on one machine.
//!
//! [`args`] is the command tree. `commands/` has one file for each noun. [`client`] is the
//! connection, [`context`] selects control plane and operator, [`output`] prints, and [`error`] is
//! how a command fails.

pub mod args;
pub mod client;
pub mod commands;
pub mod confirm;
pub mod context;
pub mod duration;
pub mod error;
pub mod files;
pub mod global;
mod known;
pub mod listing;
pub mod markup;
pub mod moment;
pub mod output;
mod registration;
mod sandbox;
pub mod secret_input;
mod user;

use std::{ffi::OsString, process::ExitCode};

use clap::CommandFactory as _;
use seks_runtime::logs;

/// Runs one command line.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    seks_runtime::install_crypto_provider();
    seks_runtime::harden::install_panic_hook();
    let args: Vec<OsString> = args.into_iter().collect();
    #[cfg(target_os = "linux")]
    if let Some(code) = sandbox::helper::run_if_asked(&args) {
        return code;
    }
    let parsed = match commands::completions::answer(&args, args::Cli::command) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => args::parse(args),
        Err(error) => Err(error),
    };
    let outcome = match parsed {
        Ok(args::Parsed::Print(text)) => {
            output::Output::new(output::Format::Table).text(&text).map(|()| ExitCode::SUCCESS)
        }
        Ok(args::Parsed::Run(cli)) => run(*cli),
        Err(error) => Err(error),
    };
    let code = outcome.unwrap_or_else(|error| {
        let lines = error.lines();
        let has_colours = output::has_colours(std::io::IsTerminal::is_terminal(&std::io::stderr()));
        let lines = if has_colours { error::coloured(&lines) } else { lines };
        logs::write_stderr_line(lines.trim_end_matches('\n'));
        error.exit.into()
    });
    logs::flush(logs::FLUSH_TIMEOUT);
    code
}

fn run(cli: args::Cli) -> error::Result<ExitCode> {
    if matches!(cli.command, commands::Command::Dev(_) | commands::Command::Credential(_)) {
        // Before the first key is read and the second thread is started.
        seks_runtime::harden::harden_process()
            .map_err(|e| error::CliError::new(error::Exit::Failed, "hardening", error::plain_io(&e)))?;
        seks_runtime::alloc::keep_memory_small();
    } else {
        // Every command holds the operator's key. Commands of `seks run` keep their limits and
        // rights; only this process is undumpable.
        seks_runtime::harden::make_undumpable()
            .map_err(|e| error::CliError::new(error::Exit::Failed, "hardening", error::plain_io(&e)))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(seks_runtime::memory_release::release_on_park)
        .build()
        .map_err(|e| error::CliError::new(error::Exit::Failed, "start", error::plain_io(&e)))?;
    runtime.block_on(commands::run(&cli.global, cli.command, args::Cli::command()))
}
