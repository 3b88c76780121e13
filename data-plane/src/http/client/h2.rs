//! HTTP/2 as a client: one request on one stream of a connection that others use too.
//!
//! The task that serves a request sends its body and reads its answer. A task of its own drives the
//! connection ([`connection`]). A body that is not sent when the answer begins is sent by another
//! task, because either end may wait for the other (gRPC).

mod connection;
mod pipe;

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, client::ResponseFuture, client::SendRequest};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::timeout;

pub(super) use self::connection::{Connections, StreamSlot, shake_hands};
use self::pipe::Pipe;
use super::{UpstreamError, deadline::Deadline, destination::Destination, request::RequestHead, upload::Upload};

/// How long a stream waits to be opened, where the upstream has lowered its limit after the stream
/// was taken.
const OPENING: Duration = Duration::from_secs(10);

/// A stream that a request may use.
pub(super) struct H2 {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) slot: StreamSlot,
}

/// The body of an answer on a stream.
pub(super) struct H2Body {
    stream: RecvStream,
    /// Bytes to come, where the head says.
    left: Option<u64>,
    data_ended: bool,
    _slot: StreamSlot,
}

impl H2 {
    /// Sends a request; gives the head of the answer and its body.
    /// When this fails, `body` is what is left of it.
    pub(super) async fn send(
        mut self,
        head: &RequestHead,
        body: &mut Upload,
        to: &Destination,
        deadline: impl FnOnce() -> Deadline,
    ) -> Result<Response<H2Body>, UpstreamError> {
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        let announced = length.filter(|n| *n > 0 || !head.is_bodyless());
        let request = head.to_h2(to.scheme(), to.authority.clone(), announced).ok_or(UpstreamError::Upload)?;
        let (answer, stream) = self.sender.send_request(request, length == Some(0)).map_err(|e| error(&e))?;
        // Waiting for a stream is not the upstream's slowness: its time begins after it.
        let opened = timeout(OPENING, poll_fn(|cx| self.sender.poll_ready(cx))).await;
        opened.map_err(|_| UpstreamError::StreamTimeout)?.map_err(|e| error(&e))?;
        let pipe = Pipe::new(stream, length == Some(0));
        let mut exchange = Exchange { answer, pipe, deadline: deadline() };
        let response = poll_fn(|cx| exchange.poll(body, cx)).await?;
        let Exchange { pipe, .. } = exchange;
        if !pipe.is_done() {
            body.forget_kept();
            pipe.go_on(std::mem::replace(body, Upload::Empty));
        }
        let (mut parts, stream) = response.into_parts();
        let left = one_length(&mut parts.headers)?;
        Ok(Response::from_parts(parts, H2Body { stream, left, data_ended: false, _slot: self.slot }))
    }
}

/// A request that is sent and whose answer has not begun.
struct Exchange {
    answer: ResponseFuture,
    pipe: Pipe,
    deadline: Deadline,
}

impl Exchange {
    fn poll(&mut self, body: &mut Upload, cx: &mut Context<'_>) -> Poll<Result<Response<RecvStream>, UpstreamError>> {
        if let Poll::Ready(Err(error)) = self.pipe.poll(body, cx) {
            return Poll::Ready(Err(error));
        }
        while let Poll::Ready(Some(interim)) = self.answer.poll_informational(cx) {
            interim.map_err(|e| error(&e))?;
            self.deadline.interim()?;
        }
        if let Poll::Ready(answer) = Pin::new(&mut self.answer).poll(cx) {
            return Poll::Ready(answer.map_err(|e| error(&e)));
        }
        self.deadline.poll(cx).map(Err)
    }
}

/// The length that a head announces, however often, as long as it is the same (RFC 9110, 8.6).
fn one_length(headers: &mut HeaderMap) -> Result<Option<u64>, UpstreamError> {
    let mut lengths =
        headers.get_all(header::CONTENT_LENGTH).iter().map(|value| super::h1::one_number(value.as_bytes()));
    let Some(first) = lengths.next().transpose()? else { return Ok(None) };
    for other in lengths {
        if other? != first {
            return Err(UpstreamError::ConflictingLengths);
        }
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(first));
    Ok(Some(first))
}

/// What an error of the library says of the upstream.
///
/// A stream that fails with the peer's GOAWAY has a number beyond the last that the peer has
/// processed (RFC 9113, 6.8): the library leaves the others to their end. The same holds for a
/// request that comes after a GOAWAY: nothing of it is sent.
pub(super) fn error(error: &h2::Error) -> UpstreamError {
    if error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)) {
        UpstreamError::StreamRefused
    } else if let Some(io) = error.get_io() {
        super::dial::read_fault(io)
    } else if error.is_remote() {
        UpstreamError::StreamReset
    } else {
        UpstreamError::Http2Protocol
    }
}

impl H2Body {
    /// The next frame of the answer.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The agent's pace is the upstream's: what is handed on may come again. An
                    // error is the stream's end.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // The answer was whole, and the upstream wants no more of the request (RFC 9113,
                // 8.1).
                Some(Err(e)) if e.reason() == Some(Reason::NO_ERROR) && self.left.is_none_or(|left| left == 0) => {
                    self.data_ended = true;
                    return Poll::Ready(None);
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(in_body(error(&e))))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        Poll::Ready(trailers.map_err(|e| in_body(error(&e))).transpose().map(|t| t.map(Frame::trailers)))
    }

    /// Whether nothing of the answer is left.
    pub(super) fn is_end(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// How much of the answer is left.
    pub(super) fn size_hint(&self) -> SizeHint {
        if self.is_end() {
            SizeHint::with_exact(0)
        } else {
            self.left.map_or(SizeHint::default(), SizeHint::with_exact)
        }
    }
}

/// Once an answer has begun, the request was processed.
fn in_body(error: UpstreamError) -> UpstreamError {
    if error.is_unprocessed() { UpstreamError::StreamReset } else { error }
}
