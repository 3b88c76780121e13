//! One request and its answer on one connection.
//!
//! An HTTP/1 connection ([`h1`](super::h1)) is driven by the task that serves the request, not by a
//! task of its own: the head is written and the answer is read without a wake-up in between, and
//! dropping the answer closes the connection at once (a cut, an agent that left, a body that was
//! not read to its end). HTTP/2 connections ([`h2`](super::h2)) carry many requests and have a task
//! each.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::time::timeout;

use super::{
    UpstreamError,
    deadline::Deadline,
    dial::{Stage, Stream},
    gauge::ConnectionGauge,
    h1::H1,
    h2::{H2, H2Body},
    pool::{Acquired, Pool, Ready},
    request::{Request, RequestHead},
    reusable_timer::ReusableTimer,
    upload::Upload,
};

/// A connection that is ready for one request.
pub struct Connection {
    acquired: Acquired,
    pool: Arc<Pool>,
}

/// A request that came to nothing.
pub struct Failure {
    /// Why.
    pub error: UpstreamError,
    /// Set if it may be sent once more: its effect can't be had twice, and its body is still there.
    pub again: Option<Box<Again>>,
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        Self { error, again: None }
    }
}

/// A request as it was, to be sent once more.
pub struct Again {
    /// With its whole body.
    pub request: Request,
    pool: Arc<Pool>,
    /// On a new connection: one that was used before may fail in the same way.
    new: bool,
    h2: bool,
}

impl Again {
    /// A connection for it. `None`: the upstream speaks another version of HTTP on it, for which
    /// the request was not written.
    ///
    /// # Errors
    /// As [`Connection::take`].
    pub async fn connect(&self, limit: Duration) -> Result<Option<Connection>, UpstreamError> {
        let connection = match self.new {
            true => Connection::open(&self.pool, limit).await?,
            false => Connection::take(&self.pool, limit).await?,
        };
        Ok((connection.is_h2() == self.h2).then_some(connection))
    }
}

impl Connection {
    /// A connection for one request: one that is idle, or a new one.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub async fn take(pool: &Arc<Pool>, limit: Duration) -> Result<Self, UpstreamError> {
        if let Some(ready) = poll_fn(|cx| Poll::Ready(pool.take(cx))).await {
            return Ok(Self { acquired: Acquired { ready, fresh: false }, pool: pool.clone() });
        }
        Self::within(limit, pool, async |stage| pool.wait(stage).await).await
    }

    /// A new connection.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub async fn open(pool: &Arc<Pool>, limit: Duration) -> Result<Self, UpstreamError> {
        Self::within(limit, pool, async |stage| pool.open_new(stage).await).await
    }

    /// A new connection in HTTP/1.1, for a request that may switch protocols and so keep the
    /// connection for itself.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub async fn open_to_switch(pool: &Arc<Pool>, limit: Duration) -> Result<Self, UpstreamError> {
        Self::within(limit, pool, async |stage| pool.open_h1(stage).await).await
    }

    async fn within<F>(limit: Duration, pool: &Arc<Pool>, open: F) -> Result<Self, UpstreamError>
    where
        F: AsyncFnOnce(&Stage) -> Result<Acquired, UpstreamError>,
    {
        let stage = Stage::default();
        // Boxed: what a handshake needs is kilobytes, and most requests need none.
        let opened = Box::pin(timeout(limit, open(&stage))).await.unwrap_or_else(|_| Err(stage.timed_out()));
        Ok(Self { acquired: opened?, pool: pool.clone() })
    }

    /// Gives it back unused.
    pub fn give_back(self) {
        if let Ready::H1(h1) = self.acquired.ready
            && h1.is_done()
        {
            self.pool.put(h1);
        }
    }

    /// Whether the request needs an absolute target and no `Host` (HTTP/2), or the reverse.
    #[must_use]
    pub fn is_h2(&self) -> bool {
        matches!(self.acquired.ready, Ready::H2(_))
    }

    /// Sends the request; gives the head of the answer and its body. `first_byte`: how long the
    /// upstream may be silent before it answers.
    ///
    /// # Errors
    /// When the connection fails first. The request comes back where it may be sent again:
    /// - The upstream has not processed it, by its own word (REFUSED_STREAM, GOAWAY), or because
    ///   nothing of it was written.
    /// - The connection had been used before and ended without a byte of an answer, which an
    ///   upstream does to one that was idle for too long; and the method is idempotent (RFC 9112,
    ///   9.3.1).
    pub async fn send(self, request: Request, first_byte: Duration) -> Result<Response<Answer>, Failure> {
        let Self { acquired: Acquired { ready, fresh }, pool } = self;
        match ready {
            // Boxed: what it keeps while it waits is large, and would be carried about by every
            // request over HTTP/1.
            Ready::H2(h2) => Box::pin(send_h2(h2, fresh, request, first_byte, pool)).await,
            Ready::H1(h1) => send_h1(h1, fresh, request, first_byte, pool).await,
        }
    }
}

async fn send_h1(
    mut h1: Box<H1>,
    fresh: bool,
    request: Request,
    first_byte: Duration,
    pool: Arc<Pool>,
) -> Result<Response<Answer>, Failure> {
    let Request { head, mut body } = request;
    if !fresh {
        body.keep_for_resend();
    }
    let repeatable = !fresh && head.is_idempotent();
    let mut deadline = Deadline::begin(std::mem::take(&mut h1.timer), first_byte, body.state());
    h1.begin(&head, body, repeatable);
    match poll_fn(|cx| h1.poll_head(cx, &head.method, &mut deadline)).await {
        Ok(answer) => {
            h1.timer = deadline.into_timer();
            let switched = answer.status == StatusCode::SWITCHING_PROTOCOLS;
            let mut response = Response::new(Answer(Body::H1(h1, pool)));
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            if !switched {
                response.body_mut().release();
            }
            Ok(response)
        }
        Err(error) => {
            let ended = matches!(error, UpstreamError::Closed | UpstreamError::Reset);
            let may_repeat =
                (error.is_unprocessed() && !error.is_lasting()) || (ended && repeatable && h1.has_heard_nothing());
            let request = if may_repeat { h1.into_upload().and_then(|body| rewound(head, body)) } else { None };
            let again = request.map(|request| Box::new(Again { request, pool, new: true, h2: false }));
            Err(Failure { error, again })
        }
    }
}

async fn send_h2(
    h2: H2,
    fresh: bool,
    request: Request,
    first_byte: Duration,
    pool: Arc<Pool>,
) -> Result<Response<Answer>, Failure> {
    let Request { head, mut body } = request;
    body.keep_for_resend();
    let upload = body.state();
    let deadline = || Deadline::begin(ReusableTimer::default(), first_byte, upload);
    match h2.send(&head, &mut body, pool.destination(), deadline).await {
        Ok(response) => Ok(response.map(|body| Answer(Body::H2(Box::new(body))))),
        Err(error) => {
            let refused = error == UpstreamError::StreamRefused;
            // The stream ended with its connection. An answer that had begun would be no failure.
            let ended = matches!(error, UpstreamError::Closed | UpstreamError::Reset);
            let is_safe_to_repeat = refused || (ended && !fresh && head.is_idempotent());
            if !is_safe_to_repeat {
                return Err(error.into());
            }
            let Some(request) = rewound(head, body) else {
                return Err(if refused { UpstreamError::StreamRefusedBodySent } else { error }.into());
            };
            Err(Failure { error, again: Some(Box::new(Again { request, pool, new: !refused, h2: true })) })
        }
    }
}

/// The request as it was, if its body still is.
fn rewound(head: RequestHead, mut body: Upload) -> Option<Request> {
    body.rewind().then_some(Request { head, body })
}

/// A connection whose upstream has agreed to speak another protocol on it.
pub struct Switched {
    /// The connection.
    pub(crate) stream: Stream,
    /// What the upstream has said already.
    pub(crate) ahead: Bytes,
    /// Counts it for as long as it lasts.
    pub(crate) counted: ConnectionGauge,
}

/// An answer's body. Read to its end, it gives its connection back; dropped before, it closes it.
pub struct Answer(Body);

enum Body {
    H1(Box<H1>, Arc<Pool>),
    H2(Box<H2Body>),
    /// Nothing is left of it.
    Released,
}

impl Answer {
    /// The connection itself, behind a `101`. `None`: it is HTTP/2's, or is given back already.
    #[must_use]
    pub fn switch(self) -> Option<Switched> {
        let Body::H1(h1, _) = self.0 else { return None };
        let (stream, ahead, counted) = h1.into_parts();
        Some(Switched { stream, ahead, counted })
    }

    /// Gives the connection back, or closes it, if nothing of the answer is left to read.
    fn release(&mut self) {
        if matches!(&self.0, Body::H1(h1, _) if h1.is_end())
            && let Body::H1(h1, pool) = std::mem::replace(&mut self.0, Body::Released)
            && h1.is_done()
        {
            pool.put(h1);
        }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let this = self.get_mut();
        let frame = match &mut this.0 {
            Body::H1(h1, _) => h1.poll_frame(cx),
            Body::H2(body) => body.poll_frame(cx),
            Body::Released => return Poll::Ready(None),
        };
        match &frame {
            Poll::Ready(Some(Err(_))) => this.0 = Body::Released,
            // The body is not polled after the last counted byte, or after trailers.
            Poll::Ready(_) => this.release(),
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Body::H1(h1, _) => h1.is_end(),
            Body::H2(body) => body.is_end(),
            Body::Released => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Body::H1(h1, _) => h1.size_hint(),
            Body::H2(body) => body.size_hint(),
            Body::Released => SizeHint::with_exact(0),
        }
    }
}
