//! `seks completions`: a shell completion script.

use clap::Args;
use clap_complete::Shell;

use crate::{
    error::{CliError, Exit, Result},
    output::{Format, Output},
};

/// Which shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  seks completions bash > /etc/bash_completion.d/seks
  seks completions zsh > ~/.zfunc/_seks
  seks completions fish > ~/.config/fish/completions/seks.fish")]
pub struct CompletionsArgs {
    /// bash, zsh or fish
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
}

/// Prints the script for the commands of `tree`.
///
/// # Errors
/// When stdout can't be written.
pub fn run(args: CompletionsArgs, mut tree: clap::Command) -> Result<()> {
    let shell = match args.shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut tree, "seks", &mut script);
    let script = String::from_utf8(script).map_err(|e| CliError::new(Exit::Failed, "completions", e))?;
    Output::new(Format::Table).text(&script)
}
