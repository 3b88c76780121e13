//! Monitors the frames of an HTTP/2 server connection. It limits the cost of a peer's cheap frames,
//! and reports what the library rejects by itself.
//!
//! HTTP/2 libraries answer PING, SETTINGS, RST_STREAM, WINDOW_UPDATE, CONTINUATION and empty DATA
//! frames without limit, at some microseconds each. A connection can use a whole core without one
//! request (CVE-2019-9512, 9514, 9515, 9517, 9518; CVE-2024-27316). Here each of these frames uses
//! a budget, which refills with time and with work that the peer requested. A connection without
//! budget is closed.
//!
//! A library also rejects streams and connections without telling the server. The frames that it
//! sends show these rejections.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Cheap frames that a peer may send at once. A client starts with fewer than ten.
const BURST_FRAMES: u32 = 256;
/// Cheap frames that a peer may send each second in the long run.
const FRAMES_PER_SECOND: u128 = 128;
/// An answered request may be followed by a window update. A request that is reset before its
/// answer earns nothing (rapid reset, CVE-2023-44487).
const EARNED_BY_ANSWER: u32 = 1;
/// Sent data of at least [`DATA_BYTES`] may be followed by window updates of the stream and the
/// connection.
const EARNED_BY_DATA: u32 = 2;
const DATA_BYTES: usize = 256;
/// Largest budget that work can earn.
const MAX_BUDGET: u32 = 4096;
/// Our responses have a request id and more bytes than this. A shorter one is the library's.
const MIN_RESPONSE_BYTES: usize = 16;

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
/// Bytes of the payload of RST_STREAM and GOAWAY that are read.
const PAYLOAD_BYTES: usize = 8;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// Error codes that the server's own code sends: `NO_ERROR`, `INTERNAL_ERROR`, `CANCEL`. The
/// library sends all others.
const SERVER_CODES: [u32; 3] = [0, 2, 8];

/// A rejection by the library or by the frame budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2Rejection {
    /// A request with a header list above the limit, answered with 431.
    HeaderList,
    /// A stream, with this error code (RFC 9113, 7).
    Stream(u32),
    /// The connection, with this error code.
    Connection(u32),
    /// The connection exceeded its budget of cheap frames.
    Flood,
}

/// The server's end of an HTTP/2 connection, wrapped before its first byte is read.
pub struct FrameMonitor<T, F> {
    io: T,
    received: FrameParser,
    sent: FrameParser,
    budget: Budget,
    on_rejection: F,
}

impl<T, F: FnMut(Http2Rejection)> FrameMonitor<T, F> {
    /// Monitors `io` and calls `on_rejection` for every rejection.
    pub fn new(io: T, on_rejection: F) -> Self {
        let (received, sent) = (FrameParser::new(PREFACE_BYTES), FrameParser::new(0));
        Self { io, received, sent, budget: Budget::new(), on_rejection }
    }

    /// Whether the peer is within its budget after these received bytes.
    fn inspect_received(&mut self, bytes: &[u8]) -> bool {
        let budget = &mut self.budget;
        let mut within = true;
        self.received.parse(bytes, |frame| match frame.kind {
            HEADERS => {}
            DATA if frame.flags & END_STREAM != 0 || (frame.length > 0 && frame.flags & PADDED == 0) => {}
            // Each entry of a SETTINGS frame costs work and has six bytes.
            SETTINGS => (0..=frame.length / 256).for_each(|_| within &= budget.spend()),
            _ => within &= budget.spend(),
        });
        if !within {
            (self.on_rejection)(Http2Rejection::Flood);
        }
        within
    }

    fn inspect_sent(&mut self, bytes: &[u8]) {
        let (budget, on_rejection) = (&mut self.budget, &mut self.on_rejection);
        self.sent.parse(bytes, |frame| match frame.kind {
            DATA if frame.length >= DATA_BYTES => budget.earn(EARNED_BY_DATA),
            HEADERS if frame.flags & END_STREAM != 0 && frame.length < MIN_RESPONSE_BYTES => {
                on_rejection(Http2Rejection::HeaderList);
            }
            HEADERS => budget.earn(EARNED_BY_ANSWER),
            RST_STREAM if !SERVER_CODES.contains(&frame.first) => on_rejection(Http2Rejection::Stream(frame.first)),
            GOAWAY if !SERVER_CODES.contains(&frame.second) => on_rejection(Http2Rejection::Connection(frame.second)),
            _ => {}
        });
    }
}

/// The cheap frames that a peer may still send.
struct Budget {
    left: u32,
    refilled: Instant,
}

impl Budget {
    fn new() -> Self {
        Self { left: BURST_FRAMES, refilled: Instant::now() }
    }

    fn earn(&mut self, frames: u32) {
        self.left = self.left.saturating_add(frames).min(MAX_BUDGET.max(self.left));
    }

    /// Reads the clock only when nothing is left.
    fn spend(&mut self) -> bool {
        if self.left == 0 {
            let earned = self.refilled.elapsed().as_millis() * FRAMES_PER_SECOND / 1000;
            self.left = u32::try_from(earned).unwrap_or(BURST_FRAMES).min(BURST_FRAMES);
            if self.left == 0 {
                return false;
            }
            self.refilled = Instant::now();
        }
        self.left -= 1;
        true
    }
}

/// The parts of a frame that are used.
struct Frame {
    kind: u8,
    flags: u8,
    length: usize,
    /// The first and second four bytes of the payload of RST_STREAM and GOAWAY; 0 when absent.
    first: u32,
    second: u32,
}

/// Finds the frames in one direction of a connection, in pieces of any size.
struct FrameParser {
    /// Bytes of the preface or of a payload to skip.
    skip: usize,
    head: [u8; HEAD_BYTES + PAYLOAD_BYTES],
    /// Bytes in `head`, and bytes needed.
    filled: usize,
    wanted: usize,
}

impl FrameParser {
    fn new(skip: usize) -> Self {
        Self { skip, head: [0; HEAD_BYTES + PAYLOAD_BYTES], filled: 0, wanted: HEAD_BYTES }
    }

    fn parse(&mut self, mut bytes: &[u8], mut each: impl FnMut(&Frame)) {
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
            let payload = if matches!(kind, RST_STREAM | GOAWAY) { length.min(PAYLOAD_BYTES) } else { 0 };
            if self.wanted < HEAD_BYTES + payload {
                self.wanted = HEAD_BYTES + payload;
                continue;
            }
            let (first, second) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
            each(&Frame { kind, flags, length, first, second });
            *self = Self::new(length - payload);
        }
    }
}

impl<T: AsyncRead + Unpin, F: FnMut(Http2Rejection) + Unpin> AsyncRead for FrameMonitor<T, F> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        if this.inspect_received(read) {
            return Poll::Ready(Ok(()));
        }
        buf.set_filled(before);
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "too many HTTP/2 frames that request nothing",
        )))
    }
}

impl<T: AsyncWrite + Unpin, F: FnMut(Http2Rejection) + Unpin> AsyncWrite for FrameMonitor<T, F> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.inspect_sent(bytes.get(..wrote).unwrap_or_default());
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
            this.inspect_sent(now);
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
    fn accepted_frames(one: &[u8]) -> usize {
        let mut frames = FrameMonitor::new((), |_| {});
        assert!(frames.inspect_received(&[b'P'; PREFACE_BYTES]));
        (0..20_000).take_while(|_| frames.inspect_received(one)).count()
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
            let (mut walker, mut seen) = (FrameParser::new(PREFACE_BYTES), Vec::new());
            for piece in stream.chunks(size) {
                walker.parse(piece, |f| seen.push((f.kind, f.flags, f.length, f.first, f.second)));
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
            let accepted = accepted_frames(&one);
            assert!((200..3000).contains(&accepted), "{accepted} {name} frames");
        }
        for (name, one) in [("DATA", frame(DATA, 0, b"12345")), ("a request", frame(HEADERS, 5, &[0x82]))] {
            assert_eq!(accepted_frames(&one), 20_000, "{name}");
        }
        let large_settings = frame(SETTINGS, 0, &[0; 16_380]);
        assert!(accepted_frames(&large_settings) < 20, "each of its 2,730 entries is work");
        let request_and_reset = [frame(HEADERS, 4, &[0x82]), frame(RST_STREAM, 0, &[0, 0, 0, 8])].concat();
        assert!(accepted_frames(&request_and_reset) < 3000, "rapid reset");
    }

    #[test]
    fn data_that_is_read_may_be_followed_by_window_updates() {
        let mut frames = FrameMonitor::new((), |_| {});
        assert!(frames.inspect_received(&[b'P'; PREFACE_BYTES]));
        let updates = [frame(8, 0, &[0, 0, 64, 0]), frame(8, 0, &[0, 0, 64, 0])].concat();
        for _ in 0..20_000 {
            frames.inspect_sent(&frame(DATA, 0, &[b'x'; 16_384]));
            assert!(frames.inspect_received(&updates));
        }
    }

    #[test]
    fn what_the_library_refuses_is_seen_and_what_the_server_does_is_not() {
        let mut seen = Vec::new();
        let mut frames = FrameMonitor::new((), |on_rejection| seen.push(on_rejection));
        frames.inspect_sent(&frame(HEADERS, 5, &[0x48, 0x83, 0x69, 0x90, 0xff]));
        frames.inspect_sent(&frame(HEADERS, 5, &[b'h'; 60]));
        frames.inspect_sent(&frame(RST_STREAM, 0, &[0, 0, 0, 1]));
        frames.inspect_sent(&frame(RST_STREAM, 0, &[0, 0, 0, 8]));
        frames.inspect_sent(&frame(GOAWAY, 0, &[0, 0, 0, 0, 0, 0, 0, 11]));
        frames.inspect_sent(&frame(GOAWAY, 0, &[0; 8]));
        assert_eq!(seen, [Http2Rejection::HeaderList, Http2Rejection::Stream(1), Http2Rejection::Connection(11)]);
    }
}
