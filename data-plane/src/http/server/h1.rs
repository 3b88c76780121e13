//! HTTP/1 as a server: requests one after the other on one connection, each parsed strictly
//! ([`head`]).
//!
//! One task runs the whole connection. A request is handed to the handler when its head is
//! complete. A body that arrived with the head goes along; one that is still to come is read by its
//! consumer ([`shared`]). A request that is refused for its form is answered after the requests
//! before it, and nothing behind it is read.

mod body;
#[cfg(test)]
mod fuzz;
mod head;
mod incoming;
mod request;
mod response;
mod shared;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Buf as _, Bytes};
use http::{Request, Response};
use http_body::Body;
use tokio::io::AsyncWrite as _;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

pub(super) use self::incoming::Incoming;
use self::{
    head::Head,
    request::{REFUSED, ResponseTerms},
    response::Framing,
    shared::{Inner, Shared},
};
pub use self::{head::Violation, shared::BrokenBody};
use super::{
    abortable_body::AbortableBody,
    activity::{Activity, Waiting},
    settings::HeadLimits,
    stream::Stream,
    upgrade::Upgrade,
};
use crate::http::h1::{Broke, Outbox, Sending};

/// Memory for what is to be written that an idle connection keeps.
const KEPT_BYTES: usize = 16 * 1024;

/// Answers the requests of a connection.
pub(super) trait RequestHandler {
    /// An answer's body.
    type Body: Body<Data = Bytes> + AbortableBody + Unpin;
    /// A request that is being handled.
    type Handling: Future<Output = Response<Self::Body>> + Unpin;

    /// Handles a request. Dropped before it is done when its agent goes.
    fn handle(&self, request: Request<Incoming>) -> Self::Handling;

    /// Answers what can't be understood.
    fn refuse(&self, violation: Violation) -> Response<Self::Body>;
}

/// How a connection ended.
pub(super) enum End {
    /// The agent has disconnected.
    Gone,
    /// With an answer, or between requests.
    Last(Stream),
    /// It is HTTP's no longer.
    Switched(Box<dyn Upgrade>, Stream),
}

/// What an agent does next.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, taken apart where it arrives: a box would be an allocation a request"
)]
enum NextRequest {
    Request(Request<Incoming>, ResponseTerms),
    Refused(Violation),
    /// Nothing in time, or before the node stops.
    Nothing,
    Gone,
}

/// The agent doesn't take the answer, or may not have it.
struct Broken;

/// One connection.
pub(super) struct H1 {
    shared: Shared,
    limits: HeadLimits,
    activity: Arc<Activity>,
    waiting: Waiting,
    /// An empty line in front of the request was passed over (RFC 9112, 2.2).
    skipped: bool,
    /// Of a head that is not whole.
    scanned: usize,
    parts: head::Parts,
    outbox: Outbox,
}

impl H1 {
    pub(super) fn new(stream: Stream, limits: HeadLimits, activity: Arc<Activity>, waiting: Waiting) -> Self {
        let (shared, parts, outbox) = (Shared::new(stream), head::Parts::default(), Outbox::default());
        Self { shared, limits, activity, waiting, skipped: false, scanned: 0, parts, outbox }
    }

    /// Serves until the agent or the node wants no more. At `stop`, the request that has begun is
    /// the last.
    pub(super) async fn serve(mut self, serve: &impl RequestHandler, stop: &CancellationToken) -> End {
        let mut stopped = pin!(stop.cancelled());
        loop {
            self.shared.lock().inbox.rewind();
            let (response, terms) = match poll_fn(|cx| self.poll_next_request(cx, stopped.as_mut())).await {
                NextRequest::Request(request, terms) => match self.handled(serve.handle(request), terms.last).await {
                    Some(response) => (response, terms),
                    None => return End::Gone,
                },
                NextRequest::Refused(violation) => (serve.refuse(violation), REFUSED),
                NextRequest::Nothing => return self.end(End::Last).unwrap_or(End::Gone),
                NextRequest::Gone => return End::Gone,
            };
            // Who went on before it was answered is not to be understood.
            let clean = self.shared.lock().inbox.bytes.is_empty();
            let Ok(more) = self.answer(response, terms, stop).await else { return End::Gone };
            if self.activity.is_switched() {
                let upgrade = self.activity.take_upgrade().filter(|_| clean);
                let how = |stream| match upgrade {
                    Some(upgrade) => End::Switched(upgrade, stream),
                    None => End::Last(stream),
                };
                return self.end(how).unwrap_or(End::Gone);
            }
            if !more {
                return self.end(End::Last).unwrap_or(End::Gone);
            }
        }
    }

    /// Takes the stream out. A reader of the body then gets its end.
    fn end(&self, how: impl FnOnce(Stream) -> End) -> Option<End> {
        let mut inner = self.shared.lock();
        inner.finish();
        inner.stream.take().map(how)
    }

    /// The next request, once its head is whole.
    fn poll_next_request(
        &mut self,
        cx: &mut Context<'_>,
        stopped: Pin<&mut WaitForCancellationFuture<'_>>,
    ) -> Poll<NextRequest> {
        let shared = self.shared.clone();
        let mut inner = shared.lock();
        loop {
            if !self.skipped && inner.inbox.bytes.starts_with(b"\r\n") {
                inner.inbox.bytes.advance(2);
                (self.skipped, self.scanned) = (true, 0);
            }
            if inner.inbox.bytes.len() > self.scanned {
                match head::read(&inner.inbox.bytes, self.scanned, &self.limits, &mut self.parts) {
                    Ok(Head::Whole { len, framing }) => {
                        (self.skipped, self.scanned) = (false, 0);
                        self.waiting.head_done();
                        let begun = self.begin(&mut inner, len, framing);
                        return Poll::Ready(begun.unwrap_or_else(NextRequest::Refused));
                    }
                    Ok(Head::Partial { scanned }) => {
                        if self.scanned == 0 {
                            self.waiting.head_began();
                        }
                        self.scanned = scanned;
                    }
                    Err(violation) => return Poll::Ready(NextRequest::Refused(violation)),
                }
            }
            match inner.poll_fill(cx) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(NextRequest::Gone), // a head that it left unfinished is nobody's
                Poll::Pending => break,
            }
        }
        let in_head = self.scanned > 0;
        if self.waiting.poll(cx, &self.activity, in_head).is_ready() {
            return Poll::Ready(if in_head {
                NextRequest::Refused(Violation::HeadTimeout)
            } else {
                NextRequest::Nothing
            });
        }
        if !in_head && stopped.poll(cx).is_ready() { Poll::Ready(NextRequest::Nothing) } else { Poll::Pending }
    }

    /// Takes a head of `len` bytes, and what came along of its body.
    fn begin(&self, inner: &mut Inner, len: usize, framing: head::Framing) -> Result<NextRequest, Violation> {
        let input = &mut inner.inbox.bytes;
        let (request, terms) = request::parse(&input.split_to(len).freeze(), &self.parts)?;
        let body = match (framing, body::Body::behind(framing)) {
            (head::Framing::Length(n), _) if n <= input.len() as u64 => {
                let n = usize::try_from(n).unwrap_or(usize::MAX).min(input.len());
                Incoming::here(input.split_to(n).freeze())
            }
            (_, Some(body)) => {
                body.check(input)?; // refused whole: the upstream never hears of it
                let invited = terms.invited && input.is_empty();
                Incoming::coming(self.shared.begin(inner, body, invited))
            }
            (_, None) => Incoming::empty(),
        };
        Ok(NextRequest::Request(request.map(|()| body), terms))
    }

    /// The answer, unless the agent goes first. After its `last` request it may end its side.
    async fn handled<F: Future<Output = Response<B>> + Unpin, B>(
        &self,
        mut handling: F,
        last: bool,
    ) -> Option<Response<B>> {
        poll_fn(|cx| {
            if let Poll::Ready(response) = Pin::new(&mut handling).poll(cx) {
                return Poll::Ready(Some(response));
            }
            self.shared.lock().poll_gone(cx, last).map(|()| None)
        })
        .await
    }

    /// Sends an answer. `true`: another request may follow.
    async fn answer<B: Body<Data = Bytes> + AbortableBody + Unpin>(
        &mut self,
        response: Response<B>,
        terms: ResponseTerms,
        stop: &CancellationToken,
    ) -> Result<bool, Broken> {
        let (parts, body) = response.into_parts();
        let left = {
            let mut inner = self.shared.lock();
            self.outbox.head.extend_from_slice(inner.take_invitation());
            inner.is_left()
        };
        let last = terms.last || left || stop.is_cancelled();
        let (framing, last) = response::write(&mut self.outbox.head, &parts, body.size_hint().exact(), terms, last);
        let to_end = matches!(framing, Framing::ToEnd);
        let mut sending = match framing {
            Framing::Empty | Framing::Length(0) => Sending::Nothing,
            Framing::Length(n) => Sending::Length(body, n),
            Framing::Chunked => Sending::Chunked(body, false),
            Framing::ToEnd => Sending::ToEnd(body),
        };
        if poll_fn(|cx| self.poll_answer(cx, &mut sending, terms.last)).await.is_err() {
            // An answer that goes to the connection's end would pass for the whole; and what an
            // agent may not have any more is not to reach it from the kernel's buffers either.
            let reset = to_end || sending.body().is_some_and(is_severed);
            if reset && let Some(stream) = &self.shared.lock().stream {
                stream.reset();
            }
            // An answer that broke off misses its last chunk, or some of its length. The agent gets
            // the rest of it in any case.
            return if sending.is_broken() && !reset { Ok(false) } else { Err(Broken) };
        }
        if self.outbox.head.capacity() > KEPT_BYTES {
            self.outbox = Outbox::default();
        }
        Ok(self.shared.lock().finish() && !last)
    }

    fn poll_answer<B: Body<Data = Bytes> + AbortableBody + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        sending: &mut Sending<B>,
        may_end: bool,
    ) -> Poll<Result<(), Broken>> {
        loop {
            // Not under the lock: an answer's body may drive the request's.
            let waits = match sending.fill(&mut self.outbox, cx) {
                Ok(waits) => waits,
                Err(Broke) if sending.body().is_some_and(is_severed) => return Poll::Ready(Err(Broken)),
                Err(Broke) => false, // what came before the break goes out
            };
            let mut inner = self.shared.lock();
            let Some(stream) = &mut inner.stream else { return Poll::Ready(Err(Broken)) };
            let mut stream = Pin::new(stream);
            let wrote = if self.outbox.is_empty() {
                match stream.as_mut().poll_flush(cx) {
                    Poll::Ready(Ok(())) if waits => {
                        return inner.poll_gone(cx, may_end).map(|()| Err(Broken));
                    }
                    Poll::Ready(Ok(())) if sending.is_broken() => return Poll::Ready(Err(Broken)),
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                    wrote => wrote,
                }
            } else {
                self.outbox.poll_write(stream, cx)
            };
            match wrote {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken)),
                Poll::Pending => {
                    drop(inner);
                    let severed = sending.body().map(|body| body.poll_aborted(cx));
                    return if severed.is_some_and(|s| s.is_ready()) {
                        Poll::Ready(Err(Broken))
                    } else {
                        Poll::Pending
                    };
                }
            }
        }
    }
}

/// Whether an answer's body has ended because the right to it has.
fn is_severed<B: AbortableBody>(body: &mut B) -> bool {
    body.poll_aborted(&mut Context::from_waker(Waker::noop())).is_ready()
}

impl Drop for H1 {
    /// A body that another task reads doesn't keep the connection.
    fn drop(&mut self) {
        self.end(End::Last);
    }
}

#[cfg(test)]
mod tests;
