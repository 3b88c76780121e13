//! Exit codes.

use std::process::ExitCode;

/// Exit codes of every binary. Scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Success.
    Done = 0,
    /// Failure.
    Failed = 1,
    /// Wrong usage, invalid input or invalid configuration.
    Usage = 2,
    /// The object does not exist.
    NotFound = 3,
    /// The operator is not permitted to do this.
    NotPermitted = 4,
    /// The object exists, or was changed concurrently.
    Conflict = 5,
    /// The control plane is unreachable, or did not answer in time.
    Unreachable = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
