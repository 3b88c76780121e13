//! Stage 6, `forward`: sends the request and reads the head of the response.

use std::{
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{Response, StatusCode};
use tokio::time::Instant;

use super::{
    audit::Record, header_filter, inject::Injected, refusal::Refusal, rewrite::Rewriting, scrub::Needles,
    websocket::Offer,
};
use crate::{
    code::Code,
    config::UpstreamConfig,
    http::client::{Answer, Patience, Upload, UploadGuard, UploadState, UpstreamError},
    table::{CredentialEntry, Cut, ServiceEntry},
};

/// An answer: its head is final, its body still comes.
pub(crate) struct Answered {
    pub(crate) service: Arc<ServiceEntry>,
    pub(crate) response: Response<Answer>,
    pub(crate) needles: Needles,
    pub(crate) cut: Cut,
    /// What is still being sent ends with the answer.
    pub(crate) upload: Option<UploadGuard>,
    pub(crate) expires: Option<Instant>,
    /// What URLs in it become.
    pub(crate) rewriting: Rewriting,
    /// What was offered with a WebSocket handshake.
    pub(crate) offer: Option<Box<Offer>>,
    /// The credential that was sent, if the control plane can make another when the upstream has refused this one.
    pub(crate) minted: Option<Arc<CredentialEntry>>,
    /// Only this file makes one.
    _proof: (),
}

/// Sends a request and waits for the head of its answer.
pub(crate) async fn call(
    injected: Injected,
    config: &UpstreamConfig,
    record: &mut Record,
) -> Result<Answered, Refusal> {
    let Injected { service, request, mut connection, needles, mut cut, expires, offer, rewriting, minted, .. } =
        injected;
    let upload = match &request.body {
        Upload::Stream(stream) => Some(stream.state()),
        _ => None,
    };
    let severing = match &request.body {
        Upload::Stream(stream) => Some(stream.severing()),
        _ => None,
    };
    let first_byte = service.first_byte_timeout.unwrap_or(config.request_timeout);
    let mut patience = connection.patience();
    let exchange = connection.send(request);
    let answer = answer(exchange, &mut cut, upload.as_deref(), first_byte, &mut patience).await;
    let answer = answer.and_then(|response| check(response, offer.as_deref()));
    let mut response = answer.map_err(|refusal| {
        // The upstream saw a broken request because the agent sent one.
        let refusal = upload.as_deref().and_then(UploadState::failure).map_or(refusal, Refusal::from);
        record.upstream_failed(refusal.code);
        refusal
    })?;
    if let Some(upload) = &upload {
        upload.answer_began();
    }
    record.upstream_answered(response.status());
    response.body_mut().keep(patience);
    header_filter::response(response.headers_mut());
    Ok(Answered { service, rewriting, response, needles, cut, upload: severing, expires, offer, minted, _proof: () })
}

/// The head of the answer, unless the right to it or the time for it ends first. Where both are there at once, the right has ended:
/// nothing else would look at it when the answer has no body.
async fn answer<T>(
    exchange: impl Future<Output = Result<T, UpstreamError>>,
    cut: &mut Cut,
    upload: Option<&UploadState>,
    first_byte: Duration,
    patience: &mut Patience,
) -> Result<T, Refusal> {
    let mut exchange = pin!(exchange);
    patience.begin(first_byte);
    poll_fn(|cx| {
        if let Poll::Ready(reason) = Pin::new(&mut *cut).poll(cx) {
            return Poll::Ready(Err(Code::from(reason).into()));
        }
        if cut.is_undecided() {
            return Poll::Pending;
        }
        if let Poll::Ready(result) = exchange.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(Refusal::from));
        }
        while patience.poll(cx).is_ready() {
            if upload.is_none_or(UploadState::is_done) {
                return Poll::Ready(Err(Code::UpstreamTimeout.into()));
            }
            patience.begin(first_byte);
        }
        Poll::Pending
    })
    .await
}

/// An answer that changes the protocol unasked is not relayed.
fn check(mut response: Response<Answer>, offer: Option<&Offer>) -> Result<Response<Answer>, Refusal> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        offer.ok_or(Code::UpstreamUnreachable)?.accepted(&mut response)?;
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::table::tests::{loaded, registered};

    #[tokio::test]
    async fn an_answer_that_is_there_already_is_not_relayed_once_the_right_to_it_has_ended() {
        let (table, long) = (loaded(), Duration::from_secs(600));
        let mut cut = registered(&table, 1);
        assert_eq!(answer(ready(Ok(7)), &mut cut, None, long, &mut Patience::default()).await.ok(), Some(7));
        table.lease().end();
        let refusal = answer(ready(Ok(7)), &mut cut, None, long, &mut Patience::default()).await.unwrap_err();
        assert_eq!(refusal.code, Code::NodeStale);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_is_silent_is_given_up() {
        let (mut cut, mut patience) = (registered(&loaded(), 1), Patience::default());
        for seconds in [100, 1, 10] {
            let (begun, limit) = (Instant::now(), Duration::from_secs(seconds));
            let silence = pending::<Result<(), UpstreamError>>();
            let refusal = answer(silence, &mut cut, None, limit, &mut patience).await.unwrap_err();
            assert_eq!((refusal.code, begun.elapsed().as_secs()), (Code::UpstreamTimeout, seconds), "with one timer");
        }
    }
}
