//! The future of a request, in memory that an earlier request has released.
//!
//! A request needs kilobytes while it waits. Allocating, wiping and freeing them costs more than a
//! stage of the pipeline. The kept memory is bounded and contains no secret: secrets are on the
//! heap, and are wiped when a future drops them.

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::Response;
use tokio_util::sync::ReusableBoxFuture;

use crate::pipeline::response_body::ResponseBody;

/// Blocks that a thread keeps: as many as requests are usually under way on it.
const MAX_SPARE: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<ReusableBoxFuture<'static, Response<ResponseBody>>>> = const { RefCell::new(Vec::new()) };
}

/// One request's future.
pub(crate) struct RecycledFuture {
    /// Absent once it is done.
    future: Option<ReusableBoxFuture<'static, Response<ResponseBody>>>,
}

impl RecycledFuture {
    pub(super) fn new(future: impl Future<Output = Response<ResponseBody>> + Send + 'static) -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        let future = match spare {
            None => ReusableBoxFuture::new(future),
            Some(mut spare) => {
                spare.set(future);
                spare
            }
        };
        Self { future: Some(future) }
    }
}

impl Future for RecycledFuture {
    type Output = Response<ResponseBody>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<ResponseBody>> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let handled = ready!(future.poll(cx));
        // One that is dropped before it is done is not kept: what it holds has to go at once.
        if let Some(done) = self.future.take() {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < MAX_SPARE {
                    spare.push(done)
                }
            });
        }
        Poll::Ready(handled)
    }
}
