//! Work that would block other tasks on its thread.

use tokio::task::{JoinError, spawn_blocking};

/// Runs `work` on a blocking thread. A simulated host has one thread and runs it at once, so that a
/// seed's result does not depend on the machine's speed.
///
/// # Errors
/// When the runtime is shutting down, or `work` panicked.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    #[cfg(feature = "simulation")]
    if seks_simulated_host::is_active() {
        return Ok(work());
    }
    spawn_blocking(work).await
}
