//! Responses on HTTP/2 streams that can be aborted even when the agent does not read.
//!
//! hyper polls a body only while the stream's window is open. It hands the last part to `h2`
//! together with the end of the stream. What is queued behind the window would then be sent
//! whenever the agent opens it, long after the right to it has ended.
//!
//! Therefore a body is shared with the task of its stream ([`slow_reader`](super::slow_reader)).
//! Whenever that task is woken, it asks the body whether it has to end. The end of the stream is
//! held back until `h2` has taken every part from its queue. A stream that is dropped before its
//! end is reset (CANCEL), and `h2` (0.4.14 and later) discards what it has queued for it.
//!
//! Bytes in the buffers of `h2`, TLS and the kernel cannot be told apart by stream. A connection
//! that holds such bytes and takes no more is reset as a whole
//! ([`ConnectionHandle::reset_if_blocked`]), so the kernel discards what it holds.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicU8, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};

use super::{abortable_body::AbortableBody, stream::ConnectionHandle};

/// Which end a stream waits for, as the last poll of its request or its body has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum PollOutcome {
    /// Neither request nor body were polled.
    NotPolled,
    /// The request or its body gave something.
    Progress,
    /// What was polled had nothing yet.
    Pending,
}

/// What a stream's task and its response's body share.
pub(super) struct ResponseStream<B> {
    /// Absent until the head of the response is there.
    body: Mutex<Option<B>>,
    /// A [`PollOutcome`].
    outcome: AtomicU8,
    /// Parts of the body in `h2`'s queue.
    queued: AtomicUsize,
    /// The task that waits until this is 0.
    drained: AtomicWaker,
    link: Arc<ConnectionHandle>,
}

/// The stream of the request that hyper is about to make a task for: it calls the service and then
/// the executor of a connection.
pub(super) struct NextStream<B>(Mutex<Option<Arc<ResponseStream<B>>>>);

impl<B> Default for NextStream<B> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<B> NextStream<B> {
    fn set(&self, stream: Arc<ResponseStream<B>>) {
        *self.0.lock() = Some(stream);
    }

    /// That of the task that is being made.
    pub(super) fn take(&self) -> Option<Arc<ResponseStream<B>>> {
        self.0.lock().take()
    }
}

impl<B> ResponseStream<B> {
    fn body(&self) -> MutexGuard<'_, Option<B>> {
        self.body.lock()
    }

    fn note<T>(&self, poll: &Poll<T>) {
        let outcome = if poll.is_pending() { PollOutcome::Pending } else { PollOutcome::Progress };
        self.outcome.store(outcome as u8, Relaxed); // the task that polls is the one that asks
    }

    /// What was noted since this was last asked.
    pub(super) fn take_outcome(&self) -> PollOutcome {
        match self.outcome.swap(PollOutcome::NotPolled as u8, Relaxed) {
            outcome if outcome == PollOutcome::Progress as u8 => PollOutcome::Progress,
            outcome if outcome == PollOutcome::Pending as u8 => PollOutcome::Pending,
            _ => PollOutcome::NotPolled,
        }
    }

    /// Ready when `h2` has nothing of the response in its queue.
    fn poll_drained(&self, cx: &Context<'_>) -> Poll<()> {
        if self.queued.load(SeqCst) == 0 {
            return Poll::Ready(());
        }
        self.drained.register(cx.waker());
        if self.queued.load(SeqCst) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl<B: AbortableBody> ResponseStream<B> {
    /// Ready when the response has to end. Its connection is reset if it holds bytes that the agent
    /// does not read.
    pub(super) fn poll_aborted(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut body = self.body();
        let Some(body) = &mut *body else { return Poll::Pending };
        ready!(body.poll_aborted(cx));
        self.link.reset_if_blocked();
        Poll::Ready(())
    }
}

/// A request that is being handled, on a stream of `link`.
pub(super) struct StreamFuture<F, B> {
    handling: Handling<F, B>,
    stream: Arc<ResponseStream<B>>,
}

/// How a stream's request is answered.
pub(super) enum Handling<F, B> {
    /// By the handler.
    Handled(F),
    /// At once.
    Refused(Option<Response<B>>),
}

impl<F, B> StreamFuture<F, B> {
    pub(super) fn begin(handling: Handling<F, B>, link: &Arc<ConnectionHandle>, next: &NextStream<B>) -> Self {
        let stream = Arc::new(ResponseStream {
            body: Mutex::new(None),
            outcome: AtomicU8::new(PollOutcome::NotPolled as u8),
            queued: AtomicUsize::new(0),
            drained: AtomicWaker::new(),
            link: link.clone(),
        });
        next.set(stream.clone());
        Self { handling, stream }
    }
}

impl<F: Future<Output = Response<B>> + Unpin, B: Body + Unpin> Future for StreamFuture<F, B> {
    type Output = Result<Response<StreamBody<B>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = match &mut self.handling {
            Handling::Handled(future) => Pin::new(future).poll(cx),
            Handling::Refused(response) => response.take().map_or(Poll::Pending, Poll::Ready),
        };
        self.stream.note(&polled);
        let (parts, body) = ready!(polled).into_parts();
        *self.stream.body() = Some(body);
        let body = StreamBody { stream: self.stream.clone(), begun: false, end: None };
        Poll::Ready(Ok(Response::from_parts(parts, body)))
    }
}

/// The body of a response on an HTTP/2 stream.
pub(super) struct StreamBody<B: Body> {
    stream: Arc<ResponseStream<B>>,
    /// A part of it was given out: from then on, the end is said apart.
    begun: bool,
    /// There is nothing more, but for these trailers, or the error that it broke off with.
    end: Option<End<B>>,
}

/// How a body ends.
type End<B> = Option<Result<Frame<Part<B>>, <B as Body>::Error>>;

impl<B: Body<Data = Bytes> + AbortableBody + Unpin> Body for StreamBody<B>
where
    B::Error: Unpin,
{
    type Data = Part<B>;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Part<B>>, B::Error>>> {
        let this = self.get_mut();
        if this.end.is_none() {
            let mut body = this.stream.body();
            let Some(inner) = &mut *body else { return Poll::Ready(None) };
            let polled = Pin::new(&mut *inner).poll_frame(cx);
            this.stream.note(&polled);
            match ready!(polled) {
                // A reset of the stream makes `h2` forget what it has queued for it, the head
                // included. So the head and what came before the break go out first: an empty part
                // is behind both. What the agent may not have any more is reset at once.
                Some(Err(error)) if inner.poll_aborted(cx).is_ready() => return Poll::Ready(Some(Err(error))),
                Some(Err(error)) => {
                    this.end = Some(Some(Err(error)));
                    if !this.begun {
                        this.begun = true;
                        return Poll::Ready(Some(Ok(Frame::data(Part::new(Bytes::new(), &this.stream)))));
                    }
                }
                Some(Ok(frame)) if frame.is_data() => {
                    this.begun = true;
                    return Poll::Ready(Some(Ok(frame.map_data(|bytes| Part::new(bytes, &this.stream)))));
                }
                // Trailers have no data.
                other => {
                    this.end = Some(other.map(|end| end.map(|f| f.map_data(|bytes| Part::new(bytes, &this.stream)))));
                }
            }
        }
        ready!(this.stream.poll_drained(cx));
        Poll::Ready(this.end.take().flatten())
    }

    fn is_end_stream(&self) -> bool {
        !self.begun && self.stream.body().as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.body().as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Body> Drop for StreamBody<B> {
    /// What the handler keeps in the body ends with it.
    fn drop(&mut self) {
        let body = self.stream.body().take();
        drop(body);
    }
}

/// A part of a response, until `h2` is done with it.
pub(super) struct Part<B> {
    bytes: Bytes,
    of: Arc<ResponseStream<B>>,
}

impl<B> Part<B> {
    fn new(bytes: Bytes, of: &Arc<ResponseStream<B>>) -> Self {
        of.queued.fetch_add(1, SeqCst);
        Self { bytes, of: of.clone() }
    }
}

impl<B> Buf for Part<B> {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl<B> Drop for Part<B> {
    fn drop(&mut self) {
        if self.of.queued.fetch_sub(1, SeqCst) == 1 {
            self.of.drained.wake();
        }
    }
}
