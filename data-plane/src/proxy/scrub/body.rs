//! A body that is scrubbed as it streams through.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::{Needles, scrubber::Scrubber};
use crate::proxy::audit::Counters;

/// Scrubs a body and its trailers. As long as it came: a `Content-Length` stays right.
pub struct Body<B> {
    inner: B,
    /// Absent: there is nothing to search for.
    scrubber: Option<Scrubber>,
    needles: Needles,
    counters: Arc<Counters>,
    ready: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl<B> Body<B> {
    /// Counts what it finds in `counters`.
    pub fn new(inner: B, needles: Needles, counters: Arc<Counters>) -> Self {
        let scrubber = (!needles.is_empty()).then(|| Scrubber::new(needles.clone()));
        Self::with(inner, scrubber, needles, counters)
    }

    /// The same with a scrubber that is there already, at its beginning.
    pub(super) fn with(inner: B, scrubber: Option<Scrubber>, needles: Needles, counters: Arc<Counters>) -> Self {
        Self { inner, scrubber, needles, counters, ready: VecDeque::new(), trailers: None, ended: false }
    }

    /// Takes a frame of the upstream's. What can go on is ready then, behind what is given back.
    fn take(&mut self, frame: Frame<Bytes>) -> Option<Bytes> {
        let Some(scrubber) = &mut self.scrubber else {
            return frame.into_data().map_err(|frame| self.trailers = frame.into_trailers().ok()).ok();
        };
        let clean = match frame.into_data() {
            Ok(data) => scrubber.pass(data, &mut self.ready),
            Err(frame) => {
                scrubber.finish(&mut self.ready);
                if let Ok(mut trailers) = frame.into_trailers() {
                    self.counters.scrubbed(super::headers(&mut trailers, &self.needles));
                    self.trailers = Some(trailers);
                }
                None
            }
        };
        match scrubber.take_found() {
            0 => {}
            hits => self.counters.scrubbed(hits),
        }
        clean
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(scrubber) = &mut self.scrubber {
            scrubber.finish(&mut self.ready);
            self.counters.scrubbed(scrubber.take_found());
        }
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Body<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        loop {
            if let Some(data) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if let Some(trailers) = this.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let clean = this.take(frame);
                    if this.inner.is_end_stream() {
                        this.end();
                    }
                    if let Some(data) = clean {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                // What is held is let go of neither: the agent sees a body that breaks off where the upstream's did.
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => this.end(),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let nothing_held = self.scrubber.as_ref().is_none_or(Scrubber::is_empty);
        self.ready.is_empty() && self.trailers.is_none() && nothing_held && (self.ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let here = self.ready.iter().map(Bytes::len).sum::<usize>() + self.scrubber.as_ref().map_or(0, Scrubber::held);
        let here = here as u64;
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + here);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + here);
        }
        hint
    }
}
