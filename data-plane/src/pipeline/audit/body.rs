//! An answer's body that closes its record.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf as _;
use http_body::{Frame, SizeHint};

use super::Record;

/// Counts what goes to the agent and closes the record: as completed at the end of the body, as
/// aborted when it fails or is dropped before.
pub(crate) struct Body<B: http_body::Body> {
    inner: B,
    record: Option<Record>,
}

impl<B: http_body::Body> Body<B> {
    pub(crate) fn new(inner: B, record: Record) -> Self {
        Self { inner, record: Some(record) }
    }

    /// What is counted.
    pub(crate) fn inner_mut(&mut self) -> &mut B {
        &mut self.inner
    }
}

impl<B: http_body::Body + Unpin> http_body::Body for Body<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let polled = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
        match &polled {
            Some(Ok(frame)) => {
                if let (Some(data), Some(record)) = (frame.data_ref(), &this.record) {
                    record.counters().received(data.remaining());
                }
                // A body is not polled again after its end.
                if this.inner.is_end_stream() {
                    this.record.take().into_iter().for_each(Record::complete);
                }
            }
            Some(Err(_)) => drop(this.record.take()),
            None => this.record.take().into_iter().for_each(Record::complete),
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: http_body::Body> Drop for Body<B> {
    fn drop(&mut self) {
        // A body with a sent Content-Length may be dropped before its end is polled.
        if self.inner.is_end_stream() || self.inner.size_hint().exact() == Some(0) {
            self.record.take().into_iter().for_each(Record::complete);
        }
    }
}
