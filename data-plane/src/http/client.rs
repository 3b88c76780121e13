//! An HTTP client: our own HTTP/1.1, and HTTP/2 by the `h2` crate. It follows no redirects, reads
//! no proxy settings from the environment and ignores Alt-Svc. It sends a request once and says,
//! when that has failed, whether the upstream can have processed it.

mod deadline;
mod destination;
mod dial;
mod error;
mod exchange;
mod gauge;
mod h1;
mod h2;
pub(crate) mod owner_limits;
mod pool;
mod request;
mod reusable_timer;
mod upload;

pub use self::{
    destination::{Destination, Resolve},
    dial::{ALPN_H1, ALPN_H2},
    error::UpstreamError,
    exchange::{Again, Answer, Connection, Failure, Switched},
    gauge::Gauge,
    pool::Pool,
    request::{Request, RequestHead},
    upload::{Meter, Streaming, Upload, UploadError, UploadGuard, UploadState, Watcher},
};
