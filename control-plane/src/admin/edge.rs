//! What stands between the network and the decoder: a limit for each method, and codes that say what was wrong.
//!
//! A message of 4 MiB can decode to twenty times that when it is all empty list elements, so only the methods whose fields
//! can be that long take such a message. tonic answers an over-long message with OUT_OF_RANGE and one that doesn't decode with
//! INTERNAL; callers are told RESOURCE_EXHAUSTED and INVALID_ARGUMENT.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::registry::limits;

/// Policies and credentials are long texts; a service may carry certificates; all else is names within [`limits`].
fn limit(path: &str) -> usize {
    match path.rsplit('/').next().unwrap_or_default() {
        "ApplyPolicies" | "CheckPolicies" | "PutCredential" => super::MAX_MESSAGE_BYTES,
        "Simulate" => 2 * 1024 * 1024,
        "ApplyService" | "EnableService" => limits::SERVICE_BYTES + 16 * 1024,
        "CreateAgent" | "CreateOperator" => 32 * 1024,
        _ => 16 * 1024,
    }
}

/// The layer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Edge;

impl<S> Layer<S> for Edge {
    type Service = Guarded<S>;
    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded(inner)
    }
}

/// A service behind the limits.
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S>(S);

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Send,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let left = limit(request.uri().path());
        let answer = self.0.call(request.map(|body| Body::new(Limited { body, left })));
        Box::pin(async move { answer.await.map(name_the_fault) })
    }
}

/// A body that fails past its limit.
struct Limited {
    body: Body,
    left: usize,
}

impl HttpBody for Limited {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            let len = frame.data_ref().map_or(0, Bytes::len);
            match self.left.checked_sub(len) {
                Some(left) => self.left = left,
                None => return Poll::Ready(Some(Err(Status::resource_exhausted("the message is too large")))),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A refusal of tonic's decoder comes as headers alone, before any handler has run.
fn name_the_fault(mut answer: Response<Body>) -> Response<Body> {
    let headers = answer.headers_mut();
    let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let undecodable = text("grpc-message").is_some_and(|m| m.starts_with("failed%20to%20decode"));
    let code = match text("grpc-status") {
        Some("11") => "8",                // OUT_OF_RANGE: no handler answers so
        Some("13") if undecodable => "3", // INTERNAL
        _ => return answer,
    };
    headers.insert("grpc-status", HeaderValue::from_static(code));
    answer
}
