//! HTTP/1.1 as a client: one exchange after the other on one connection.
//!
//! hyper's client needs a task for each connection and moves every request, response and body through channels
//! ([`http::h1`](crate::http::h1) says why ours does not). It is strict where two readers could disagree: a response with both lengths,
//! a coding other than `chunked`, or an unexpected byte ends the connection.

mod chunked;
mod head;

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Method;
use http_body::{Body as _, Frame, SizeHint};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    task::coop::has_budget_remaining,
};

pub(super) use self::head::Head;
use self::{
    chunked::{Chunked, Step},
    head::Framing,
};
use super::{connect::Stream, gauge::ConnectionGauge, patience::Patience, request::Request, upload::Upload};
use crate::http::h1::{Broke, Inbox, Outbox, Sending};

/// Writes of an upload before the answer is looked at: an upstream that has refused it need not get all of it.
const WRITES_AT_ONCE: u32 = 16;
/// Interim answers (1xx) to one request.
const MAX_INTERIM: u32 = 16;

/// Why an exchange came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The upstream has gone before the end.
    #[error("the connection was lost")]
    Connection,
    /// What it said can't be understood, or in two ways.
    #[error("its answer is not HTTP")]
    NotHttp,
    /// The request's body broke off.
    #[error("the request broke off")]
    Upload,
}

/// One connection.
pub(super) struct H1 {
    stream: Stream,
    /// Read, and not yet passed on.
    inbox: Inbox,
    /// Of a head in it.
    scanned: usize,
    outbox: Outbox,
    sending: Sending<Upload>,
    receiving: Receiving,
    /// Nothing may follow on this connection.
    spent: bool,
    pub(super) counted: ConnectionGauge,
    pub(super) patience: Patience,
}

/// What is left to read of an answer.
enum Receiving {
    Nothing,
    Length(u64),
    Chunked(Chunked),
    /// All that comes.
    ToEnd,
}

impl H1 {
    pub(super) fn new(stream: Stream, counted: ConnectionGauge) -> Self {
        Self {
            stream,
            inbox: Inbox::new(),
            scanned: 0,
            outbox: Outbox::default(),
            sending: Sending::Nothing,
            receiving: Receiving::Nothing,
            spent: false,
            counted,
            patience: Patience::default(),
        }
    }

    /// Whether the exchange is over and left nothing half-sent, half-read or unasked for.
    pub(super) fn is_done(&self) -> bool {
        !self.spent && self.inbox.bytes.is_empty() && self.sending.is_done() && self.is_end() && self.outbox.is_empty()
    }

    /// Whether the next request may go out on it: it [is done](Self::is_done) with the last, and the upstream has neither
    /// closed it nor said anything since (which would be taken for the answer to the next request).
    pub(super) fn is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        let mut byte = [0];
        // A task that has used up its budget is told that nothing is there, whatever is.
        self.is_done()
            && has_budget_remaining()
            && Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Begins an exchange: [`poll_head`](Self::poll_head) moves it on.
    pub(super) fn begin(&mut self, request: Request) -> Method {
        self.inbox.rewind();
        let Request { method, target, headers, body } = request;
        // A body where none is expected may be left lying by the upstream, which then takes it for the next request.
        let bodyless = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE);
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        self.spent |= bodyless && length != Some(0);
        let announced = length.filter(|n| *n > 0 || !bodyless);
        head::write(&mut self.outbox.head, (&method, &target, &headers), announced, length.is_none());
        self.sending = match length {
            Some(0) => Sending::Nothing,
            Some(n) => Sending::Length(body, n),
            None => Sending::Chunked(body, false),
        };
        method
    }

    /// Sends what there is to send, until the head of the answer is there.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>, method: &Method) -> Poll<Result<Head, Lost>> {
        let _ = self.poll_send(cx)?;
        let mut interim = 0;
        loop {
            if let Some(head) = head::read(&mut self.inbox.bytes, &mut self.scanned)? {
                if head.is_interim() {
                    interim += 1;
                    if interim > MAX_INTERIM {
                        return Poll::Ready(Err(Lost::NotHttp));
                    }
                    continue;
                }
                self.spent |= head.closes;
                self.receiving = match head.framing(method) {
                    Framing::Empty => Receiving::Nothing,
                    Framing::Length(n) => Receiving::Length(n),
                    Framing::Chunked => Receiving::Chunked(Chunked::default()),
                    Framing::ToEnd => Receiving::ToEnd,
                };
                return Poll::Ready(Ok(head));
            }
            if ready!(self.inbox.poll_fill(Pin::new(&mut self.stream), cx)).map_err(|_| Lost::Connection)? == 0 {
                return Poll::Ready(Err(Lost::Connection));
            }
        }
    }

    /// The next frame of the answer's body.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Lost>>> {
        let _ = self.poll_send(cx)?;
        loop {
            match &mut self.receiving {
                Receiving::Nothing => return Poll::Ready(None),
                Receiving::Length(left) if !self.inbox.bytes.is_empty() => {
                    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(self.inbox.bytes.len());
                    *left -= now as u64;
                    if *left == 0 {
                        self.receiving = Receiving::Nothing;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(self.inbox.bytes.split_to(now).freeze()))));
                }
                Receiving::ToEnd if !self.inbox.bytes.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::data(self.inbox.bytes.split().freeze()))));
                }
                Receiving::Chunked(chunked) => match chunked.step(&mut self.inbox.bytes)? {
                    Step::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Step::End(trailers) => {
                        self.receiving = Receiving::Nothing;
                        return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
                    }
                    Step::More => {}
                },
                Receiving::Length(_) | Receiving::ToEnd => {}
            }
            if ready!(self.inbox.poll_fill(Pin::new(&mut self.stream), cx)).map_err(|_| Lost::Connection)? == 0 {
                let to_end = matches!(self.receiving, Receiving::ToEnd);
                self.receiving = Receiving::Nothing;
                self.spent = true;
                return Poll::Ready(if to_end { None } else { Some(Err(Lost::Connection)) });
            }
        }
    }

    /// Whether nothing of the answer's body is left.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.receiving, Receiving::Nothing)
    }

    /// How much of the answer's body is left.
    pub(super) fn size_hint(&self) -> SizeHint {
        match self.receiving {
            Receiving::Nothing => SizeHint::with_exact(0),
            Receiving::Length(left) => SizeHint::with_exact(left),
            Receiving::Chunked(_) | Receiving::ToEnd => SizeHint::default(),
        }
    }

    /// The connection, what was read from it already, and what counts it.
    pub(super) fn into_parts(self) -> (Stream, Bytes, ConnectionGauge) {
        (self.stream, self.inbox.bytes.freeze(), self.counted)
    }

    /// Sends as much as the upstream takes and the agent gives. Ready: all is sent, or the upstream takes no more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        if self.outbox.is_empty() && self.sending.is_done() {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..WRITES_AT_ONCE {
            let waits = self.sending.fill(&mut self.outbox, cx)?;
            if self.outbox.is_empty() {
                self.sending.finish();
                match Pin::new(&mut self.stream).poll_flush(cx) {
                    Poll::Ready(Err(_)) => return Poll::Ready(self.give_up_sending()),
                    Poll::Ready(Ok(())) if waits => return Poll::Pending,
                    other => return other.map(|_| Ok(())),
                }
            }
            if ready!(self.outbox.poll_write(Pin::new(&mut self.stream), cx)).is_err() {
                return Poll::Ready(self.give_up_sending());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// An upstream that takes no more may have answered already: that is read, and nothing follows.
    fn give_up_sending(&mut self) -> Result<(), Lost> {
        self.outbox.clear();
        (self.sending, self.spent) = (Sending::Nothing, true);
        Ok(())
    }
}

impl From<Broke> for Lost {
    fn from(Broke: Broke) -> Self {
        Self::Upload
    }
}

#[cfg(test)]
mod tests;
