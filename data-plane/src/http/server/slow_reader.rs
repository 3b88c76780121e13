//! Ends HTTP/2 streams whose agent does not read.
//!
//! When a stream's window is 0, hyper waits without a limit and does not poll the body, so the
//! body's own limits are not checked. hyper runs each stream as a task on our executor. If the last
//! poll of the handler and of the body made progress, a task that waits is waiting for its agent.
//! [`ResponseStream`] records the outcome of each poll.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::Executor;
use tokio::time::{Instant, Sleep};

use super::{
    abortable_body::AbortableBody,
    response_stream::{NextStream, PollOutcome, ResponseStream},
};

/// Runs the streams of one HTTP/2 connection.
pub(super) struct StreamExecutor<B> {
    /// How long an agent may take nothing.
    pub(super) patience: Duration,
    pub(super) next: Arc<NextStream<B>>,
}

impl<B> Clone for StreamExecutor<B> {
    fn clone(&self) -> Self {
        Self { patience: self.patience, next: self.next.clone() }
    }
}

impl<F: Future<Output = ()> + Send + 'static, B: AbortableBody + Send + 'static> Executor<F> for StreamExecutor<B> {
    fn execute(&self, task: F) {
        let (task, stream) = (Box::pin(task), self.next.take());
        tokio::spawn(WatchdogTask { task, stream, patience: self.patience, since: None, timer: None });
    }
}

/// One stream. Dropping it resets the stream and drops the request's future.
struct WatchdogTask<F, B> {
    task: Pin<Box<F>>,
    stream: Option<Arc<ResponseStream<B>>>,
    patience: Duration,
    /// Since when it has waited for its agent.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<F: Future<Output = ()>, B: AbortableBody> Future for WatchdogTask<F, B> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(stream) = &this.stream else { return Poll::Pending };
        if stream.poll_aborted(cx).is_ready() {
            return Poll::Ready(()); // whatever is left of it is thrown away with the stream
        }
        match stream.take_outcome() {
            PollOutcome::Pending => this.since = None,
            PollOutcome::Progress => this.since = Some(Instant::now()),
            PollOutcome::NotPolled => {}
        }
        let Some(since) = this.since else { return Poll::Pending };
        let deadline = since + this.patience;
        // One timer a stream, moved only when it goes off.
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
