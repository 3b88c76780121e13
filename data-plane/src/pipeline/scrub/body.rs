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

use super::{Needles, events::Events, scrubber::Scrubber};
use crate::pipeline::audit::Counters;

/// Scrubs a body and its trailers. As long as it came: a `Content-Length` stays right.
pub(crate) struct Body<B, E> {
    inner: B,
    /// Absent: there is nothing to search for.
    scrubber: Option<Scrubber>,
    /// Of a body that a client may read as server-sent events: searches them behind `scrubber`.
    events: Option<Box<Events>>,
    /// From one to the other.
    searched: VecDeque<Bytes>,
    needles: Needles,
    counters: Arc<Counters>,
    ready: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    /// The inner body has ended, with this error if it broke off.
    ended: bool,
    broke: Option<E>,
}

impl<B, E> Body<B, E> {
    /// Counts what it finds in `counters`. `scrubber` is at its beginning; absent, nothing is
    /// searched for.
    pub(super) fn with(
        inner: B,
        scrubber: Option<Scrubber>,
        events: Option<Box<Events>>,
        needles: Needles,
        counters: Arc<Counters>,
    ) -> Self {
        let (searched, ready) = (VecDeque::new(), VecDeque::new());
        Self { inner, scrubber, events, searched, needles, counters, ready, trailers: None, ended: false, broke: None }
    }

    /// Takes a frame of the upstream's. What can go on is ready then, behind what is given back.
    fn take(&mut self, frame: Frame<Bytes>) -> Option<Bytes> {
        let Some(scrubber) = &mut self.scrubber else {
            return frame.into_data().map_err(|frame| self.trailers = frame.into_trailers().ok()).ok();
        };
        let found = match &mut self.events {
            None => &mut self.ready,
            Some(_) => &mut self.searched,
        };
        let mut clean = match frame.into_data() {
            Ok(data) => scrubber.pass(data, found),
            Err(frame) => {
                scrubber.finish(found);
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
        if let Some(events) = &mut self.events {
            self.searched.drain(..).chain(clean.take()).for_each(|data| events.push(data, &mut self.ready));
            if self.trailers.is_some() {
                events.finish(&mut self.ready);
            }
            self.counters.scrubbed(events.take_found());
        }
        clean
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(scrubber) = &mut self.scrubber {
            match &mut self.events {
                None => scrubber.finish(&mut self.ready),
                Some(events) => {
                    scrubber.finish(&mut self.searched);
                    self.searched.drain(..).for_each(|data| events.push(data, &mut self.ready));
                    events.finish(&mut self.ready);
                    self.counters.scrubbed(events.take_found());
                }
            }
            self.counters.scrubbed(scrubber.take_found());
        }
    }

    /// The body broke off: what was held back goes on, but for what is known of a match. An
    /// upstream that breaks off before the last byte of a credential must not have shown all the
    /// others.
    fn break_off(&mut self, error: E) {
        (self.ended, self.broke) = (true, Some(error));
        let Some(scrubber) = &mut self.scrubber else { return };
        match &mut self.events {
            None => scrubber.flush_message(&mut self.ready),
            Some(events) => {
                scrubber.flush_message(&mut self.searched);
                self.searched.drain(..).for_each(|data| events.push(data, &mut self.ready));
                events.break_off(&mut self.ready);
                self.counters.scrubbed(events.take_found());
            }
        }
        self.counters.scrubbed(scrubber.take_found());
    }

    /// What finds are counted in.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many bytes are held back.
    fn held(&self) -> usize {
        self.scrubber.as_ref().map_or(0, Scrubber::held) + self.events.as_ref().map_or(0, |events| events.held())
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Body<B, B::Error>
where
    B::Error: Unpin,
{
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
                return Poll::Ready(this.broke.take().map(Err));
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
                Some(Err(error)) => this.break_off(error),
                None => this.end(),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let nothing_held = self.held() == 0 && self.broke.is_none();
        self.ready.is_empty() && self.trailers.is_none() && nothing_held && (self.ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let here = self.ready.iter().map(Bytes::len).sum::<usize>() + self.held();
        let here = here as u64;
        if self.broke.is_some() {
            return SizeHint::new();
        }
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + here);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + here);
        }
        hint
    }
}
