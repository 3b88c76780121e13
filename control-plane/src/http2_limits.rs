//! Limits of an HTTP/2 connection. They are the same on both listeners and for every peer.

use std::time::Duration;

/// Calls at the same time on one connection.
pub(crate) const CONCURRENT_STREAMS: u32 = 100;
/// What a call may send before it was read, in bytes.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// What all calls of a connection may send before they were read, in bytes.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// All names and values of a request's head, in bytes.
pub(crate) const HEADER_LIST_BYTES: u32 = 16 * 1024;
/// How often the other end is sent a PING.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long the other end may take to answer a PING.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
