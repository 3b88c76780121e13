//! What other processes, core dumps and crash reports may learn of this one: nothing.

use std::{io, panic, time::Duration};

use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::logs;

/// How long the line of a panic that ends the process may take to be read.
const PANIC_FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// Closes the side doors of a process that will hold keys. Call it before the first key is read, while there is one
/// thread: `no_new_privs` is a thread's property and is inherited by those started later.
///
/// - not dumpable: `/proc/PID/{mem,environ,maps,fd}` belong to root, no `ptrace` by the same user, no core dump;
/// - core size 0 as the hard limit: a core pattern that pipes to a program gets nothing either;
/// - `no_new_privs`: nothing that this process starts gains rights.
///
/// `SSLKEYLOGFILE` has no effect on any build: rustls writes session keys only for a `KeyLogFile`, and no
/// configuration here sets one.
///
/// # Errors
/// When the kernel refuses one of them. A process with keys should not go on then.
pub fn harden_process() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Makes this process not dumpable, and nothing else: its children keep the limits and rights that they would have.
///
/// # Errors
/// When the kernel refuses.
pub fn make_undumpable() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Replaces the panic hook by one that says where, and not what: the message of an `unwrap` on an error prints
/// whatever the error holds, and a backtrace names types whose parameters may be values.
pub fn install_panic_hook() {
    panic::set_hook(Box::new(|info| {
        let location = info.location().map_or_else(|| "an unknown place".into(), ToString::to_string);
        if tracing::dispatcher::has_been_set() {
            tracing::error!(location, "panicked");
        } else {
            logs::write_stderr_line(&format!("panicked at {location}"));
        }
        // A panic of this thread ends the process; any other's ends a task, which must not wait for who reads the log.
        if std::thread::current().name() == Some("main") {
            logs::flush(PANIC_FLUSH_TIMEOUT);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test, because these are properties of the whole test process.
    #[test]
    fn a_hardened_process_is_not_dumpable() {
        harden_process().unwrap();
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(rustix::process::getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
        assert!(rustix::thread::no_new_privs().unwrap());
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }
}
