//! HTTP/1.1 of our own and hyper's HTTP/2 as a client: no redirects, no proxies from the environment, no Alt-Svc, no retries.

pub(crate) mod connect;
mod exchange;
mod h1;
mod patience;
pub(crate) mod pool;
mod request;
mod upload;

pub use self::{
    exchange::{Answer, Connection, Switched},
    h1::Lost,
    patience::Patience,
    pool::Pool,
    request::Request,
    upload::{Meter, Severing, Streaming, Upload, UploadError, UploadState},
};

/// Counts a service's connections for somebody else.
pub trait Gauge: Send + Sync {
    /// Connections in use (`active`) or kept for the next request, more or fewer by `change`.
    fn connections(&self, active: bool, change: i64);
}

/// Why an upstream did not answer. Agents get fixed texts for these; the `&str` is for operators and as fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No address, no connection, or an answer that isn't HTTP.
    #[error("cannot reach the upstream: {0}")]
    Unreachable(&'static str),
    /// Its certificate, name or protocol version.
    #[error("cannot verify the upstream")]
    Tls,
    /// Connecting took too long.
    #[error("the upstream did not answer in time")]
    Timeout,
}
