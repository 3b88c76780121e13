//! Frames: RFC 6455, section 5.

use bytes::{BufMut as _, BytesMut};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    /// Goes on with a message.
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    fn read(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    /// Close, ping and pong: short, whole, and allowed between the parts of a message.
    pub(super) fn is_control(self) -> bool {
        self as u8 >= 8
    }
}

/// Who sends: agents mask, upstreams don't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Agent,
    Upstream,
}

/// What comes before a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The message's last frame.
    pub(super) last: bool,
    pub(super) opcode: Opcode,
    /// Of the payload.
    pub(super) length: u64,
    /// All zeros from an upstream.
    pub(super) mask: [u8; 4],
    /// Bytes that the header takes.
    pub(super) size: usize,
}

/// Bytes that are not a frame, or not one that is allowed at this point. The tunnel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WebSocket frame")]
pub(super) struct Malformed;

/// Longest payload of a control frame.
pub(super) const MAX_CONTROL: usize = 125;

impl Header {
    /// Reads the header at the beginning of `bytes`; `None`: more bytes are needed. Reserved bits
    /// are for extensions, and none was agreed on.
    pub(super) fn read(bytes: &[u8], from: From) -> Result<Option<Self>, Malformed> {
        let Some((&[first, second], rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
        let opcode = Opcode::read(first & 0x0f).filter(|_| first & 0x70 == 0).ok_or(Malformed)?;
        let (last, masked) = (first & 0x80 != 0, second & 0x80 != 0);
        if masked != (from == From::Agent) {
            return Err(Malformed);
        }
        let (length, rest, mut size) = match second & 0x7f {
            126 => {
                let Some((bytes, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*bytes)), rest, 4)
            }
            127 => {
                let Some((bytes, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
                (u64::from_be_bytes(*bytes), rest, 10)
            }
            length => (u64::from(length), rest, 2),
        };
        // Each length has exactly one encoding, so that both ends read the same length.
        let shortest = match size {
            2 => 0,
            4 => 126,
            _ => 1 << 16,
        };
        let whole_control = last && length <= MAX_CONTROL as u64;
        if length < shortest || length >> 63 != 0 || (opcode.is_control() && !whole_control) {
            return Err(Malformed);
        }
        let mut mask = [0; 4];
        if masked {
            let Some((bytes, _)) = rest.split_first_chunk::<4>() else { return Ok(None) };
            mask = *bytes;
            size += 4;
        }
        Ok(Some(Self { last, opcode, length, mask, size }))
    }
}

/// Writes a header, masked where there is a mask.
pub(super) fn write(out: &mut BytesMut, last: bool, opcode: Opcode, length: u64, mask: Option<[u8; 4]>) {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    out.put_u8((u8::from(last) << 7) | opcode as u8);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => out.put_u8(masked | short),
        (_, Ok(middle)) => {
            out.put_u8(masked | 126);
            out.put_u16(middle);
        }
        _ => {
            out.put_u8(masked | 127);
            out.put_u64(length);
        }
    }
    if let Some(mask) = mask {
        out.put_slice(&mask);
    }
}

/// Where a message stands: frames that go on with one need one, and a new one can't begin within
/// another.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    within: bool,
}

impl Sequence {
    /// Takes note of a data frame.
    pub(super) fn next(&mut self, header: &Header) -> Result<(), Malformed> {
        if self.within != (header.opcode == Opcode::Continuation) {
            return Err(Malformed);
        }
        self.within = !header.last;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(length: u64, mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut out = BytesMut::new();
        write(&mut out, true, Opcode::Binary, length, mask);
        out.to_vec()
    }

    #[test]
    fn what_is_written_is_read_and_no_part_of_it_is() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 1 << 40] {
            for (from, mask) in [(From::Upstream, None), (From::Agent, Some([1, 2, 3, 4]))] {
                let bytes = header(length, mask);
                let read = Header::read(&bytes, from).unwrap().unwrap();
                assert_eq!((read.length, read.size, read.last), (length, bytes.len(), true));
                assert_eq!(read.mask, mask.unwrap_or_default());
                for cut in 0..bytes.len() {
                    assert_eq!(Header::read(&bytes[..cut], from), Ok(None), "{length} at {cut}");
                }
            }
        }
    }

    #[test]
    fn what_two_ends_could_read_in_two_ways_is_malformed() {
        for bytes in [
            &[0xc1, 0][..],                          // a reserved bit: compressed
            &[0x83, 0],                              // an opcode that is none
            &[0x81, 0x80, 0, 0, 0, 0],               // masked
            &[0x81, 126, 0, 5],                      // a length that fits in less
            &[0x81, 127, 0, 0, 0, 0, 0, 0, 1, 0],    // the same
            &[0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], // a length with a sign
            &[0x09, 0],                              // half a ping
            &[0x89, 126, 0, 126],                    // a long ping
            b"GET / HTTP/1.1\r\n",                   // a request
        ] {
            assert_eq!(Header::read(bytes, From::Upstream), Err(Malformed), "{bytes:?}");
        }
        assert_eq!(Header::read(&[0x81, 0], From::Agent), Err(Malformed), "not masked");
    }

    #[test]
    fn a_message_is_one_beginning_and_its_continuations() {
        let frame = |opcode, last| Header { last, opcode, length: 0, mask: [0; 4], size: 2 };
        let mut sequence = Sequence::default();
        assert_eq!(sequence.next(&frame(Opcode::Continuation, true)), Err(Malformed));
        assert_eq!(sequence.next(&frame(Opcode::Text, false)), Ok(()));
        assert_eq!(sequence.next(&frame(Opcode::Binary, true)), Err(Malformed));
        assert_eq!(sequence.next(&frame(Opcode::Continuation, false)), Ok(()));
        assert_eq!(sequence.next(&frame(Opcode::Continuation, true)), Ok(()));
        assert_eq!(sequence.next(&frame(Opcode::Binary, true)), Ok(()));
    }
}
