//! WebSocket (RFC 6455) for services that allow it: the handshake, and the tunnel behind it.
//!
//! The handshake is a request like any other and passes every stage. The upstream gets the node's
//! own offer: its key, no extensions (compressed data cannot be searched), and the agent's
//! subprotocols without the token. After the `101` every byte is parsed as a frame. Frames from the
//! upstream are scrubbed and framed again, and those from the agent are masked again. The
//! permission is checked for as long as the tunnel is open.

mod agent;
mod end;
mod frame;
#[cfg(test)]
mod fuzz;
mod socket;
mod upstream;

pub(crate) use self::socket::switch;
