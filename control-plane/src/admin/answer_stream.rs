//! The answer of a call that is a stream. It ends when the caller's certificate ends, however long
//! the handler would go on.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use super::{auth::Caller, problem::Problem};
use crate::clock;

/// The pieces that a handler sends, until the caller's certificate has expired. The handler's task
/// then finds its channel closed.
pub struct AnswerStream<T> {
    /// `None`: it is over.
    pieces: Option<ReceiverStream<Result<T, Status>>>,
    expired: BoxFuture<'static, ()>,
}

impl<T> AnswerStream<T> {
    pub(super) fn new(caller: &Caller, pieces: mpsc::Receiver<Result<T, Status>>) -> Self {
        let expired = clock::wait_until(caller.expires_at()).boxed();
        Self { pieces: Some(ReceiverStream::new(pieces)), expired }
    }
}

impl<T> Stream for AnswerStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(pieces) = &mut this.pieces else { return Poll::Ready(None) };
        if this.expired.poll_unpin(context).is_ready() {
            this.pieces = None;
            return Poll::Ready(Some(Err(Problem::certificate_expired().into_status())));
        }
        pieces.poll_next_unpin(context)
    }
}
