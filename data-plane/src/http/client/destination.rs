//! Where connections lead.

use std::{future::Future, net::SocketAddr, pin::Pin};

use http::uri::{Authority, Scheme};
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::UpstreamError;

/// Where a pool's connections lead.
pub struct Destination {
    /// Host and port, as requests name them.
    pub authority: Authority,
    /// How TLS is spoken, and the name that the certificate must be for; `None`: plain TCP.
    pub tls: Option<(TlsConnector, ServerName<'static>)>,
    /// HTTP/2 alone is spoken.
    pub http2_only: bool,
    /// What finds the addresses for a new connection.
    pub resolve: Box<dyn Resolve>,
}

impl Destination {
    pub(super) fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP }
    }
}

/// Finds the addresses of a destination.
pub trait Resolve: Send + Sync {
    /// Addresses that may be dialled, in the order in which they are to be tried.
    ///
    /// # Errors
    /// When there is none.
    fn resolve(&self) -> Pin<Box<dyn Future<Output = Result<Vec<SocketAddr>, UpstreamError>> + Send + '_>>;
}
