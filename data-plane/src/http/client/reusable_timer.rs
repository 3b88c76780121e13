//! The deadline for the first byte of an upstream's response.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// How long an answer may take to begin. One timer a connection, moved only when it goes off: a
/// request costs none.
#[derive(Default)]
pub(super) struct ReusableTimer {
    timer: Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
}

impl ReusableTimer {
    /// Counts from now.
    pub(super) fn begin(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        self.deadline = Some(deadline);
        if let Some(timer) = &mut self.timer
            && deadline < timer.deadline()
        {
            timer.as_mut().reset(deadline);
        }
    }

    /// Ready once the time that was given is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
