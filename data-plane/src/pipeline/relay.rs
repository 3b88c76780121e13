//! Stage 7, `relay`: passes the response's body to the agent, and ends it when the right to it
//! ends.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, header};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::{
    audit::Record, forward::Answered, header_filter, in_flight::InFlight, range, refusal::Refusal, rewrite, scrub,
    usage::UsageMeter,
};
use crate::{
    http::{
        client::{Answer, UploadGuard, UpstreamError},
        fields,
        server::AbortableBody,
    },
    table::Cut,
};

/// The body of an answer.
pub(crate) struct OutgoingBody(Kind);

enum Kind {
    /// Our own words.
    Fixed(Option<Bytes>),
    /// The upstream's.
    RelayedBody(Box<RelayedBody>),
    /// None: the connection becomes a tunnel.
    Tunnel(Box<dyn Tunnel>),
}

/// What the connection becomes when the response's head has been sent.
pub(crate) trait Tunnel: Send {
    /// Hands the tunnel to its connection; it closes `record` when it ends.
    fn hand_over(self: Box<Self>, record: Record);
}

/// Why a response was aborted. The stream is reset or the connection closed, so that no client
/// takes the response for complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RelayError {
    /// The right to it has ended.
    #[error("the right to the answer has ended")]
    Cut,
    /// The token has expired.
    #[error("the token has expired")]
    Expired,
    /// The upstream went silent.
    #[error("the upstream went silent")]
    Idle,
    /// The upstream broke off.
    #[error("the upstream broke off")]
    Upstream(#[from] UpstreamError),
}

/// Decoded, then scrubbed, then cut to the range, then rewritten.
type AnswerBody = rewrite::Body<range::Body<scrub::Searched<Answer>>>;

struct RelayedBody {
    body: AnswerBody,
    /// Of a service with `usage`.
    meter: Option<Box<UsageMeter>>,
    cut: Cut,
    expires: Option<Instant>,
    idle: Duration,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// Ends with it: the request in flight, and what is still being sent of it.
    _held: (InFlight, Option<UploadGuard>),
}

/// Last stage before the agent: takes out of the answer what was put into the request, rewrites the
/// upstream's own URLs, and lets the answer go while the right to it lasts.
pub(crate) fn call(
    answered: Answered,
    idle: Duration,
    in_flight: InFlight,
    record: &mut Record,
) -> Result<Response<OutgoingBody>, Refusal> {
    let Answered { service, rewriting, response, needles, cut, upload, expires, range, offer, .. } = answered;
    let idle = service.idle_timeout.unwrap_or(idle);
    let coding = range.and_then(|_| response.headers().get(header::CONTENT_ENCODING).cloned());
    let response = scrub::response(response, needles, record.counters())
        .map_err(Refusal::from)
        .and_then(|response| {
            let is_coded =
                coding.as_ref().is_some_and(|was| response.headers().get(header::CONTENT_ENCODING) != Some(was));
            range::response(response, range, is_coded).map_err(Refusal::from)
        })
        .inspect_err(|refusal| record.upstream_failed(refusal))?;
    let mut response = rewrite::response(response, &service, &rewriting);
    if offer.is_some() {
        fields::close_after(response.headers_mut()); // the agent may believe that its connection is another protocol's by now
    }
    let held = (in_flight, upload);
    let meter = record.asked_model().and_then(|call| UsageMeter::of(call, &response, record.counters()));
    Ok(response.map(|body| OutgoingBody::relayed((body, meter), cut, expires, idle, held)))
}

impl OutgoingBody {
    pub(crate) fn fixed(bytes: Bytes) -> Self {
        Self(Kind::Fixed(Some(bytes)))
    }

    pub(crate) fn tunnel(tunnel: Box<dyn Tunnel>) -> Self {
        Self(Kind::Tunnel(tunnel))
    }

    /// The tunnel that it stands for, or itself.
    pub(crate) fn into_tunnel(self) -> Result<Box<dyn Tunnel>, Self> {
        match self.0 {
            Kind::Tunnel(tunnel) => Ok(tunnel),
            kind => Err(Self(kind)),
        }
    }

    fn relayed(
        (body, meter): (AnswerBody, Option<Box<UsageMeter>>),
        cut: Cut,
        expires: Option<Instant>,
        idle: Duration,
        held: (InFlight, Option<UploadGuard>),
    ) -> Self {
        Self(Kind::RelayedBody(Box::new(RelayedBody {
            body,
            meter,
            cut,
            expires,
            idle,
            last: Instant::now(),
            timer: None,
            _held: held,
        })))
    }
}

impl RelayedBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let polled = self.poll_frame(cx);
        if let (Some(meter), Poll::Ready(frame)) = (&mut self.meter, &polled) {
            match frame {
                Some(Ok(frame)) => frame.data_ref().into_iter().for_each(|data| meter.read(data)),
                Some(Err(_)) => meter.end(false),
                None => meter.end(true),
            }
            // Nobody polls behind the last frame of a body whose length is known.
            if self.body.is_end_stream() && !matches!(frame, Some(Err(_))) {
                meter.end(true);
            }
        }
        if let Poll::Ready(Some(Err(error))) = &polled {
            match error {
                RelayError::Upstream(error) => self.body.inner().inner().counters().upstream_failed(*error),
                RelayError::Idle => self.body.inner().inner().counters().upstream_failed(UpstreamError::BodyIdle),
                RelayError::Cut | RelayError::Expired => {}
            }
        }
        polled
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        if Pin::new(&mut self.cut).poll(cx).is_ready() {
            return Poll::Ready(Some(Err(RelayError::Cut)));
        }
        if self.cut.is_undecided() {
            return Poll::Pending;
        }
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => return self.poll_timer(cx).map(|e| Some(Err(e))),
        };
        self.last = Instant::now();
        if self.expires.is_some_and(|at| self.last >= at) {
            return Poll::Ready(Some(Err(RelayError::Expired)));
        }
        Poll::Ready(frame.map(|frame| match frame {
            Ok(frame) => Ok(without_framing_trailers(frame)),
            Err(error) => Err(UpstreamError::from(error).into()),
        }))
    }

    /// One timer for silence and expiry, set when the upstream first keeps us waiting. It moves
    /// when it goes off, or when [`poll_expired`](Self::poll_expired) set it to a later time.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<RelayError> {
        let silent = self.last + self.idle;
        let deadline = self.expires.map_or(silent, |at| at.min(silent));
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if self.expires.is_some_and(|at| now >= at) {
                return Poll::Ready(RelayError::Expired);
            }
            if now >= silent {
                return Poll::Ready(RelayError::Idle);
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// Ready when the token has expired. The upstream's silence does not count while the agent
    /// takes nothing.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.expires else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        while Instant::now() < at {
            ready!(timer.as_mut().poll(cx));
            timer.as_mut().reset(at);
        }
        Poll::Ready(())
    }
}

/// Takes out of trailers what does not belong behind a body.
fn without_framing_trailers(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        header_filter::trailers(trailers);
    }
    frame
}

impl Body for OutgoingBody {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        match &mut self.get_mut().0 {
            Kind::Fixed(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Kind::RelayedBody(relayed) => relayed.poll(cx),
            Kind::Tunnel(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Fixed(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Kind::RelayedBody(relayed) => relayed.body.is_end_stream(),
            Kind::Tunnel(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Fixed(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::RelayedBody(relayed) => relayed.body.size_hint(),
            Kind::Tunnel(_) => SizeHint::with_exact(0),
        }
    }
}

impl AbortableBody for OutgoingBody {
    /// An agent that doesn't read what it was sent must not keep what it may no longer have from
    /// ending.
    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Kind::RelayedBody(relayed) => match Pin::new(&mut relayed.cut).poll(cx) {
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => relayed.poll_expired(cx),
            },
            Kind::Fixed(_) | Kind::Tunnel(_) => Poll::Pending,
        }
    }
}
