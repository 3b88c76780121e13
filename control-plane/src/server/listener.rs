//! A listener: accepts, shakes hands with a deadline, and hands the connections that came through
//! to tonic.

use std::{future::poll_fn, io, net::SocketAddr, pin::pin, sync::Arc, task::Poll, time::Duration};

use futures_util::FutureExt as _;
use rustls::{ServerConfig, server::Acceptor};
use seks_runtime::{
    connections::{AcceptPause, Connections, ListenerSlot},
    descriptors,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// A TLS handshake takes at most this long.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections in the handshake. Each costs at most some 100 kB meanwhile. Connections after the
/// handshake are not counted here, so clients without a certificate do not keep out those with one.
const OPENING: usize = 1024;
/// Of one source address, those that haven't sent a whole hello yet.
const SILENT_OF_ONE_SOURCE: usize = 256;
/// Hellos that are answered at once, in the order in which they came. When a fleet comes back at
/// once, those that came first are through in time; were all of them worked on together, all would
/// be late together, give up, and come again.
const HANDSHAKES: usize = 32;

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

    /// The socket, for a listener without TLS.
    #[must_use]
    pub fn into_socket(self) -> TcpListener {
        self.socket
    }

    /// Accepts until `stop`. Dropping what it returns stops it as well.
    #[must_use]
    pub fn accept(self, config: ServerConfig, stop: CancellationToken) -> Incoming {
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            stop.run_until_cancelled(self.run(Arc::new(config), sender)).await;
        });
        ReceiverStream::new(receiver)
    }

    async fn run(self, config: Arc<ServerConfig>, connections: mpsc::Sender<Result<TlsStream<TcpStream>, io::Error>>) {
        // A quarter of the descriptors for each of two listeners leaves half for those who have
        // come through, and the store.
        let most = OPENING.min(descriptors::limit() / 4);
        let opening = Connections::new(most, SILENT_OF_ONE_SOURCE.min(most / 2));
        let (turns, mut pause) = (Arc::new(Semaphore::new(HANDSHAKES)), AcceptPause::default());
        while !connections.is_closed() {
            let (stream, peer) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause.wait("control plane", &error, &opening).await;
                    continue;
                }
            };
            pause.reset();
            let slot = opening.admit(peer.ip()).await;
            let (config, turns, connections) = (config.clone(), turns.clone(), connections.clone());
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true); // an option of the kernel's; nothing depends on it
                let shaken = tokio::select! {
                    shaken = timeout(HANDSHAKE, shake(stream, config, &turns, &slot)) => shaken,
                    () = slot.evicted() => return tracing::debug!("a TLS handshake made room for another"),
                };
                drop(slot);
                match shaken {
                    Ok(Ok(stream)) => drop(connections.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            });
        }
    }
}

/// Waits for the hello, which costs nothing, and then for a turn to answer it, unless the peer
/// disconnects meanwhile.
///
/// A turn ends when the hello is answered, not when the peer continues. Otherwise peers that never
/// continue would take all turns. Until the hello is complete, the connection may be evicted in
/// favour of others of its source. While it waits for its turn, it is not evicted. After that it
/// may be evicted when the listener is full.
async fn shake(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    turns: &Semaphore,
    slot: &ListenerSlot,
) -> io::Result<TlsStream<TcpStream>> {
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    slot.mark_authenticated();
    slot.mark_busy();
    let turn = turns.acquire().await.map_err(io::Error::other)?;
    if let Some(Ok(0) | Err(_)) = hello.io.peek(&mut [0]).now_or_never() {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let mut answer = pin!(hello.into_stream(config));
    let answered = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await;
    drop(turn);
    slot.mark_idle();
    match answered {
        Poll::Ready(stream) => stream,
        Poll::Pending => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use rustls_pki_types::{PrivateKeyDer, ServerName};
    use tokio::io::AsyncWriteExt as _;
    use tokio_rustls::TlsConnector;

    use super::*;

    fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let made = rcgen::generate_simple_self_signed(["replica".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let server = server.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        (Arc::new(server), Arc::new(client.with_root_certificates(roots).with_no_client_auth()))
    }

    #[tokio::test]
    async fn a_hello_is_answered_in_its_turn_unless_who_said_it_has_gone() {
        let (server, client) = configs();
        let name = ServerName::try_from("replica").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let turns = Semaphore::new(0);

        let mut hello = Vec::new();
        let mut gone = ClientConnection::new(client.clone(), name.clone()).unwrap();
        gone.write_tls(&mut hello).unwrap();
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(&hello).await.unwrap();
        tcp.shutdown().await.unwrap();

        let waits = TlsConnector::from(client).connect(name, TcpStream::connect(address).await.unwrap());
        let (first, second) = (listener.accept().await.unwrap().0, listener.accept().await.unwrap().0);
        let opening = Connections::new(2, 2);
        let peer = address.ip();
        let slots = (opening.admit(peer).await, opening.admit(peer).await);
        let mut answers = Box::pin(async {
            let first = shake(first, server.clone(), &turns, &slots.0);
            tokio::join!(first, shake(second, server.clone(), &turns, &slots.1), waits)
        });
        assert!(timeout(Duration::from_millis(50), &mut answers).await.is_err(), "nobody's turn");
        turns.add_permits(1);
        let (first, second, waited) = answers.await;
        assert_eq!(first.err().map(|e| e.kind()), Some(io::ErrorKind::ConnectionAborted));
        assert!(second.is_ok() && waited.is_ok());
    }
}
