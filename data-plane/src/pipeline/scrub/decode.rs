//! Takes content codings off: nobody asked for one, and what is coded can't be searched.
//!
//! Incremental and bounded: at most one piece of output is held, whatever the coding promises, and an answer that grows too
//! far is broken off.

mod coding;

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};

pub(crate) use self::coding::CodingError;
use self::coding::{Coding, Decoder};

/// Largest piece that is decoded at a time.
const PIECE: usize = 32 * 1024;

/// An answer may grow by this factor for as long as it likes, and by any factor up to [`FREE_BYTES`].
const MAX_RATIO: u64 = 200;
const FREE_BYTES: u64 = 64 << 20;

/// More codings than this on top of each other are refused: no server stacks them.
const MAX_CODINGS: usize = 2;

/// The answer's coding is unknown, or there are too many: the answer can't be searched, so it can't be relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer has a content coding that can't be taken off")]
pub(crate) struct UnknownCoding;

/// Takes the codings out of an answer's headers, in the order in which they are to be taken off. What described the coded
/// bytes goes with them.
pub(super) fn codings(headers: &mut HeaderMap) -> Result<Vec<Coding>, UnknownCoding> {
    let mut codings = Vec::new();
    for value in headers.get_all(header::CONTENT_ENCODING) {
        for name in value.to_str().map_err(|_| UnknownCoding)?.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            if name.eq_ignore_ascii_case("identity") {
                continue;
            }
            codings.push(Coding::named(name).ok_or(UnknownCoding)?);
        }
    }
    if codings.len() > MAX_CODINGS {
        return Err(UnknownCoding);
    }
    headers.remove(header::CONTENT_ENCODING);
    if !codings.is_empty() {
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::ACCEPT_RANGES);
    }
    codings.reverse(); // the last one was applied last
    Ok(codings)
}

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError<E> {
    /// The body before decoding.
    #[error("the upstream's body broke off")]
    Body(#[source] E),
    /// What came isn't of the coding that the head names.
    #[error(transparent)]
    Coding(#[from] CodingError),
}

/// A body with its codings taken off; with none it is passed through as it is.
pub(crate) struct Decoded<B> {
    inner: B,
    stages: Vec<Stage>,
    trailers: Option<HeaderMap>,
    ended: bool,
}

struct Stage {
    decoder: Decoder,
    waiting: VecDeque<Bytes>,
    read: u64,
    written: u64,
}

impl<B> Decoded<B> {
    pub(super) fn new(inner: B, codings: Vec<Coding>) -> Result<Self, CodingError> {
        let stage = |coding: Coding| {
            Ok(Stage { decoder: Decoder::new(coding)?, waiting: VecDeque::new(), read: 0, written: 0 })
        };
        let stages = codings.into_iter().map(stage).collect::<Result<_, CodingError>>()?;
        Ok(Self { inner, stages, trailers: None, ended: false })
    }

    /// The next piece of the last stage's output, as far as what has come allows.
    fn pull(&mut self) -> Result<Option<Bytes>, CodingError> {
        // From the last stage back to the first that has something to give, and forward again.
        let last = self.stages.len().saturating_sub(1);
        let mut at = last;
        loop {
            let Some(stage) = self.stages.get_mut(at) else { return Ok(None) };
            match stage.step()? {
                Some(piece) if at == last => return Ok(Some(piece)),
                Some(piece) => {
                    at += 1;
                    if let Some(next) = self.stages.get_mut(at) {
                        next.waiting.push_back(piece);
                    }
                }
                None if at == 0 => return Ok(None),
                None => at -= 1,
            }
        }
    }

    fn finish(&mut self) -> Result<(), CodingError> {
        self.ended = true;
        self.stages.iter().try_for_each(|s| s.decoder.finish(s.read == 0))
    }
}

impl Stage {
    fn step(&mut self) -> Result<Option<Bytes>, CodingError> {
        let mut piece = vec![0; PIECE];
        loop {
            let input = self.waiting.front().map_or(&[][..], |b| &b[..]);
            let step = self.decoder.step(input, &mut piece)?;
            if let Some(front) = self.waiting.front_mut() {
                front.advance(step.read);
                if front.is_empty() {
                    self.waiting.pop_front();
                }
            }
            self.read += step.read as u64;
            self.written += step.written as u64;
            if self.written > FREE_BYTES && self.written / MAX_RATIO > self.read {
                return Err(CodingError::Bomb);
            }
            if step.written > 0 {
                piece.truncate(step.written);
                return Ok(Some(piece.into()));
            }
            if self.waiting.is_empty() {
                return Ok(None);
            }
            if step.read == 0 {
                return Err(CodingError::Corrupt);
            }
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Decoded<B> {
    type Data = Bytes;
    type Error = DecodeError<B::Error>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if this.stages.is_empty() {
            return Pin::new(&mut this.inner).poll_frame(cx).map_err(DecodeError::Body);
        }
        loop {
            if let Some(piece) = this.pull()? {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if this.ended {
                return Poll::Ready(this.trailers.take().map(|t| Ok(Frame::trailers(t))));
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.stages.first_mut().into_iter().for_each(|s| s.waiting.push_back(data.clone())),
                    Err(frame) => {
                        this.trailers = frame.into_trailers().ok();
                        this.finish()?;
                    }
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(DecodeError::Body(error)))),
                None => this.finish()?,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        if self.stages.is_empty() {
            return self.inner.is_end_stream();
        }
        // An empty body stays one (HEAD, 304); of any other only the last poll knows that it has ended.
        let untouched = self.stages.iter().all(|s| s.read == 0 && s.waiting.is_empty());
        self.trailers.is_none() && untouched && (self.ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.stages.is_empty() { self.inner.size_hint() } else { SizeHint::new() }
    }
}

#[cfg(test)]
mod tests;
