//! The body of an answer whose URLs are rewritten.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::{endpoint::EndpointEvent, integrity, text::UrlRewriter};

/// A body that is rewritten as it streams, or passed on as it is.
pub(crate) struct Body<B: http_body::Body> {
    inner: B,
    rewriter: Option<Box<BodyRewriter<B::Error>>>,
}

/// What rewrites one body, and what waits behind data.
struct BodyRewriter<E> {
    endpoint: Option<EndpointEvent>,
    urls: Option<UrlRewriter>,
    trailers: Option<HeaderMap>,
    error: Option<E>,
    ended: bool,
}

impl<B: http_body::Body> Body<B> {
    /// The body that is rewritten.
    pub(crate) fn inner(&self) -> &B {
        &self.inner
    }

    /// A body that stays as it is.
    pub(super) fn unchanged(inner: B) -> Self {
        Self { inner, rewriter: None }
    }

    /// A body of which the first event, the URLs, or both are rewritten.
    pub(super) fn rewritten(inner: B, endpoint: Option<EndpointEvent>, urls: Option<UrlRewriter>) -> Self {
        let rewriter = BodyRewriter { endpoint, urls, trailers: None, error: None, ended: false };
        Self { inner, rewriter: Some(Box::new(rewriter)) }
    }
}

impl<E> BodyRewriter<E> {
    fn push(&mut self, chunk: Bytes) -> Bytes {
        let chunk = match &mut self.endpoint {
            Some(endpoint) => endpoint.push(chunk),
            None => chunk,
        };
        match &mut self.urls {
            Some(urls) if !chunk.is_empty() => urls.push(chunk),
            _ => chunk,
        }
    }

    /// The body has ended, or has broken off with `error`: gives what was held back.
    fn end(&mut self, error: Option<E>) -> Bytes {
        self.ended = true;
        let mut rest = self.endpoint.as_mut().map(EndpointEvent::finish).unwrap_or_default();
        if let Some(urls) = &mut self.urls {
            let parts = match error {
                None => [urls.push(rest), urls.finish()],
                Some(_) => [urls.abandon(), rest],
            };
            rest = parts.concat().into();
        }
        self.error = error;
        rest
    }

    fn held(&self) -> usize {
        self.endpoint.as_ref().map_or(0, EndpointEvent::held) + self.urls.as_ref().map_or(0, UrlRewriter::held)
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Body<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let Some(rewriter) = &mut this.rewriter else { return Pin::new(&mut this.inner).poll_frame(cx) };
        loop {
            if rewriter.ended {
                if let Some(error) = rewriter.error.take() {
                    return Poll::Ready(Some(Err(error)));
                }
                return Poll::Ready(rewriter.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            let clean = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => rewriter.push(data),
                    Err(frame) => {
                        rewriter.trailers = frame.into_trailers().ok();
                        rewriter.trailers.as_mut().map(integrity::remove);
                        rewriter.end(None)
                    }
                },
                Some(Err(error)) => rewriter.end(Some(error)),
                None => rewriter.end(None),
            };
            if !clean.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(clean))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.rewriter {
            None => self.inner.is_end_stream(),
            Some(rewriter) => {
                let waits = rewriter.trailers.is_some() || rewriter.error.is_some() || rewriter.held() > 0;
                !waits && (rewriter.ended || self.inner.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.rewriter {
            None => self.inner.size_hint(),
            Some(_) => SizeHint::new(), // a rewritten URL has another length
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, convert::Infallible};

    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;
    use crate::pipeline::rewrite::urls::Urls;

    fn urls() -> Urls {
        Urls::new(true, "up.test", 443, "http://node".into(), "/api/s".into())
    }

    #[tokio::test]
    async fn data_is_rewritten_and_trailers_follow_without_digests() {
        let trailers = HeaderMap::from_iter([
            (http::HeaderName::from_static("content-digest"), http::HeaderValue::from_static("x")),
            (http::HeaderName::from_static("x-sum"), http::HeaderValue::from_static("y")),
        ]);
        let frames: VecDeque<Result<_, Infallible>> = VecDeque::from([
            Ok(Frame::data(Bytes::from_static(b"[\"https://up.te"))),
            Ok(Frame::data(Bytes::from_static(b"st/a\",\"https://up.test"))),
            Ok(Frame::trailers(trailers)),
        ]);
        let inner = StreamBody::new(tokio_stream::iter(frames));
        let body = Body::rewritten(inner, None, Some(UrlRewriter::new(urls().pattern(""), false)));
        assert_eq!(http_body::Body::size_hint(&body).exact(), None);
        let whole = body.collect().await.unwrap();
        let names: Vec<_> = whole.trailers().unwrap().keys().map(|name| name.as_str().to_owned()).collect();
        assert_eq!(names, ["x-sum"]);
        assert_eq!(whole.to_bytes(), "[\"http://node/api/s/a\",\"http://node/api/s");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_delivers_what_came() {
        let frames: VecDeque<Result<_, &str>> =
            VecDeque::from([Ok(Frame::data(Bytes::from_static(b"[\"https://up.te"))), Err("broken")]);
        let inner = StreamBody::new(tokio_stream::iter(frames));
        let mut body = Body::rewritten(inner, None, Some(UrlRewriter::new(urls().pattern(""), false)));
        let mut text = Vec::new();
        let error = loop {
            match body.frame().await.unwrap() {
                Ok(frame) => text.extend_from_slice(&frame.into_data().unwrap()),
                Err(error) => break error,
            }
        };
        assert_eq!((text.as_slice(), error), (&b"[\"https://up.te"[..], "broken"));
    }
}
