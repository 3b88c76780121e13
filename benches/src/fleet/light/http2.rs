//! As much of HTTP/2 as one gRPC stream on a connection of its own takes. A thousand clients on the
//! replica's two cores should cost as little as they can: what is measured is the replica.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// The stream.
const STREAM: u32 = 1;
const CONNECTION: u32 = 0;
/// What either side may send on a stream and on a connection before the other says more.
const DEFAULT_WINDOW: i64 = 65_535;
/// In front of each frame.
const HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const INITIAL_WINDOW_SIZE: u16 = 4;

/// The state of the connection, and what is to be written.
pub(super) struct Http2 {
    pub(super) outgoing: BytesMut,
    /// How much more we may let the replica send without a word.
    receivable: u32,
    window: u32,
    /// How much the replica lets us send, on the stream and on the connection.
    sendable: (i64, i64),
}

/// What the replica says.
pub(super) enum Said {
    Data(Bytes),
    Nothing,
    /// The stream is over.
    End,
}

impl Http2 {
    /// Begins a connection and a gRPC call of `path` on it. `window`: what the replica may send
    /// before it hears more.
    pub(super) fn call(authority: &str, path: &str, window: u32) -> Self {
        let mut outgoing = BytesMut::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]);
        let mut settings = BytesMut::new();
        settings.put_u16(INITIAL_WINDOW_SIZE);
        settings.put_u32(window);
        frame(&mut outgoing, SETTINGS, 0, CONNECTION, &settings);
        frame(&mut outgoing, WINDOW_UPDATE, 0, CONNECTION, &window.to_be_bytes());
        // HPACK, RFC 7541: fields of the static table by their index, others as literals that enter
        // no table.
        let mut head = BytesMut::from(&[0x83, 0x87][..]); // :method POST, :scheme https
        literal(&mut head, &[0x04], path); // :path
        literal(&mut head, &[0x01], authority); // :authority
        literal(&mut head, &[0x0f, 0x10], "application/grpc"); // content-type
        literal(&mut head, b"\x00\x02te", "trailers");
        frame(&mut outgoing, HEADERS, END_HEADERS, STREAM, &head);
        Self { outgoing, receivable: window, window, sendable: (DEFAULT_WINDOW, DEFAULT_WINDOW) }
    }

    /// Appends a message to what is to be written.
    pub(super) fn send(&mut self, data: &[u8]) {
        let length = i64::try_from(data.len()).unwrap();
        self.sendable = (self.sendable.0 - length, self.sendable.1 - length);
        assert!(self.sendable.0 >= 0 && self.sendable.1 >= 0, "what nodes say is far below any window");
        frame(&mut self.outgoing, DATA, 0, STREAM, data);
    }

    /// Takes the next frame out of `received`; `None`: it isn't whole yet.
    pub(super) fn next(&mut self, received: &mut BytesMut) -> Option<Said> {
        let length = u32::from_be_bytes([0, *received.first()?, *received.get(1)?, *received.get(2)?]) as usize;
        if received.len() < HEAD_BYTES + length {
            return None;
        }
        let mut head = received.split_to(HEAD_BYTES);
        head.advance(3);
        let (kind, flags, stream) = (head.get_u8(), head.get_u8(), head.get_u32());
        let payload = received.split_to(length).freeze();
        Some(self.take(kind, flags, stream, payload))
    }

    fn take(&mut self, kind: u8, flags: u8, stream: u32, mut payload: Bytes) -> Said {
        match kind {
            DATA => {
                assert!(flags & PADDED == 0, "nobody pads");
                self.consumed(payload.len());
                return if flags & END_STREAM == 0 { Said::Data(payload) } else { Said::End };
            }
            HEADERS if flags & END_STREAM == 0 => {}
            HEADERS | RESET | GO_AWAY => return Said::End,
            SETTINGS if flags & ACK == 0 => {
                while payload.remaining() >= 6 {
                    if let (INITIAL_WINDOW_SIZE, size) = (payload.get_u16(), payload.get_u32()) {
                        self.sendable.0 += i64::from(size) - DEFAULT_WINDOW;
                    }
                }
                frame(&mut self.outgoing, SETTINGS, ACK, CONNECTION, &[]);
            }
            PING if flags & ACK == 0 => frame(&mut self.outgoing, PING, ACK, CONNECTION, &payload),
            WINDOW_UPDATE => {
                let more = i64::from(payload.get_u32());
                match stream {
                    CONNECTION => self.sendable.1 += more,
                    _ => self.sendable.0 += more,
                }
            }
            _ => {}
        }
        Said::Nothing
    }

    /// That much was read: the replica is told when it is half of what it may send.
    fn consumed(&mut self, length: usize) {
        self.receivable -= u32::try_from(length).unwrap();
        if self.receivable < self.window / 2 {
            let more = (self.window - self.receivable).to_be_bytes();
            frame(&mut self.outgoing, WINDOW_UPDATE, 0, CONNECTION, &more);
            frame(&mut self.outgoing, WINDOW_UPDATE, 0, STREAM, &more);
            self.receivable = self.window;
        }
    }
}

fn frame(to: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    to.put_uint(payload.len() as u64, 3);
    to.put_u8(kind);
    to.put_u8(flags);
    to.put_u32(stream);
    to.put_slice(payload);
}

/// A field whose name is given in HPACK, and its value as it is.
fn literal(to: &mut BytesMut, name: &[u8], value: &str) {
    to.put_slice(name);
    to.put_u8(u8::try_from(value.len()).unwrap());
    to.put_slice(value.as_bytes());
}
