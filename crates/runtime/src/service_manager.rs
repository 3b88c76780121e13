//! What the process reports to systemd (`sd_notify(3)`): readiness, a line of status, and that it
//! is not stuck. Without `NOTIFY_SOCKET` all of it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinHandle;

/// Reported as often as this while a start takes long; systemd then waits for three times as long.
pub const EXTEND_EVERY: Duration = Duration::from_secs(10);

fn notify(states: &[NotifyState<'_>]) {
    // There may be no service manager, or one that has gone.
    let _ = sd_notify::notify(states);
}

/// The process listens. `status` is one line for `systemctl status`.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// The start waits for something else, such as a control plane, and has not failed.
pub fn starting(status: &str) {
    let limit = u32::try_from((EXTEND_EVERY * 3).as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::ExtendTimeoutUsec(limit), NotifyState::Status(status)]);
}

/// The process drains.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Reports that the start waits, until the returned task is aborted or dropped.
#[must_use]
pub fn report_waiting(status: &'static str) -> Task {
    Task(tokio::spawn(async move {
        loop {
            starting(status);
            tokio::time::sleep(EXTEND_EVERY).await;
        }
    }))
}

/// Reports that the process's main runtime runs tasks, as often as `WatchdogSec=` needs it. systemd
/// kills and restarts a process that stops reporting. Call it within that runtime.
#[must_use]
pub fn watchdog() -> Option<Task> {
    let limit = sd_notify::watchdog_enabled()?;
    Some(Task(tokio::spawn(async move {
        let mut every = tokio::time::interval(limit / 3);
        loop {
            every.tick().await;
            notify(&[NotifyState::Watchdog]);
        }
    })))
}

/// A task that ends when this is dropped.
pub struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
