//! Amazon's event stream: frames of a prelude, headers, a payload and a checksum. The payload is
//! JSON, and of InvokeModel it is `{"bytes": "…"}` with JSON in base64.
//!
//! Checksums are not verified: the agent's SDK does that.

/// Bytes of a prelude: total length, length of the headers, checksum.
const PRELUDE: usize = 12;
/// Bytes of the checksum behind a frame.
const CHECKSUM: u32 = 4;
/// What the payload of InvokeModel begins with, up to the base64.
const WRAPPED: &[u8] = b"{\"bytes\":\"";

/// Where a frame is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    /// Bytes of headers that are skipped.
    headers: u32,
    payload: u32,
    checksum: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct EventStream {
    prelude: [u8; PRELUDE],
    length: usize,
    frame: Option<Frame>,
    payload: Payload,
    /// Of base64: bits that make no byte yet, and how many.
    bits: u32,
    count: u32,
}

/// What a frame's payload has turned out to be.
#[derive(Clone, Copy, Debug)]
enum Payload {
    /// It has begun with so many bytes of [`WRAPPED`].
    Matching(usize),
    /// JSON.
    Json,
    /// JSON in base64.
    Base64,
    /// Behind the base64.
    Ignored,
}

impl Default for Payload {
    fn default() -> Self {
        Self::Matching(0)
    }
}

impl EventStream {
    /// The next bytes; `payload` gets the JSON in them.
    pub(crate) fn read(&mut self, mut bytes: &[u8], payload: &mut impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let Some(mut frame) = self.frame else {
                bytes = self.prelude(bytes);
                continue;
            };
            let (part, left) = match (&mut frame.headers, &mut frame.payload, &mut frame.checksum) {
                (left @ 1.., ..) => (Part::Skipped, left),
                (_, left @ 1.., _) => (Part::Payload, left),
                (.., left) => (Part::Skipped, left),
            };
            let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(length);
            *left = left.saturating_sub(u32::try_from(length).unwrap_or(u32::MAX));
            let is_over = (frame.headers, frame.payload, frame.checksum) == (0, 0, 0);
            self.frame = (!is_over).then_some(frame);
            if part == Part::Payload {
                self.payload(now, payload);
            }
            if is_over {
                (self.payload, self.bits, self.count) = (Payload::default(), 0, 0);
            }
            bytes = later;
        }
    }

    fn prelude<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (now, later) = bytes.split_at(bytes.len().min(PRELUDE - self.length));
        if let Some(place) = self.prelude.get_mut(self.length..self.length + now.len()) {
            place.copy_from_slice(now);
        }
        self.length += now.len();
        if self.length == PRELUDE {
            self.length = 0;
            let number = |at: usize| {
                let bytes = self.prelude.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                bytes.map_or(0, u32::from_be_bytes)
            };
            let (total, headers) = (number(0), number(4));
            let payload = total.saturating_sub(headers).saturating_sub(PRELUDE as u32 + CHECKSUM);
            self.frame = Some(Frame { headers, payload, checksum: CHECKSUM });
        }
        later
    }

    fn payload(&mut self, bytes: &[u8], payload: &mut impl FnMut(&[u8])) {
        for (at, byte) in bytes.iter().enumerate() {
            match self.payload {
                Payload::Json => return payload(bytes.get(at..).unwrap_or_default()),
                Payload::Ignored => return,
                Payload::Base64 if *byte == b'"' => self.payload = Payload::Ignored,
                Payload::Base64 => self.base64(*byte, payload),
                Payload::Matching(matched) if WRAPPED.get(matched) == Some(byte) => {
                    self.payload = match matched + 1 {
                        all if all == WRAPPED.len() => Payload::Base64,
                        more => Payload::Matching(more),
                    };
                }
                Payload::Matching(matched) => {
                    self.payload = Payload::Json;
                    payload(WRAPPED.get(..matched).unwrap_or_default());
                    return payload(bytes.get(at..).unwrap_or_default());
                }
            }
        }
    }

    fn base64(&mut self, byte: u8, payload: &mut impl FnMut(&[u8])) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return, // padding
        };
        self.bits = (self.bits << 6 | u32::from(value)) & 0xFFFF;
        self.count += 6;
        if self.count >= 8 {
            self.count -= 8;
            payload(&[(self.bits >> self.count & 0xFF) as u8]);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Skipped,
    Payload,
}
