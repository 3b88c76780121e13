//! A body on its way out: counted, in chunks, or to the connection's end.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Body;

use super::outbox::{Outbox, write_chunk_size, write_last_chunk, write_trailers};

/// Parts of a body up to this size are copied behind the head and go out with it, larger ones where
/// they are.
const COPY_BYTES: usize = 4 * 1024;

/// The body broke off, or is not of the length that was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broke;

/// What is left to send of a body. Only a chunked one can have trailers.
pub(crate) enum Sending<B> {
    Nothing,
    /// This many bytes.
    Length(B, u64),
    /// Unknown how many; whether a chunk's line end has yet to follow.
    Chunked(B, bool),
    /// Unknown how many: the connection's end ends it.
    ToEnd(B),
    /// None: the rest is in the outbox. What has to end it is still asked of the body.
    Sent(B),
    /// Something, which never comes: the body broke off.
    Broken(B),
}

impl<B: Body<Data = Bytes> + Unpin> Sending<B> {
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Nothing | Self::Sent(_))
    }

    /// Whether the body broke off.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self, Self::Broken(_))
    }

    /// Lets go of a body that was sent: the outbox is empty.
    pub(crate) fn finish(&mut self) {
        if self.is_done() {
            *self = Self::Nothing;
        }
    }

    /// The body, while something of it is left here or in the outbox.
    pub(crate) fn body(&mut self) -> Option<&mut B> {
        match self {
            Self::Nothing => None,
            Self::Length(body, _)
            | Self::Chunked(body, _)
            | Self::ToEnd(body)
            | Self::Sent(body)
            | Self::Broken(body) => Some(body),
        }
    }

    /// The rest is not sent.
    pub(crate) fn give_up(&mut self) {
        *self = match std::mem::replace(self, Self::Nothing).into_body() {
            Some(body) => Self::Sent(body),
            None => Self::Nothing,
        };
    }

    /// The body, sent or not.
    pub(crate) fn into_body(self) -> Option<B> {
        match self {
            Self::Nothing => None,
            Self::Length(body, _)
            | Self::Chunked(body, _)
            | Self::ToEnd(body)
            | Self::Sent(body)
            | Self::Broken(body) => Some(body),
        }
    }

    /// Takes as much of the body as fits behind the pending output. `true`: the body has more,
    /// which has not arrived yet. An error is returned again on each call, and leaves earlier bytes
    /// in `out`.
    pub(crate) fn fill(&mut self, out: &mut Outbox, cx: &mut Context<'_>) -> Result<bool, Broke> {
        let filled = if self.is_broken() { Err(Broke) } else { self.fill_more(out, cx) };
        if filled.is_err()
            && !self.is_broken()
            && let Some(body) = std::mem::replace(self, Self::Nothing).into_body()
        {
            *self = Self::Broken(body);
        }
        filled
    }

    fn fill_more(&mut self, out: &mut Outbox, cx: &mut Context<'_>) -> Result<bool, Broke> {
        while out.part.is_empty() && out.head.len() < COPY_BYTES {
            let done = self.is_done();
            if let Self::Chunked(_, open) = self
                && std::mem::take(open)
            {
                out.head.extend_from_slice(b"\r\n");
            }
            let Some(body) = self.body().filter(|_| !done) else { break };
            let data = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => return Ok(true),
                Poll::Ready(None) => Bytes::new(),
                Poll::Ready(Some(frame)) => match frame.map_err(|_| Broke)?.into_data() {
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) => data,
                    Err(frame) => {
                        if let (Self::Chunked(..), Ok(trailers)) = (&*self, frame.into_trailers()) {
                            write_trailers(&mut out.head, &trailers);
                            self.give_up(); // nothing comes behind them
                        }
                        continue;
                    }
                },
            };
            let ended = data.is_empty() || body.is_end_stream();
            self.put(out, data, ended)?;
        }
        Ok(false)
    }

    /// Puts a part of the body behind what is to be written; empty: there was nothing more.
    fn put(&mut self, out: &mut Outbox, data: Bytes, ended: bool) -> Result<(), Broke> {
        match self {
            // Fewer or more than announced would shift everything behind it.
            Self::Length(_, left) => match left.checked_sub(data.len() as u64) {
                Some(rest) if rest == 0 || !ended => *left = rest,
                _ => return Err(Broke),
            },
            Self::Chunked(_, open) if !data.is_empty() => {
                write_chunk_size(&mut out.head, data.len());
                *open = true;
            }
            Self::Chunked(..) | Self::ToEnd(_) | Self::Sent(_) | Self::Broken(_) | Self::Nothing => {}
        }
        if data.len() > COPY_BYTES {
            out.part = data;
        } else {
            out.head.extend_from_slice(&data);
        }
        if let Self::Chunked(_, open) = self {
            if !out.part.is_empty() {
                return Ok(()); // its line end follows it, and the last chunk that
            }
            // At once: there are peers that look at a chunk when it is whole.
            if std::mem::take(open) {
                out.head.extend_from_slice(b"\r\n");
            }
            if ended {
                write_last_chunk(&mut out.head);
            }
        }
        if ended {
            self.give_up();
        }
        Ok(())
    }
}
