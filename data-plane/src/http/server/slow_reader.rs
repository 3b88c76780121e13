//! Ends HTTP/2 streams whose agent doesn't read: with its window at 0 hyper waits for ever, and never asks for the body again, so
//! the body's own limits aren't seen. That the right to an answer has ended is asked of the answer itself, whatever hyper waits for.
//!
//! hyper runs each stream as a task of its own on our executor; a task that waits, and neither for the proxy nor for the upstream,
//! waits for its agent. Who it waits for is told by whoever was polled last, in the same poll on the same thread.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::Executor;
use tokio::time::{Instant, Sleep};

use super::response_stream::Answering;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Polled {
    /// Neither request nor body were asked.
    Nothing,
    /// The body gave something.
    Moved,
    /// What was asked had nothing yet.
    Waits,
}

thread_local! {
    static POLLED: Cell<Polled> = const { Cell::new(Polled::Nothing) };
}

/// Says of the stream that is being polled what came of it: anything that isn't pending has moved.
pub(crate) fn polled<T>(poll: Poll<T>) -> Poll<T> {
    POLLED.set(if poll.is_pending() { Polled::Waits } else { Polled::Moved });
    poll
}

/// Runs the streams of HTTP/2 connections.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    /// How long an agent may take nothing.
    pub(super) patience: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (stream, answering) = (Box::pin(stream), Answering::of_next());
        tokio::spawn(Watched { stream, answering, patience: self.patience, since: None, timer: None });
    }
}

/// One stream. Dropping it resets the stream and lets go of the upstream.
struct Watched<F> {
    stream: Pin<Box<F>>,
    answering: Option<Arc<Answering>>,
    patience: Duration,
    /// Since when it has waited for its agent.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        POLLED.set(Polled::Nothing);
        if this.stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if this.answering.as_ref().is_some_and(|answering| answering.poll_severed(cx).is_ready()) {
            return Poll::Ready(()); // whatever is left of it is thrown away with the stream
        }
        match POLLED.get() {
            Polled::Waits => this.since = None,
            Polled::Moved => this.since = Some(Instant::now()),
            Polled::Nothing => {}
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
