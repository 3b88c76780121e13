//! HTTP/1.1 as a client speaks it: one request and its answer after the other on one connection.
//!
//! Our own, on the hot path: hyper's client is made for a connection that has a task to itself, and moves every request, answer
//! and body through channels to and from it. Here whoever holds the connection drives it; a small request goes out in one
//! write, and an answer is parsed and passed on where it was read. What it costs beside hyper's is in benches/README.md.
//!
//! Strict where two readers could disagree: an answer with both lengths, another coding than `chunked` alone, or a byte
//! that nobody asked for ends the connection.

mod chunked;
mod head;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::Method;
use http_body::{Body as _, Frame, SizeHint};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    task::coop::has_budget_remaining,
};
use tokio_util::io::poll_read_buf;

pub(super) use self::head::Head;
use self::{
    chunked::{Chunked, Step},
    head::Framing,
};
use super::{connect::Stream, patience::Patience, pool::Counted, request::Request, upload::Upload};

/// Reads begin with this much room, and get more where it was used up.
const READ_BYTES: usize = 8 * 1024;
const MAX_READ_BYTES: usize = 64 * 1024;
/// Parts of a body up to this size are copied behind the head and go out with it, larger ones where they are.
const COPY_BYTES: usize = 4 * 1024;
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
    input: BytesMut,
    /// Of a head in it.
    scanned: usize,
    /// To be written; this much of it was.
    output: Vec<u8>,
    written: usize,
    /// Of the request's body, to be written behind `output`.
    part: Bytes,
    sending: Sending,
    receiving: Receiving,
    /// Nothing may follow on this connection.
    spent: bool,
    read_bytes: usize,
    pub(super) counted: Counted,
    pub(super) patience: Patience,
}

/// What is left to send of a request.
enum Sending {
    Nothing,
    /// This many bytes.
    Length(Upload, u64),
    /// Unknown how many; whether a chunk's line end has yet to follow.
    Chunked(Upload, bool),
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
    pub(super) fn new(stream: Stream, counted: Counted) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            scanned: 0,
            output: Vec::new(),
            written: 0,
            part: Bytes::new(),
            sending: Sending::Nothing,
            receiving: Receiving::Nothing,
            spent: false,
            read_bytes: READ_BYTES,
            counted,
            patience: Patience::default(),
        }
    }

    /// Whether the exchange is over and left nothing half-sent, half-read or unasked for.
    pub(super) fn is_done(&self) -> bool {
        !self.spent
            && self.input.is_empty()
            && matches!((&self.sending, &self.receiving), (Sending::Nothing, Receiving::Nothing))
            && self.is_written()
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
        let Request { method, target, headers, body } = request;
        // A body where none is expected may be left lying by the upstream, which then takes it for the next request.
        let bodyless = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE);
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        self.spent |= bodyless && length != Some(0);
        let announced = length.filter(|n| *n > 0 || !bodyless);
        head::write(&mut self.output, (&method, &target, &headers), announced, length.is_none());
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
            if let Some(head) = head::read(&mut self.input, &mut self.scanned)? {
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
            if ready!(self.poll_fill(cx)).map_err(|_| Lost::Connection)? == 0 {
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
                Receiving::Length(left) if !self.input.is_empty() => {
                    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(self.input.len());
                    *left -= now as u64;
                    if *left == 0 {
                        self.receiving = Receiving::Nothing;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(self.input.split_to(now).freeze()))));
                }
                Receiving::ToEnd if !self.input.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::data(self.input.split().freeze()))));
                }
                Receiving::Chunked(chunked) => match chunked.step(&mut self.input)? {
                    Step::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Step::End(trailers) => {
                        self.receiving = Receiving::Nothing;
                        return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
                    }
                    Step::More => {}
                },
                Receiving::Length(_) | Receiving::ToEnd => {}
            }
            if ready!(self.poll_fill(cx)).map_err(|_| Lost::Connection)? == 0 {
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
    pub(super) fn into_parts(self) -> (Stream, Bytes, Counted) {
        (self.stream, self.input.freeze(), self.counted)
    }

    fn is_written(&self) -> bool {
        self.output.is_empty() && self.part.is_empty()
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < self.read_bytes / 2 {
            self.input.reserve(self.read_bytes);
        }
        let read = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input))?;
        let room = self.read_bytes;
        self.read_bytes =
            if read >= room { (room * 2).min(MAX_READ_BYTES) } else { (room / 2).clamp(READ_BYTES, room) };
        Poll::Ready(Ok(read))
    }

    /// Sends as much as the upstream takes and the agent gives. Ready: all is sent, or the upstream takes no more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        if self.is_written() && matches!(self.sending, Sending::Nothing) {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..WRITES_AT_ONCE {
            let waits = self.fill_output(cx)?;
            if self.is_written() {
                match Pin::new(&mut self.stream).poll_flush(cx) {
                    Poll::Ready(Err(_)) => return Poll::Ready(self.give_up_sending()),
                    Poll::Ready(Ok(())) if waits => return Poll::Pending,
                    other => return other.map(|_| Ok(())),
                }
            }
            if ready!(self.poll_write(cx)).is_err() {
                return Poll::Ready(self.give_up_sending());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// An upstream that takes no more may have answered already: that is read, and nothing follows.
    fn give_up_sending(&mut self) -> Result<(), Lost> {
        self.output.clear();
        (self.written, self.part, self.sending, self.spent) = (0, Bytes::new(), Sending::Nothing, true);
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let head = self.output.get(self.written..).unwrap_or_default();
        let stream = Pin::new(&mut self.stream);
        let mut wrote = ready!(match (head.is_empty(), self.part.is_empty()) {
            (false, false) if stream.is_write_vectored() => {
                stream.poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(&self.part)])
            }
            (true, _) => stream.poll_write(cx, &self.part),
            _ => stream.poll_write(cx, head),
        })?;
        if wrote == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let of_head = wrote.min(head.len());
        self.written += of_head;
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        }
        wrote -= of_head;
        self.part.advance(wrote);
        Poll::Ready(Ok(()))
    }

    /// Takes of the body what fits behind what is to be written. `true`: the agent has more to send, and hasn't sent it.
    fn fill_output(&mut self, cx: &mut Context<'_>) -> Result<bool, Lost> {
        while self.part.is_empty() && self.output.len() < COPY_BYTES {
            if let Sending::Chunked(_, open) = &mut self.sending
                && std::mem::take(open)
            {
                self.output.extend_from_slice(b"\r\n");
            }
            let (Sending::Length(body, _) | Sending::Chunked(body, _)) = &mut self.sending else { break };
            let data = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => return Ok(true),
                Poll::Ready(None) => Bytes::new(),
                Poll::Ready(Some(frame)) => match frame.map_err(|_| Lost::Upload)?.into_data() {
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) => data,
                    Err(_) => continue, // trailers
                },
            };
            let ended = data.is_empty() || body.is_end_stream();
            self.put(data, ended)?;
        }
        Ok(false)
    }

    /// Puts a part of the body behind what is to be written; empty: there was nothing more.
    fn put(&mut self, data: Bytes, ended: bool) -> Result<(), Lost> {
        match &mut self.sending {
            // Fewer or more than announced would shift every request behind it.
            Sending::Length(_, left) => match left.checked_sub(data.len() as u64) {
                Some(rest) if rest == 0 || !ended => *left = rest,
                _ => return Err(Lost::Upload),
            },
            Sending::Chunked(_, open) if !data.is_empty() => {
                chunked::write_size(&mut self.output, data.len());
                *open = true;
            }
            Sending::Chunked(..) | Sending::Nothing => {}
        }
        if data.len() > COPY_BYTES {
            self.part = data;
        } else {
            self.output.extend_from_slice(&data);
        }
        if let Sending::Chunked(_, open) = &mut self.sending {
            if !self.part.is_empty() {
                return Ok(()); // its line end follows it, and the last chunk that
            }
            // At once: there are servers that look at a chunk when it is whole.
            if std::mem::take(open) {
                self.output.extend_from_slice(b"\r\n");
            }
            if ended {
                chunked::write_end(&mut self.output);
            }
        }
        if ended {
            self.sending = Sending::Nothing;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
