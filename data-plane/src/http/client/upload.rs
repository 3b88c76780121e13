//! A request's body on its way to the upstream: nothing, what was read for inspection, or the
//! agent's stream.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, Sleep};

use crate::http::server::RequestBody;

/// An agent that uploads must send at least this many bytes in one idle timeout. Otherwise one byte
/// a second would keep a connection open without limit.
const MIN_PROGRESS_BYTES: u64 = 256;

/// Most bytes of a streamed body that are kept until the answer begins, in case that the request
/// has to be sent again. Requests to models are smaller, as a rule.
const MAX_KEPT_BYTES: usize = 64 * 1024;

/// The body of an upstream request. Trailers of requests are dropped and counted: none of the
/// services needs them, and fields after the body are a way round every check of the head.
pub enum Upload {
    /// No body.
    Empty,
    /// Read before the decision, sent as it was.
    Whole(Option<Bytes>),
    /// The same, kept for being sent again; whether it was sent.
    Kept(Bytes, bool),
    /// Passed on as it comes.
    Stream(Box<Streaming>),
}

/// An agent's body that is passed on as it comes.
pub struct Streaming {
    body: RequestBody,
    /// Read already, and to be sent first.
    ahead: VecDeque<Bytes>,
    /// Something of it was handed over.
    begun: bool,
    /// All that was handed over, while it is little enough and may have to be sent again.
    kept: Option<Vec<Bytes>>,
    state: Arc<UploadState>,
    meter: Arc<dyn Meter>,
    limit: u64,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    seen_at_timer: u64,
    both_ways: bool,
    /// What was signed of it.
    expected: Option<Box<Expected>>,
    watcher: Option<Box<dyn Watcher>>,
}

/// Looks at a body as it is handed over, and may stop it.
pub trait Watcher: Send + Sync {
    /// Whether the body may go on with `data`; with `None`, whether it may end.
    fn may_go_on(&mut self, data: Option<&[u8]>) -> bool;
}

struct Expected {
    hash: [u8; 32],
    seen: Sha256,
}

/// Counts an upload for the caller.
pub trait Meter: Send + Sync {
    /// So many bytes were read from the agent.
    fn add(&self, bytes: usize);

    /// So many trailers came behind the body, and are not sent.
    fn drop_trailers(&self, count: u16);
}

/// The state of an upload while another task drives it.
#[derive(Debug, Default)]
pub struct UploadState {
    bytes: AtomicU64,
    done: AtomicBool,
    answered: AtomicBool,
    failure: AtomicU8,
    severed: AtomicBool,
    /// The task that sends it: over HTTP/2 another one than the request's.
    sender: AtomicWaker,
}

/// Ends an upload when it is dropped: over HTTP/2 a body is sent by another task than the one that
/// watches the right to it, and would go on after the exchange has ended.
#[derive(Debug)]
pub struct UploadGuard(Arc<UploadState>);

impl Drop for UploadGuard {
    fn drop(&mut self) {
        self.0.severed.store(true, Ordering::SeqCst);
        self.0.sender.wake();
    }
}

/// Why an upload stopped. It is the agent's doing, so it decides the refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum UploadError {
    /// More bytes than the node takes.
    #[error("the request's body is too large")]
    TooLarge = 1,
    /// Too few bytes in too long a time.
    #[error("the request's body came too slowly")]
    TooSlow = 2,
    /// Its framing is wrong, or the agent has gone.
    #[error("the request's body is broken")]
    Broken = 3,
    /// It isn't the one that the agent signed.
    #[error("the request's body is not the one that was signed")]
    Altered = 4,
    /// The exchange that it is of has ended.
    #[error("the exchange has ended")]
    Abort = 5,
    /// Its watcher stopped it.
    #[error("the request's body holds what was not decided on")]
    Stopped = 6,
}

impl UploadState {
    /// Bytes that were read from the agent so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether the whole body was handed over. An answer that comes before that leaves the
    /// connection in doubt.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// The head of the answer is there. A stream that goes both ways may then be silent for as long
    /// as the other way is watched.
    pub fn answer_began(&self) {
        self.answered.store(true, Ordering::Release);
    }

    /// Why it stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<UploadError> {
        match self.failure.load(Ordering::Acquire) {
            1 => Some(UploadError::TooLarge),
            2 => Some(UploadError::TooSlow),
            3 => Some(UploadError::Broken),
            4 => Some(UploadError::Altered),
            6 => Some(UploadError::Stopped),
            _ => None,
        }
    }

    fn fail(&self, error: UploadError) -> UploadError {
        self.failure.store(error as u8, Ordering::Release);
        error
    }
}

impl Streaming {
    /// Passes `body` on: at most `limit` bytes, and some progress in every `idle`.
    #[must_use]
    pub fn new(body: RequestBody, limit: u64, idle: Duration, meter: Arc<dyn Meter>) -> Self {
        Self {
            body,
            ahead: VecDeque::new(),
            begun: false,
            kept: None,
            state: Arc::default(),
            meter,
            limit,
            idle,
            timer: None,
            seen_at_timer: 0,
            both_ways: false,
            expected: None,
            watcher: None,
        }
    }

    /// The same, but only as far as `watcher` lets it. It has seen what was [put
    /// back](Self::put_back).
    #[must_use]
    pub fn watched(mut self, watcher: Box<dyn Watcher>) -> Self {
        self.watcher = Some(watcher);
        self
    }

    /// With gRPC the agent may continue to send during the answer. Once the answer has begun, only
    /// the answer has a timeout.
    #[must_use]
    pub fn both_ways(mut self) -> Self {
        self.both_ways = true;
        self
    }

    /// The same, but whole only if its SHA-256 is `hash`: otherwise the last of it is never handed
    /// over. What was [put back](Self::put_back) counts as seen already.
    #[must_use]
    pub fn expecting(mut self, hash: Option<[u8; 32]>) -> Self {
        self.expected = hash.map(|hash| {
            let seen = self.ahead.iter().fold(Sha256::new(), |seen, part| seen.chain_update(part));
            Box::new(Expected { hash, seen })
        });
        self
    }

    /// Whether no body at all is what is expected.
    ///
    /// # Errors
    /// [`UploadError::Altered`].
    pub fn check_empty(hash: Option<[u8; 32]>) -> Result<(), UploadError> {
        match hash {
            Some(hash) if hash != <[u8; 32]>::from(Sha256::digest(b"")) => Err(UploadError::Altered),
            _ => Ok(()),
        }
    }

    fn check_end(&mut self) -> Result<(), UploadError> {
        if let Some(mut watcher) = self.watcher.take()
            && !watcher.may_go_on(None)
        {
            return Err(self.state.fail(UploadError::Stopped));
        }
        let Some(expected) = self.expected.take() else { return Ok(()) };
        let Expected { hash, seen } = *expected;
        if hash == <[u8; 32]>::from(seen.finalize()) { Ok(()) } else { Err(self.state.fail(UploadError::Altered)) }
    }

    /// Ends the upload once it is dropped.
    #[must_use]
    pub fn severing(&self) -> UploadGuard {
        UploadGuard(self.state.clone())
    }

    /// What can be watched from outside.
    #[must_use]
    pub fn state(&self) -> Arc<UploadState> {
        self.state.clone()
    }

    /// Puts back all that was read of it: somebody looked, and it is to be passed on after all.
    pub fn put_back(&mut self, read: Bytes) {
        self.state.done.store(false, Ordering::Release);
        self.begun = false;
        self.ahead.extend(Some(read).filter(|read| !read.is_empty()));
    }

    /// Begins again from the first byte. `false`: what was handed over is not kept any more.
    fn rewind(&mut self) -> bool {
        if !self.begun {
            return true;
        }
        let Some(kept) = &mut self.kept else { return false };
        kept.drain(..).rev().for_each(|part| self.ahead.push_front(part));
        self.begun = false;
        self.state.done.store(self.ahead.is_empty() && self.body.is_end_stream(), Ordering::Release);
        true
    }

    /// Keeps a part that is handed over, as long as all that was is little.
    fn keep(&mut self, part: &Bytes) {
        self.begun = true;
        if let Some(kept) = &mut self.kept {
            let bytes = kept.iter().map(Bytes::len).sum::<usize>() + part.len();
            if bytes > MAX_KEPT_BYTES {
                self.kept = None;
            } else {
                kept.push(part.clone());
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        if self.state.severed.load(Ordering::SeqCst) {
            return Poll::Ready(Some(Err(UploadError::Abort)));
        }
        let polled = self.poll_next(cx);
        if polled.is_pending() {
            self.state.sender.register(cx.waker());
            if self.state.severed.load(Ordering::SeqCst) {
                return Poll::Ready(Some(Err(UploadError::Abort)));
            }
        }
        polled
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        if let Some(read) = self.ahead.pop_front() {
            self.state.done.store(self.ahead.is_empty() && self.body.is_end_stream(), Ordering::Release);
            self.keep(&read);
            return Poll::Ready(Some(Ok(Frame::data(read))));
        }
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return self.poll_idle(cx).map(|e| Some(Err(e))),
                Poll::Ready(frame) => frame,
            };
            let Some(frame) = frame else {
                self.check_end()?;
                if !self.state.done.swap(true, Ordering::AcqRel) {
                    self.meter.drop_trailers(self.body.trailers());
                }
                return Poll::Ready(None);
            };
            let frame = frame.map_err(|_| self.state.fail(UploadError::Broken))?;
            let Some(data) = frame.data_ref() else { continue }; // trailers
            self.meter.add(data.len());
            let total = self.state.bytes.fetch_add(data.len() as u64, Ordering::Relaxed) + data.len() as u64;
            if total > self.limit {
                return Poll::Ready(Some(Err(self.state.fail(UploadError::TooLarge))));
            }
            if let Some(expected) = &mut self.expected {
                expected.seen.update(data);
            }
            if self.watcher.as_mut().is_some_and(|watcher| !watcher.may_go_on(Some(data))) {
                return Poll::Ready(Some(Err(self.state.fail(UploadError::Stopped))));
            }
            let ended = self.body.is_end_stream();
            // Over HTTP/2 the end may come after the last byte: who counts bytes would have them
            // all by then.
            let counted = self.expected.is_some() || self.watcher.is_some();
            if ended || (counted && self.body.size_hint().exact() == Some(0)) {
                self.check_end()?;
            }
            if ended {
                self.state.done.store(true, Ordering::Release);
            }
            if let Some(data) = frame.data_ref() {
                self.keep(data);
            }
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    /// One timer a window, not one a frame: it is set when the agent first keeps us waiting, and
    /// looks at what came since.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<UploadError> {
        if self.timer.is_none() {
            self.seen_at_timer = self.state.bytes();
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.idle)));
        loop {
            ready!(timer.as_mut().poll(cx));
            let seen = self.state.bytes();
            if self.both_ways && self.state.answered.load(Ordering::Acquire) {
                timer.as_mut().reset(Instant::now() + self.idle);
                continue;
            }
            if seen < self.seen_at_timer + MIN_PROGRESS_BYTES {
                return Poll::Ready(self.state.fail(UploadError::TooSlow));
            }
            self.seen_at_timer = seen;
            timer.as_mut().reset(Instant::now() + self.idle);
        }
    }
}

impl Body for Streaming {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        self.get_mut().poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, ahead) = (self.body.size_hint(), self.ahead.iter().map(Bytes::len).sum::<usize>() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + ahead);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead);
        }
        hint
    }
}

impl Upload {
    /// What can be watched of a body that is passed on as it comes.
    pub(super) fn state(&self) -> Option<Arc<UploadState>> {
        match self {
            Self::Stream(stream) => Some(stream.state()),
            Self::Empty | Self::Whole(_) | Self::Kept(..) => None,
        }
    }

    /// Keeps what is handed over of it from here on, so that it can be [rewound](Self::rewind).
    pub(super) fn keep_for_resend(&mut self) {
        match self {
            Self::Whole(Some(bytes)) => *self = Self::Kept(std::mem::take(bytes), false),
            Self::Stream(stream) => stream.kept = Some(Vec::new()),
            Self::Empty | Self::Whole(None) | Self::Kept(..) => {}
        }
    }

    /// Keeps nothing of it any more.
    pub(super) fn forget_kept(&mut self) {
        if let Self::Stream(stream) = self {
            stream.kept = None;
        }
    }

    /// Begins again from the first byte. `false`: some of it is gone.
    pub(super) fn rewind(&mut self) -> bool {
        match self {
            Self::Empty | Self::Whole(Some(_)) => true,
            Self::Whole(None) => false,
            Self::Kept(_, sent) => {
                *sent = false;
                true
            }
            Self::Stream(stream) => stream.rewind(),
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Kept(bytes, sent) => {
                Poll::Ready((!std::mem::replace(sent, true)).then(|| Ok(Frame::data(bytes.clone()))))
            }
            Self::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Whole(None) => true,
            Self::Whole(Some(bytes)) => bytes.is_empty(),
            Self::Kept(bytes, sent) => *sent || bytes.is_empty(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Whole(None) | Self::Kept(_, true) => SizeHint::with_exact(0),
            Self::Whole(Some(bytes)) | Self::Kept(bytes, false) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}
