//! Message size limits of each method, and precise status codes, before a message is decoded.
//!
//! A message of 4 MiB can decode to twenty times that when it is all empty list elements, so only
//! the methods whose fields can be that long take such a message. tonic answers an over-long
//! message with OUT_OF_RANGE and one that doesn't decode with INTERNAL; callers are told
//! RESOURCE_EXHAUSTED and INVALID_ARGUMENT.
//!
//! One operator may send only a few long messages at a time, because a message is buffered before
//! it is authorized.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use seks_trust::MAX_JWKS_BYTES;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::{
    authority::{Identities, Identity},
    registry::limits,
};

/// Policies and credentials are long texts; a service may carry certificates; all else is names
/// within [`limits`].
fn limit(path: &str) -> usize {
    match path.rsplit('/').next().unwrap_or_default() {
        "ApplyPolicies" | "ApplyTenant" | "CheckPolicies" | "PlanTenant" | "PutCredential" | "SimulateTrail" => {
            super::MAX_MESSAGE_BYTES
        }
        "ExplainPolicies" | "Simulate" => 2 * 1024 * 1024,
        "ApplyService" | "EnableService" => limits::SERVICE_BYTES + 16 * 1024,
        "CreateTrust" | "UpdateTrust" => 2 * MAX_JWKS_BYTES,
        "CreateAgent" | "CreateOperator" => 32 * 1024,
        _ => 16 * 1024,
    }
}

/// From this length on a message counts as long, in bytes.
const LONG: usize = 256 * 1024;
/// Long messages of one operator that are on their way.
const MAX_LONG: usize = 8;

/// The layer.
#[derive(Clone)]
pub(crate) struct Edge {
    identities: Identities,
    arriving: Arriving,
}

impl Edge {
    /// Knows operators by `identities`.
    pub(crate) fn new(identities: Identities) -> Self {
        Self { identities, arriving: Arriving::default() }
    }
}

impl<S> Layer<S> for Edge {
    type Service = Guarded<S>;
    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, edge: self.clone() }
    }
}

/// A service behind the limits.
#[derive(Clone)]
pub(crate) struct Guarded<S> {
    inner: S,
    edge: Edge,
}

/// Long messages that are on their way, by who sends them.
#[derive(Clone, Default)]
struct Arriving(Arc<Mutex<HashMap<Option<Identity>, usize>>>);

impl Arriving {
    fn try_acquire(&self, who: Option<Identity>) -> Option<Slot> {
        let mut arriving = self.0.lock();
        let count = arriving.entry(who.clone()).or_default();
        (*count < MAX_LONG).then(|| {
            *count += 1;
            Slot { arriving: self.clone(), who }
        })
    }
}

/// One of them, until it is whole or given up.
struct Slot {
    arriving: Arriving,
    who: Option<Identity>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut arriving = self.arriving.0.lock();
        if let Some(count) = arriving.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                arriving.remove(&self.who);
            }
        }
    }
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Send,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let left = limit(request.uri().path());
        let mut slot = None;
        if left >= LONG {
            let who = self.edge.identities.of(request.extensions()).map(|peer| peer.identity);
            slot = self.edge.arriving.try_acquire(who);
            if slot.is_none() {
                let text = format!("this operator sends {MAX_LONG} long messages at a time, which is the limit");
                return Box::pin(async { Ok(Status::resource_exhausted(text).into_http()) });
            }
        }
        let answer = self.inner.call(request.map(|body| Body::new(Limited { body, left, slot })));
        Box::pin(async move { answer.await.map(name_the_fault) })
    }
}

/// A body that fails past its limit.
struct Limited {
    body: Body,
    left: usize,
    /// Given back when the message is whole.
    slot: Option<Slot>,
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
        if frame.is_none() || self.body.is_end_stream() {
            self.slot = None;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operator_has_a_few_long_messages_on_their_way_and_gets_its_slots_back() {
        let arriving = Arriving::default();
        let who = |name: &str| Some(Identity::Operator(name.parse().unwrap()));
        let mut held: Vec<_> = (0..MAX_LONG).map(|_| arriving.try_acquire(who("a")).unwrap()).collect();
        assert!(arriving.try_acquire(who("a")).is_none() && arriving.try_acquire(who("b")).is_some());
        held.pop();
        assert!(arriving.try_acquire(who("a")).is_some());
        held.clear();
        assert!(arriving.0.lock().is_empty());
    }
}
