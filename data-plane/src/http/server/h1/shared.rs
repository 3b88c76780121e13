//! The state that a connection shares with the body of its current request: the stream, and the
//! bytes that were read from it.
//!
//! A body may be read by another task (an upload over HTTP/2) and may outlive its request there, so
//! it names its request. The lock is never held across a wait.

use std::{
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http_body::SizeHint;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::AsyncWrite as _;

use super::body::{self, Step};
use crate::http::{h1::Inbox, server::stream::Stream};

/// Asks the agent for the body that it announced.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The body broke off, or its framing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request's body is broken")]
pub struct BrokenBody;

/// The one end of it: the connection's.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Inner>>);

/// See the module.
pub(super) struct Inner {
    /// Absent once the connection is something else's, or nothing.
    pub(super) stream: Option<Stream>,
    pub(super) inbox: Inbox,
    body: Body,
    /// How many trailers came behind the current request's body, and were dropped.
    trailers: u16,
    /// Of the request that `body` is of.
    number: u64,
    /// What is left to write of an invitation to send the body.
    invitation: &'static [u8],
    /// The task that waits for the body.
    reader: Option<Waker>,
}

/// The state of the current request's body.
enum Body {
    /// All of it was read.
    Over,
    /// Some of it is to be read.
    Pending(body::Body),
    /// The rest is not read.
    Abandoned,
    /// It broke off.
    Broken,
}

impl Shared {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            stream: Some(stream),
            inbox: Inbox::new(),
            body: Body::Over,
            trailers: 0,
            number: 0,
            invitation: &[],
            reader: None,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// The body of a request that begins now; `invited`: the agent waits to be asked for it.
    pub(super) fn begin(&self, inner: &mut Inner, body: body::Body, invited: bool) -> PendingBody {
        inner.number += 1;
        inner.trailers = 0;
        (inner.body, inner.invitation) = (Body::Pending(body), if invited { CONTINUE } else { &[] });
        PendingBody { shared: self.clone(), number: inner.number }
    }
}

impl Inner {
    /// Whether all of the body was read.
    pub(super) fn is_read(&self) -> bool {
        matches!(self.body, Body::Over)
    }

    /// Whether the rest of the body will not be read.
    pub(super) fn is_left(&self) -> bool {
        matches!(self.body, Body::Abandoned | Body::Broken)
    }

    /// The answer is about to be written: what was begun of an invitation has to go out first.
    pub(super) fn take_invitation(&mut self) -> &'static [u8] {
        let left = mem::take(&mut self.invitation);
        if left.len() == CONTINUE.len() { &[] } else { left }
    }

    /// The answer is complete. Returns whether the connection is at the start of another request.
    /// The body is not read any more.
    pub(super) fn finish(&mut self) -> bool {
        self.number += 1;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        self.is_read()
    }

    /// Ready when the agent has gone. Not looked for while a body is being read, which would tell,
    /// and behind bytes of another request, of which no more are taken than fit.
    ///
    /// An agent that `may_end` its side has sent its last request: the end of its side says nothing
    /// of the other, on which it waits for the answer (`nc -N`). It has gone when a write fails.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>, may_end: bool) -> Poll<()> {
        if !self.is_read() || !self.inbox.bytes.is_empty() {
            return Poll::Pending;
        }
        match self.poll_read(cx) {
            Poll::Ready(Ok(read)) if read > 0 || may_end => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads once; `false`: nothing more will come.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.poll_read(cx).map(|read| read.is_ok_and(|read| read > 0))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        self.inbox.poll_fill(Pin::new(stream), cx)
    }

    fn poll_invite(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BrokenBody>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Err(BrokenBody)) };
        while !self.invitation.is_empty() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, self.invitation)) {
                Ok(wrote) if wrote > 0 => self.invitation = self.invitation.get(wrote..).unwrap_or_default(),
                _ => return Poll::Ready(Err(BrokenBody)),
            }
        }
        Pin::new(stream).poll_flush(cx).map_err(|_| BrokenBody)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenBody>>> {
        if !self.invitation.is_empty() {
            ready!(self.poll_invite(cx))?;
        }
        loop {
            let step = match &mut self.body {
                Body::Over => return Poll::Ready(None),
                Body::Pending(body) => body.step(&mut self.inbox.bytes),
                Body::Abandoned | Body::Broken => return Poll::Ready(Some(Err(BrokenBody))),
            };
            match step {
                Ok(Step::Data(data, ended)) => {
                    if ended {
                        self.body = Body::Over;
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Ok(Step::End) => {
                    if let Body::Pending(body) = &self.body {
                        self.trailers = body.trailers();
                    }
                    self.body = Body::Over;
                    return Poll::Ready(None);
                }
                Ok(Step::More) if ready!(self.poll_fill(cx)) => {}
                Ok(Step::More) | Err(_) => {
                    self.body = Body::Broken;
                    return Poll::Ready(Some(Err(BrokenBody)));
                }
            }
        }
    }
}

/// The body of one request.
pub(super) struct PendingBody {
    shared: Shared,
    number: u64,
}

impl PendingBody {
    /// The connection, if the request is its present one.
    fn lock(&self) -> Option<MutexGuard<'_, Inner>> {
        Some(self.shared.lock()).filter(|inner| inner.number == self.number)
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenBody>>> {
        let Some(mut inner) = self.lock() else { return Poll::Ready(Some(Err(BrokenBody))) };
        let polled = inner.poll_body(cx);
        inner.reader = polled.is_pending().then(|| cx.waker().clone());
        polled
    }

    pub(super) fn is_end(&self) -> bool {
        self.lock().is_some_and(|inner| inner.is_read())
    }

    /// How many trailers came behind it, once it has ended.
    pub(super) fn trailers(&self) -> u16 {
        self.lock().map_or(0, |inner| inner.trailers)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self.lock().map(|inner| inner.left()) {
            Some(Some(left)) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }
}

impl Inner {
    /// How much of the body is to come, where that is known.
    fn left(&self) -> Option<u64> {
        match &self.body {
            Body::Over => Some(0),
            Body::Pending(body) => body.left(),
            Body::Abandoned | Body::Broken => None,
        }
    }
}

impl Drop for PendingBody {
    fn drop(&mut self) {
        if let Some(mut inner) = self.lock()
            && matches!(inner.body, Body::Pending(_))
        {
            inner.body = Body::Abandoned;
        }
    }
}
