//! The path of a request, in one process: a node that serves from a table which the test filled, a
//! raw client, a raw upstream.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(missing_docs, unreachable_pub, reason = "a test")]

mod answers;
mod cut;
mod decided;
mod edge;
mod forward;
mod grpc;
mod h2;
mod host;
mod hostile;
mod passage;
mod pool;
mod rig;
mod thin;
mod tls;
mod tokens;
mod unread;
mod upstream_h2;
mod websocket;
