//! Whose write a value is. After a lost answer nothing else tells our own write from another's with
//! the same content, and then a retry would either double a write or report a conflict with itself.
//!
//! In etcd a value is `format u8, writer u64, attempt counter u64, payload`. The writer's number is
//! random, once a process.

use bytes::Bytes;

const FORMAT: u8 = 1;
const LENGTH: usize = 17;

/// Identifies one commit of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) writer: u64,
    pub(super) count: u64,
}

impl Stamp {
    /// The value as etcd keeps it.
    pub(super) fn put_on(self, payload: &[u8]) -> Vec<u8> {
        let mut value = Vec::with_capacity(LENGTH + payload.len());
        value.push(FORMAT);
        value.extend_from_slice(&self.writer.to_be_bytes());
        value.extend_from_slice(&self.count.to_be_bytes());
        value.extend_from_slice(payload);
        value
    }

    /// Whether `value` was written by this commit.
    pub(super) fn is_on(self, value: &[u8]) -> bool {
        value.first_chunk::<LENGTH>().is_some_and(|head| *head == *self.put_on(&[]))
    }
}

/// The payload. A value without a stamp is returned whole, and fails authentication later.
pub(super) fn payload(value: Bytes) -> Bytes {
    strip(value.clone()).unwrap_or(value)
}

/// The payload; `None` when the value isn't one of ours.
pub(super) fn strip(value: Bytes) -> Option<Bytes> {
    (value.len() >= LENGTH && value.first() == Some(&FORMAT)).then(|| value.slice(LENGTH..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_recognised_and_comes_off() {
        let (ours, other) = (Stamp { writer: 1, count: 2 }, Stamp { writer: 1, count: 3 });
        let value = ours.put_on(b"payload");
        assert!(ours.is_on(&value) && !other.is_on(&value) && !ours.is_on(b"") && !ours.is_on(b"\x01"));
        assert_eq!(strip(value.into()).as_deref(), Some(&b"payload"[..]));
        assert_eq!(strip(Bytes::from_static(b"foreign value, long enough")), None);
        assert_eq!(strip(Bytes::from_static(b"\x01short")), None);
    }
}
