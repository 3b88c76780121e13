//! Frames from the upstream to the agent: parsed strictly, scrubbed, and framed again.
//!
//! A credential may be split over frames. So what the scrubber holds back at the end of a frame is
//! sent with the next one. At the end of a message everything is sent. Frames up to [`PIECE`] keep
//! their size. Of longer ones, each piece becomes a frame of the same message, which applications
//! do not notice.

use std::{collections::VecDeque, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::{
    end::{BUFFER, End},
    frame::{self, From, Header, Malformed, Opcode, Sequence},
};
use crate::{pipeline::scrub::Messages, tunnel::idle::IdleTracker};

/// Largest piece of a message that is searched at once.
const PIECE: usize = 64 * 1024;

/// The other direction of a tunnel. Holds at most one piece, and what the scrubber holds.
pub(super) struct FromUpstream<R, W> {
    upstream: R,
    agent: ToAgent<W>,
    scrubber: Messages,
    buffer: BytesMut,
    sequence: Sequence,
    /// The data frame that is being read, and how much of it is left.
    current: Option<(Header, u64)>,
    /// How the message's next frame begins.
    opcode: Opcode,
    clean: VecDeque<Bytes>,
}

/// What goes to the agent.
struct ToAgent<W> {
    agent: W,
    idle_tracker: IdleTracker,
    /// Whole frames.
    out: VecDeque<Bytes>,
    /// The agent has a part of the first of them.
    begun: bool,
    /// A Close is among them, or was.
    closing: bool,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> FromUpstream<R, W> {
    /// `ahead` is what came right behind the `101`.
    pub(super) fn new(upstream: R, ahead: &Bytes, agent: W, scrubber: Messages, idle_tracker: IdleTracker) -> Self {
        Self {
            upstream,
            agent: ToAgent { agent, idle_tracker, out: VecDeque::new(), begun: false, closing: false },
            scrubber,
            buffer: BytesMut::from(&ahead[..]),
            sequence: Sequence::default(),
            current: None,
            opcode: Opcode::Continuation,
            clean: VecDeque::new(),
        }
    }

    /// Passes frames on until one end is done. May be dropped at any point, and
    /// [`finish`](Self::finish)ed then.
    pub(super) async fn run(&mut self) -> End {
        loop {
            let stepped = loop {
                match self.step() {
                    Ok(true) if self.agent.out.len() < 16 => {}
                    other => break other,
                }
            };
            if self.agent.send().await.is_err() {
                return End::AgentGone;
            }
            match stepped {
                Err(Malformed) => return End::UpstreamBroken,
                Ok(_) if self.agent.closing => return End::Closed,
                Ok(true) => continue,
                Ok(false) => {}
            }
            self.buffer.reserve(BUFFER);
            match self.upstream.read_buf(&mut self.buffer).await {
                Ok(n) if n > 0 => self.agent.idle_tracker.touch(),
                _ => return End::UpstreamGone,
            }
        }
    }

    /// Makes one frame for the agent of what the buffer holds; `false`: more is needed.
    fn step(&mut self) -> Result<bool, Malformed> {
        if self.agent.closing {
            return Ok(false);
        }
        if self.current.is_none() {
            let Some(header) = Header::read(&self.buffer, From::Upstream)? else { return Ok(false) };
            let length = usize::try_from(header.length).unwrap_or(usize::MAX);
            if length <= PIECE && self.buffer.len() < header.size + length {
                return Ok(false);
            }
            self.buffer.advance(header.size);
            if header.opcode.is_control() {
                let payload = self.buffer.split_to(length);
                self.control(header.opcode, &payload);
                return Ok(true);
            }
            self.sequence.next(&header)?;
            if header.opcode != Opcode::Continuation {
                self.opcode = header.opcode;
            }
            self.current = Some((header, header.length));
        }
        Ok(self.data())
    }

    fn data(&mut self) -> bool {
        let Some((header, left)) = self.current.take() else { return false };
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE).min(self.buffer.len());
        let left = left - now as u64;
        if now > 0 {
            self.scrubber.push(self.buffer.split_to(now).freeze(), &mut self.clean);
        }
        let ended = left == 0 && header.last;
        if ended {
            self.scrubber.end_message(&mut self.clean);
        }
        if left > 0 {
            self.current = Some((header, left));
        }
        let length = self.clean.iter().map(Bytes::len).sum::<usize>();
        if length > 0 || ended {
            let mut frame = BytesMut::with_capacity(length + 10);
            frame::write(&mut frame, ended, self.opcode, length as u64, None);
            self.clean.drain(..).for_each(|part| frame.extend_from_slice(&part));
            self.agent.out.push_back(frame.freeze());
            self.opcode = Opcode::Continuation;
        }
        now > 0 || left == 0
    }

    fn control(&mut self, opcode: Opcode, payload: &[u8]) {
        let scrubbed = self.scrubber.alone(payload);
        let payload = scrubbed.as_deref().unwrap_or(payload);
        let mut frame = BytesMut::with_capacity(payload.len() + 2);
        frame::write(&mut frame, true, opcode, payload.len() as u64, None);
        frame.extend_from_slice(payload);
        self.agent.out.push_back(frame.freeze());
        self.agent.closing = opcode == Opcode::Close;
    }

    /// Lets go of the upstream, tells the agent why it ends, and gives the agent's half back;
    /// whether it was told.
    pub(super) async fn finish(self, goodbye: Option<(u16, &str)>, within: Duration) -> (W, bool) {
        let Self { upstream, mut agent, .. } = self;
        drop(upstream);
        let told = match goodbye {
            Some((code, reason)) => timeout(within, agent.close(code, reason)).await.unwrap_or(false),
            None => false,
        };
        (agent.agent, told)
    }
}

impl<W: AsyncWrite + Unpin> ToAgent<W> {
    async fn send(&mut self) -> std::io::Result<()> {
        while let Some(frame) = self.out.front_mut() {
            let n = self.agent.write(frame).await?;
            if n == 0 {
                return Err(std::io::ErrorKind::WriteZero.into());
            }
            frame.advance(n);
            self.idle_tracker.received(n);
            self.begun = !frame.is_empty();
            if !self.begun {
                self.out.pop_front();
            }
        }
        self.agent.flush().await
    }

    /// Says Close, unless the agent is in the middle of a frame or has been told. What was to be
    /// sent no longer is. `false`: it wasn't told.
    async fn close(&mut self, code: u16, reason: &str) -> bool {
        if self.begun || self.closing {
            return self.closing && !self.begun;
        }
        let mut frame = BytesMut::new();
        frame::write(&mut frame, true, Opcode::Close, 2 + reason.len() as u64, None);
        frame.extend_from_slice(&code.to_be_bytes());
        frame.extend_from_slice(reason.as_bytes());
        self.out.clear();
        self.out.push_back(frame.freeze());
        self.send().await.is_ok()
    }
}
