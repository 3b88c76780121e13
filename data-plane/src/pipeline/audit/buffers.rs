//! Memory of closed records, for the next ones of the same thread.
//!
//! Allocating, wiping and freeing half a kilobyte costs as much as writing a record into it.
//! Records hold names and numbers, and no secret.

use std::cell::RefCell;

/// Buffers that a thread keeps: as many as requests are usually under way on it.
const MAX_SPARE: usize = 64;
/// Longest buffer that is kept.
const MAX_KEPT_BYTES: usize = 4096;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer of at least `capacity` bytes.
pub(super) fn take(capacity: usize) -> Vec<u8> {
    let mut buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    buffer.reserve_exact(capacity);
    buffer
}

/// Keeps a buffer, unless it is unusually large or there are enough.
pub(super) fn give_back(mut buffer: Vec<u8>) {
    if buffer.capacity() > MAX_KEPT_BYTES {
        return;
    }
    buffer.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < MAX_SPARE {
            spare.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_is_empty() {
        let mut buffer = take(100);
        buffer.extend_from_slice(b"of another request");
        let memory = buffer.as_ptr();
        give_back(buffer);
        let again = take(50);
        assert_eq!((again.as_ptr(), again.len()), (memory, 0));
        give_back(Vec::with_capacity(MAX_KEPT_BYTES + 1));
        assert!(take(1).capacity() <= MAX_KEPT_BYTES);
    }

    #[test]
    fn a_thread_keeps_no_more_than_it_uses() {
        let buffers: Vec<_> = (0..2 * MAX_SPARE).map(|_| take(16)).collect();
        buffers.into_iter().for_each(give_back);
        assert_eq!(SPARE.with_borrow(Vec::len), MAX_SPARE);
    }
}
