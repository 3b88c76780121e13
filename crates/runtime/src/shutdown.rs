//! The shutdown signal.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives `SIGTERM` and `SIGINT`.
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// Starts to listen. From then on neither signal kills the process. Call it before anything
    /// that must be drained.
    ///
    /// # Errors
    /// When the process may not install signal handlers.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Completes at the next of the two signals and returns its name. Call it again to receive a
    /// second signal.
    pub async fn requested(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{self, Signal};

    use super::*;

    #[tokio::test]
    async fn sigterm_is_heard_instead_of_killing() {
        let mut shutdown = Shutdown::listen().unwrap();
        process::kill_process(process::getpid(), Signal::TERM).unwrap();
        assert_eq!(shutdown.requested().await, "SIGTERM");
    }
}
