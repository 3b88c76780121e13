//! Where agents connect: accepts, shakes hands, and gives each request to the proxy.

mod activity;
mod answering;
mod body;
mod connection;
mod h1;
mod handling;
mod head;
mod request_body;
mod stalled;
mod stream;
mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::{activity::Activity, h1::Severed, stalled::polled, stream::Link};
use self::{connection::Server, tls::Acceptor};
pub use self::{
    request_body::{BrokenBody, RequestBody},
    tls::TlsError,
};
use crate::{
    config::ProxyConfig,
    proxy::{Entry, Proxy},
};

/// How long to wait when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound listener.
pub(crate) struct Listener {
    tcp: TcpListener,
    tls: Option<Acceptor>,
    connections: Arc<Semaphore>,
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
        let connections = Arc::new(Semaphore::new(config.limits.max_connections));
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

    /// Accepts until `stop`, then lets requests in flight finish for at most the drain time, then closes what is left.
    pub(crate) async fn serve(self, proxy: Arc<Proxy>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let server = Arc::new(Server::new(proxy, &self.config.limits, self.tls, self.entry, stop.clone()));
        loop {
            // A connection over the limit waits in the kernel's queue: nothing is spent on it.
            let Ok(permit) = self.connections.clone().acquire_owned().await else { break };
            let accepted = tokio::select! {
                accepted = self.tcp.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    let server = server.clone();
                    tasks.spawn(async move {
                        serve_one(&server, tcp, peer).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
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

async fn serve_one(server: &Server, tcp: TcpStream, peer: SocketAddr) {
    // Small writes go out at once: an answer's last segment must not wait for an acknowledgement.
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    tokio::select! {
        () = server.serve(tcp, peer) => {}
        () = server.kill.cancelled() => {}
    }
}
