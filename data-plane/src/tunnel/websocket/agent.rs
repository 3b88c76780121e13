//! Frames from the agent to the upstream: parsed strictly, masked again, and forwarded as they
//! arrive.

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{
    end::{BUFFER, End},
    frame::{self, From, Header, Malformed, Opcode, Sequence},
};
use crate::tunnel::idle::IdleTracker;

/// One direction of a tunnel. Holds at most what one read brought.
pub(super) struct FromAgent<R, W> {
    agent: R,
    upstream: W,
    idle_tracker: IdleTracker,
    buffer: BytesMut,
    out: BytesMut,
    sequence: Sequence,
    masks: Masks,
    /// Of the payload that is being passed on.
    left: u64,
    xor: [u8; 4],
    /// A Close has been passed on: nothing may follow it.
    closing: bool,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> FromAgent<R, W> {
    pub(super) fn new(agent: R, upstream: W, idle_tracker: IdleTracker) -> Self {
        Self {
            agent,
            upstream,
            idle_tracker,
            buffer: BytesMut::new(),
            out: BytesMut::new(),
            sequence: Sequence::default(),
            masks: Masks::default(),
            left: 0,
            xor: [0; 4],
            closing: false,
        }
    }

    /// Passes frames on until one end is done.
    pub(super) async fn run(&mut self) -> End {
        loop {
            if self.step().is_err() {
                return End::AgentBroken;
            }
            while !self.out.is_empty() {
                if !matches!(self.upstream.write_buf(&mut self.out).await, Ok(n) if n > 0) {
                    return End::UpstreamGone;
                }
            }
            if self.upstream.flush().await.is_err() {
                return End::UpstreamGone;
            }
            if self.closing && self.left == 0 {
                return End::Closed;
            }
            self.buffer.reserve(BUFFER);
            match self.agent.read_buf(&mut self.buffer).await {
                Ok(n) if n > 0 => self.idle_tracker.sent(n),
                _ => return End::AgentGone,
            }
        }
    }

    /// Lets go of the upstream; gives the agent's half back.
    pub(super) fn finish(self) -> R {
        self.agent
    }

    /// Moves what the buffer holds, as far as it goes.
    fn step(&mut self) -> Result<(), Malformed> {
        while !self.buffer.is_empty() {
            if self.left == 0 {
                let Some(header) = Header::read(&self.buffer, From::Agent)?.filter(|_| !self.closing) else { break };
                self.begin(&header)?;
            }
            let now = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.buffer.len());
            let mut payload = self.buffer.split_to(now);
            self.left -= now as u64;
            mask(&mut payload, &mut self.xor);
            self.out.extend_from_slice(&payload);
        }
        Ok(())
    }

    /// A mask that an agent chose would let it choose the bytes on the wire (RFC 6455, section
    /// 10.3).
    fn begin(&mut self, header: &Header) -> Result<(), Malformed> {
        if !header.opcode.is_control() {
            self.sequence.next(header)?;
        }
        let ours = self.masks.next().ok_or(Malformed)?;
        self.buffer.advance(header.size);
        frame::write(&mut self.out, header.last, header.opcode, header.length, Some(ours));
        self.left = header.length;
        self.xor = std::array::from_fn(|i| {
            let byte = |mask: &[u8; 4]| mask.get(i).copied().unwrap_or_default();
            byte(&ours) ^ byte(&header.mask)
        });
        self.closing = header.opcode == Opcode::Close;
        Ok(())
    }
}

/// Applies a mask and rotates it, so that the next call continues at its place.
fn mask(payload: &mut [u8], key: &mut [u8; 4]) {
    let length = payload.len();
    let (whole, rest) = payload.as_chunks_mut::<4>();
    let word = u32::from_ne_bytes(*key);
    for four in whole {
        *four = (u32::from_ne_bytes(*four) ^ word).to_ne_bytes();
    }
    rest.iter_mut().zip(*key).for_each(|(byte, key)| *byte ^= key);
    key.rotate_left(length % 4);
}

/// Random masks, drawn many at a time.
#[derive(Default)]
struct Masks {
    drawn: Vec<[u8; 4]>,
}

impl Masks {
    fn next(&mut self) -> Option<[u8; 4]> {
        if self.drawn.is_empty() {
            let mut random = [0; 256];
            getrandom::fill(&mut random).ok()?;
            self.drawn.extend_from_slice(random.as_chunks::<4>().0);
        }
        self.drawn.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_goes_on_where_it_was_however_a_payload_is_cut() {
        let plain: Vec<u8> = (0..23).collect();
        let key = [9, 8, 7, 6];
        let whole: Vec<u8> = plain.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k).collect();
        for cut in 0..plain.len() {
            let (mut bytes, mut turned) = (plain.clone(), key);
            let (before, behind) = bytes.split_at_mut(cut);
            mask(before, &mut turned);
            mask(behind, &mut turned);
            assert_eq!(bytes, whole, "at {cut}");
        }
    }
}
