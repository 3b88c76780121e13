//! What becomes of a connection that HTTP has left: WebSocket frames, TLS in another's name with HTTP in it, or bytes that pass unseen.
//!
//! Each is an [`Upgrade`](crate::http::server::Upgrade) that a request has opened. It counts as a request in flight of its token, closes
//! that request's record, and ends with the right to it.

mod idle;
pub(crate) mod interception;
pub(crate) mod passthrough;
pub(crate) mod websocket;
