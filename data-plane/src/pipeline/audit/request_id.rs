//! `x-seks-request-id`.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use http::{HeaderName, HeaderValue};

const HEADER: HeaderName = HeaderName::from_static("x-seks-request-id");

/// The id of a request: 32 hex digits, unique in the fleet. It is not a secret, and it may be
/// guessable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestId([u8; 32]);

/// Makes them: 64 random bits of this process and a count, so that a request costs no system call.
pub(super) struct Source {
    process: u64,
    next: AtomicU64,
}

impl Source {
    pub(super) fn new() -> Self {
        let mut bytes = [0; 8];
        if getrandom::fill(&mut bytes).is_err() {
            // Uniqueness is all that is needed, and the time and the process give that on one
            // machine.
            let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u64;
            bytes = (time ^ u64::from(std::process::id()).rotate_left(40)).to_le_bytes();
        }
        Self { process: u64::from_le_bytes(bytes), next: AtomicU64::new(1) }
    }

    pub(super) fn next(&self) -> RequestId {
        let count = self.next.fetch_add(1, Relaxed);
        let mut id = [0; 32];
        for (i, digit) in id.iter_mut().enumerate() {
            let word = if i < 16 { self.process } else { count };
            let nibble = (word >> (60 - 4 * (i % 16))) & 0xf;
            *digit = char::from_digit(nibble as u32, 16).map_or(b'0', |c| c as u8);
        }
        RequestId(id)
    }
}

impl RequestId {
    /// The name of the header that carries it.
    pub(crate) const HEADER: HeaderName = HEADER;

    /// As text.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default() // hex digits
    }

    /// As 16 bytes.
    #[must_use]
    pub(crate) fn bytes(&self) -> [u8; 16] {
        let digit = |digit: u8| if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 };
        let mut bytes = [0; 16];
        for (byte, digits) in bytes.iter_mut().zip(self.0.as_chunks::<2>().0) {
            *byte = digit(digits[0]) << 4 | digit(digits[1]);
        }
        bytes
    }

    /// As the value of [`RequestId::HEADER`].
    #[must_use]
    pub(crate) fn header(&self) -> HeaderValue {
        HeaderValue::from_str(self.as_str()).unwrap_or_else(|_| HeaderValue::from_static("")) // hex digits
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hex_and_differ() {
        let source = Source::new();
        let (a, b) = (source.next(), source.next());
        assert!(a != b && a.as_str().len() == 32 && a.as_str().bytes().all(|c| c.is_ascii_hexdigit()), "{a} {b}");
        assert_eq!(a.as_str()[..16], b.as_str()[..16]);
        assert_ne!(Source::new().process, source.process);
        assert_eq!(a.bytes().map(|byte| format!("{byte:02x}")).concat(), a.as_str());
    }
}
