//! An agent's bytes, plain or TLS, with a limit on how long it may leave an answer unread.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;

/// What an HTTP/2 connection begins with; no HTTP/1 method of ours begins with its first three
/// bytes.
pub(super) const PREFACE_START: &[u8; 3] = b"PRI";
/// An agent that reads nothing for this long has disconnected, or tries to occupy memory.
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

/// A handle to a connection for who doesn't hold it.
#[derive(Default)]
pub struct ConnectionHandle {
    /// The agent takes nothing, and bytes for it are waiting.
    blocked: AtomicBool,
    /// It is reset at its end: what the kernel holds for the agent goes with it.
    reset: AtomicBool,
    reset_requested: Notify,
}

impl ConnectionHandle {
    /// What was being sent may not reach the agent any more. Bytes that wait in front of an agent
    /// that takes none can't be told apart: the connection ends.
    pub fn reset_if_blocked(&self) {
        if self.blocked.load(Relaxed) {
            self.reset();
            self.reset_requested.notify_one();
        }
    }

    /// The connection is reset when it ends, rather than closed.
    pub fn reset(&self) {
        self.reset.store(true, Relaxed);
    }

    /// Ready when [`sever`](Self::reset_if_blocked) has ended the connection.
    pub(super) async fn reset_requested(&self) {
        self.reset_requested.notified().await;
    }
}

/// What was read from a connection to find out what it speaks.
#[derive(Clone, Copy, Default)]
pub(super) struct Prefix {
    bytes: [u8; PREFACE_START.len()],
    len: u8,
}

/// A connection whose writes have a time limit.
pub struct Stream {
    inner: Inbound,
    /// Read before, and given out first.
    prefix: Prefix,
    stalled: Option<Pin<Box<Sleep>>>,
    link: Option<Arc<ConnectionHandle>>,
}

impl Prefix {
    /// Reads until it is clear whether `tcp` begins as HTTP/2 does: at most three bytes. `None`
    /// when the agent says nothing.
    pub(super) async fn read(mut tcp: TcpStream) -> Option<(TcpStream, Self)> {
        let mut prefix = Self::default();
        loop {
            let len = usize::from(prefix.len);
            let read = tcp.read(prefix.bytes.get_mut(len..)?).await.ok().filter(|read| *read > 0)?;
            prefix.len += u8::try_from(read).ok()?;
            if prefix.is(PREFACE_START) || !PREFACE_START.starts_with(prefix.bytes()) {
                return Some((tcp, prefix));
            }
        }
    }

    pub(super) fn is(&self, bytes: &[u8]) -> bool {
        self.bytes() == bytes
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Gives out what fits.
    fn take(&mut self, buf: &mut ReadBuf<'_>) {
        let (now, rest) = self.bytes().split_at(buf.remaining().min(usize::from(self.len)));
        buf.put_slice(now);
        let mut left = Self::default();
        for (to, from) in left.bytes.iter_mut().zip(rest) {
            *to = *from;
            left.len += 1;
        }
        *self = left;
    }
}

impl Stream {
    pub(super) fn new(inner: Inbound) -> Self {
        Self::behind(Prefix::default(), inner)
    }

    /// One of which `prefix` was read already.
    pub(super) fn behind(prefix: Prefix, inner: Inbound) -> Self {
        Self { inner, prefix, stalled: None, link: None }
    }

    fn poll_read_inner(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inbound::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Inbound::Tls(s) => Pin::new(s).poll_read(cx, buf),
            Inbound::Intercepted(s) => Pin::new(s).poll_read(cx, buf),
            #[cfg(test)]
            Inbound::Memory(s) => Pin::new(s).poll_read(cx, buf),
        }
    }

    /// When this is dropped, the peer sees a reset and not an end.
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

    /// The handle to it.
    pub fn link(&mut self) -> Arc<ConnectionHandle> {
        self.link.get_or_insert_default().clone()
    }

    /// Bytes wait for the agent: written ones until they are flushed, which TLS doesn't do by
    /// itself.
    fn blocked<T>(&self, poll: &Poll<io::Result<T>>, flushed: bool) {
        if let Some(link) = &self.link
            && (poll.is_pending() || flushed)
        {
            link.blocked.store(poll.is_pending(), Relaxed);
        }
    }

    /// The peer reads nothing: since when? The timer exists only during that time.
    fn watch(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.blocked(&wrote, false);
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

impl Drop for Stream {
    fn drop(&mut self) {
        if self.link.as_ref().is_some_and(|link| link.reset.load(Relaxed)) {
            self.reset();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.prefix.len == 0 {
            return this.poll_read_inner(cx, buf);
        }
        this.prefix.take(buf);
        if this.prefix.len == 0 && buf.remaining() > 0 {
            // What has come with it is read in one go. An error shows again in the next read, and
            // so does the end.
            let _ = this.poll_read_inner(cx, buf);
        }
        Poll::Ready(Ok(()))
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
        let this = self.get_mut();
        let flushed = match &mut this.inner {
            Inbound::Plain(s) => Pin::new(s).poll_flush(cx),
            Inbound::Tls(s) => Pin::new(s).poll_flush(cx),
            Inbound::Intercepted(s) => Pin::new(s).poll_flush(cx),
            #[cfg(test)]
            Inbound::Memory(s) => Pin::new(s).poll_flush(cx),
        };
        this.blocked(&flushed, true);
        flushed
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
