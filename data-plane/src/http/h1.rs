//! What the two sides of HTTP/1.1 share: bytes that were read, bytes to write, and bodies that are
//! sent.
//!
//! The [`server`](super::server) and the [`client`](super::client) use our own HTTP/1.1, because it
//! is the hot path. The task that holds a connection also drives it. No task and no channel lies
//! between a request and its response. A head is parsed once, and what fits goes out in one write.
//! benches/README.md compares the cost with hyper's.

mod outbox;
mod sending;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

pub(crate) use self::{
    outbox::{Outbox, write_number},
    sending::{Broke, Sending},
};

/// Reads begin with this much room, and get more where it was used up.
const READ_BYTES: usize = 8 * 1024;
const MAX_READ_BYTES: usize = 64 * 1024;

/// What was read from a connection and not yet taken.
pub(crate) struct Inbox {
    pub(crate) bytes: BytesMut,
    room: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { bytes: BytesMut::new(), room: READ_BYTES }
    }

    /// What comes next begins a message: where nothing is left of the one before, it is read to
    /// where that was, which is in the processor's caches, rather than behind it.
    pub(crate) fn rewind(&mut self) {
        if self.bytes.is_empty() {
            let _moved = self.bytes.try_reclaim(self.room); // where it can't, the next read makes room
        }
    }

    /// Reads once, behind what is there; 0: the other side has ended.
    pub(crate) fn poll_fill(
        &mut self,
        stream: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.bytes.capacity() - self.bytes.len() < self.room / 2 {
            // Usually the earlier bytes have been released by now, and this allocates nothing.
            self.bytes.reserve(self.room);
        }
        let read = ready!(poll_read_buf(stream, cx, &mut self.bytes))?;
        let room = self.room;
        self.room = if read >= room { (room * 2).min(MAX_READ_BYTES) } else { (room / 2).clamp(READ_BYTES, room) };
        Poll::Ready(Ok(read))
    }
}
