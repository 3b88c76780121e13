//! Exit codes.

use std::{error::Error, io, process::ExitCode};

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
    /// The operator is not permitted to do this. Of a node: its identity is refused.
    NotPermitted = 4,
    /// The object exists, or was changed concurrently. Of a plane: the store is older than its
    /// mark.
    Conflict = 5,
    /// The control plane is unreachable, or did not answer in time.
    Unreachable = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Whether an error, or one of its causes, is a condition of the machine that passes without a
/// change of the configuration: a full disk, no memory, no file descriptors, an I/O error. A
/// service manager must start such a process again, so its exit code is [`Exit::Failed`], never
/// [`Exit::Usage`].
///
/// A read-only file system is not among them: under `ProtectSystem=strict` it is what a wrong path
/// answers, and no restart repairs that.
#[must_use]
pub fn is_machines_fault(error: &(dyn Error + 'static)) -> bool {
    const EIO: i32 = 5;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        if let Some(io) = io {
            let passes = matches!(
                io.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::OutOfMemory
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
            );
            if passes || matches!(io.raw_os_error(), Some(EIO | ENFILE | EMFILE)) {
                return true;
            }
        }
        // `io::Error` hides an inner error from `source()`.
        next = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("store.path: `x`")]
    struct Wrapped {
        #[source]
        source: io::Error,
    }

    #[test]
    fn a_full_disk_is_found_below_other_errors_and_a_wrong_path_is_the_configurations() {
        let wrapped = |code| Wrapped { source: io::Error::from_raw_os_error(code) };
        for (code, machine) in
            [(28, true), (122, true), (5, true), (24, true), (30, false), (2, false), (13, false), (98, false)]
        {
            assert_eq!(is_machines_fault(&wrapped(code)), machine, "{code}");
        }
        assert!(is_machines_fault(&io::Error::other(wrapped(28))));
    }
}
