//! Answers on HTTP/2 streams, each of which can be ended whatever its agent reads.
//!
//! hyper asks a body for its next part only when the stream's window is open, and hands the last part to `h2` together with the
//! stream's end: what is left behind the window then goes out whenever the agent opens it, though the right to it has ended long
//! before. So a body is shared with the task of its stream ([`stalled`](super::stalled)), which asks it whether it has to end
//! whenever the task is woken; and the end is held back until `h2` has taken every part off its queue. A stream that ends before
//! its end was said is reset (CANCEL), and `h2` (0.4.14 and later) throws away what it has queued of it.
//!
//! What was written to a connection that takes no more, in `h2`'s, TLS's and the kernel's buffers, can't be told from other
//! streams' bytes: such a connection is reset as a whole ([`Link::sever`]), and the kernel throws away what it holds.

use std::{
    cell::Cell,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http::Response;
use http_body::{Body, Frame, SizeHint};

use super::{h1::Severed, handling::Handling, stream::Link};
use crate::pipeline::{relay::BrokenOff, response_body::AnswerBody};

thread_local! {
    /// The answer of the stream that hyper is about to run: it calls the service and the executor one after the other.
    static NEXT: Cell<Option<Arc<Answering>>> = const { Cell::new(None) };
}

/// What a stream's task and its answer's body share.
pub(super) struct Answering {
    /// Absent until the head of the answer is there.
    body: Mutex<Option<AnswerBody>>,
    /// Parts of it in `h2`'s queue.
    queued: AtomicUsize,
    /// Whoever waits for that to become 0.
    drained: AtomicWaker,
    link: Arc<Link>,
}

impl Answering {
    fn body(&self) -> MutexGuard<'_, Option<AnswerBody>> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That of the stream whose task is being made.
    pub(super) fn of_next() -> Option<Arc<Self>> {
        NEXT.take()
    }

    /// Ready when the answer has to end. Its connection is reset if it holds bytes that nobody takes.
    pub(super) fn poll_severed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut body = self.body();
        let Some(body) = &mut *body else { return Poll::Pending };
        ready!(body.poll_severed(cx));
        self.link.sever();
        Poll::Ready(())
    }

    /// Ready when `h2` has nothing of the answer in its queue.
    fn poll_drained(&self, cx: &Context<'_>) -> Poll<()> {
        if self.queued.load(SeqCst) == 0 {
            return Poll::Ready(());
        }
        self.drained.register(cx.waker());
        if self.queued.load(SeqCst) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A request that is being handled, on a stream of `link`.
pub(super) struct Handled {
    handling: Handling,
    answering: Arc<Answering>,
}

impl Handled {
    pub(super) fn begin(handling: Handling, link: &Arc<Link>) -> Self {
        let answering = Arc::new(Answering {
            body: Mutex::default(),
            queued: AtomicUsize::new(0),
            drained: AtomicWaker::new(),
            link: link.clone(),
        });
        NEXT.set(Some(answering.clone()));
        Self { handling, answering }
    }
}

impl Future for Handled {
    type Output = Result<Response<Answer>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(response) = ready!(Pin::new(&mut self.handling).poll(cx));
        let (parts, body) = response.into_parts();
        *self.answering.body() = Some(body);
        let answer = Answer { answering: self.answering.clone(), begun: false, end: None };
        Poll::Ready(Ok(Response::from_parts(parts, answer)))
    }
}

/// The body of an answer on an HTTP/2 stream.
pub(super) struct Answer {
    answering: Arc<Answering>,
    /// A part of it was given out: from then on, the end is said apart.
    begun: bool,
    /// There is nothing more, but for these trailers.
    end: Option<Option<Frame<Part>>>,
}

impl Body for Answer {
    type Data = Part;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Part>, BrokenOff>>> {
        let this = self.get_mut();
        if this.end.is_none() {
            let mut body = this.answering.body();
            let Some(inner) = &mut *body else { return Poll::Ready(None) };
            match ready!(Pin::new(inner).poll_frame(cx)).transpose()? {
                Some(frame) if frame.is_data() => {
                    this.begun = true;
                    this.answering.queued.fetch_add(1, SeqCst);
                    return Poll::Ready(Some(Ok(frame.map_data(|bytes| Part { bytes, of: this.answering.clone() }))));
                }
                // Trailers have no data.
                other => this.end = Some(other.map(|frame| frame.map_data(|bytes| Part::new(bytes, &this.answering)))),
            }
        }
        ready!(this.answering.poll_drained(cx));
        Poll::Ready(this.end.take().flatten().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        !self.begun && self.answering.body().as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.answering.body().as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Answer {
    /// The record closes with it.
    fn drop(&mut self) {
        let body = self.answering.body().take();
        drop(body);
    }
}

/// A part of an answer, until `h2` is done with it.
pub(super) struct Part {
    bytes: Bytes,
    of: Arc<Answering>,
}

impl Part {
    fn new(bytes: Bytes, of: &Arc<Answering>) -> Self {
        of.queued.fetch_add(1, SeqCst);
        Self { bytes, of: of.clone() }
    }
}

impl Buf for Part {
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

impl Drop for Part {
    fn drop(&mut self) {
        if self.of.queued.fetch_sub(1, SeqCst) == 1 {
            self.of.drained.wake();
        }
    }
}
