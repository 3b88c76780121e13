//! One connection: detects HTTP/1 or HTTP/2 and serves it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use seks_runtime::connections::ListenerSlot;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    activity::{Activity, Waiting},
    h1::{self, End, H1, RequestHandler, Violation},
    h2,
    handler::{Handler, Peer},
    request_body::RequestBody,
    settings::Settings,
    stream::{Inbound, PREFACE_START, Prefix, Stream},
    tls::{self, Acceptor},
    upgrade::Upgraded,
};

/// After an answer that ends a connection, what the agent still sends is read and thrown away this
/// long and this far: closing with unread bytes resets the connection, and the reset overtakes the
/// answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 1024 * 1024;

/// Serves a connection that was accepted.
pub(super) async fn serve_accepted<H: Handler>(
    settings: &Settings,
    tls: Option<&Acceptor>,
    handler: &H,
    (mut tcp, address): (TcpStream, SocketAddr),
    slot: &Arc<ListenerSlot>,
) {
    let began = Instant::now();
    let (limits, stop) = (&settings.limits, &settings.stop);
    let peer = address.ip().to_canonical();
    let naming = timeout(limits.header_timeout, limits.balancers.source(&mut tcp, peer));
    let Some(Ok(Some(source))) = stop.run_until_cancelled(naming).await else { return };
    if source != peer {
        slot.comes_from(source);
    }
    let (mut certificate_left, mut certificate) = (None, None);
    let (stream, is_h2) = match tls {
        None => {
            let read = timeout(limits.header_timeout, Prefix::read(tcp));
            let Some(Ok(Some((tcp, prefix)))) = stop.run_until_cancelled(read).await else { return };
            let is_h2 = prefix.is(PREFACE_START);
            (Stream::behind(prefix, Inbound::Plain(tcp)), is_h2)
        }
        Some(tls) => {
            let shaken = timeout(limits.handshake_timeout, tls.accept(tcp));
            let Some(Ok(Ok(stream))) = stop.run_until_cancelled(shaken).await else { return };
            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            (certificate_left, certificate) = (tls::certificate_left(&stream), tls::certificate(&stream));
            (Stream::new(Inbound::Tls(Box::new(stream))), is_h2)
        }
    };
    let connection = Upgraded { settings, source, slot };
    let serve = serve(handler, stream, Protocol { is_h2, tls: tls.is_some(), certificate }, began, connection);
    match certificate_left {
        None => serve.await,
        Some(left) => drop(timeout(left, serve).await), // what runs on it ends too
    }
}

/// What a connection was found to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// HTTP/2 rather than HTTP/1.
    pub is_h2: bool,
    /// Within TLS.
    pub tls: bool,
    /// SHA-256 of the certificate that the client has shown.
    pub certificate: Option<[u8; 32]>,
}

/// The TLS handshake inside a tunnel, in which the node presents a certificate of the upstream's
/// host. The server's limit on handshakes applies.
///
/// # Errors
/// From the handshake; `None` on a timeout.
pub async fn accept_within(
    settings: &Settings,
    config: Arc<rustls::ServerConfig>,
    stream: Stream,
) -> Result<(Stream, Protocol), Option<std::io::Error>> {
    let accepted = timeout(settings.limits.handshake_timeout, TlsAcceptor::from(config).accept(stream)).await;
    let tls = accepted.map_err(|_| None)?.map_err(Some)?;
    let is_h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Stream::new(Inbound::Intercepted(Box::new(tls))), Protocol { is_h2, tls: true, certificate: None }))
}

/// Serves the requests of a connection until it ends. Its first head's time counts from `began`.
pub async fn serve<H: Handler>(
    handler: &H,
    stream: Stream,
    protocol: Protocol,
    began: Instant,
    connection: Upgraded<'_>,
) {
    let activity = Arc::new(Activity::new(Some(connection.slot.clone())));
    let peer = Peer { source: connection.source, tls: protocol.tls, certificate: protocol.certificate, activity };
    if protocol.is_h2 {
        h2::serve(connection.settings, handler, stream, &peer).await;
    } else {
        serve_h1(handler, stream, &peer, began, connection).await;
    }
}

async fn serve_h1<H: Handler>(handler: &H, stream: Stream, peer: &Peer, began: Instant, connection: Upgraded<'_>) {
    let Settings { limits, stop, .. } = connection.settings;
    let waiting = Waiting::new(began, limits.header_timeout, limits.keep_alive);
    let h1 = H1::new(stream, limits.head, peer.activity.clone(), waiting);
    let stream = match h1.serve(&Requests { handler, peer }, stop).await {
        End::Gone => None,
        End::Last(stream) => Some(stream),
        End::Switched(upgrade, stream) => upgrade.run(stream, connection).await,
    };
    if let Some(stream) = stream {
        linger(stream).await;
    }
}

async fn linger(mut stream: Stream) {
    let _ = timeout(LINGER, async {
        if stream.shutdown().await.is_ok() {
            let _ = tokio::io::copy(&mut (&mut stream).take(LINGER_BYTES), &mut tokio::io::sink()).await;
        }
    })
    .await;
}

/// Gives the requests of an HTTP/1 connection to the handler.
struct Requests<'a, H> {
    handler: &'a H,
    peer: &'a Peer,
}

impl<H: Handler> RequestHandler for Requests<'_, H> {
    type Body = H::Body;
    type Handling = H::Handling;

    fn handle(&self, request: Request<h1::Incoming>) -> H::Handling {
        self.handler.handle(request.map(RequestBody::from), self.peer)
    }

    fn refuse(&self, violation: Violation) -> Response<H::Body> {
        self.handler.refuse(violation)
    }
}
