//! Which addresses a process may dial ([`address`]), and how the names of upstreams are resolved ([`resolve`]).

pub mod address;
pub mod resolve;
