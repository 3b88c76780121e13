//! What a process's exit code says.

use std::process::ExitCode;

/// Exit codes of every binary. Scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage, bad input or bad configuration.
    Usage = 2,
    /// What was asked for doesn't exist.
    NotFound = 3,
    /// Not this operator's to do.
    NotPermitted = 4,
    /// It exists already, or changed meanwhile.
    Conflict = 5,
    /// The control plane can't be reached, or didn't answer in time.
    Unreachable = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
