//! Finds windows by four bytes of each, 32 bytes of a body a step (Teddy, of the crate
//! `aho-corasick`).
//!
//! The table of [`super::Prefilter`] takes a step of some 12 bytes, and each step waits for the one
//! before. benches/README.md compares the two.

use aho_corasick::{
    Span,
    packed::{MatchKind, Searcher},
};

use super::{super::alphabet::Alphabet, Prefilter, Window};

/// Bytes of a fragment. Teddy compares as many before it gives an alarm.
const LENGTH: usize = 4;
/// Ways of writing a fragment, of hex digits in either case and of both alphabets of base64.
/// Fragments with more are not chosen.
const MOST_SPELLINGS: usize = 4;
/// A body that gives more alarms than one in this many bytes, over at least [`MIN_ALARMS`], is
/// searched by the table from there on: what an upstream writes must not cost more than the table
/// does.
const BYTES_AN_ALARM: usize = 32;
const MIN_ALARMS: usize = 64;

/// The fragments of one set of windows.
#[derive(Clone)]
pub(super) struct Fragments {
    searcher: Searcher,
    /// Of each fragment: the windows that it is a part of.
    places: Vec<Vec<Place>>,
    /// The farthest that a fragment is from the beginning of its window.
    most_offset: usize,
}

/// Where a fragment is in a window.
#[derive(Clone, Copy)]
struct Place {
    window: usize,
    offset: usize,
}

/// A window that was found: its end, and its number.
pub(super) type Hit = (usize, usize);

impl Fragments {
    /// `None` where the processor can't, or there are too many windows. All windows are `length`
    /// bytes long.
    pub(super) fn new(windows: &[Window], length: usize) -> Option<Self> {
        let last = length.checked_sub(LENGTH)?;
        let (mut texts, mut places): (Vec<[u8; LENGTH]>, Vec<Vec<Place>>) = (Vec::new(), Vec::new());
        let mut most_offset = 0;
        for (window, Window { text, alphabet, .. }) in windows.iter().enumerate() {
            let at = |offset: usize| text.get(offset..)?.first_chunk::<LENGTH>().copied();
            let candidates = (0..=last).filter_map(|offset| Some((offset, spellings(at(offset)?, *alphabet)?)));
            let (offset, spellings) = candidates.min_by_key(|(_, spellings)| commonness(spellings))?;
            most_offset = most_offset.max(offset);
            for text in spellings {
                let known = texts.iter().position(|known| *known == text).unwrap_or_else(|| {
                    texts.push(text);
                    places.push(Vec::new());
                    texts.len() - 1
                });
                places.get_mut(known)?.push(Place { window, offset });
            }
        }
        let mut builder = aho_corasick::packed::Config::new().match_kind(MatchKind::LeftmostFirst).builder();
        let searcher = builder.extend(&texts).build();
        texts.iter_mut().for_each(zeroize::Zeroize::zeroize);
        Some(Self { searcher: searcher?, places, most_offset })
    }

    /// Every window in `body` whose end is `end` or behind, in order, and where the table must go
    /// on: the end of the first window that was not looked for.
    pub(super) fn search(&self, of: &Prefilter, body: &[u8], end: usize) -> (Vec<Hit>, usize) {
        let length = of.length();
        let Some(first) = end.checked_sub(length).filter(|_| end <= body.len()) else { return (Vec::new(), end) };
        let (mut hits, mut at, mut alarms) = (Vec::new(), first, 0);
        let mut behind = body.len() + 1;
        while let Some(alarm) = self.searcher.find_in(body, Span { start: at, end: body.len() }) {
            for Place { window, offset } in self.places.get(alarm.pattern().as_usize()).into_iter().flatten() {
                let begin = alarm.start().checked_sub(*offset).filter(|begin| *begin >= first);
                let Some(bytes) = begin.and_then(|begin| body.get(begin..begin + length)) else { continue };
                if of.windows.get(*window).is_some_and(|window| window.value == super::folded(bytes) & window.mask) {
                    hits.push((alarm.start() - offset + length, *window));
                }
            }
            at = alarm.start() + 1;
            alarms += 1;
            if alarms >= MIN_ALARMS && (at - first) / alarms < BYTES_AN_ALARM {
                behind = (at.saturating_sub(self.most_offset) + length).max(end);
                hits.retain(|(end, _)| *end < behind);
                break;
            }
        }
        // A fragment stands at another place in each window: what was found is not in order.
        hits.sort_unstable();
        (hits, behind)
    }
}

/// The ways in which bodies write a fragment. `None`: too many.
fn spellings(text: [u8; LENGTH], alphabet: Alphabet) -> Option<Vec<[u8; LENGTH]>> {
    let mut spellings = vec![text];
    for (at, byte) in text.into_iter().enumerate() {
        let [_, other] = super::spellings(alphabet, byte);
        let other = if alphabet == Alphabet::Hex { byte.to_ascii_uppercase() } else { other };
        if other != byte {
            let others = spellings.clone().into_iter().map(|mut spelling| {
                spelling.get_mut(at).into_iter().for_each(|place| *place = other);
                spelling
            });
            spellings.extend(others);
        }
    }
    (spellings.len() <= MOST_SPELLINGS).then_some(spellings)
}

/// How often bodies hold a fragment by chance, roughly: JSON and English are mostly small letters,
/// spaces and quotes.
fn commonness(spellings: &[[u8; LENGTH]]) -> usize {
    let of_byte = |byte: &u8| match byte {
        b' ' | b'"' | b'e' | b't' | b'a' | b'o' | b'i' | b'n' | b's' | b'r' => 4,
        0 | b'a'..=b'z' | b':' | b',' | b'.' | b'/' | b'-' | b'_' => 3,
        b'0'..=b'9' | b'A'..=b'Z' => 2,
        _ => 1,
    };
    spellings.iter().flatten().map(of_byte).sum()
}
