//! Removes content codings. The node requested none, and a coded body cannot be searched.
//!
//! Decoding is incremental and bounded: at most one piece of output is buffered, and a response
//! that grows too far is aborted.

mod coding;

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body, Frame, SizeHint};

pub(crate) use self::coding::CodingError;
use self::coding::{Coding, Decoder};
use crate::{http::client::UpstreamError, pipeline::refusal::Refusal};

/// Largest piece that is decoded at a time.
const PIECE: usize = 32 * 1024;

/// An answer may grow by this factor for as long as it likes, and by any factor up to
/// [`FREE_BYTES`].
const MAX_RATIO: u64 = 200;
const FREE_BYTES: u64 = 64 << 20;

/// More codings than this on top of each other are refused: no server stacks them.
const MAX_CODINGS: usize = 2;

/// Why an answer can't be searched, and so can't be relayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unsearchable {
    /// It has a coding that can't be taken off: its name, where that is one of at most 32 letters,
    /// digits and `-_.`.
    UnknownCoding(Option<String>),
    /// It has more than [`MAX_CODINGS`].
    TooManyCodings,
    /// A decoder can't be made.
    Memory,
}

impl From<CodingError> for Unsearchable {
    fn from(_: CodingError) -> Self {
        Self::Memory
    }
}

impl From<Unsearchable> for Refusal {
    fn from(unsearchable: Unsearchable) -> Self {
        let refusal = Self::from(match unsearchable {
            Unsearchable::TooManyCodings => UpstreamError::TooManyCodings,
            Unsearchable::UnknownCoding(_) | Unsearchable::Memory => UpstreamError::UnknownCoding,
        });
        match unsearchable {
            // Of a header that has been scrubbed.
            Unsearchable::UnknownCoding(Some(name)) => {
                let detail = format!("{}: `{name}`", refusal.text());
                refusal.with_detail(detail)
            }
            _ => refusal,
        }
    }
}

/// Values of `Content-Encoding` that servers send and that transform nothing: names of character
/// sets, MIME's transfer encodings, S3's and DynamoDB's framing of requests, and words for "none".
const IDENTITIES: &[&str] = &[
    "7bit",
    "8bit",
    "amz-1.0",
    "ascii",
    "aws-chunked",
    "binary",
    "default",
    "identity",
    "iso-8859-1",
    "latin1",
    "none",
    "null",
    "plain",
    "raw",
    "text",
    "us-ascii",
    "utf-16",
    "utf-8",
    "utf8",
    "windows-1252",
];

/// Parts of media types whose bytes are coded: a client may decode them.
const CODED_TYPES: &[&str] = &["br", "bzip", "compress", "deflate", "gz", "lz", "snappy", "xz", "zip", "zst"];

/// Whether a value of `Content-Encoding` transforms nothing: it is listed, or is a media type of
/// bytes that are not coded.
fn transforms_nothing(name: &str) -> bool {
    let name = name.trim_matches(['"', ' ', '\t']).to_ascii_lowercase();
    let (kind, parameters) = name.split_once(';').map_or((name.as_str(), ""), |(kind, rest)| (kind.trim_end(), rest));
    let bare = kind.strip_prefix("charset=").unwrap_or(kind);
    let coded = |text: &str| CODED_TYPES.iter().any(|part| text.contains(part));
    let media_type = kind.split_once('/').is_some_and(|(kind, subtype)| !kind.is_empty() && !coded(subtype));
    let plain_parameters = parameters.trim().is_empty() || parameters.trim_start().starts_with("charset=");
    plain_parameters && (bare.is_empty() || media_type || IDENTITIES.binary_search(&bare).is_ok())
}

/// Takes the codings out of an answer's headers, in the order in which they are to be taken off.
/// What described the coded bytes goes with them. Where nothing is coded, the headers stay as they
/// are.
pub(super) fn codings(headers: &mut HeaderMap) -> Result<Vec<Coding>, Unsearchable> {
    let (mut codings, mut others) = (Vec::new(), Vec::new());
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let text = value.to_str().map_err(|_| Unsearchable::UnknownCoding(None))?;
        for name in text.split(',').map(str::trim) {
            match Coding::named(name) {
                Some(coding) => codings.push(coding),
                None if transforms_nothing(name) => others.push(name.to_owned()),
                None => return Err(Unsearchable::UnknownCoding(presentable(name))),
            }
        }
    }
    if codings.len() > MAX_CODINGS {
        return Err(Unsearchable::TooManyCodings);
    }
    if !codings.is_empty() {
        headers.remove(header::CONTENT_ENCODING);
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::ACCEPT_RANGES);
        others.retain(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity"));
        if let Ok(left) = HeaderValue::try_from(others.join(", "))
            && !left.is_empty()
        {
            headers.insert(header::CONTENT_ENCODING, left);
        }
    }
    codings.reverse(); // the last one was applied last
    Ok(codings)
}

/// A coding's name, if a refusal may show it.
fn presentable(name: &str) -> Option<String> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    (plain && name.len() <= 32).then(|| name.to_owned())
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

impl From<DecodeError<UpstreamError>> for UpstreamError {
    fn from(error: DecodeError<UpstreamError>) -> Self {
        match error {
            DecodeError::Body(error) => error,
            DecodeError::Coding(CodingError::Truncated) => Self::TruncatedCoding,
            DecodeError::Coding(CodingError::Bomb) => Self::DecompressionBomb,
            DecodeError::Coding(CodingError::Corrupt | CodingError::Memory) => Self::CorruptCoding,
        }
    }
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
        // An empty body stays one (HEAD, 304); of any other only the last poll knows that it has
        // ended.
        let untouched = self.stages.iter().all(|s| s.read == 0 && s.waiting.is_empty());
        self.trailers.is_none() && untouched && (self.ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.stages.is_empty() { self.inner.size_hint() } else { SizeHint::new() }
    }
}

#[cfg(test)]
mod tests;
