//! A request's body as an agent sends it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::h1::{self, BrokenBody};

/// The body of a request, over either HTTP.
pub struct RequestBody(Kind);

enum Kind {
    H1(h1::Incoming),
    H2(Incoming),
}

impl From<h1::Incoming> for RequestBody {
    fn from(body: h1::Incoming) -> Self {
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
            Kind::H1(body) => Pin::new(body).poll_frame(cx),
            Kind::H2(body) => Pin::new(body).poll_frame(cx).map_err(|_| BrokenBody),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::H1(body) => body.is_end_stream(),
            Kind::H2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::H1(body) => body.size_hint(),
            Kind::H2(body) => body.size_hint(),
        }
    }
}
