//! What the connections of one listener share.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::proxy_protocol::Balancers;

/// Limits on a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Largest size, in bytes.
    pub bytes: usize,
    /// Most header fields.
    pub fields: usize,
    /// Longest request target, in bytes.
    pub uri: usize,
}

/// Limits on connections and on the requests that they carry.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Who says whose connection it passes on.
    pub balancers: Balancers,
    /// Bounds on a request's head.
    pub head: HeadLimits,
    /// A head must be complete this long after its connection or its first byte.
    pub header_timeout: Duration,
    /// A TLS handshake must be done in this time.
    pub handshake_timeout: Duration,
    /// Over HTTP/2, an agent must take something of a response in this time.
    pub idle_timeout: Duration,
    /// A connection without a request is closed after this.
    pub keep_alive: Duration,
    /// Most connections at once.
    pub max_connections: usize,
    /// Most streams of one HTTP/2 connection.
    pub max_streams: u32,
    /// How long requests in flight may take to finish when the listener stops.
    pub drain: Duration,
}

/// What every connection of a listener is served with.
pub struct Settings {
    /// The listener's limits.
    pub limits: Limits,
    /// Requests in flight are the last once this is cancelled.
    pub stop: CancellationToken,
    /// Everything ends at once when this is cancelled.
    pub(super) kill: CancellationToken,
}

impl Settings {
    pub(super) fn new(limits: Limits, stop: CancellationToken) -> Self {
        Self { limits, stop, kill: CancellationToken::new() }
    }
}
