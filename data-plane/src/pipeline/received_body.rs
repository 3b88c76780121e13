//! A request's body on its way to the upstream: streamed, or read whole for a signature or a
//! policy.

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use seks_types::id::TenantName;

use super::{audit::Record, refusal::Refusal, shared_limits::SharedLimits};
use crate::{
    code::Code,
    config::Limits,
    http::{
        client::{Streaming, Upload},
        server::RequestBody,
    },
};

/// A request's body: not read yet, or read whole.
pub(crate) enum Received {
    /// It has not been read. With the hash that it must have.
    Coming(RequestBody, Option<[u8; 32]>),
    /// It was about to be forwarded, and nothing of it was sent: the request is decided again.
    Begun(Box<Streaming>),
    /// It was read whole.
    Read(Bytes),
}

impl From<RequestBody> for Received {
    fn from(body: RequestBody) -> Self {
        Self::Coming(body, None)
    }
}

impl From<Upload> for Received {
    /// Of an upload that has not begun.
    fn from(upload: Upload) -> Self {
        match upload {
            Upload::Empty | Upload::Whole(None) => Self::Read(Bytes::new()),
            Upload::Whole(Some(whole)) | Upload::Kept(whole, _) => Self::Read(whole),
            Upload::Stream(stream) => Self::Begun(stream),
        }
    }
}

impl Received {
    /// The same body, which must have this hash.
    pub(super) fn expecting(self, hash: Option<[u8; 32]>) -> Self {
        match self {
            Self::Coming(body, _) => Self::Coming(body, hash),
            Self::Begun(stream) => Self::Begun(Box::new(stream.expecting(hash))),
            read @ Self::Read(_) => read,
        }
    }

    pub(super) fn stream(body: RequestBody, hash: Option<[u8; 32]>, limits: &Limits, record: &Record) -> Streaming {
        let stream = Streaming::new(body, limits.body_bytes, limits.idle_timeout, record.counters().clone());
        stream.expecting(hash)
    }

    /// The upload that forwards the body as it arrives.
    pub(super) fn pass_on(self, grpc: bool, limits: &Limits, record: &Record) -> Result<Upload, Refusal> {
        match self {
            Self::Read(whole) if whole.is_empty() => Ok(Upload::Empty),
            Self::Read(whole) => Ok(Upload::Whole(Some(whole))),
            Self::Coming(body, hash) if body.is_end_stream() => {
                Streaming::check_empty(hash).map(|()| Upload::Empty).map_err(Into::into)
            }
            Self::Coming(body, hash) => {
                let stream = Self::stream(body, hash, limits, record);
                Ok(Upload::Stream(Box::new(if grpc { stream.both_ways() } else { stream })))
            }
            Self::Begun(stream) => Ok(Upload::Stream(stream)),
        }
    }

    /// Whole, or not at all. `verified`: its head is known to be the agent's.
    pub(super) async fn read(
        self,
        tenant: &TenantName,
        verified: bool,
        bounds: &SharedLimits,
        record: &Record,
    ) -> Result<Bytes, Refusal> {
        let mut stream = match self {
            Self::Read(whole) => return Ok(whole),
            Self::Coming(body, _) if body.is_end_stream() => return Ok(Bytes::new()),
            Self::Coming(body, hash) => Self::stream(body, hash, bounds, record),
            Self::Begun(stream) => *stream,
        };
        let announced = stream.size_hint();
        let most = bounds.signed_bytes;
        let too_large =
            || Refusal::from(Code::RequestTooLarge).with_detail("the body is too large to verify its signature");
        if announced.lower() > most as u64 {
            return Err(too_large());
        }
        let mut whole = bounds.buffers.body(tenant, announced.exact(), verified);
        while let Some(frame) = stream.frame().await {
            let Ok(data) = frame.map_err(Refusal::from)?.into_data() else { continue };
            if whole.len() + data.len() > most {
                return Err(too_large());
            }
            whole.push(&data).await?;
        }
        Ok(whole.freeze())
    }
}
