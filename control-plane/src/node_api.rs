//! The nodes' listener: the stream of changes and enrolment.
//!
//! [`connection`] drives one HTTP/2 connection; [`session`] is one node's stream on it, and
//! [`grpc_stream`] its framing. [`connection_limiter`] and [`handshake_limiter`] bound what one
//! peer can occupy.

pub(crate) mod approvals;
pub mod audit_upload;
mod connection;
mod connection_limiter;
pub mod enrolment;
pub(crate) mod grpc_stream;
pub(crate) mod handshake_limiter;
pub(crate) mod limit_shares;
pub(crate) mod session;
mod stream_end;
#[cfg(test)]
mod tests;
mod tonic_call;

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use h2::{RecvStream, server::SendResponse};
use http::{Extensions, Method, Request};
use seks_proto::wire::enrolment_server::EnrolmentServer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::server::{Connected, TcpConnectInfo, TlsConnectInfo},
};

pub use self::session::Sessions;
use self::{audit_upload::AuditUploads, connection::Call, connection_limiter::ConnectionLimiter, enrolment::Enrolment};
use crate::trail::Trail;

/// How long a connection without a certificate lasts: enrolment is one call.
const ENROLMENT: Duration = Duration::from_secs(30);
/// The path of `Distribution/Sync`.
const SYNC: &str = "/seks.v1.Distribution/Sync";

/// Serves nodes. Cheap to clone.
///
/// The stream of changes doesn't come through tonic's server, which has a task for the connection,
/// one for the answer and one for the session: one for all of it is an eighth less of the replica's
/// CPU and memory (`benches/README.md`), and what a node doesn't read can be taken back.
#[derive(Clone)]
pub struct NodeServer {
    sessions: Sessions,
    others: Routes,
    limiter: ConnectionLimiter,
}

impl NodeServer {
    /// Serves the stream of changes and nothing else.
    #[must_use]
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions, others: Routes::default(), limiter: ConnectionLimiter::default() }
    }

    /// Serves enrolment, too.
    #[must_use]
    pub fn with_enrolment(self, enrolment: EnrolmentServer<Enrolment>) -> Self {
        Self { others: self.others.add_service(enrolment), ..self }
    }

    /// Takes nodes' audit records into `trail`, too.
    #[must_use]
    pub fn with_trail(self, trail: Trail) -> Self {
        let uploads = AuditUploads::service(self.sessions.0.clone(), trail);
        Self { others: self.others.add_service(uploads), ..self }
    }

    /// Serves connections as they come until `stop`; returns when all of them have ended. Dropped,
    /// it drops them.
    ///
    /// What a connection's [`Connected`] says is what its calls are known by: the listener must
    /// have asked for client certificates.
    pub async fn serve<T>(self, incoming: impl Stream<Item = io::Result<T>>, stop: CancellationToken)
    where
        T: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let mut connections = JoinSet::new();
        tokio::pin!(incoming);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {} // a panic in there has been reported
                io = incoming.next() => match io {
                    Some(Ok(io)) => {
                        connections.spawn(self.clone().connection(io, stop.clone()));
                    }
                    Some(Err(error)) => tracing::debug!(%error, "a connection was not accepted"),
                    None => break,
                },
            }
        }
        while connections.join_next().await.is_some() {}
    }

    async fn connection<T: AsyncRead + AsyncWrite + Connected + Unpin>(self, io: T, stop: CancellationToken) {
        let mut who = Extensions::new();
        who.insert(io.connect_info());
        let tcp = who.get::<TlsConnectInfo<TcpConnectInfo>>().and_then(|tls| tls.get_ref().remote_addr());
        let source = tcp.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
        let peer = self.sessions.peer(&who).map(|peer| peer.identity);
        let slot = Arc::new(self.limiter.admit(peer, source).await);
        let longest = slot.is_anonymous().then_some(ENROLMENT);
        let evicted = {
            let slot = Arc::clone(&slot);
            async move {
                match longest {
                    Some(longest) => drop(timeout(longest, slot.evicted()).await),
                    None => slot.evicted().await,
                }
            }
        };
        let serve = move |request, respond| self.call(&who, request, respond);
        connection::drive_connection(io, serve, evicted, stop).await;
    }

    /// Serves a call of the peer that `who` identifies.
    fn call(&self, who: &Extensions, mut request: Request<RecvStream>, respond: SendResponse<Bytes>) -> Call {
        if request.method() == Method::POST && request.uri().path() == SYNC {
            return self.sessions.clone().sync(who.clone(), request.into_body(), respond).boxed();
        }
        request.extensions_mut().extend(who.clone());
        tonic_call::serve_with_tonic(self.others.clone(), request, respond).boxed()
    }
}
