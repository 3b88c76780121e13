//! A listener: accepts, shakes hands with a deadline, and hands the connections that came through to tonic.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// A TLS handshake takes at most this long.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once; what comes beyond waits in the kernel's queue. Each costs some 100 kB while it lasts.
const HANDSHAKES: usize = 256;
/// After an error of `accept` (no file descriptors left, most likely) it is left alone for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that came through the handshake.
pub type Incoming = ReceiverStream<Result<TlsStream<TcpStream>, io::Error>>;

/// A bound socket that doesn't accept yet.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds; port 0 picks a free one.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// Where it is bound.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until `stop`. Dropping what it returns stops it as well.
    #[must_use]
    pub fn accept(self, config: ServerConfig, stop: CancellationToken) -> Incoming {
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            stop.run_until_cancelled(self.run(TlsAcceptor::from(Arc::new(config)), sender)).await;
        });
        ReceiverStream::new(receiver)
    }

    async fn run(self, acceptor: TlsAcceptor, connections: mpsc::Sender<Result<TlsStream<TcpStream>, io::Error>>) {
        let slots = Arc::new(Semaphore::new(HANDSHAKES));
        while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
            let stream = match self.socket.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (acceptor, connections) = (acceptor.clone(), connections.clone());
            tokio::spawn(async move {
                let _slot = slot;
                let _ = stream.set_nodelay(true); // an option of the kernel's; nothing depends on it
                match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => drop(connections.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            });
        }
    }
}
