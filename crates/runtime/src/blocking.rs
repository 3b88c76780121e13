//! Work that would hold up everything else on its thread.

use tokio::task::{JoinError, spawn_blocking};

/// Runs `work` on a thread for such. A simulated host has one thread: there it runs at once, so that no seed depends on how fast
/// this machine is.
///
/// # Errors
/// When the runtime is shutting down, or `work` has panicked.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    #[cfg(feature = "simulation")]
    if seks_simulated_host::is_active() {
        return Ok(work());
    }
    spawn_blocking(work).await
}
