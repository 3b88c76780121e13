//! HTTP as a server and as a client: connections, framing, bodies, limits and timeouts.
//!
//! [`server`] serves agents' connections. [`client`] keeps connections to upstreams. Both use
//! [`h1`] for HTTP/1.1 and hyper for HTTP/2. Nothing here knows tokens, services, policies or the
//! table.

pub mod client;
pub(crate) mod fields;
pub(crate) mod h1;
mod header_list;
pub mod server;

pub use self::header_list::HeaderList;
