//! Stage 6, `forward`: sends the request and reads the head of the response.
//!
//! A request is sent again only if the upstream has processed nothing of it, or if its repetition
//! changes nothing and the connection was an old one (`http/client/exchange.rs` decides that).
//! Before it goes out again, everything is checked that was checked before the first time.

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
    audit::Record,
    caller::Caller,
    header_filter,
    inject::{self, Injected},
    range::WidenedRange,
    refusal::Refusal,
    rewrite::Rewriting,
    scrub::Needles,
    websocket::Offer,
};
use crate::{
    config::UpstreamConfig,
    http::client::{Again, Answer, Connection, Failure, Request, Upload, UploadGuard, UploadState, UpstreamError},
    table::{CredentialEntry, Cut, ServiceEntry},
};

/// Most times that a request is sent, so that an upstream that refuses every stream cannot keep it
/// without limit.
const MAX_ATTEMPTS: u32 = 3;

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
    /// What the agent asked for, when that is a range.
    pub(crate) range: Option<WidenedRange>,
    /// What was offered with a WebSocket handshake.
    pub(crate) offer: Option<Box<Offer>>,
    /// The credential that was sent, if the control plane can make another when the upstream has
    /// refused this one.
    pub(crate) minted: Option<Arc<CredentialEntry>>,
    /// Only this file makes one.
    _proof: (),
}

/// Sends a request and waits for the head of its answer.
pub(crate) async fn call(
    injected: Box<Injected>,
    config: &UpstreamConfig,
    caller: &Caller,
    record: &mut Record,
) -> Result<Answered, Refusal> {
    let Injected { service, request, connection, mut cut, offer, credential, .. } = *injected;
    let (upload, severing) = match &request.body {
        Upload::Stream(stream) => (Some(stream.state()), Some(stream.severing())),
        _ => (None, None),
    };
    let terms = Terms {
        first_byte: service.first_byte_timeout.unwrap_or(config.request_timeout),
        connect: config.connect_timeout,
        caller,
        service: &service,
        credential: &credential,
    };
    let response = exchange(connection, request, &mut cut, &terms, record).await;
    let response = response.and_then(|response| check(response, offer.as_deref()).map_err(Refusal::begun));
    let mut response = response.map_err(|refusal| {
        // The upstream saw a broken request because the agent sent one.
        let refusal = upload.as_deref().and_then(UploadState::failure).map_or(refusal, Refusal::from);
        record.upstream_failed(&refusal);
        refusal
    })?;
    if let Some(upload) = &upload {
        upload.answer_began();
    }
    record.upstream_answered(response.status());
    header_filter::response(response.headers_mut());
    let minted = credential.minted.then_some(credential);
    let Injected { needles, expires, rewriting, range, .. } = *injected;
    Ok(Answered {
        service,
        rewriting,
        response,
        needles,
        cut,
        upload: severing,
        expires,
        range,
        offer,
        minted,
        _proof: (),
    })
}

/// What a request is sent on.
struct Terms<'a> {
    first_byte: Duration,
    connect: Duration,
    caller: &'a Caller,
    service: &'a ServiceEntry,
    credential: &'a CredentialEntry,
}

/// Sends a request, and sends it again where that is safe.
async fn exchange(
    mut connection: Connection,
    mut request: Request,
    cut: &mut Cut,
    terms: &Terms<'_>,
    record: &mut Record,
) -> Result<Response<Answer>, Refusal> {
    let mut attempt = 1;
    loop {
        let Failure { error, again } = match answer(connection.send(request, terms.first_byte), cut).await? {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        let Some(again) = again.filter(|_| attempt < MAX_ATTEMPTS) else { return Err(error.into()) };
        // Boxed: it is rare, and large.
        connection = Box::pin(reconnect(&again, error, cut, terms)).await?;
        request = again.request;
        attempt += 1;
        record.upstream_attempt(attempt);
    }
}

/// A connection for a request that is sent again, once it is certain that it may be.
async fn reconnect(
    again: &Again,
    error: UpstreamError,
    cut: &mut Cut,
    terms: &Terms<'_>,
) -> Result<Connection, Refusal> {
    let connection = again.connect(terms.connect).await?.ok_or(error)?;
    inject::check_again(cut, terms.caller, terms.service, terms.credential).await?;
    Ok(connection)
}

/// The head of the answer, unless the right to it ends first. Where both are there at once, the
/// right has ended: nothing else would look at it when the answer has no body.
async fn answer<T>(
    exchange: impl Future<Output = Result<T, Failure>>,
    cut: &mut Cut,
) -> Result<Result<T, Failure>, Refusal> {
    let mut exchange = pin!(exchange);
    poll_fn(|cx| {
        if let Poll::Ready(reason) = Pin::new(&mut *cut).poll(cx) {
            return Poll::Ready(Err(Refusal::from(reason).begun()));
        }
        if cut.is_undecided() {
            return Poll::Pending;
        }
        exchange.as_mut().poll(cx).map(Ok)
    })
    .await
}

/// An answer that changes the protocol unasked is not relayed.
fn check(mut response: Response<Answer>, offer: Option<&Offer>) -> Result<Response<Answer>, Refusal> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        offer.ok_or(UpstreamError::UnaskedSwitch)?.accepted(&mut response)?;
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;
    use crate::{
        code::Code,
        table::tests::{loaded, registered},
    };

    #[tokio::test]
    async fn an_answer_that_is_there_already_is_not_relayed_once_the_right_to_it_has_ended() {
        let table = loaded();
        let mut cut = registered(&table, 1);
        assert!(matches!(answer(ready(Ok(7)), &mut cut).await, Ok(Ok(7))));
        table.lease().end();
        let refusal = answer(ready(Ok(7)), &mut cut).await.err().unwrap();
        assert_eq!(refusal.code, Code::NodeStale);
        assert!(refusal.has_begun(), "it was sent, so it is not to be sent again");
    }
}
