//! File descriptors: raises the limit, and keeps a reserve that connections cannot use.

use rustix::process::{Resource, Rlimit};

/// Descriptors reserved for the control-plane connection, the health listener, the store, files,
/// name servers and connections that are being closed.
pub const RESERVE: usize = 256;
/// Highest limit that is requested. Some systems report a number that overflows in programs.
const MOST: u64 = 1 << 20;

/// Lowest limit with which a plane starts: the reserve, and as many connections.
pub const LEAST: usize = 2 * RESERVE;

/// The limit of open files is below [`LEAST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} open files are allowed, and at least {LEAST} are needed: raise the limit (LimitNOFILE= in a unit, `ulimit -Hn`)"
)]
pub struct TooFewDescriptors(usize);

/// Raises the limit of open files as [`raise`] does, and checks that it is sufficient.
///
/// # Errors
/// When the limit is below [`LEAST`] and cannot be raised.
pub fn require() -> Result<(), TooFewDescriptors> {
    raise();
    match limit() {
        enough if enough >= LEAST => Ok(()),
        limit => Err(TooFewDescriptors(limit)),
    }
}

/// Raises the soft limit of open files to the hard limit. A refusal changes nothing.
pub fn raise() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(MOST).min(MOST);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
        if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
}

/// The limit of open files of this process.
#[must_use]
pub fn limit() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(MOST).min(MOST);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// The number of open files of this process. 0 where the system does not say (it has no /proc).
#[must_use]
pub fn open() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

/// The number of connections with `each` descriptors that fit into `limit` beside the reserve. The
/// reserve is [`RESERVE`], or half of a limit below twice that. The result is at least 1.
#[must_use]
pub fn affordable(limit: usize, each: usize) -> usize {
    (limit.saturating_sub(RESERVE.min(limit / 2)) / each.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_affordable_leaves_a_reserve() {
        assert_eq!(affordable(1024, 2), 384);
        assert_eq!(affordable(100_000, 1), 99_744);
        assert_eq!((affordable(64, 2), affordable(1, 2)), (16, 1));
    }

    #[test]
    fn raising_ends_at_the_hard_limit() {
        raise();
        let limit_now = rustix::process::getrlimit(Resource::Nofile);
        let hard = limit_now.maximum.unwrap_or(MOST).min(MOST);
        assert!(limit_now.current.is_none_or(|current| current >= hard));
        assert!(limit() > 0);
    }
}
