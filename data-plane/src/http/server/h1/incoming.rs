//! The body of an HTTP/1 request.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::shared::{BrokenBody, PendingBody};

/// A request's body as it comes from a connection.
pub(in crate::http::server) struct Incoming(Kind);

enum Kind {
    /// All that is left of it is here: most bodies come along with their heads.
    Here(Option<Bytes>),
    /// It is still to be read.
    Pending(PendingBody),
}

impl Incoming {
    /// No body.
    pub(super) fn empty() -> Self {
        Self(Kind::Here(None))
    }

    /// A whole body.
    pub(super) fn here(body: Bytes) -> Self {
        Self(Kind::Here(Some(body)))
    }

    /// How many trailers came behind it, once it has ended.
    pub(in crate::http::server) fn trailers(&self) -> u16 {
        match &self.0 {
            Kind::Here(_) => 0,
            Kind::Pending(body) => body.trailers(),
        }
    }

    /// One that is still to be read.
    pub(super) fn coming(body: PendingBody) -> Self {
        Self(Kind::Pending(body))
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        match &mut self.get_mut().0 {
            Kind::Here(body) => Poll::Ready(body.take().map(|data| Ok(Frame::data(data)))),
            Kind::Pending(body) => body.poll(cx).map(|data| data.map(|data| data.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Here(body) => body.is_none(),
            Kind::Pending(body) => body.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Here(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Kind::Pending(body) => body.size_hint(),
        }
    }
}
