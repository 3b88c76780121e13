//! A connection that hands hyper only what was read strictly.
//!
//! Sits under hyper's HTTP/1 server: holds each request head back until it is whole, checks it ([`super::head`]), counts its
//! body ([`super::body`]) to know where the next head begins. In the common case a head that came in one piece is checked
//! where hyper's own buffer has it, and nothing is copied.
//!
//! A head that is refused is replaced by a request for a path that only this process knows, so that the refusal is answered
//! and recorded like any other, after the answers to the requests before it. Nothing behind it is ever read as a request.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    activity::{Activity, Waiting},
    body::Body,
    head::{self, Head, HeadLimits, Violation},
};

/// A connection under hyper's HTTP/1 server.
pub(super) struct Strict<IO> {
    io: IO,
    limits: HeadLimits,
    activity: Arc<Activity>,
    waiting: Waiting,
    state: State,
    /// The beginning of a head, not yet hyper's.
    held: Vec<u8>,
    scanned: usize,
    /// Checked, and not yet taken by hyper for want of room.
    ready: Vec<u8>,
    taken: usize,
}

enum State {
    /// At the beginning of a head, or within one.
    Head,
    /// Within a body.
    Body(Body),
    /// The framing of a body that hyper has begun to read is wrong.
    Broken,
    /// A head was refused: nothing more is read.
    Refused,
}

/// What came of some bytes.
struct Tracked {
    /// This many are hyper's; the rest is either held or thrown away.
    pass: usize,
    /// The rest is the beginning of a head.
    hold: bool,
    refused: Option<Violation>,
}

impl<IO> Strict<IO> {
    pub(super) fn new(io: IO, limits: HeadLimits, activity: Arc<Activity>, waiting: Waiting) -> Self {
        let (held, ready) = (Vec::new(), Vec::new());
        Self { io, limits, activity, waiting, state: State::Head, held, scanned: 0, ready, taken: 0 }
    }

    /// Whether everything that came was hyper's: nothing is held back, nothing was refused.
    pub(super) fn is_clean(&self) -> bool {
        matches!(self.state, State::Head) && self.held.is_empty() && self.ready.is_empty()
    }

    /// The connection itself.
    pub(super) fn into_inner(self) -> IO {
        self.io
    }

    /// Moves over `bytes` from the present state.
    fn track(&mut self, bytes: &[u8]) -> Tracked {
        let (mut at, mut request) = (0, None);
        while at < bytes.len() {
            let rest = bytes.get(at..).unwrap_or_default();
            match &mut self.state {
                State::Head => match head::read(rest, self.scanned, &self.limits) {
                    Ok(Head::Partial { scanned }) => {
                        self.scanned = scanned;
                        return Tracked { pass: at, hold: true, refused: None };
                    }
                    Ok(Head::Whole { len, framing }) => {
                        self.scanned = 0;
                        self.waiting.head_done();
                        request = Some(at);
                        at += len;
                        self.state = Body::behind(framing).map_or(State::Head, State::Body);
                    }
                    Err(violation) => return self.refuse(at, violation),
                },
                State::Body(body) => match body.advance(rest) {
                    Ok((taken, ended)) => {
                        at += taken;
                        if ended {
                            self.state = State::Head;
                        }
                    }
                    // hyper hasn't seen its head yet: refused whole, and the upstream never hears of it.
                    Err(violation) if request.is_some() => return self.refuse(request.unwrap_or(at), violation),
                    Err(_) => {
                        self.state = State::Broken;
                        return Tracked { pass: at, hold: false, refused: None };
                    }
                },
                State::Broken | State::Refused => return Tracked { pass: at, hold: false, refused: None },
            }
        }
        Tracked { pass: at, hold: false, refused: None }
    }

    fn refuse(&mut self, pass: usize, violation: Violation) -> Tracked {
        self.state = State::Refused;
        Tracked { pass, hold: false, refused: Some(violation) }
    }

    /// Looks at what was just read into hyper's buffer behind `start`.
    fn take_in_place(&mut self, buf: &mut ReadBuf<'_>, start: usize) {
        let bytes = buf.filled().get(start..).unwrap_or_default();
        let tracked = self.track(bytes);
        if tracked.hold {
            self.held.extend_from_slice(bytes.get(tracked.pass..).unwrap_or_default());
            self.waiting.head_began();
        }
        buf.set_filled(start + tracked.pass);
        if let Some(violation) = tracked.refused {
            self.ready.extend_from_slice(&stand_in(violation));
        }
    }

    /// Looks at what was read behind the beginning of a head.
    fn take_held(&mut self, buf: &mut ReadBuf<'_>, start: usize) {
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(buf.filled().get(start..).unwrap_or_default());
        buf.set_filled(start);
        let tracked = self.track(&bytes);
        if tracked.hold {
            self.held = bytes.split_off(tracked.pass.min(bytes.len()));
        }
        bytes.truncate(tracked.pass);
        if let Some(violation) = tracked.refused {
            bytes.extend_from_slice(&stand_in(violation));
        }
        self.ready = bytes;
    }

    fn give_ready(&mut self, buf: &mut ReadBuf<'_>) {
        let rest = self.ready.get(self.taken..).unwrap_or_default();
        let (now, _) = rest.split_at(rest.len().min(buf.remaining()));
        buf.put_slice(now);
        self.taken += now.len();
        if self.taken == self.ready.len() {
            self.taken = 0;
            self.ready = Vec::new();
        }
    }

    /// Nothing to read: is the agent still in time?
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !matches!(self.state, State::Head) {
            return Poll::Pending; // a body's pace is watched by who reads it
        }
        if self.waiting.poll(cx, &self.activity, !self.held.is_empty()).is_pending() {
            return Poll::Pending;
        }
        if self.held.is_empty() {
            return Poll::Ready(Ok(())); // the end, for hyper
        }
        self.held = Vec::new();
        self.state = State::Refused;
        self.ready = stand_in(Violation::HeadTimeout);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Strict<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.ready.is_empty() {
                this.give_ready(buf);
                return Poll::Ready(Ok(()));
            }
            match this.state {
                State::Refused => return Poll::Pending, // the answer says `Connection: close`: hyper ends it
                State::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                State::Head | State::Body(_) => {}
            }
            let start = buf.filled().len();
            match Pin::new(&mut this.io).poll_read(cx, buf) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => match this.poll_waiting(cx) {
                    Poll::Ready(Ok(())) if !this.ready.is_empty() => continue,
                    other => return other,
                },
            }
            if buf.filled().len() == start {
                return Poll::Ready(Ok(())); // the agent is done; a head that it left unfinished is nobody's
            }
            if this.activity.is_switched() && this.is_clean() {
                return Poll::Ready(Ok(())); // the tunnel's: hyper passes it on unread
            }
            if this.held.is_empty() {
                this.take_in_place(buf, start);
            } else {
                this.take_held(buf, start);
            }
            if buf.filled().len() > start {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Strict<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
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

/// What no agent can guess: the first segment of a stand-in's path.
fn marker() -> &'static str {
    static MARKER: OnceLock<String> = OnceLock::new();
    MARKER.get_or_init(|| {
        let mut random = [0_u8; 16];
        // Without randomness the marker is known: whoever uses it is refused all the same.
        let _ = getrandom::fill(&mut random);
        random.iter().fold(String::from("/refused-"), |s, b| s + &format!("{b:02x}"))
    })
}

fn stand_in(violation: Violation) -> Vec<u8> {
    format!("GET {}/{} HTTP/1.1\r\nHost: x\r\n\r\n", marker(), violation.index()).into_bytes()
}

/// Whether a path is a stand-in's: nobody's text, and not to be repeated.
pub(crate) fn is_stand_in(path: &str) -> bool {
    path.starts_with(marker())
}

/// The violation that a stand-in stands for.
pub(crate) fn violation_of(path: &str) -> Option<Violation> {
    let index = path.strip_prefix(marker())?.strip_prefix('/')?;
    index.parse().ok().and_then(Violation::at)
}

#[cfg(test)]
mod tests;
