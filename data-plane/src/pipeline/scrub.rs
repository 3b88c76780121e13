//! Scrubbing: removes the credential from responses.
//!
//! It searches for exactly what was written into this request, in every form in which an upstream
//! plausibly repeats it: as it is, in base64 of either alphabet at any offset in a group, in hex of
//! either case with or without separators, percent-encoded, JSON-escaped, as HTML entities,
//! quoted-printable (each for any subset of the characters), and in UTF-16 and UTF-32. It finds a
//! match across any split into chunks, in headers, bodies of any type and length, trailers, names
//! of headers and trailers in any case, and over the `data:` lines of one server-sent event
//! ([`events`]).
//!
//! A match is overwritten with `*`, byte for byte. `Content-Length`, framing and streaming stay as
//! they are. Only the beginning of a match that the next byte may complete is held back.
//!
//! A body is first searched for short windows of the raw, base64 and hex forms ([`prefilter`]),
//! several bytes a step, for bytes that introduce escapes, and for bytes that stand for nothing
//! between two of the credential ([`spaced`]). Only where one of these matches, a needle is
//! followed token by token ([`matcher`]), in time linear in the body. So the output does not depend
//! on how a body is cut ([`search`] says why). The state survives from chunk to chunk
//! ([`scrubber`]).
//!
//! SECURITY.md states the limit: an upstream that colludes with an agent can return its credential
//! in an encoding of their own.

mod alphabet;
mod body;
mod decode;
mod events;
#[cfg(test)]
mod fuzz;
mod matcher;
mod messages;
mod needles;
mod prefilter;
mod scrubber;
mod search;
mod spaced;
mod token;

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};

pub(crate) use self::{
    body::Body,
    decode::{Decoded, Unsearchable},
    messages::Messages,
    needles::Needles,
};
use self::{decode::DecodeError, events::Events, scrubber::Scrubber};
use super::audit::Counters;

/// An answer's body, with its codings off and searched.
pub(crate) type Searched<B> = Body<Decoded<B>, DecodeError<<B as http_body::Body>::Error>>;

/// Integrity headers are over bytes that may be changed, and they go out before it is known whether
/// they are. An `ETag` stays: it names the upstream's representation to the upstream and says
/// nothing about bytes.
const INTEGRITY: [&str; 4] = ["content-md5", "digest", "content-digest", "repr-digest"];

/// Takes what was put into a request out of its answer: content codings come off, headers are
/// scrubbed, body and trailers are as they stream through. Occurrences are counted in `counters`.
///
/// # Errors
/// [`Unsearchable`]: the agent must not get the body.
pub(crate) fn response<B: http_body::Body<Data = Bytes>>(
    response: Response<B>,
    needles: Needles,
    counters: &Arc<Counters>,
) -> Result<Response<Searched<B>>, Unsearchable> {
    let (mut parts, body) = response.into_parts();
    let (mut codings, mut scrubber, mut events) = (Vec::new(), None, None);
    if !needles.is_empty() {
        let scrubber = scrubber.insert(Scrubber::new(needles.clone()));
        counters.scrubbed(scrub_headers(&mut parts.headers, &needles, scrubber));
        // There is nothing to be searched of an answer to HEAD, a 204 or a 304: its head says what
        // another answer would be.
        if !body.is_end_stream() {
            codings = decode::codings(&mut parts.headers)?;
            remove_integrity(&mut parts.headers);
        }
        events = events::may_be_events(&parts.headers).then(|| Box::new(Events::new(&needles)));
    }
    let body = Decoded::new(body, codings)?;
    Ok(Response::from_parts(parts, Body::with(body, scrubber, events, needles, Arc::clone(counters))))
}

fn remove_integrity(headers: &mut HeaderMap) {
    // All of them end so; most answers have no such name.
    let listed = |name: &&HeaderName| name.as_str().ends_with(['5', 't']) && INTEGRITY.contains(&name.as_str());
    let named: Vec<HeaderName> = headers.keys().filter(listed).cloned().collect();
    for name in named {
        headers.remove(name);
    }
}

/// Scrubs all headers (or trailers), names included. Returns how many occurrences there were.
pub(crate) fn headers(headers: &mut HeaderMap, needles: &Needles) -> u32 {
    if needles.is_empty() {
        return 0;
    }
    scrub_headers(headers, needles, &mut Scrubber::new(needles.clone()))
}

/// What a text is to be replaced by, of the same length, when it holds what was put in. Of a text
/// that `is_cut`, the beginning of a match at its end is masked too.
pub(crate) fn masked(text: &[u8], is_cut: bool, needles: &Needles) -> Option<Vec<u8>> {
    let mut scrubber = Scrubber::new(needles.clone());
    if needles.is_empty() || !is_cut {
        return scrubber.whole(text).filter(|_| !needles.is_empty());
    }
    let mut pieces = VecDeque::new();
    scrubber.push(Bytes::copy_from_slice(text), &mut pieces);
    scrubber.flush_message(&mut pieces);
    Some(pieces.into_iter().flatten().collect())
}

fn scrub_headers(headers: &mut HeaderMap, needles: &Needles, scrubber: &mut Scrubber) -> u32 {
    for value in headers.values_mut() {
        if let Some(clean) = scrubber.whole(value.as_bytes()) {
            *value = HeaderValue::from_bytes(&clean).unwrap_or_else(|_| HeaderValue::from_static("*"));
        }
    }
    // A name can't be masked and still be a name: such a header is dropped, with all its values.
    let named: Vec<HeaderName> = headers.keys().filter(|name| is_named_after(name, needles)).cloned().collect();
    for name in &named {
        headers.remove(name);
    }
    scrubber.take_found() + u32::try_from(named.len()).unwrap_or(u32::MAX)
}

/// Whether a name holds the credential, in any case: names have lost theirs.
fn is_named_after(name: &HeaderName, needles: &Needles) -> bool {
    let name = name.as_str().as_bytes();
    if !needles.may_be_in_name(name) {
        return false;
    }
    let mut folded = Scrubber::new(needles.folded());
    // An escape of a capital letter is one in lower case, too.
    let mut holds = |name: &[u8]| folded.whole(name).is_some();
    holds(name)
        || (name.contains(&b'%') && holds(&token::unescaped(name, token::Schemes::PERCENT).to_ascii_lowercase()))
}

#[cfg(test)]
mod tests;
