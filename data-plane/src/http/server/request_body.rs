//! A request's body as an agent sends it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::h1::{self, BrokenBody};

/// The body of a request, over either HTTP.
pub struct RequestBody(Kind);

enum Kind {
    H1(h1::Incoming),
    /// With the number of trailers that have come.
    H2(Incoming, u16),
}

impl From<h1::Incoming> for RequestBody {
    fn from(body: h1::Incoming) -> Self {
        Self(Kind::H1(body))
    }
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        Self(Kind::H2(body, 0))
    }
}

impl RequestBody {
    /// How many trailers came behind it, once it has ended.
    pub(crate) fn trailers(&self) -> u16 {
        match &self.0 {
            Kind::H1(body) => body.trailers(),
            Kind::H2(_, trailers) => *trailers,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        match &mut self.get_mut().0 {
            Kind::H1(body) => Pin::new(body).poll_frame(cx),
            Kind::H2(body, trailers) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                if let Some(Ok(frame)) = &frame {
                    let count = frame.trailers_ref().map_or(0, HeaderMap::len);
                    *trailers = trailers.saturating_add(u16::try_from(count).unwrap_or(u16::MAX));
                }
                Poll::Ready(frame.map(|frame| frame.map_err(|_| BrokenBody)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::H1(body) => body.is_end_stream(),
            Kind::H2(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::H1(body) => body.size_hint(),
            Kind::H2(body, _) => body.size_hint(),
        }
    }
}
