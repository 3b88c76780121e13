//! One request and its answer on one connection.
//!
//! An HTTP/1 connection is driven by the task that serves the request, not by a task of its own: the head is written and the
//! answer is read without a wake-up in between, and dropping the answer closes the connection at once (a cut, an agent that
//! left, a body that was not read to its end). HTTP/2 connections carry many requests and have a task each.

use std::{
    any::Any,
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    UpstreamError,
    connect::Stream,
    pool::{Counted, Pool},
    upload::{Upload, UploadState},
};

/// An HTTP/1 connection and who drives it: whoever holds this.
pub(super) struct H1 {
    sender: http1::SendRequest<Upload>,
    driver: http1::Connection<TokioIo<Stream>, Upload>,
    open: bool,
    pub(super) counted: Counted,
    patience: Patience,
}

/// How long an answer may take to begin. One timer a connection, moved only when it goes off: a request costs none.
#[derive(Default)]
pub struct Patience {
    timer: Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
}

impl Patience {
    /// Counts from now.
    pub fn begin(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        self.deadline = Some(deadline);
        if let Some(timer) = &mut self.timer
            && deadline < timer.deadline()
        {
            timer.as_mut().reset(deadline);
        }
    }

    /// Ready once the time that was given is over.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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

/// A connection that is ready for one request.
pub struct Connection {
    kind: Kind,
    pool: Arc<Pool>,
}

enum Kind {
    H1(Box<H1>),
    H2(http2::SendRequest<Upload>),
}

impl H1 {
    pub(super) fn new(
        sender: http1::SendRequest<Upload>,
        driver: http1::Connection<TokioIo<Stream>, Upload>,
        counted: Counted,
    ) -> Self {
        Self { sender, driver, open: true, counted, patience: Patience::default() }
    }

    /// Moves bytes. A connection that has ended is never polled again.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if self.open && Pin::new(&mut self.driver).poll(cx).is_ready() {
            self.open = false;
        }
    }

    /// Whether the next request may go out on it: nothing is half-sent or half-read, and the upstream has neither closed it
    /// nor said anything unasked (which would be taken for the answer to the next request).
    pub(super) fn is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.open && self.sender.is_ready()
    }
}

impl Connection {
    pub(super) fn h1(h1: Box<H1>, pool: Arc<Pool>) -> Self {
        Self { kind: Kind::H1(h1), pool }
    }

    pub(super) fn h2(sender: http2::SendRequest<Upload>, pool: Arc<Pool>) -> Self {
        Self { kind: Kind::H2(sender), pool }
    }

    /// Whether the request needs an absolute target and no `Host` (HTTP/2), or the reverse.
    #[must_use]
    pub fn is_h2(&self) -> bool {
        matches!(self.kind, Kind::H2(_))
    }

    /// What the caller keeps for this service and version of a credential beside the pool's connections: made once, dropped
    /// with the pool, so that nothing made from a credential outlives it.
    pub fn beside<T: Any + Send + Sync>(&self, make: impl FnOnce() -> Option<T>) -> Option<Arc<T>> {
        self.pool.beside(make)
    }

    /// The connection's timer, for whoever waits for the answer; it goes back with [`Answer::keep`].
    pub fn patience(&mut self) -> Patience {
        match &mut self.kind {
            Kind::H1(h1) => std::mem::take(&mut h1.patience),
            Kind::H2(_) => Patience::default(),
        }
    }

    /// Sends the request; gives the head of the answer and its body.
    ///
    /// # Errors
    /// [`UpstreamError::Unreachable`] when the connection fails first. The request is not sent again: there is no telling
    /// what the upstream has done with it.
    pub async fn send(
        self,
        request: Request<Upload>,
        upload: Option<&UploadState>,
    ) -> Result<Response<Answer>, UpstreamError> {
        // A body where none is expected may be left lying by the upstream, which then takes it for the next request.
        let bodyless = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE);
        let mut reusable = request.body().is_end_stream() || !bodyless;
        match self.kind {
            Kind::H2(mut sender) => {
                let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
                Ok(response.map(|body| Answer { body, carrier: None }))
            }
            Kind::H1(mut h1) => {
                let mut answer = pin!(h1.sender.send_request(request));
                // `answer` borrows nothing: the request is in the connection's queue by now.
                let response = poll_fn(|cx| {
                    if h1.open && Pin::new(&mut h1.driver).poll(cx).is_ready() {
                        h1.open = false;
                    }
                    answer.as_mut().poll(cx)
                })
                .await
                .map_err(|e| failed(&e))?;
                // An answer before the end of the upload: the rest of the body would be read as a request.
                reusable &= upload.is_none_or(UploadState::is_done);
                let carrier = Carrier { h1, pool: reusable.then_some(self.pool) };
                let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                let mut answer = response.map(|body| Answer { body, carrier: Some(carrier) });
                if answer.body().is_end_stream() && !switched {
                    answer.body_mut().release(&mut Context::from_waker(Waker::noop()));
                }
                Ok(answer)
            }
        }
    }
}

fn failed(error: &hyper::Error) -> UpstreamError {
    if error.is_parse() || error.is_parse_status() {
        UpstreamError::Unreachable("its answer is not HTTP")
    } else {
        UpstreamError::Unreachable("the connection was lost")
    }
}

/// A connection whose upstream has agreed to speak another protocol on it.
pub struct Switched {
    /// The connection.
    pub(crate) stream: Stream,
    /// What the upstream has said already.
    pub(crate) ahead: Bytes,
    /// Counts it for as long as it lasts.
    pub(crate) counted: Counted,
}

/// An answer's body. Read to its end, it gives its connection back; dropped before, it closes it.
pub struct Answer {
    body: Incoming,
    carrier: Option<Carrier>,
}

struct Carrier {
    h1: Box<H1>,
    pool: Option<Arc<Pool>>,
}

impl Answer {
    /// Keeps the timer for the connection's next request.
    pub fn keep(&mut self, patience: Patience) {
        if let Some(carrier) = &mut self.carrier {
            carrier.h1.patience = patience;
        }
    }

    /// The connection itself, behind a `101`. `None`: it is HTTP/2's, or is given back already.
    pub async fn switch(mut self) -> Option<Switched> {
        let Carrier { mut h1, .. } = self.carrier.take()?;
        // hyper ends its own part once it has read the head of a 101.
        poll_fn(|cx| {
            h1.drive(cx);
            if h1.open { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        let H1 { driver, counted, .. } = *h1;
        let parts = driver.into_parts();
        Some(Switched { stream: parts.io.into_inner(), ahead: parts.read_buf, counted })
    }

    /// Nothing of the answer is left to read: gives the connection back, if it is as idle as that.
    fn release(&mut self, cx: &mut Context<'_>) {
        if let Some(Carrier { mut h1, pool: Some(pool) }) = self.carrier.take()
            && h1.is_idle(cx)
        {
            pool.put(h1);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let mut frame = Pin::new(&mut this.body).poll_frame(cx);
        if frame.is_pending()
            && let Some(carrier) = &mut this.carrier
        {
            // The first poll asked for a frame, this reads it.
            carrier.h1.drive(cx);
            frame = Pin::new(&mut this.body).poll_frame(cx);
        }
        match &frame {
            Poll::Ready(None) => this.release(cx),
            // Nobody asks for what comes after the last counted byte, or after trailers.
            Poll::Ready(Some(Ok(f))) if f.is_trailers() || this.body.is_end_stream() => this.release(cx),
            Poll::Ready(Some(Err(_))) => this.carrier = None,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
