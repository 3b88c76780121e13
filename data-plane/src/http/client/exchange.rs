//! One request and its answer on one connection.
//!
//! An HTTP/1 connection ([`h1`](super::h1)) is driven by the task that serves the request, not by a task of its own: the head is
//! written and the answer is read without a wake-up in between, and dropping the answer closes the connection at once (a cut, an
//! agent that left, a body that was not read to its end). HTTP/2 connections carry many requests and have a task each.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http2};
use tokio::time::timeout;

use super::{
    UpstreamError,
    connect::Stream,
    gauge::ConnectionGauge,
    h1::{H1, Lost},
    patience::Patience,
    pool::{Pool, Ready, StreamSlot},
    request::Request,
    upload::Upload,
};

/// A connection that is ready for one request.
pub struct Connection {
    ready: Ready,
    pool: Arc<Pool>,
}

impl Connection {
    /// A connection for one request: one that is idle, or a new one.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub async fn take(pool: &Arc<Pool>, limit: Duration) -> Result<Self, UpstreamError> {
        if let Some(ready) = poll_fn(|cx| Poll::Ready(pool.take(cx))).await {
            return Ok(Self { ready, pool: pool.clone() });
        }
        // Boxed: what a handshake needs is kilobytes, and most requests need none.
        let opened = Box::pin(timeout(limit, pool.open())).await.unwrap_or(Err(UpstreamError::Timeout));
        Ok(Self { ready: opened?, pool: pool.clone() })
    }

    /// A new connection in HTTP/1.1, for a request that may switch protocols and so keep the connection for itself.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub async fn open_to_switch(pool: &Arc<Pool>, limit: Duration) -> Result<Self, UpstreamError> {
        let opened = Box::pin(timeout(limit, pool.open_h1())).await.unwrap_or(Err(UpstreamError::Timeout));
        Ok(Self { ready: opened?, pool: pool.clone() })
    }

    /// Gives it back unused.
    pub fn give_back(self) {
        if let Ready::H1(h1) = self.ready
            && h1.is_done()
        {
            self.pool.put(h1);
        }
    }

    /// Whether the request needs an absolute target and no `Host` (HTTP/2), or the reverse.
    #[must_use]
    pub fn is_h2(&self) -> bool {
        matches!(self.ready, Ready::H2(..))
    }

    /// The connection's timer, for whoever waits for the answer; it goes back with [`Answer::keep`].
    pub fn patience(&mut self) -> Patience {
        match &mut self.ready {
            Ready::H1(h1) => std::mem::take(&mut h1.patience),
            Ready::H2(..) => Patience::default(),
        }
    }

    /// Sends the request; gives the head of the answer and its body.
    ///
    /// # Errors
    /// [`UpstreamError::Unreachable`] when the connection fails first. The request is not sent again: there is no telling
    /// what the upstream has done with it.
    pub async fn send(self, request: Request) -> Result<Response<Answer>, UpstreamError> {
        match self.ready {
            // Boxed: what it keeps while it waits is large, and would be carried about by every request over HTTP/1.
            Ready::H2(sender, slot) => Box::pin(send_h2(sender, slot, request, self.pool)).await,
            Ready::H1(mut h1) => {
                let method = h1.begin(request);
                let head = poll_fn(|cx| h1.poll_head(cx, &method)).await?;
                let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
                let mut response = Response::new(Answer(Body::H1(h1, self.pool)));
                *response.status_mut() = head.status;
                *response.headers_mut() = head.headers;
                if !switched {
                    response.body_mut().release();
                }
                Ok(response)
            }
        }
    }
}

async fn send_h2(
    mut sender: http2::SendRequest<Upload>,
    slot: StreamSlot,
    request: Request,
    pool: Arc<Pool>,
) -> Result<Response<Answer>, UpstreamError> {
    let request =
        request.into_h2(pool.destination().scheme(), pool.destination().authority.clone()).ok_or(Lost::Upload)?;
    let response = sender.send_request(request).await.map_err(|_| Lost::Connection)?;
    let (parts, body) = response.into_parts();
    // Over HTTP/1 such a head is refused where it is read.
    if parts.headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Lost::NotHttp.into());
    }
    Ok(Response::from_parts(parts, Answer(Body::H2(body, slot))))
}

impl From<Lost> for UpstreamError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::NotHttp => Self::Unreachable("its answer is not HTTP"),
            Lost::Connection | Lost::Upload => Self::Unreachable("the connection was lost"),
        }
    }
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
    H2(Incoming, #[expect(dead_code, reason = "held until the answer ends")] StreamSlot),
    /// Nothing is left of it.
    Released,
}

impl Answer {
    /// Keeps the timer for the connection's next request.
    pub fn keep(&mut self, patience: Patience) {
        if let Body::H1(h1, _) = &mut self.0 {
            h1.patience = patience;
        }
    }

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
    type Error = Lost;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Lost>>> {
        let this = self.get_mut();
        let frame = match &mut this.0 {
            Body::H1(h1, _) => h1.poll_frame(cx),
            Body::H2(body, _) => Pin::new(body).poll_frame(cx).map_err(|_| Lost::Connection),
            Body::Released => return Poll::Ready(None),
        };
        match &frame {
            Poll::Ready(Some(Err(_))) => this.0 = Body::Released,
            // Nobody asks for what comes after the last counted byte, or after trailers.
            Poll::Ready(_) => this.release(),
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Body::H1(h1, _) => h1.is_end(),
            Body::H2(body, _) => body.is_end_stream(),
            Body::Released => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Body::H1(h1, _) => h1.size_hint(),
            Body::H2(body, _) => body.size_hint(),
            Body::Released => SizeHint::with_exact(0),
        }
    }
}
