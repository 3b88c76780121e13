//! The source address, the transport and the arrival time of a request.

use std::net::IpAddr;

use crate::table::Table;

/// The sender of a request, and the time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// The address that the connection came from. What headers say about it is not believed.
    pub(crate) source: IpAddr,
    /// The connection is TLS.
    pub(crate) tls: bool,
    /// SHA-256 of the certificate that the client has shown, and has the key of.
    pub(crate) certificate: Option<[u8; 32]>,
    /// When the request's head was there, in unix seconds.
    pub(crate) began: i64,
    /// Unix seconds.
    pub(crate) now: i64,
}

impl Caller {
    /// The same at a later time.
    pub(crate) fn again(&self, table: &Table) -> Self {
        Self { now: table.wall().unix_now(), ..*self }
    }
}
