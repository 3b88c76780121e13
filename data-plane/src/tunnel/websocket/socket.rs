//! The tunnel behind a `101`: both directions, and what has to hold as long as it is open.

use std::{
    future::{Future, pending},
    pin::Pin,
    time::Duration,
};

use http::Response;
use tokio::{
    io::{AsyncRead, AsyncWrite, split},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{agent::FromAgent, end::End, upstream::FromUpstream};
use crate::{
    code::Code,
    http::{
        client::Switched,
        server::{ConnectionHandle, Stream, Upgrade, Upgraded},
    },
    pipeline::{
        audit::Record,
        forward::Answered,
        in_flight::InFlight,
        refusal::Refusal,
        relay::{OutgoingBody, Tunnel},
        scrub::{self, Messages, Needles},
        websocket as handshake,
    },
    table::Cut,
    tunnel::idle::IdleTracker,
};

/// After a Close has been passed on one way, the other way has this long to answer it.
const CLOSING: Duration = Duration::from_secs(5);
/// How long an agent may take to be told why its tunnel ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// A socket that is about to open: the agent has yet to be told.
pub(crate) struct Socket {
    upstream: Switched,
    needles: Needles,
    cut: Cut,
    expires: Option<Instant>,
    idle: Duration,
    in_flight: InFlight,
    record: Option<Record>,
}

/// Makes of an upstream's `101` the agent's, and of the connection a tunnel.
pub(crate) async fn switch(
    answered: Answered,
    idle: Duration,
    in_flight: InFlight,
    record: &Record,
) -> Result<Response<OutgoingBody>, Refusal> {
    let Answered { response, needles, cut, expires, .. } = answered;
    let (mut parts, body) = response.into_parts();
    record.counters().scrubbed(scrub::headers(&mut parts.headers, &needles));
    handshake::announce(&mut parts.headers);
    let upstream = body.switch().ok_or(Code::UpstreamUnreachable)?;
    let socket = Socket { upstream, needles, cut, expires, idle, in_flight, record: None };
    Ok(Response::from_parts(parts, OutgoingBody::tunnel(Box::new(socket))))
}

impl Tunnel for Socket {
    fn hand_over(mut self: Box<Self>, record: Record) {
        self.record = Some(record);
        if let Some(activity) = self.in_flight.leave_connection() {
            activity.switch(self);
        }
    }
}

impl Upgrade for Socket {
    fn run<'a>(
        self: Box<Self>,
        mut stream: Stream,
        connection: Upgraded<'a>,
    ) -> Pin<Box<dyn Future<Output = Option<Stream>> + Send + 'a>> {
        Box::pin(async move {
            connection.slot.mark_busy();
            let link = stream.link();
            self.pass_frames(stream, &link, &connection.settings.stop).await
        })
    }
}

impl Socket {
    /// Passes frames both ways until the end. Gives the agent's connection back, to be closed
    /// gently. `link` is `agent`'s: it is reset when the right to the tunnel ends and the agent
    /// doesn't take the Close that says so.
    async fn pass_frames<S: AsyncRead + AsyncWrite + Unpin>(
        self: Box<Self>,
        agent: S,
        link: &ConnectionHandle,
        stop: &CancellationToken,
    ) -> Option<S> {
        let Self { upstream, needles, mut cut, expires, idle, in_flight, record } = *self;
        let mut record = record?;
        let Switched { stream, ahead, counted } = upstream;
        let idle_tracker = IdleTracker::new(record.counters().clone());
        let scrubber = Messages::new(needles, record.counters().clone());
        let (from_agent, to_agent) = split(agent);
        let (from_upstream, to_upstream) = split(stream);
        let mut up = FromAgent::new(from_agent, to_upstream, idle_tracker.clone());
        let mut down = FromUpstream::new(from_upstream, &ahead, to_agent, scrubber, idle_tracker.clone());
        let expired = async {
            match expires {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let end = tokio::select! {
            biased; // the right to it comes first
            reason = &mut cut => End::Cut(reason),
            () = expired => End::Expired,
            () = idle_tracker.idle_for(idle) => End::Idle,
            () = stop.cancelled() => End::Stopping,
            end = both(&mut up, &mut down) => end,
        };
        let from_agent = up.finish();
        if matches!(end, End::Cut(_) | End::Expired) {
            link.reset_if_blocked();
        }
        let (to_agent, told) = down.finish(end.goodbye().map(|(code, reason, _)| (code, reason)), GOODBYE).await;
        drop((counted, in_flight));
        match end.goodbye() {
            None if end == End::Closed => record.complete(),
            None | Some((_, _, None)) => drop(record),
            Some((_, _, Some(code))) => {
                record.refused(code);
                drop(record);
            }
        }
        if matches!(end, End::Cut(_) | End::Expired) && !told {
            link.reset();
            return None;
        }
        Some(from_agent.unsplit(to_agent))
    }
}

async fn both<A, B, C, D>(up: &mut FromAgent<A, B>, down: &mut FromUpstream<C, D>) -> End
where
    A: AsyncRead + Unpin,
    B: AsyncWrite + Unpin,
    C: AsyncRead + Unpin,
    D: AsyncWrite + Unpin,
{
    let (mut up, mut down) = (std::pin::pin!(up.run()), std::pin::pin!(down.run()));
    let (end, other_is_up) = tokio::select! {
        end = &mut up => (end, false),
        end = &mut down => (end, true),
    };
    match (end, other_is_up) {
        // Closed one way: whatever the other way does now, it was a clean end.
        (End::Closed, true) => drop(timeout(CLOSING, up).await),
        (End::Closed, false) => drop(timeout(CLOSING, down).await),
        // The upstream takes no more: it may have said why.
        (End::UpstreamGone, false) => return timeout(CLOSING, down).await.unwrap_or(end),
        _ => return end,
    }
    End::Closed
}
