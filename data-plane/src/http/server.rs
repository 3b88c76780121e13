//! An HTTP server: accepts connections, shakes hands, reads requests strictly and gives them to a
//! [`Handler`].

mod abortable_body;
mod activity;
mod connection;
mod h1;
mod h2;
mod handler;
mod proxy_protocol;
mod request_body;
mod response_stream;
mod settings;
mod slow_reader;
mod stream;
mod tls;
mod upgrade;

use std::{io, net::SocketAddr, sync::Arc};

use seks_runtime::connections::{AcceptPause, Connections, ListenerSlot};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::tls::Acceptor;
pub(crate) use self::tls::check_tls;
pub use self::{
    abortable_body::AbortableBody,
    activity::Activity,
    connection::{Protocol, accept_within, serve},
    h1::{BrokenBody, Violation},
    handler::{Handler, Peer},
    proxy_protocol::Balancers,
    request_body::RequestBody,
    settings::{HeadLimits, Limits, Settings},
    stream::{ConnectionHandle, Stream},
    tls::{TlsConfig, TlsError},
    upgrade::{Upgrade, Upgraded},
};

/// Connections of one source address that have shown no valid token yet: this part of all
/// connections, and this many at least.
const SILENT_OF_ONE_SOURCE: (usize, usize) = (8, 64);

/// A bound listener.
pub struct Listener {
    /// Its key in the configuration.
    name: &'static str,
    tcp: TcpListener,
    address: SocketAddr,
    tls: Option<Acceptor>,
    connections: Connections,
    limits: Limits,
}

/// Why a node can't listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be bound.
    #[error("listen: cannot listen on {address}: {source}")]
    Bind {
        /// The address that was configured.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
}

impl Listener {
    /// Binds, and reads certificate and key where TLS is to be served. `name` is its key in the
    /// configuration.
    ///
    /// # Errors
    /// When the address is taken or not this machine's; when a file can't be used.
    pub async fn bind(
        name: &'static str,
        listen: SocketAddr,
        tls: Option<&TlsConfig>,
        limits: Limits,
    ) -> Result<Self, ListenError> {
        let fail = |source| ListenError::Bind { address: listen, source };
        let tls = tls.map(Acceptor::load).transpose()?;
        let tcp = TcpListener::bind(listen).await.map_err(fail)?;
        let address = tcp.local_addr().map_err(fail)?;
        let most = limits.max_connections;
        let (part, at_least) = SILENT_OF_ONE_SOURCE;
        let connections = Connections::new(most, (most / part).max(at_least));
        Ok(Self { name, tcp, address, tls, connections, limits })
    }

    /// Where it listens: the port that the system chose for 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says when its certificate ends, in Unix seconds, where it serves TLS.
    pub fn certificate_end(&self) -> impl Fn() -> Option<i64> + Send + Sync + 'static {
        let end = self.tls.as_ref().map(Acceptor::certificate_end);
        move || end.as_ref().and_then(|end| end())
    }

    /// The connections that there are.
    #[must_use]
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Accepts until `stop`, then lets requests in flight finish for at most the drain time, then
    /// closes what is left.
    pub async fn serve<H: Handler>(self, handler: H, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let settings = Settings::new(self.limits, stop.clone());
        let server = Arc::new(Server { settings, tls: self.tls, handler });
        let mut pause = AcceptPause::default();
        while !stop.is_cancelled() {
            let accepted = tokio::select! {
                accepted = self.tcp.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    stop.run_until_cancelled(pause.wait(self.name, &error, &self.connections)).await;
                    continue;
                }
            };
            pause.reset();
            // While all connections are busy, the next waits here, and those after it in the
            // kernel's queue.
            let Some(slot) = stop.run_until_cancelled(self.connections.admit(accepted.1.ip())).await else { break };
            let server = server.clone();
            tasks.spawn(async move { server.serve(accepted, Arc::new(slot)).await });
        }
        drop(self.tcp);
        tasks.close();
        if tokio::time::timeout(server.settings.limits.drain, tasks.wait()).await.is_err() {
            tracing::warn!(open = tasks.len(), "the drain time has passed: closing connections");
            server.settings.kill.cancel();
            tasks.wait().await;
        }
    }
}

/// What the tasks of a listener's connections share.
struct Server<H> {
    settings: Settings,
    tls: Option<Acceptor>,
    handler: H,
}

impl<H: Handler> Server<H> {
    async fn serve(&self, accepted: (TcpStream, SocketAddr), slot: Arc<ListenerSlot>) {
        // Small writes go out at once: an answer's last segment must not wait for an
        // acknowledgement.
        if accepted.0.set_nodelay(true).is_err() {
            return;
        }
        tokio::select! {
            () = connection::serve_accepted(&self.settings, self.tls.as_ref(), &self.handler, accepted, &slot) => {}
            () = self.settings.kill.cancelled() => {}
            () = slot.evicted() => {}
        }
    }
}
