//! `seks completions`: a shell completion script. It holds the commands and options, and then
//! registers `seks` itself, which the shell asks for words from then on: commands and options from
//! its tree, names from the control plane ([`names`]).

mod names;

use std::ffi::OsString;

use clap::Args;
use clap_complete::{CompleteEnv, Shell, env::Shells};

use crate::{
    error::{CliError, Exit, Result},
    output::{Format, Output},
};

/// The variable by which the scripts ask for words. Its value is the shell.
const VARIABLE: &str = "SEKS_COMPLETE";

/// Which shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  seks completions bash > /etc/bash_completion.d/seks
  seks completions zsh > ~/.zfunc/_seks
  seks completions fish > ~/.config/fish/completions/seks.fish
  seks completions powershell >> $PROFILE

Names of agents, services, tokens and so on are those of the control plane that the context names. It is asked for at most a
second; the catalogue needs no control plane.")]
pub struct CompletionsArgs {
    /// bash, zsh, fish, powershell or elvish
    #[arg(value_enum, hide_possible_values = true)]
    shell: ShellName,
}

/// The supported shells.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum ShellName {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
    /// PowerShell, also on Linux and macOS
    Powershell,
    /// elvish
    Elvish,
}

impl ShellName {
    fn of_commands(self) -> Shell {
        match self {
            Self::Bash => Shell::Bash,
            Self::Zsh => Shell::Zsh,
            Self::Fish => Shell::Fish,
            Self::Powershell => Shell::PowerShell,
            Self::Elvish => Shell::Elvish,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Zsh => "zsh",
            Self::Fish => "fish",
            Self::Powershell => "powershell",
            Self::Elvish => "elvish",
        }
    }
}

/// Prints the script for the commands of `tree`.
///
/// # Errors
/// When stdout can't be written.
pub fn run(args: CompletionsArgs, mut tree: clap::Command) -> Result<()> {
    let failed = |why: String| CliError::new(Exit::Failed, "completions", why);
    let shells = Shells::builtins();
    let shell =
        shells.completer(args.shell.name()).ok_or_else(|| failed(format!("no script for {}", args.shell.name())))?;
    let mut script = Vec::new();
    clap_complete::generate(args.shell.of_commands(), &mut tree, "seks", &mut script);
    shell.write_registration(VARIABLE, "seks", "seks", "seks", &mut script).map_err(|e| failed(e.to_string()))?;
    let script = String::from_utf8(script).map_err(|e| failed(e.to_string()))?;
    Output::new(Format::Table).text(&script)
}

/// Answers the question of a completion script. `false`: this is no such question.
///
/// # Errors
/// For a shell that is not known.
pub fn answer(args: &[OsString], tree: impl Fn() -> clap::Command) -> Result<bool> {
    let complete = CompleteEnv::with_factory(|| names::with_completers(tree())).var(VARIABLE).bin("seks");
    let directory = std::env::current_dir().ok();
    complete.try_complete(args.iter().cloned(), directory.as_deref()).map_err(|error| {
        CliError::usage("completions", error.to_string().lines().next().unwrap_or_default().to_owned())
    })
}
