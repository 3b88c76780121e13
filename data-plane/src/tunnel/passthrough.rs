//! A tunnel to a host of no service, where the tenant allows it (`seks ca other-hosts tunnel`).
//! Bytes are not inspected, and no credential is involved.
//!
//! It needs a token. The address is resolved, checked and pinned as an upstream's. It counts as a
//! request in flight of its token, is one audit record, and ends when the right to it ends.

use std::{
    future::{Future, pending},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use http::Response;
use seks_network::resolve::ResolveError;
use seks_service::Upstream;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::idle::IdleTracker;
use crate::{
    code::Code,
    config::UpstreamConfig,
    http::client::UpstreamError,
    http::server::{ConnectionHandle, Stream, Upgrade, Upgraded},
    pipeline::{
        audit::Record,
        in_flight::{InFlight, expiry},
        origin::Origin,
        refusal::Refusal,
        relay::{OutgoingBody, Tunnel},
    },
    table::{Cut, ServiceEntry, TokenEntry},
    upstream::AddressResolver,
};

/// Read at a time, in each direction.
const BUFFER: usize = 16 * 1024;

/// A tunnel that is about to open.
pub(crate) struct Passthrough {
    host: TcpStream,
    cut: Cut,
    expires: Option<Instant>,
    idle: Duration,
    in_flight: InFlight,
    record: Option<Record>,
}

/// Dials `origin` by `leave`'s leave, and answers once that has worked. The right to it (`cut`) is
/// looked at last.
pub(crate) async fn open(
    origin: &Origin,
    leave: &ServiceEntry,
    token: &Arc<TokenEntry>,
    mut cut: Cut,
    (config, addresses): (&UpstreamConfig, &AddressResolver),
    in_flight: InFlight,
    record: &mut Record,
) -> Result<Response<OutgoingBody>, Refusal> {
    record.tunnel(leave, origin.host(), origin.port());
    let intent = record.intend()?;
    record.upstream_began(false);
    let dialled = timeout(config.connect_timeout, dial(origin, leave, addresses)).await;
    let host = dialled.unwrap_or_else(|_| Err(UpstreamError::ConnectTimeout.into())).inspect_err(|refusal| {
        record.upstream_failed(refusal);
    })?;
    record.upstream_connected();
    intent.recorded().await?;
    if let Some(reason) = cut.reason() {
        return Err(Code::from(reason).into());
    }
    record.decided(true, &[]);
    let (expires, idle) = (expiry(token.expires_at(), cut.unix_now()), config.idle_timeout);
    let passthrough = Passthrough { host, cut, expires, idle, in_flight, record: None };
    Ok(Response::new(OutgoingBody::tunnel(Box::new(passthrough))))
}

/// A connection to exactly an address that was checked, as every upstream's.
async fn dial(origin: &Origin, leave: &ServiceEntry, addresses: &AddressResolver) -> Result<TcpStream, Refusal> {
    let inside = || Refusal::from(Code::ServiceNotGranted).with_detail("no host outside is called so");
    let given = &leave.private_networks;
    let upstream = Upstream::parse(&origin.to_url(), !given.is_empty()).map_err(|_| inside())?;
    let found = addresses.resolve(&leave.tenant, &upstream, given).await;
    let addresses: Vec<SocketAddr> = found.map_err(|error| match error {
        ResolveError::Forbidden => inside(),
        ResolveError::NoAddress => UpstreamError::NoAddress.into(),
    })?;
    let tcp = TcpStream::connect(addresses.as_slice()).await;
    let tcp = tcp.map_err(|error| Refusal::from(UpstreamError::from_connect(&error)))?;
    tcp.set_nodelay(true).map_err(|_| Refusal::from(UpstreamError::ConnectFailed))?;
    Ok(tcp)
}

impl Tunnel for Passthrough {
    fn hand_over(mut self: Box<Self>, record: Record) {
        self.record = Some(record);
        if let Some(activity) = self.in_flight.leave_connection() {
            activity.switch(self);
        }
    }
}

impl Upgrade for Passthrough {
    fn run<'a>(
        self: Box<Self>,
        mut stream: Stream,
        connection: Upgraded<'a>,
    ) -> Pin<Box<dyn Future<Output = Option<Stream>> + Send + 'a>> {
        Box::pin(async move {
            connection.slot.mark_busy();
            let link = stream.link();
            self.pass_both_ways(stream, &link, &connection.settings.stop).await;
            None
        })
    }
}

impl Passthrough {
    /// Passes bytes both ways until both ends have said that there are no more, or the right to it
    /// ends. `link` is `agent`'s.
    async fn pass_both_ways(
        self,
        agent: impl AsyncRead + AsyncWrite,
        link: &ConnectionHandle,
        stop: &CancellationToken,
    ) {
        let Self { host, mut cut, expires, idle, in_flight, record } = self;
        let Some(mut record) = record else { return };
        let idle_tracker = IdleTracker::new(record.counters().clone());
        let (from_agent, to_agent) = split(agent);
        let (from_host, to_host) = host.into_split();
        let both = async {
            let sent = |bytes| idle_tracker.sent(bytes);
            let received = |bytes| {
                idle_tracker.touch();
                idle_tracker.received(bytes);
            };
            tokio::try_join!(pass(from_agent, to_host, sent), pass(from_host, to_agent, received))
        };
        let expired = async {
            match expires {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let mut both = std::pin::pin!(both);
        let (refused, whole) = tokio::select! {
            biased; // the right to it comes first
            reason = &mut cut => (Some(Code::from(reason)), false),
            () = expired => (Some(Code::TokenExpired), false),
            () = idle_tracker.idle_for(idle) => (None, false),
            () = stop.cancelled() => (None, false),
            ended = &mut both => (None, ended.is_ok()),
        };
        drop(in_flight); // before the agent sees the end, and opens the next
        match refused {
            Some(code) => {
                link.reset();
                record.refused(code);
            }
            None if whole => record.complete(),
            None => {}
        }
    }
}

/// Passes what comes until it ends, and says so to the other side.
async fn pass(from: impl AsyncRead, to: impl AsyncWrite, moved: impl Fn(usize)) -> io::Result<()> {
    let (mut from, mut to) = (std::pin::pin!(from), std::pin::pin!(to));
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await?;
        let Some(bytes @ [_, ..]) = buffer.get(..n) else { break };
        to.write_all(bytes).await?;
        moved(n);
    }
    to.shutdown().await
}
