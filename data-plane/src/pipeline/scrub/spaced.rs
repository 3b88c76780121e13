//! Bytes that stand for nothing between the units of a needle: NULs of UTF-16 and UTF-32, line
//! breaks and the indentation behind them, separators in hex.
//!
//! A needle with such a byte among its first bytes has no window ([`super::prefilter`]). It is
//! found where the first of these bytes is.

use super::alphabet::{MIN_ENCODED, is_blank, is_line_break};

/// Digits of the shortest value in hex. A needle in hex is a run of at least so many digits and
/// separators.
const LEAST_DIGITS: usize = 2 * MIN_ENCODED;

/// Bytes without one that stands for nothing, from which on the next is far.
const NEAR: usize = 32;

const DIGIT: u8 = 1;
const SEPARATOR: u8 = 2;

/// What a byte is within a run of hex: a digit, a separator or neither. By byte.
static KINDS: [u8; 256] = kinds();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn kinds() -> [u8; 256] {
    let mut kinds = [0; 256];
    let mut byte = 0;
    while byte < kinds.len() {
        kinds[byte] = match byte as u8 {
            b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' => DIGIT,
            b':' | b'-' | b' ' | b'\t' | b'\r' | b'\n' => SEPARATOR,
            _ => 0,
        };
        byte += 1;
    }
    kinds
}

#[inline]
fn kind(byte: u8) -> u8 {
    KINDS.get(usize::from(byte)).copied().unwrap_or_default()
}

/// What stands for nothing at some place.
pub(super) type Nothing = fn(u8) -> bool;

/// Calls `found` for the first byte of each run of NULs, and of line breaks, behind `from` and in
/// order.
///
/// `memchr` finds the first of several that are near to each other, by words of eight bytes: that
/// costs less for each of them.
pub(super) fn nuls_and_line_breaks(body: &[u8], from: usize, mut found: impl FnMut(usize, Nothing)) {
    let mut visit = |at: usize| {
        let byte = |at: usize| body.get(at).copied();
        let (same, nothing): (Nothing, Nothing) =
            if byte(at) == Some(0) { (is_nul, is_nul) } else { (is_line_break, is_fold) };
        if !at.checked_sub(1).and_then(byte).is_some_and(same) {
            found(at, nothing);
        }
    };
    let mut at = from;
    while let Some(rest) = body.get(at..)
        && let Some(next) = memchr::memchr3(0, b'\r', b'\n', rest)
    {
        at += next;
        let (words, end) = body.get(at..).unwrap_or_default().as_chunks::<8>();
        let mut last = at;
        for word in words {
            let mut hits = hits(u64::from_le_bytes(*word));
            while hits != 0 {
                last = at + hits.trailing_zeros() as usize / 8;
                visit(last);
                hits &= hits - 1;
            }
            at += 8;
            if at - last > NEAR {
                break;
            }
        }
        if body.len() - at == end.len() {
            let end = (at..).zip(end).filter(|(_, byte)| is_nul(**byte) || is_line_break(**byte));
            return end.for_each(|(at, _)| visit(at));
        }
    }
}

/// The highest bit of each byte of `word` that is NUL, CR or LF.
#[inline]
fn hits(word: u64) -> u64 {
    const ALL: u64 = u64::MAX / 0xff;
    const LOW: u64 = 0x7f * ALL;
    // The highest bit of each byte that isn't zero, and all others. Without carries from byte to
    // byte.
    let others = |word: u64| ((word & LOW) + LOW) | word | LOW;
    !(others(word) & others(word ^ (ALL * b'\r' as u64)) & others(word ^ (ALL * b'\n' as u64)))
}

fn is_nul(byte: u8) -> bool {
    byte == 0
}

/// A line break, or the indentation of the line behind it.
fn is_fold(byte: u8) -> bool {
    is_line_break(byte) || is_blank(byte)
}

/// Calls `found` for the first byte of each run of separators, where digits and separators are as
/// many as a value in hex needs, behind `from` and in order.
///
/// Such a place covers one of every 16 bytes, so only these are looked at. Prose and JSON have few.
pub(super) fn separators_in_hex(body: &[u8], from: usize, mut found: impl FnMut(usize, Nothing)) {
    let mut at = from + LEAST_DIGITS - 1;
    while let Some(byte) = body.get(at) {
        if kind(*byte) == 0 {
            at += LEAST_DIGITS;
            continue;
        }
        let (before, behind) = (body.get(from..at).unwrap_or_default(), body.get(at..).unwrap_or_default());
        let mut kinds = 0;
        let mut is_in_hex = |byte: &&u8| {
            kinds |= kind(**byte);
            kind(**byte) != 0
        };
        let begin = at - before.iter().rev().take_while(&mut is_in_hex).count();
        let end = at + behind.iter().take_while(&mut is_in_hex).count();
        if end - begin > LEAST_DIGITS && kinds == DIGIT | SEPARATOR {
            let run = body.get(begin..end).unwrap_or_default();
            let mut before = DIGIT;
            for (index, kind) in (begin..).zip(run.iter().map(|byte| kind(*byte))) {
                if kind == SEPARATOR && before == DIGIT {
                    found(index, |byte| self::kind(byte) == SEPARATOR);
                }
                before = kind;
            }
        }
        at = end + LEAST_DIGITS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn separators(body: &str) -> Vec<usize> {
        let mut all = Vec::new();
        separators_in_hex(body.as_bytes(), 0, |at, _| all.push(at));
        all
    }

    #[test]
    fn separators_are_found_in_every_long_run_wherever_it_begins() {
        for before in 0..40 {
            let body = format!("{}736b2d52:45414c2d 7 rest", "x".repeat(before));
            assert_eq!(separators(&body), [before + 8, before + 17, before + 19], "{before}");
        }
        assert_eq!(separators("a dead face: by a cafe; add 12:34"), [0; 0], "too short");
    }

    #[test]
    fn the_first_byte_of_each_run_is_found() {
        let mut body = b"a\0\0\0b\r\n\nc".to_vec();
        let mut want = vec![1, 5];
        for gap in [1, 7, 8, 9, 31, 40, 100] {
            body.extend(vec![b'x'; gap]);
            want.push(body.len());
            body.extend(b"\n\n");
        }
        for behind in 0..20 {
            let mut all = Vec::new();
            nuls_and_line_breaks(&[&body[..], &vec![b'y'; behind]].concat(), 0, |at, _| all.push(at));
            assert_eq!(all, want, "{behind}");
        }
    }
}
