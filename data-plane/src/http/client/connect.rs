//! A connection to one checked address: TCP, TLS where the service says `https`, and the HTTP version that ALPN chose.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
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
) -> Result<Stream, UpstreamError> {
    let tcp = dial(addresses).await?;
    // Small writes go out at once: a request's head must not wait for an acknowledgement.
    tcp.set_nodelay(true).map_err(|_| UpstreamError::Unreachable("socket option"))?;
    let Some((connector, name)) = tls else { return Ok(Stream::Plain(tcp)) };
    match connector.connect(name.clone(), tcp).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        // rustls wraps its own errors as `InvalidData`; anything else is the network's.
        Err(e) if e.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => Err(UpstreamError::Tls),
        Err(_) => Err(UpstreamError::Unreachable("lost during the TLS handshake")),
    }
}

async fn dial(addresses: Vec<SocketAddr>) -> Result<TcpStream, UpstreamError> {
    let mut waiting = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    if let Some(first) = waiting.next() {
        attempts.push(TcpStream::connect(first));
    }
    loop {
        tokio::select! {
            result = attempts.next() => match result {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(_)) | None => match waiting.next() {
                    Some(address) => attempts.push(TcpStream::connect(address)),
                    None if attempts.is_empty() => return Err(UpstreamError::Unreachable("connection refused")),
                    None => {}
                },
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
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_dead_address_does_not_keep_the_live_one_waiting() {
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let stream = dial(vec![dead, live.local_addr().unwrap()]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live.local_addr().unwrap());
        assert!(matches!(dial(vec![dead]).await, Err(UpstreamError::Unreachable(_))));
        assert!(dial(Vec::new()).await.is_err());
    }
}
