//! A call that a tonic service answers, on an HTTP/2 stream.

use std::{convert::Infallible, future::poll_fn};

use bytes::Bytes;
use futures_util::stream::unfold;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Body as _, Frame};
use tonic::service::Routes;
use tower::ServiceExt as _;

/// Lets `routes` answer. Answers are small: they aren't held back for who doesn't read.
pub(super) async fn serve_with_tonic(routes: Routes, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let asked = request.map(|body| StreamBody::new(Box::pin(unfold(body, next))));
    tokio::select! {
        answer = routes.oneshot(asked) => {
            let Ok::<_, Infallible>(answer) = answer;
            if send(answer, &mut respond).await.is_err() {
                respond.send_reset(Reason::CANCEL);
            }
        }
        _ = poll_fn(|context| respond.poll_reset(context)) => {} // nobody waits for it any more
    }
}

/// The next part of a request.
async fn next(mut body: RecvStream) -> Option<(Result<Frame<Bytes>, h2::Error>, RecvStream)> {
    let data = poll_fn(|context| body.poll_data(context)).await?;
    if let Ok(data) = &data {
        let _ = body.flow_control().release_capacity(data.len()); // fails when the stream has ended: then so does the next read
    }
    Some((data.map(Frame::data), body))
}

async fn send(answer: Response<tonic::body::Body>, respond: &mut SendResponse<Bytes>) -> Result<(), h2::Error> {
    let (head, mut body) = answer.into_parts();
    let ended = body.is_end_stream();
    let mut stream = respond.send_response(Response::from_parts(head, ()), ended)?;
    if ended {
        return Ok(());
    }
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => stream.send_data(data, false)?,
            Ok(Err(frame)) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return stream.send_trailers(trailers);
                }
            }
            Err(_) => {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
        }
    }
    stream.send_data(Bytes::new(), true)
}
