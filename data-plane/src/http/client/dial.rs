//! A connection to one checked address: TCP, TLS where the service says `https`, and the HTTP
//! version that ALPN chose.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::sleep,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::UpstreamError;

/// What a request without a connection waits for: names the fault when the time is over.
#[derive(Default)]
pub(super) struct Stage(AtomicU8);

impl Stage {
    const STREAM: u8 = 0;
    const NAME: u8 = 1;
    const CONNECTION: u8 = 2;
    const HANDSHAKE: u8 = 3;

    /// For a stream of a connection that others use.
    pub(super) fn waiting(&self) {
        self.0.store(Self::STREAM, Relaxed);
    }

    /// For a name server.
    pub(super) fn resolving(&self) {
        self.0.store(Self::NAME, Relaxed);
    }

    /// What has taken too long.
    pub(super) fn timed_out(&self) -> UpstreamError {
        match self.0.load(Relaxed) {
            Self::NAME => UpstreamError::NoAddress,
            Self::CONNECTION => UpstreamError::ConnectTimeout,
            Self::HANDSHAKE => UpstreamError::TlsTimeout,
            _ => UpstreamError::StreamTimeout,
        }
    }
}

/// How long an attempt has before the next address is tried beside it (RFC 8305 §5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// HTTP/2 in ALPN.
pub const ALPN_H2: &[u8] = b"h2";
/// HTTP/1.1 in ALPN.
pub const ALPN_H1: &[u8] = b"http/1.1";

/// Bytes to and from an upstream.
pub(crate) enum Stream {
    /// Plain, for upstreams that were allowed it.
    Plain(TcpStream),
    /// Verified.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether ALPN chose HTTP/2.
    pub(super) fn is_h2(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.get_ref().1.alpn_protocol() == Some(ALPN_H2))
    }
}

/// The same connector, offering HTTP/1.1 alone.
pub(super) fn only_h1(connector: &TlsConnector) -> TlsConnector {
    let mut config = ClientConfig::clone(connector.config());
    config.alpn_protocols = vec![ALPN_H1.to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// Dials exactly `addresses`, then shakes hands where `tls` says so.
pub(super) async fn connect(
    addresses: Vec<SocketAddr>,
    tls: Option<&(TlsConnector, ServerName<'static>)>,
    stage: &Stage,
) -> Result<Stream, UpstreamError> {
    stage.0.store(Stage::CONNECTION, Relaxed);
    let tcp = dial(addresses).await?;
    // Small writes go out at once: a request's head must not wait for an acknowledgement.
    tcp.set_nodelay(true).map_err(|_| UpstreamError::ConnectFailed)?;
    let Some((connector, name)) = tls else { return Ok(Stream::Plain(tcp)) };
    stage.0.store(Stage::HANDSHAKE, Relaxed);
    match connector.connect(name.clone(), tcp).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        // rustls wraps its own errors as `InvalidData`; anything else is the network's.
        Err(e) => Err(e.get_ref().and_then(|e| e.downcast_ref()).map_or(UpstreamError::TlsClosed, tls_fault)),
    }
}

/// What is wrong with a connection that fails when it is read from. In TLS 1.3, a server asks for a
/// certificate in its handshake and refuses a client without one behind it.
pub(super) fn read_fault(error: &io::Error) -> UpstreamError {
    let tls = error.get_ref().and_then(|error| error.downcast_ref()).map(tls_fault);
    match tls {
        Some(UpstreamError::TlsClientCertificate) => UpstreamError::TlsClientCertificate,
        _ if error.kind() == io::ErrorKind::ConnectionReset => UpstreamError::Reset,
        _ => UpstreamError::Closed,
    }
}

/// What is wrong with a handshake.
fn tls_fault(error: &rustls::Error) -> UpstreamError {
    use rustls::{AlertDescription, CertificateError as C, Error as E};
    match error {
        E::InvalidCertificate(fault) => match fault {
            C::Expired | C::ExpiredContext { .. } => UpstreamError::TlsExpired,
            C::NotValidYet | C::NotValidYetContext { .. } => UpstreamError::TlsNotYetValid,
            C::NotValidForName | C::NotValidForNameContext { .. } => UpstreamError::TlsWrongName,
            // A bad signature: an issuer of a trusted one's name, with another key.
            C::UnknownIssuer | C::BadSignature => UpstreamError::TlsUnknownIssuer,
            C::Revoked => UpstreamError::TlsRevoked,
            // What `openssl req -x509` makes is a CA's certificate that nobody else has issued.
            // rustls names the fault in text only.
            C::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => UpstreamError::TlsUnknownIssuer,
            _ => UpstreamError::TlsBadCertificate,
        },
        E::AlertReceived(AlertDescription::CertificateRequired) => UpstreamError::TlsClientCertificate,
        E::AlertReceived(AlertDescription::NoApplicationProtocol) | E::NoApplicationProtocol => UpstreamError::NoHttp2,
        _ => UpstreamError::TlsHandshake,
    }
}

async fn dial(addresses: Vec<SocketAddr>) -> Result<TcpStream, UpstreamError> {
    let mut waiting = addresses.into_iter();
    let (mut attempts, mut fault) = (FuturesUnordered::new(), UpstreamError::NoAddress);
    if let Some(first) = waiting.next() {
        attempts.push(TcpStream::connect(first));
    }
    loop {
        tokio::select! {
            result = attempts.next() => {
                match result {
                    Some(Ok(stream)) => return Ok(stream),
                    Some(Err(error)) => fault = UpstreamError::from_connect(&error),
                    None => {}
                }
                match waiting.next() {
                    Some(address) => attempts.push(TcpStream::connect(address)),
                    None if attempts.is_empty() => return Err(fault),
                    None => {}
                }
            },
            () = sleep(NEXT_ADDRESS_AFTER), if waiting.len() > 0 => {
                attempts.extend(waiting.next().map(TcpStream::connect));
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::Tls(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    };
    use tokio::net::TcpListener;

    /// A CA's own certificate for `up.test`.
    fn ca_certificate() -> rustls_pki_types::CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::new(vec!["up.test".into()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn the_certificate_of_openssl_req_x509_is_from_an_unknown_issuer() {
        let mut roots = RootCertStore::empty();
        roots.add(ca_certificate()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let (name, now) = (ServerName::try_from("up.test").unwrap(), rustls_pki_types::UnixTime::now());
        let error = verifier.verify_server_cert(&ca_certificate(), &[], &name, &[], now).unwrap_err();
        assert_eq!(tls_fault(&error), UpstreamError::TlsUnknownIssuer, "{error:?}");
    }

    #[test]
    fn an_alert_behind_the_handshake_is_the_cause() {
        let alert = |alert| io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert));
        let asked = read_fault(&alert(rustls::AlertDescription::CertificateRequired));
        assert_eq!(asked, UpstreamError::TlsClientCertificate);
        assert!(asked.is_unprocessed() && asked.is_lasting());
        assert_eq!(read_fault(&alert(rustls::AlertDescription::InternalError)), UpstreamError::Closed);
        assert_eq!(read_fault(&io::ErrorKind::ConnectionReset.into()), UpstreamError::Reset);
    }

    #[tokio::test]
    async fn a_dead_address_does_not_keep_the_live_one_waiting() {
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let stream = dial(vec![dead, live.local_addr().unwrap()]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live.local_addr().unwrap());
        assert_eq!(dial(vec![dead]).await.err(), Some(UpstreamError::ConnectRefused));
        assert_eq!(dial(Vec::new()).await.err(), Some(UpstreamError::NoAddress));
    }
}
