//! A request's body on its way into a stream.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;

use crate::http::client::{UpstreamError, upload::Upload};

/// Most bytes of a stream that are asked for at a time: another stream of the connection must get
/// some, too.
const MAX_RESERVED: usize = 64 * 1024;

/// Moves a body into a stream, as far as the upstream's window allows.
pub(super) struct Pipe {
    stream: SendStream<Bytes>,
    /// Taken from the body, and not yet sent.
    part: Bytes,
    /// Nothing follows `part`.
    last: bool,
    done: bool,
}

impl Pipe {
    /// `empty`: the request ended with its head.
    pub(super) fn new(stream: SendStream<Bytes>, empty: bool) -> Self {
        Self { stream, part: Bytes::new(), last: false, done: empty }
    }

    /// Whether there is nothing more to send.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Sends what can be sent. Ready: all was sent, or the upstream wants no more, which its answer
    /// explains.
    pub(super) fn poll(&mut self, body: &mut Upload, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        while !self.done {
            if self.stream.poll_reset(cx).is_ready() {
                self.done = true;
                break;
            }
            if !self.part.is_empty() {
                ready!(self.poll_part(cx));
                continue;
            }
            if self.last {
                self.done = true;
                break;
            }
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                None => self.send(Bytes::new(), true),
                Some(Ok(frame)) => {
                    self.part = frame.into_data().unwrap_or_default(); // a request's trailers are dropped
                    self.last = body.is_end_stream();
                    if self.part.is_empty() && self.last {
                        self.send(Bytes::new(), true);
                    }
                }
                Some(Err(_)) => {
                    self.stream.send_reset(Reason::CANCEL);
                    self.done = true;
                    return Poll::Ready(Err(UpstreamError::Upload));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends some of `part` once the window is open.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.reserve_capacity(self.part.len().min(MAX_RESERVED));
        while self.stream.capacity() == 0 {
            if !matches!(ready!(self.stream.poll_capacity(cx)), Some(Ok(_))) {
                self.done = true; // the stream has ended
                return Poll::Ready(());
            }
        }
        let part = self.part.split_to(self.stream.capacity().min(self.part.len()));
        let end = self.last && self.part.is_empty();
        self.send(part, end);
        Poll::Ready(())
    }

    fn send(&mut self, part: Bytes, end: bool) {
        // An error is the stream's end, which the answer explains.
        self.done = self.stream.send_data(part, end).is_err() || end;
    }

    /// Sends the rest in a task of its own. It ends with the body, which ends with the exchange.
    pub(super) fn go_on(mut self, mut body: Upload) {
        tokio::spawn(async move {
            let _ = poll_fn(|cx| self.poll(&mut body, cx)).await; // whoever reads the answer sees why
        });
    }
}
