//! HTTP/1.1 as a client: one exchange after the other on one connection.
//!
//! hyper's client needs a task for each connection and moves every request, response and body
//! through channels ([`http::h1`](crate::http::h1) says why ours does not). It is strict where two
//! readers could disagree: a response with both lengths, a coding other than `chunked`, or an
//! unexpected byte ends the connection.

mod chunked;
#[cfg(test)]
mod fuzz;
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

pub(super) use self::head::{Head, one_number};
use self::{
    chunked::{Chunked, Step},
    head::Framing,
};
use super::{
    UpstreamError,
    deadline::Deadline,
    dial::{Stream, read_fault},
    gauge::ConnectionGauge,
    request::RequestHead,
    reusable_timer::ReusableTimer,
    upload::Upload,
};
use crate::http::h1::{Broke, Inbox, Outbox, Sending};

/// Writes of an upload before the answer is looked at: an upstream that has refused it need not get
/// all of it.
const WRITES_AT_ONCE: u32 = 16;

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
    /// A byte of the present request was written, and one of its answer was read.
    wrote: bool,
    heard: bool,
    /// The present request may have to be sent again.
    keeps_body: bool,
    pub(super) counted: ConnectionGauge,
    pub(super) timer: ReusableTimer,
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
            wrote: false,
            heard: false,
            keeps_body: false,
            counted,
            timer: ReusableTimer::default(),
        }
    }

    /// Whether the exchange is over and left nothing half-sent, half-read or unasked for.
    pub(super) fn is_done(&self) -> bool {
        !self.spent && self.inbox.bytes.is_empty() && self.sending.is_done() && self.is_end() && self.outbox.is_empty()
    }

    /// Whether the next request may go out on it: it [is done](Self::is_done) with the last, and
    /// the upstream has neither closed it nor said anything since (which would be taken for the
    /// answer to the next request).
    pub(super) fn is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        let mut byte = [0];
        // A task that has used up its budget gets `Pending`, even if data is available.
        self.is_done()
            && has_budget_remaining()
            && Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Begins an exchange: [`poll_head`](Self::poll_head) moves it on. `repeatable`: the body is
    /// kept until the answer begins.
    pub(super) fn begin(&mut self, head: &RequestHead, body: Upload, repeatable: bool) {
        self.inbox.rewind();
        (self.wrote, self.heard, self.keeps_body) = (false, false, repeatable);
        // A body where none is expected may be left lying by the upstream, which then takes it for
        // the next request.
        let bodyless = head.is_bodyless();
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        self.spent |= bodyless && length != Some(0);
        let announced = length.filter(|n| *n > 0 || !bodyless);
        head::write(&mut self.outbox.head, head, announced, length.is_none());
        self.sending = match length {
            Some(0) => Sending::Sent(body),
            Some(n) => Sending::Length(body, n),
            None => Sending::Chunked(body, false),
        };
    }

    /// Sends what there is to send, until the head of the answer is there.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
        deadline: &mut Deadline,
    ) -> Poll<Result<Head, UpstreamError>> {
        let _ = self.poll_send(cx)?;
        loop {
            if let Some(head) = head::read(&mut self.inbox.bytes, &mut self.scanned)? {
                if head.is_interim() {
                    deadline.interim()?;
                    continue;
                }
                self.spent |= head.closes;
                self.keeps_body = false;
                self.receiving = match head.framing(method) {
                    Framing::Empty => Receiving::Nothing,
                    Framing::Length(n) => Receiving::Length(n),
                    Framing::Chunked => Receiving::Chunked(Chunked::default()),
                    Framing::ToEnd => Receiving::ToEnd,
                };
                return Poll::Ready(Ok(head));
            }
            match self.inbox.poll_fill(Pin::new(&mut self.stream), cx) {
                Poll::Ready(Ok(1..)) => self.heard = true,
                Poll::Ready(ended) => {
                    let fault = ended.map_or_else(|error| read_fault(&error), |_| UpstreamError::Closed);
                    let told = self.wrote || fault.is_lasting();
                    return Poll::Ready(Err(if told { fault } else { UpstreamError::ClosedUnsent }));
                }
                Poll::Pending => return deadline.poll(cx).map(Err),
            }
        }
    }

    /// Whether no byte of an answer to the present request was read.
    pub(super) fn has_heard_nothing(&self) -> bool {
        !self.heard
    }

    /// The next frame of the answer's body.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
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
            let read = ready!(self.inbox.poll_fill(Pin::new(&mut self.stream), cx)).map_err(|error| read_fault(&error));
            if read? == 0 {
                let to_end = matches!(self.receiving, Receiving::ToEnd);
                self.receiving = Receiving::Nothing;
                self.spent = true;
                return Poll::Ready(if to_end { None } else { Some(Err(UpstreamError::Closed)) });
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

    /// What is left of the present request's body.
    pub(super) fn into_upload(self) -> Option<Upload> {
        self.sending.into_body()
    }

    /// The connection, what was read from it already, and what counts it.
    pub(super) fn into_parts(self) -> (Stream, Bytes, ConnectionGauge) {
        (self.stream, self.inbox.bytes.freeze(), self.counted)
    }

    /// Sends as much as the upstream accepts and the agent provides. Ready: all is sent, or the
    /// upstream accepts no more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        if self.outbox.is_empty() && self.sending.is_done() {
            if !self.keeps_body {
                self.sending.finish();
            }
            return Poll::Ready(Ok(()));
        }
        for _ in 0..WRITES_AT_ONCE {
            let waits = self.sending.fill(&mut self.outbox, cx)?;
            if self.outbox.is_empty() {
                if !self.keeps_body {
                    self.sending.finish();
                }
                match Pin::new(&mut self.stream).poll_flush(cx) {
                    Poll::Ready(Err(_)) => return Poll::Ready(self.give_up_sending()),
                    Poll::Ready(Ok(())) if waits => return Poll::Pending,
                    other => return other.map(|_| Ok(())),
                }
            }
            if ready!(self.outbox.poll_write(Pin::new(&mut self.stream), cx)).is_err() {
                return Poll::Ready(self.give_up_sending());
            }
            self.wrote = true;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// An upstream that accepts no more may have answered already. That answer is read, and nothing
    /// is sent after it.
    fn give_up_sending(&mut self) -> Result<(), UpstreamError> {
        self.outbox.clear();
        self.sending.give_up();
        self.spent = true;
        Ok(())
    }
}

impl From<Broke> for UpstreamError {
    fn from(Broke: Broke) -> Self {
        Self::Upload
    }
}

#[cfg(test)]
mod tests;
