//! The body that the HTTP server sends. It closes the request's audit record.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{
    audit::{self, Record},
    relay::{OutgoingBody, RelayError},
};
use crate::http::server::AbortableBody;

/// The body of every answer: closes the request's record when it ends. Behind a `101` there is
/// none, and the tunnel closes the record.
pub(crate) struct ResponseBody(Option<audit::Body<OutgoingBody>>);

impl ResponseBody {
    pub(crate) fn new(body: OutgoingBody, record: Record) -> Self {
        match body.into_tunnel() {
            Err(body) => Self(Some(audit::Body::new(body, record))),
            Ok(tunnel) => {
                tunnel.hand_over(record);
                Self(None)
            }
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        match &mut self.get_mut().0 {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

impl AbortableBody for ResponseBody {
    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().map_or(Poll::Pending, |body| body.inner_mut().poll_aborted(cx))
    }
}
