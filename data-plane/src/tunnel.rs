//! What a connection becomes after HTTP: WebSocket frames, TLS in the name of another host with
//! HTTP inside, or bytes that are not inspected.
//!
//! Each tunnel is an [`Upgrade`](crate::http::server::Upgrade) that a request has opened. It counts
//! as a request in flight of its token, closes that request's audit record, and ends when the right
//! to it ends.

mod idle;
pub(crate) mod interception;
pub(crate) mod passthrough;
pub(crate) mod websocket;
