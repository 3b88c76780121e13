//! WebSocket (RFC 6455) where a service allows it: the handshake, and the tunnel behind it.
//!
//! The handshake is a request like any other and goes through every stage. What is offered to the upstream is the node's own:
//! its key, no extensions (what is compressed can't be searched), the agent's subprotocols without the token. Behind the `101` no
//! byte crosses that wasn't read as a frame: the upstream's are scrubbed and framed anew, the agent's are masked anew, and the right
//! to the tunnel is watched for as long as it is open.

mod agent;
mod end;
mod frame;
#[cfg(test)]
mod fuzz;
mod socket;
mod upstream;

pub(crate) use self::socket::switch;
