//! A request's body as an agent sends it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::h1::Coming;

/// The body of a request, over either HTTP.
pub struct RequestBody(Kind);

enum Kind {
    /// All that is left of it is here: most bodies come along with their heads.
    Here(Option<Bytes>),
    /// It is read from an HTTP/1 connection.
    H1(Coming),
    H2(Incoming),
}

/// The body broke off, or its framing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request's body is broken")]
pub struct BrokenBody;

impl RequestBody {
    /// No body.
    pub(super) fn empty() -> Self {
        Self(Kind::Here(None))
    }

    /// A whole body.
    pub(super) fn here(body: Bytes) -> Self {
        Self(Kind::Here(Some(body)))
    }

    /// One that is still to be read.
    pub(super) fn coming(body: Coming) -> Self {
        Self(Kind::H1(body))
    }
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        Self(Kind::H2(body))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        match &mut self.get_mut().0 {
            Kind::Here(body) => Poll::Ready(body.take().map(|data| Ok(Frame::data(data)))),
            Kind::H1(body) => body.poll(cx).map(|data| data.map(|data| data.map(Frame::data))),
            Kind::H2(body) => Pin::new(body).poll_frame(cx).map_err(|_| BrokenBody),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Here(body) => body.is_none(),
            Kind::H1(body) => body.is_end(),
            Kind::H2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Here(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Kind::H1(body) => body.size_hint(),
            Kind::H2(body) => body.size_hint(),
        }
    }
}
