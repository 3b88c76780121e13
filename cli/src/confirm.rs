//! The confirmation before something is destroyed.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use clap::Args;

use crate::error::{CliError, Exit, Result, one_line, plain_io};

/// `--yes`, on every verb that destroys.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Confirm {
    /// Skip the confirmation
    #[arg(long, short = 'y')]
    pub yes: bool,
}

impl Confirm {
    /// Asks on a terminal. Without one, refuses unless `--yes` was given.
    ///
    /// # Errors
    /// Exit code 2 without a terminal, 1 when the answer is no.
    pub fn ask(self, question: &str) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        if !has_terminal() {
            return Err(CliError::usage(question, "not confirmed, and no terminal to ask on").hint("add --yes"));
        }
        answer(question)
    }

    /// Asks on a terminal and proceeds without one. Removing access must never wait for an answer
    /// that cannot come.
    ///
    /// # Errors
    /// Exit code 1 when the answer is no.
    pub fn ask_if_possible(self, question: &str) -> Result<()> {
        if self.yes || !has_terminal() { Ok(()) } else { answer(question) }
    }
}

fn has_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn answer(question: &str) -> Result<()> {
    let failed = |e: io::Error| CliError::new(Exit::Failed, question, plain_io(&e));
    write!(io::stderr(), "{}? [y/N] ", one_line(question)).map_err(failed)?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(failed)?;
    if matches!(line.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(CliError::new(Exit::Failed, question, "not done"))
    }
}
