//! Steps over comments and strings of a policy's text.

/// Where the line of `at` ends.
pub(super) fn end_of_line(bytes: &[u8], at: usize) -> usize {
    bytes.iter().skip(at).position(|b| *b == b'\n').map_or(bytes.len(), |n| at + n)
}

/// Where the string that begins at `at` ends.
pub(super) fn end_of_string(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while let Some(byte) = bytes.get(end) {
        match byte {
            b'"' => return end + 1,
            b'\\' => end += 2,
            _ => end += 1,
        }
    }
    bytes.len()
}
