//! Bytes that are to be written.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use http::HeaderMap;
use tokio::io::AsyncWrite;

/// What is to be written: `head` and what was copied behind it, then `part`, in one write where the
/// connection can do that.
#[derive(Default)]
pub(crate) struct Outbox {
    pub(crate) head: Vec<u8>,
    /// Of `head`.
    written: usize,
    /// A part of a body that was too large to be copied.
    pub(super) part: Bytes,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_empty() && self.part.is_empty()
    }

    /// Forgets what was to be written.
    pub(crate) fn clear(&mut self) {
        self.head.clear();
        (self.written, self.part) = (0, Bytes::new());
    }

    /// Writes once; something is there to be written.
    pub(crate) fn poll_write(
        &mut self,
        stream: Pin<&mut impl AsyncWrite>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let head = self.head.get(self.written..).unwrap_or_default();
        let mut wrote = ready!(match (head.is_empty(), self.part.is_empty()) {
            (false, false) if stream.is_write_vectored() => {
                stream.poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(&self.part)])
            }
            (true, _) => stream.poll_write(cx, &self.part),
            _ => stream.poll_write(cx, head),
        })?;
        if wrote == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let of_head = wrote.min(head.len());
        self.written += of_head;
        if self.written == self.head.len() {
            self.head.clear();
            self.written = 0;
        }
        wrote -= of_head;
        self.part.advance(wrote);
        Poll::Ready(Ok(()))
    }
}

/// A number in decimal.
pub(crate) fn write_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        (number, length) = (number / 10, length + 1);
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(20 - length..).unwrap_or_default());
}

/// Begins a chunk of this size, not 0. A line end closes it.
pub(super) fn write_chunk_size(out: &mut Vec<u8>, size: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(HEX.get(size >> (4 * digit) & 15).copied().unwrap_or(b'0'));
    }
    out.extend_from_slice(b"\r\n");
}

/// The last chunk.
pub(super) fn write_last_chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}

/// The last chunk, and fields behind it (RFC 9112, 7.1.2).
pub(super) fn write_trailers(out: &mut Vec<u8>, trailers: &HeaderMap) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes_are_written_in_full() {
        for number in [0, 7, 10, 99, 1204, u64::MAX] {
            let mut out = Vec::new();
            write_number(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
        for size in [1, 15, 16, 255, 256, 4096, 70_000, usize::MAX] {
            let mut out = Vec::new();
            write_chunk_size(&mut out, size);
            assert_eq!(out, format!("{size:x}\r\n").as_bytes());
        }
    }
}
