//! Tokens that carry bytes of their own: `seks_token_`, groups of 43 base-62 characters and 6
//! characters of checksum.
//!
//! Each group stands for 32 bytes. The first two bytes are the length of what follows; zeros fill
//! the last group. A token has at least two groups, so that it cannot be taken for one of the fixed
//! length, and each has one spelling. Secret scanners that look for `seks_token_[0-9A-Za-z]{49}`
//! find these tokens too.

use super::{ALPHABET, CHECKSUM_CHARS, Digest, Malformed, PREFIX, RANDOM_CHARS, checksum_of, digit, divide};

const GROUP_BYTES: usize = 32;
const LENGTH_BYTES: usize = 2;
/// Most groups: 4 KiB and its length.
const MAX_GROUPS: usize = 130;

/// The token that carries `payload`, at most 4 KiB of it.
#[must_use]
pub fn encode(payload: &[u8]) -> String {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut bytes = [&length[..], payload].concat();
    let groups = bytes.len().div_ceil(GROUP_BYTES).max(2);
    bytes.resize(groups * GROUP_BYTES, 0);
    let mut body = Vec::with_capacity(groups * RANDOM_CHARS);
    for group in bytes.chunks_exact(GROUP_BYTES) {
        let mut number = [0; GROUP_BYTES];
        number.copy_from_slice(group);
        let mut digits = [0; RANDOM_CHARS];
        digits.iter_mut().rev().for_each(|place| *place = digit(divide(&mut number, 62)));
        body.extend_from_slice(&digits);
    }
    let checksum = checksum_of(&body);
    [PREFIX.as_bytes(), &body, &checksum].into_iter().flatten().copied().map(char::from).collect()
}

/// What the token in `value` carries. The token follows a vendor's prefix, if there is one, and
/// ends the value.
///
/// # Errors
/// As [`parse`](super::parse).
pub fn decode(value: &[u8]) -> Result<Vec<u8>, Malformed> {
    let body = body(value)?;
    let mut bytes = Vec::with_capacity(body.len() / RANDOM_CHARS * GROUP_BYTES);
    for group in body.chunks_exact(RANDOM_CHARS) {
        bytes.extend_from_slice(&number(group).ok_or(Malformed::Damaged)?);
    }
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or(Malformed::Damaged)?;
    let (payload, filling) =
        rest.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(Malformed::Damaged)?;
    let shortest = (LENGTH_BYTES + payload.len()).div_ceil(GROUP_BYTES).max(2) * RANDOM_CHARS == body.len();
    if shortest && filling.iter().all(|byte| *byte == 0) { Ok(payload.to_vec()) } else { Err(Malformed::Damaged) }
}

/// The digest of the token in `value`, if its form and checksum are right.
///
/// # Errors
/// As [`parse`](super::parse).
pub fn digest(value: &[u8]) -> Result<Digest, Malformed> {
    body(value)?;
    let start = memchr::memmem::find(value, PREFIX.as_bytes()).unwrap_or_default();
    Ok(Digest::of(value.get(start..).unwrap_or_default()))
}

/// The groups, without prefix and checksum.
fn body(value: &[u8]) -> Result<&[u8], Malformed> {
    let start = memchr::memmem::find(value, PREFIX.as_bytes()).ok_or(Malformed::NotOurs)?;
    let (shape, token) = value.split_at(start);
    let in_shape = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'=' | b':');
    let rest = token.strip_prefix(PREFIX.as_bytes()).unwrap_or_default();
    let (body, checksum) =
        rest.len().checked_sub(CHECKSUM_CHARS).and_then(|at| rest.split_at_checked(at)).ok_or(Malformed::Damaged)?;
    let groups = body.len() / RANDOM_CHARS;
    let formed = body.len() % RANDOM_CHARS == 0 && (2..=MAX_GROUPS).contains(&groups);
    let ours = formed && shape.len() <= 32 && shape.iter().all(in_shape);
    if ours && body.iter().all(u8::is_ascii_alphanumeric) && checksum == checksum_of(body) {
        Ok(body)
    } else {
        Err(Malformed::Damaged)
    }
}

/// The big-endian number that 43 digits stand for. `None`: it is 2^256 or more.
fn number(digits: &[u8]) -> Option<[u8; GROUP_BYTES]> {
    let mut number = [0_u8; GROUP_BYTES];
    for have in digits {
        let mut carry = u16::try_from(ALPHABET.iter().position(|known| known == have)?).ok()?;
        for byte in number.iter_mut().rev() {
            let value = u16::from(*byte) * 62 + carry;
            *byte = (value & 0xff) as u8;
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{LEN, parse};

    #[test]
    fn what_is_carried_comes_back_and_has_one_spelling() {
        for length in [0, 1, 29, 30, 31, 61, 62, 63, 94, 95, 500, 4096] {
            let payload: Vec<u8> = (0..length).map(|n| (n * 7 + 255) as u8).collect();
            let token = encode(&payload);
            assert!(token.len() > LEN && token.starts_with(PREFIX), "{length}");
            assert_eq!(decode(token.as_bytes()).unwrap(), payload, "{length}");
            assert_eq!(digest(token.as_bytes()).unwrap(), Digest::of(token.as_bytes()));
            assert_eq!(digest(format!("sk-ant-{token}").as_bytes()).unwrap(), Digest::of(token.as_bytes()));
            assert_eq!(parse(token.as_bytes()), Err(Malformed::Damaged), "it is no token of the fixed length");
        }
        let full = encode(&[0xff; 62]);
        assert_eq!(decode(full.as_bytes()).unwrap(), [0xff; 62]);
    }

    #[test]
    fn a_changed_character_a_missing_one_and_another_spelling_are_refused() {
        let token = encode(b"who, and until when");
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            assert!(decode(&bytes).is_err(), "position {at}");
            assert!(decode(&token.as_bytes()[..at]).is_err(), "length {at}");
        }
        // With a right checksum: filling that is not zero, a group of 2^256 or more, a group too
        // many.
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut body = token.as_bytes()[PREFIX.len()..token.len() - CHECKSUM_CHARS].to_vec();
            change(&mut body);
            [PREFIX.as_bytes(), &body, &checksum_of(&body)].concat()
        };
        assert!(decode(&with(&|_| {})).is_ok());
        assert!(decode(&with(&|body| *body.last_mut().unwrap() = b'1')).is_err());
        assert!(decode(&with(&|body| body[..RANDOM_CHARS].fill(b'z'))).is_err());
        assert!(decode(&with(&|body| body.extend([b'0'; RANDOM_CHARS]))).is_err());
        assert!(decode(format!("{token}x").as_bytes()).is_err() && decode(format!("x y{token}").as_bytes()).is_err());
        assert_eq!(decode(b"sk-proj"), Err(Malformed::NotOurs));
    }
}
