//! An HTTP client: our own HTTP/1.1, and HTTP/2 by the `h2` crate. It follows no redirects, reads
//! no proxy settings from the environment and ignores Alt-Svc. It sends a request once and says,
//! when that has failed, whether the upstream can have processed it.

mod connect;
mod deadline;
mod destination;
mod error;
mod exchange;
mod gauge;
mod h1;
mod h2;
mod patience;
mod pool;
mod request;
pub(crate) mod share;
mod upload;

pub use self::{
    connect::{ALPN_H1, ALPN_H2},
    destination::{Destination, Resolve},
    error::UpstreamError,
    exchange::{Again, Answer, Connection, Failure, Switched},
    gauge::Gauge,
    pool::Pool,
    request::{Request, RequestHead},
    upload::{Meter, Streaming, Upload, UploadError, UploadGuard, UploadState, Watcher},
};
