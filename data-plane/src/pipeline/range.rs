//! Ranges: an agent that chooses where a part of an answer begins and ends must not read a
//! credential in pieces.
//!
//! The scrubber needs what stands around the part. So the node asks the upstream for more on both
//! sides, more than any form of the credential takes, scrubs that, and cuts out what the agent
//! asked for. A request for several ranges at once is sent without `Range`, as any server may
//! answer it (RFC 9110, 14.2).

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};

use super::scrub::Needles;
use crate::http::{HeaderList, client::UpstreamError};

/// Azure's own, which counts before `Range`.
const X_MS_RANGE: HeaderName = HeaderName::from_static("x-ms-range");

/// Bytes that are asked for on each side: so many times the longest text that is searched for,
/// which holds UTF-32 and hex already, and [`MARGIN_BYTES`]. An escape takes at most 8 bytes
/// (`&#x0041;`).
const MARGIN_FACTOR: usize = 8;
const MARGIN_BYTES: usize = 1024;

/// One range of bytes, as an agent asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteRange {
    /// `bytes=5-`
    From(u64),
    /// `bytes=5-9`, the last byte included.
    FromTo(u64, u64),
    /// `bytes=-5`
    Last(u64),
}

/// Whether a value of `Range` is one range, which the node can widen.
pub(super) fn is_single(value: &HeaderValue) -> bool {
    ByteRange::parse(value).is_some()
}

impl ByteRange {
    fn parse(value: &HeaderValue) -> Option<Self> {
        let (unit, range) = value.to_str().ok()?.split_once('=')?;
        let (first, last) = range.trim().split_once('-')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        match (first.trim(), last.trim()) {
            ("", last) => number(last).filter(|last| *last > 0).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::FromTo(first, last))
            }
        }
    }

    fn widened(self, margin: u64) -> String {
        match self {
            Self::From(first) => format!("bytes={}-", first.saturating_sub(margin)),
            Self::FromTo(first, last) => {
                format!("bytes={}-{}", first.saturating_sub(margin), last.saturating_add(margin))
            }
            Self::Last(count) => format!("bytes=-{}", count.saturating_add(margin)),
        }
    }

    /// The bytes that are meant in an answer with these, the last one included. `None`: there are
    /// none.
    fn within(self, sent: ContentRange) -> Option<(u64, u64)> {
        let (first, last) = match self {
            Self::From(first) => (first, sent.last),
            Self::FromTo(first, last) => (first, last.min(sent.last)),
            Self::Last(count) => (sent.last.saturating_add(1).saturating_sub(count), sent.last),
        };
        (first <= last).then_some((first, last))
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// `bytes 5-9/20`, or `/*`.
#[derive(Clone, Copy)]
struct ContentRange {
    first: u64,
    last: u64,
    complete: Option<u64>,
}

impl ContentRange {
    /// `None`: there is not exactly one, or it says nothing.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(header::CONTENT_RANGE).iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        let (unit, range) = value.to_str().ok()?.trim().split_once(' ')?;
        let (range, complete) = range.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first.trim())?, number(last.trim())?);
        let complete = match complete.trim() {
            "*" => None,
            complete => Some(number(complete)?),
        };
        let fits = first <= last && complete.is_none_or(|complete| last < complete) && last < u64::MAX;
        (fits && unit.eq_ignore_ascii_case("bytes")).then_some(Self { first, last, complete })
    }
}

/// A range that was asked for with a margin around it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WidenedRange(ByteRange);

impl WidenedRange {
    /// Widens the range that a request asks for, if it asks for one.
    pub(super) fn widen(headers: &mut HeaderList, needles: &Needles) -> Option<Self> {
        let name = [X_MS_RANGE, header::RANGE].into_iter().find(|name| headers.get(name).is_some())?;
        let range = ByteRange::parse(headers.get(&name)?)?;
        let margin = needles.longest().saturating_mul(MARGIN_FACTOR).saturating_add(MARGIN_BYTES);
        let widened = HeaderValue::try_from(range.widened(margin as u64)).ok()?;
        headers.remove(header::RANGE.as_str());
        headers.set(name, widened);
        Some(Self(range))
    }

    /// The answer as if the agent's own range had been asked for: its head. Gives what is to be cut
    /// out of its body.
    fn restore(self, status: &mut StatusCode, headers: &mut HeaderMap) -> Result<Option<Window>, UpstreamError> {
        if *status != StatusCode::PARTIAL_CONTENT {
            return Ok(None); // whole, or none of it
        }
        let sent = ContentRange::of(headers).ok_or(UpstreamError::BadRange)?;
        let sent_bytes = sent.last - sent.first + 1;
        if let Some(length) = headers.get(header::CONTENT_LENGTH)
            && length.to_str().ok().and_then(number) != Some(sent_bytes)
        {
            return Err(UpstreamError::BadRange);
        }
        let complete = sent.complete.map_or_else(|| "*".to_owned(), |complete| complete.to_string());
        let (content_range, window) = match self.0.within(sent) {
            Some((first, last)) => {
                let skip = first.checked_sub(sent.first).ok_or(UpstreamError::BadRange)?;
                (format!("bytes {first}-{last}/{complete}"), Window { skip, left: last - first + 1 })
            }
            // All of it lies before what was asked for.
            None => {
                *status = StatusCode::RANGE_NOT_SATISFIABLE;
                headers.remove(header::CONTENT_TYPE);
                (format!("bytes */{complete}"), Window { skip: u64::MAX, left: 0 })
            }
        };
        let value = |text: String| HeaderValue::try_from(text).map_err(|_| UpstreamError::BadRange);
        headers.insert(header::CONTENT_RANGE, value(content_range)?);
        if headers.contains_key(header::CONTENT_LENGTH) {
            headers.insert(header::CONTENT_LENGTH, value(window.left.to_string())?);
        }
        Ok(Some(window))
    }
}

/// Cuts what the agent asked for out of an answer whose range was widened.
///
/// # Errors
/// A part that is not the one that was asked for, or whose bytes cannot be counted because they are
/// coded.
pub(super) fn response<B: http_body::Body<Data = Bytes>>(
    response: Response<B>,
    range: Option<WidenedRange>,
    is_coded: bool,
) -> Result<Response<Body<B>>, UpstreamError> {
    let Some(range) = range else { return Ok(response.map(|inner| Body { inner, window: None })) };
    let (mut parts, inner) = response.into_parts();
    let window = range.restore(&mut parts.status, &mut parts.headers)?;
    if window.is_some() && is_coded {
        return Err(UpstreamError::BadRange);
    }
    Ok(Response::from_parts(parts, Body { inner, window }))
}

/// What is left of a body: nothing of the first bytes, and then so many.
#[derive(Clone, Copy)]
struct Window {
    skip: u64,
    left: u64,
}

impl Window {
    fn cut(&mut self, mut data: Bytes) -> Bytes {
        let length = data.len() as u64;
        let skipped = self.skip.min(length);
        self.skip -= skipped;
        let taken = (length - skipped).min(self.left);
        self.left -= taken;
        // Both are at most `length`.
        let begin = usize::try_from(skipped).unwrap_or(data.len());
        let end = usize::try_from(skipped + taken).unwrap_or(data.len());
        data.truncate(end);
        data.split_off(begin.min(data.len()))
    }
}

/// A body, or the part of it that the agent asked for.
pub(crate) struct Body<B> {
    inner: B,
    window: Option<Window>,
}

impl<B> Body<B> {
    /// The body that is cut.
    pub(crate) fn inner(&self) -> &B {
        &self.inner
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Body<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let Some(window) = &mut this.window else { return Pin::new(&mut this.inner).poll_frame(cx) };
        loop {
            let Some(frame) = ready!(Pin::new(&mut this.inner).poll_frame(cx)?) else { return Poll::Ready(None) };
            // The rest is read to its end, so that the connection can be used again.
            match frame.into_data().map(|data| window.cut(data)) {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.window {
            Some(window) if !self.inner.is_end_stream() => SizeHint::with_exact(window.left),
            _ => self.inner.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &'static str) -> Option<ByteRange> {
        ByteRange::parse(&HeaderValue::from_static(value))
    }

    /// Status, `Content-Range` and the window for an answer with `content_range`.
    fn restored(asked: &'static str, content_range: &str) -> Result<(u16, String, (u64, u64)), UpstreamError> {
        let (mut status, mut headers) = (StatusCode::PARTIAL_CONTENT, HeaderMap::new());
        headers.insert(header::CONTENT_RANGE, HeaderValue::try_from(content_range).unwrap());
        let window = WidenedRange(parsed(asked).unwrap()).restore(&mut status, &mut headers)?.unwrap();
        let range = headers[header::CONTENT_RANGE].to_str().unwrap().to_owned();
        Ok((status.as_u16(), range, (window.skip, window.left)))
    }

    #[test]
    fn one_range_is_widened_and_several_are_none() {
        for (asked, widened) in [
            ("bytes=0-", "bytes=0-"),
            ("bytes=17-", "bytes=7-"),
            ("Bytes = 16-31", "bytes=6-41"),
            ("bytes=3-18446744073709551615", "bytes=0-18446744073709551615"),
            ("bytes=-5", "bytes=-15"),
        ] {
            assert_eq!(parsed(asked).unwrap().widened(10), widened, "{asked}");
        }
        for none in
            ["bytes=0-1,5-6", "bytes=-0", "bytes=5-1", "bytes=-", "lines=1-2", "bytes=+1-2", "bytes=0x1-", "5-6"]
        {
            assert_eq!(parsed(none), None, "{none}");
        }
    }

    #[test]
    fn an_answer_says_what_was_asked_for() {
        let ok = |asked, sent| restored(asked, sent).unwrap();
        assert_eq!(ok("bytes=16-31", "bytes 6-41/60"), (206, "bytes 16-31/60".into(), (10, 16)));
        assert_eq!(ok("bytes=16-31", "bytes 0-19/20"), (206, "bytes 16-19/20".into(), (16, 4)));
        assert_eq!(ok("bytes=17-", "bytes 7-59/*"), (206, "bytes 17-59/*".into(), (10, 43)));
        assert_eq!(ok("bytes=-5", "bytes 45-59/60"), (206, "bytes 55-59/60".into(), (10, 5)));
        assert_eq!(ok("bytes=-50", "bytes 0-19/20"), (206, "bytes 0-19/20".into(), (0, 20)));
        assert_eq!(ok("bytes=25-", "bytes 15-19/20"), (416, "bytes */20".into(), (u64::MAX, 0)));
        for sent in ["bytes 17-41/60", "bytes 6-41/41", "bytes */60", "lines 6-41/60", "bytes 41-6/60", ""] {
            assert_eq!(restored("bytes=16-31", sent), Err(UpstreamError::BadRange), "{sent}");
        }
    }

    #[test]
    fn a_window_is_cut_at_any_split() {
        for step in 1..=20 {
            let mut window = Window { skip: 3, left: 9 };
            let text: Vec<u8> = (0..20).collect();
            let cut: Vec<u8> =
                text.chunks(step).flat_map(|chunk| window.cut(Bytes::copy_from_slice(chunk)).to_vec()).collect();
            assert_eq!(cut, (3..12).collect::<Vec<u8>>(), "{step}");
        }
    }
}
