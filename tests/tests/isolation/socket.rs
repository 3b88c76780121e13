//! Both ends of a WebSocket: what an agent asks with, and what an upstream answers with.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::upstream::{Answer, Request, answer::Step};

/// The header fields of an agent that wants a WebSocket.
pub const ASKED: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// An upstream's `101` (RFC 6455, 4.2.2), then these bytes, then nothing.
pub fn accepted(request: &Request, then: &[u8]) -> Answer {
    let key = request.header("sec-websocket-key").unwrap();
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()));
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    Answer::steps(vec![Step::Send([head.as_bytes(), then].concat()), Step::Stall])
}
