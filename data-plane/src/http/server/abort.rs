//! Bodies that can end while nobody reads them.

use std::task::{Context, Poll};

/// A body that may have to end while nobody takes it.
pub trait Abort {
    /// Ready when it has to.
    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}
