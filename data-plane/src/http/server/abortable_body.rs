//! Bodies that can end while they are not read.

use std::task::{Context, Poll};

/// A body that may have to end while no task polls it.
pub trait AbortableBody {
    /// Ready when it has to.
    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}
