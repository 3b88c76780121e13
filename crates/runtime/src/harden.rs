//! Hides this process from other processes, core dumps and crash reports.

use std::{io, panic, time::Duration};

use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::logs;

/// Longest wait for the log line of a panic that ends the process.
const PANIC_FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// Hardens a process that will hold keys. Call it before the first key is read and while there is
/// one thread: `no_new_privs` is a property of a thread and is inherited by later threads.
///
/// - Not dumpable: `/proc/PID/{mem,environ,maps,fd}` belong to root; no `ptrace` by the same user;
///   no core dump.
/// - Core size 0 as the hard limit: a core pattern that pipes to a program receives nothing either.
/// - `no_new_privs`: no program that this process starts gains rights.
///
/// `SSLKEYLOGFILE` has no effect in any build. rustls writes session keys only to a `KeyLogFile`,
/// and no configuration here sets one.
///
/// # Errors
/// When the kernel refuses one of them. A process with keys should then exit.
pub fn harden_process() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Makes this process not dumpable. Its children keep their limits and rights.
///
/// # Errors
/// When the kernel refuses.
pub fn make_undumpable() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Replaces the panic hook by one that logs the location and not the message. The message of an
/// `unwrap` prints what the error holds, and a backtrace names types whose parameters may be
/// values.
pub fn install_panic_hook() {
    panic::set_hook(Box::new(|info| {
        let location = info.location().map_or_else(|| "an unknown place".into(), ToString::to_string);
        if tracing::dispatcher::has_been_set() {
            tracing::error!(location, "panicked");
        } else {
            logs::write_stderr_line(&format!("panicked at {location}"));
        }
        // A panic of the main thread ends the process. Any other panic ends a task and must not
        // wait for the log.
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
