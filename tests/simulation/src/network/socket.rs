//! One end of a connection.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{End, HostId, Network, What, other};

/// See the module. Dropping it closes the connection.
pub(crate) struct Socket {
    network: Network,
    end: End,
    peer: HostId,
    live: bool,
}

impl Socket {
    pub(super) fn new(network: Network, end: End, peer: HostId) -> Self {
        Self { network, end, peer, live: true }
    }

    /// The host at the other end.
    pub(crate) fn peer(&self) -> HostId {
        self.peer
    }

    /// Without a word to the other side, or a lock.
    pub(super) fn forget(&mut self) {
        self.live = false;
    }

    /// When the other side has accepted.
    pub(crate) async fn established(self) -> io::Result<Self> {
        poll_fn(|cx| {
            let mut inner = self.network.lock();
            let Some(state) = inner.ends.get_mut(&self.end) else { return Poll::Ready(Err(reset())) };
            if state.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()));
            }
            if state.established {
                return Poll::Ready(Ok(()));
            }
            state.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await?;
        Ok(self)
    }

    fn send(&self, what: What) -> io::Result<()> {
        let mut inner = self.network.lock();
        let Some(state) = inner.ends.get(&self.end) else { return Err(reset()) };
        if state.reset || !state.open {
            return Err(reset());
        }
        let host = state.host;
        inner.send(host, other(self.end), what);
        Ok(())
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.network.lock();
        let Some(state) = inner.ends.get_mut(&self.end) else { return Poll::Ready(Err(reset())) };
        let mut read = false;
        while let Some(first) = state.inbox.front_mut() {
            let size = first.len().min(buffer.remaining());
            if size == 0 {
                break;
            }
            buffer.put_slice(&first[..size]);
            first.advance(size);
            read = true;
            if first.is_empty() {
                state.inbox.pop_front();
            }
        }
        if read || state.finished {
            return Poll::Ready(Ok(()));
        }
        if state.reset {
            return Poll::Ready(Err(reset()));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.send(What::Data(Bytes::copy_from_slice(bytes))).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send(What::Finish))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.live {
            let _ = self.send(What::Finish); // of no interest to who has reset it already
            if let Some(state) = self.network.lock().ends.get_mut(&self.end) {
                state.open = false;
            }
        }
    }
}
