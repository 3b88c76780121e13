//! Watches the frames of an HTTP/2 server's connection: bounds what a peer's cheap frames cost, and sees what the library
//! answers by itself.
//!
//! HTTP/2 libraries answer PING, SETTINGS, RST_STREAM, WINDOW_UPDATE, CONTINUATION and empty DATA frames for as long as a peer
//! sends them, at some microseconds each: a connection costs a core and no request is ever made (CVE-2019-9512, 9514, 9515,
//! 9517, 9518; CVE-2024-27316). Each of these frames is paid from a budget here, which refills with time and with work that
//! the peer has asked for. A connection whose budget is spent is closed.
//!
//! A library also refuses streams and connections without telling whoever serves them: those show in the frames that it sends.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Cheap frames that a peer may send at once. A client begins with fewer than ten.
const BURST: u32 = 256;
/// Cheap frames that it may send a second, for as long as it likes.
const A_SECOND: u128 = 128;
/// A request that was answered may be followed by a window update. One that is reset before it is answered earns nothing
/// (rapid reset, CVE-2023-44487).
const EARNED_BY_ANSWER: u32 = 1;
/// Data of at least [`DATA_BYTES`] that is sent to the peer may be followed by updates of the stream's and the connection's window.
const EARNED_BY_DATA: u32 = 2;
const DATA_BYTES: usize = 256;
/// Most that is earned by work.
const MOST: u32 = 4096;
/// A response of ours has a request id, and takes more bytes than this: a shorter one is the library's own.
const OWN_RESPONSE_BYTES: usize = 16;

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
/// Of RST_STREAM and GOAWAY so much of the payload is looked at.
const LOOKED_AT_BYTES: usize = 8;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// Error codes that a server's own code gives: `NO_ERROR`, `INTERNAL_ERROR`, `CANCEL`. Every other is the library's.
const OWN_CODES: [u32; 3] = [0, 2, 8];

/// What the library, or the budget, has refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A request whose header list is too large: answered with 431.
    HeaderList,
    /// A stream, with this error code (RFC 9113, 7).
    Stream(u32),
    /// The connection, with this error code.
    Connection(u32),
    /// The connection: too many frames that ask for nothing.
    Flood,
}

/// A server's end of an HTTP/2 connection, before anything was read from it.
pub struct Frames<T, F> {
    io: T,
    received: Walker,
    sent: Walker,
    budget: Budget,
    refused: F,
}

impl<T, F: FnMut(Refused)> Frames<T, F> {
    /// Watches `io`, and calls `refused` for every refusal.
    pub fn new(io: T, refused: F) -> Self {
        let (received, sent) = (Walker::new(PREFACE_BYTES), Walker::new(0));
        Self { io, received, sent, budget: Budget::new(), refused }
    }

    /// Whether the peer may go on after these bytes of it.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let budget = &mut self.budget;
        let mut within = true;
        self.received.walk(bytes, |frame| match frame.kind {
            HEADERS => {}
            DATA if frame.flags & END_STREAM != 0 || (frame.length > 0 && frame.flags & PADDED == 0) => {}
            // Each entry of a SETTINGS frame is work, and has six bytes.
            SETTINGS => (0..=frame.length / 256).for_each(|_| within &= budget.spend()),
            _ => within &= budget.spend(),
        });
        if !within {
            (self.refused)(Refused::Flood);
        }
        within
    }

    fn give(&mut self, bytes: &[u8]) {
        let (budget, refused) = (&mut self.budget, &mut self.refused);
        self.sent.walk(bytes, |frame| match frame.kind {
            DATA if frame.length >= DATA_BYTES => budget.earn(EARNED_BY_DATA),
            HEADERS if frame.flags & END_STREAM != 0 && frame.length < OWN_RESPONSE_BYTES => {
                refused(Refused::HeaderList);
            }
            HEADERS => budget.earn(EARNED_BY_ANSWER),
            RST_STREAM if !OWN_CODES.contains(&frame.first) => refused(Refused::Stream(frame.first)),
            GOAWAY if !OWN_CODES.contains(&frame.second) => refused(Refused::Connection(frame.second)),
            _ => {}
        });
    }
}

/// Cheap frames that a peer may still send.
struct Budget {
    left: u32,
    refilled: Instant,
}

impl Budget {
    fn new() -> Self {
        Self { left: BURST, refilled: Instant::now() }
    }

    fn earn(&mut self, frames: u32) {
        self.left = self.left.saturating_add(frames).min(MOST.max(self.left));
    }

    /// The clock is asked only when nothing is left.
    fn spend(&mut self) -> bool {
        if self.left == 0 {
            let earned = self.refilled.elapsed().as_millis() * A_SECOND / 1000;
            self.left = u32::try_from(earned).unwrap_or(BURST).min(BURST);
            if self.left == 0 {
                return false;
            }
            self.refilled = Instant::now();
        }
        self.left -= 1;
        true
    }
}

/// A frame, as far as it is looked at.
struct Frame {
    kind: u8,
    flags: u8,
    length: usize,
    /// The first and the second four bytes of the payload of RST_STREAM and GOAWAY; 0 where there are none.
    first: u32,
    second: u32,
}

/// Finds the frames in one direction of a connection, whatever pieces it comes in.
struct Walker {
    /// Bytes to skip: of the preface or a payload.
    skip: usize,
    head: [u8; HEAD_BYTES + LOOKED_AT_BYTES],
    /// How much of `head` is there, and how much is wanted.
    filled: usize,
    wanted: usize,
}

impl Walker {
    fn new(skip: usize) -> Self {
        Self { skip, head: [0; HEAD_BYTES + LOOKED_AT_BYTES], filled: 0, wanted: HEAD_BYTES }
    }

    fn walk(&mut self, mut bytes: &[u8], mut each: impl FnMut(&Frame)) {
        while !bytes.is_empty() {
            let (skipped, rest) = bytes.split_at(self.skip.min(bytes.len()));
            self.skip -= skipped.len();
            let (taken, rest) = rest.split_at((self.wanted - self.filled).min(rest.len()));
            for (to, from) in self.head.iter_mut().skip(self.filled).zip(taken) {
                *to = *from;
            }
            self.filled += taken.len();
            bytes = rest;
            if self.filled < self.wanted {
                return;
            }
            let [l2, l1, l0, kind, flags, _, _, _, _, a, b, c, d, e, f, g, h] = self.head;
            let length = u32::from_be_bytes([0, l2, l1, l0]) as usize;
            let looked_at = if matches!(kind, RST_STREAM | GOAWAY) { length.min(LOOKED_AT_BYTES) } else { 0 };
            if self.wanted < HEAD_BYTES + looked_at {
                self.wanted = HEAD_BYTES + looked_at;
                continue;
            }
            let (first, second) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
            each(&Frame { kind, flags, length, first, second });
            *self = Self::new(length - looked_at);
        }
    }
}

impl<T: AsyncRead + Unpin, F: FnMut(Refused) + Unpin> AsyncRead for Frames<T, F> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        if this.take(read) {
            return Poll::Ready(Ok(()));
        }
        buf.set_filled(before);
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "too many HTTP/2 frames that ask for nothing",
        )))
    }
}

impl<T: AsyncWrite + Unpin, F: FnMut(Refused) + Unpin> AsyncWrite for Frames<T, F> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.give(bytes.get(..wrote).unwrap_or_default());
        Poll::Ready(Ok(wrote))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, slices))?;
        let mut left = wrote;
        for slice in slices {
            let (now, _) = slice.split_at(left.min(slice.len()));
            this.give(now);
            left -= now.len();
            if left == 0 {
                break;
            }
        }
        Poll::Ready(Ok(wrote))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// How many of these frames a connection takes.
    fn taken(one: &[u8]) -> usize {
        let mut frames = Frames::new((), |_| {});
        assert!(frames.take(&[b'P'; PREFACE_BYTES]));
        (0..20_000).take_while(|_| frames.take(one)).count()
    }

    #[test]
    fn frames_are_found_in_pieces_of_any_size() {
        let stream = [
            vec![b'p'; PREFACE_BYTES],
            frame(SETTINGS, 0, &[0; 12]),
            frame(DATA, 1, &[7; 1000]),
            frame(RST_STREAM, 0, &[0, 0, 0, 1]),
            frame(DATA, 0, &[]),
            frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 11, b'x', b'y']),
            frame(HEADERS, 5, &[0x82]),
        ]
        .concat();
        for size in 1..64 {
            let (mut walker, mut seen) = (Walker::new(PREFACE_BYTES), Vec::new());
            for piece in stream.chunks(size) {
                walker.walk(piece, |f| seen.push((f.kind, f.flags, f.length, f.first, f.second)));
            }
            let expected = [
                (SETTINGS, 0, 12, 0, 0),
                (DATA, 1, 1000, 0, 0),
                (RST_STREAM, 0, 4, 1, 0),
                (DATA, 0, 0, 0, 0),
                (GOAWAY, 0, 10, 1, 11),
                (HEADERS, 5, 1, 0, 0),
            ];
            assert_eq!(seen, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn frames_that_ask_for_nothing_are_bounded_and_work_is_not() {
        for (name, one) in [
            ("PING", frame(6, 0, &[0; 8])),
            ("SETTINGS", frame(SETTINGS, 0, &[])),
            ("PRIORITY", frame(2, 0, &[0; 5])),
            ("RST_STREAM", frame(RST_STREAM, 0, &[0, 0, 0, 8])),
            ("WINDOW_UPDATE", frame(8, 0, &[0, 0, 0, 1])),
            ("CONTINUATION", frame(9, 0, &[0])),
            ("empty DATA", frame(DATA, 0, &[])),
            ("padded DATA", frame(DATA, PADDED, &[3, 0, 0, 0])),
            ("unknown", frame(0xfa, 0, b"x")),
        ] {
            let taken = taken(&one);
            assert!((200..3000).contains(&taken), "{taken} {name} frames");
        }
        for (name, one) in [("DATA", frame(DATA, 0, b"12345")), ("a request", frame(HEADERS, 5, &[0x82]))] {
            assert_eq!(taken(&one), 20_000, "{name}");
        }
        let large_settings = frame(SETTINGS, 0, &[0; 16_380]);
        assert!(taken(&large_settings) < 20, "each of its 2,730 entries is work");
        let request_and_reset = [frame(HEADERS, 4, &[0x82]), frame(RST_STREAM, 0, &[0, 0, 0, 8])].concat();
        assert!(taken(&request_and_reset) < 3000, "rapid reset");
    }

    #[test]
    fn data_that_is_read_may_be_followed_by_window_updates() {
        let mut frames = Frames::new((), |_| {});
        assert!(frames.take(&[b'P'; PREFACE_BYTES]));
        let updates = [frame(8, 0, &[0, 0, 64, 0]), frame(8, 0, &[0, 0, 64, 0])].concat();
        for _ in 0..20_000 {
            frames.give(&frame(DATA, 0, &[b'x'; 16_384]));
            assert!(frames.take(&updates));
        }
    }

    #[test]
    fn what_the_library_refuses_is_seen_and_what_the_server_does_is_not() {
        let mut seen = Vec::new();
        let mut frames = Frames::new((), |refused| seen.push(refused));
        frames.give(&frame(HEADERS, 5, &[0x48, 0x83, 0x69, 0x90, 0xff]));
        frames.give(&frame(HEADERS, 5, &[b'h'; 60]));
        frames.give(&frame(RST_STREAM, 0, &[0, 0, 0, 1]));
        frames.give(&frame(RST_STREAM, 0, &[0, 0, 0, 8]));
        frames.give(&frame(GOAWAY, 0, &[0, 0, 0, 0, 0, 0, 0, 11]));
        frames.give(&frame(GOAWAY, 0, &[0; 8]));
        assert_eq!(seen, [Refused::HeaderList, Refused::Stream(1), Refused::Connection(11)]);
    }
}
