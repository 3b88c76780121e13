//! Where agents connect: accepts, shakes hands, and gives each request to the proxy.

mod activity;
mod connection;
pub(crate) mod h1;
mod handling;
mod request_body;
mod response_stream;
mod slow_reader;
mod stream;
mod tls;

use std::{io, net::SocketAddr, sync::Arc};

use seks_runtime::connections::{AcceptPause, Connections, Slot};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::{activity::Activity, h1::Severed, slow_reader::polled, stream::Link};
use self::{connection::Server, tls::Acceptor};
pub use self::{request_body::RequestBody, tls::TlsError};
use crate::{config::ProxyConfig, proxy::Proxy, tunnel::interception::Entry};

/// Connections of one source address that have shown no valid token yet: this part of all connections, and this many at least.
const SILENT_OF_ONE_SOURCE: (usize, usize) = (8, 64);

/// A bound listener.
pub(crate) struct Listener {
    tcp: TcpListener,
    tls: Option<Acceptor>,
    connections: Connections,
    config: ProxyConfig,
    entry: Entry,
}

/// Why a node can't listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address.
    #[error("listen: cannot listen on {address}: {source}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Certificate or key.
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
}

impl Listener {
    /// Binds, and reads certificate and key where TLS is to be served.
    pub(crate) async fn bind(config: &ProxyConfig) -> Result<Self, ListenError> {
        let fail = |source| ListenError::Bind { address: config.listen, source };
        let tls = config.tls.as_ref().map(Acceptor::load).transpose()?;
        let tcp = TcpListener::bind(config.listen).await.map_err(fail)?;
        let mut config = config.clone();
        config.listen = tcp.local_addr().map_err(fail)?;
        let most = config.limits.max_connections;
        let (part, at_least) = SILENT_OF_ONE_SOURCE;
        let connections = Connections::new(most, (most / part).max(at_least));
        Ok(Self { tcp, tls, connections, config, entry: Entry::Direct })
    }

    /// Binds where agents' `HTTPS_PROXY` points; for the rest as [`bind`](Self::bind)ed by `config`.
    pub(crate) async fn bind_forward(config: &ProxyConfig, listen: SocketAddr) -> Result<Self, ListenError> {
        let config = ProxyConfig { listen, tls: None, ..config.clone() };
        Ok(Self { entry: Entry::Forward, ..Self::bind(&config).await? })
    }

    /// Where it listens: the port that the system chose for 0.
    pub(crate) fn address(&self) -> SocketAddr {
        self.config.listen
    }

    /// The connections that there are.
    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Accepts until `stop`, then lets requests in flight finish for at most the drain time, then closes what is left.
    pub(crate) async fn serve(self, proxy: Arc<Proxy>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let name = if matches!(self.entry, Entry::Forward) { "forward_proxy.listen" } else { "proxy.listen" };
        let server = Arc::new(Server::new(proxy, &self.config.limits, self.tls, self.entry, stop.clone()));
        let mut pause = AcceptPause::default();
        while !stop.is_cancelled() {
            let accepted = tokio::select! {
                accepted = self.tcp.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    stop.run_until_cancelled(pause.wait(name, &error, &self.connections)).await;
                    continue;
                }
            };
            pause.reset();
            // While all connections are busy, the next waits here, and those after it in the kernel's queue.
            let Some(slot) = stop.run_until_cancelled(self.connections.admit(peer.ip())).await else { break };
            let server = server.clone();
            tasks.spawn(async move { serve_one(&server, tcp, peer, Arc::new(slot)).await });
        }
        drop(self.tcp);
        tasks.close();
        if tokio::time::timeout(self.config.limits.drain, tasks.wait()).await.is_err() {
            tracing::warn!(open = tasks.len(), "the drain time has passed: closing connections");
            server.kill.cancel();
            tasks.wait().await;
        }
    }
}

async fn serve_one(server: &Server, tcp: TcpStream, peer: SocketAddr, slot: Arc<Slot>) {
    // Small writes go out at once: an answer's last segment must not wait for an acknowledgement.
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    tokio::select! {
        () = server.serve(tcp, peer, &slot) => {}
        () = server.kill.cancelled() => {}
        () = slot.evicted() => {}
    }
}
