//! What becomes of a connection that HTTP has left.

use super::{audit::Record, interception::Interception, websocket::Socket};

/// Waits for the connection that the answer goes out on.
pub(crate) enum Tunnel {
    /// Frames, both ways.
    Socket(Box<Socket>),
    /// TLS, and in it HTTP again.
    Interception(Box<Interception>),
}

impl Tunnel {
    /// Hands the tunnel to its connection; it closes `record` when it ends.
    pub(super) fn hand_over(self, record: Record) {
        match self {
            Self::Socket(socket) => socket.hand_over(record),
            Self::Interception(interception) => interception.hand_over(record),
        }
    }
}
