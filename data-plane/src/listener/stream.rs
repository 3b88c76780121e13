//! An agent's bytes, plain or TLS, with a limit on how long it may leave an answer unread.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;

/// An agent that takes no byte for this long has gone, or wants memory held.
const WRITE_STALL: Duration = Duration::from_secs(60);

/// The two kinds of connection.
pub(super) enum Inbound {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Within a tunnel, which is another connection.
    Intercepted(Box<TlsStream<Stream>>),
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

/// A connection whose writes may not stall for ever.
pub(super) struct Stream {
    inner: Inbound,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    pub(super) fn new(inner: Inbound) -> Self {
        Self { inner, stalled: None }
    }

    /// Whoever has the other end finds it reset rather than ended, once this is dropped.
    pub(super) fn reset(&self) {
        match &self.inner {
            // An error means that it is gone already.
            Inbound::Plain(tcp) => drop(tcp.set_zero_linger()),
            Inbound::Tls(tls) => drop(tls.get_ref().0.set_zero_linger()),
            Inbound::Intercepted(tls) => tls.get_ref().0.reset(),
            #[cfg(test)]
            Inbound::Memory(_) => {}
        }
    }

    /// Nothing was taken: since when? The timer stands only while that is so.
    fn watch(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if wrote.is_ready() {
            if self.stalled.is_some() {
                self.stalled = None;
            }
            return wrote;
        }
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inbound::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Inbound::Tls(s) => Pin::new(s).poll_read(cx, buf),
            Inbound::Intercepted(s) => Pin::new(s).poll_read(cx, buf),
            #[cfg(test)]
            Inbound::Memory(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = match &mut this.inner {
            Inbound::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Inbound::Tls(s) => Pin::new(s).poll_write(cx, buf),
            Inbound::Intercepted(s) => Pin::new(s).poll_write(cx, buf),
            #[cfg(test)]
            Inbound::Memory(s) => Pin::new(s).poll_write(cx, buf),
        };
        this.watch(cx, wrote)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = match &mut this.inner {
            Inbound::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Inbound::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Inbound::Intercepted(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            #[cfg(test)]
            Inbound::Memory(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        };
        this.watch(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Inbound::Plain(s) => s.is_write_vectored(),
            Inbound::Tls(s) => s.is_write_vectored(),
            Inbound::Intercepted(s) => s.is_write_vectored(),
            #[cfg(test)]
            Inbound::Memory(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inbound::Plain(s) => Pin::new(s).poll_flush(cx),
            Inbound::Tls(s) => Pin::new(s).poll_flush(cx),
            Inbound::Intercepted(s) => Pin::new(s).poll_flush(cx),
            #[cfg(test)]
            Inbound::Memory(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inbound::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Inbound::Tls(s) => Pin::new(s).poll_shutdown(cx),
            Inbound::Intercepted(s) => Pin::new(s).poll_shutdown(cx),
            #[cfg(test)]
            Inbound::Memory(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
