//! An HTTP client: our own HTTP/1.1 and hyper's HTTP/2. It follows no redirects, reads no proxy settings from the environment,
//! ignores Alt-Svc and never retries.

mod connect;
mod exchange;
mod gauge;
mod h1;
mod patience;
mod pool;
mod request;
pub(crate) mod share;
mod upload;

pub use self::{
    connect::{ALPN_H1, ALPN_H2},
    exchange::{Answer, Connection, Switched},
    gauge::Gauge,
    h1::Lost,
    patience::Patience,
    pool::{Destination, Pool, Resolve},
    request::Request,
    upload::{Meter, Streaming, Upload, UploadError, UploadGuard, UploadState},
};

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
    /// The tenant uses as many services and credentials at once as it may.
    #[error("the tenant uses too many services at once")]
    TooManyPools,
}
