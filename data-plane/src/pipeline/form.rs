//! The method that a form asks for instead of its request's, in a field such as `_method`: decided
//! on as a header or the query that does so.

use bytes::Bytes;
use http::{Method, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use seks_service::{
    Service,
    request::{FormError, FormKind, FormScan},
};
use seks_types::id::TenantName;

use super::{audit::Record, received_body::Received, refusal::Refusal, shared_limits::SharedLimits};
use crate::{code::Code, http::client::Watcher};

/// So much of a form is read before the request is decided. Behind it, a field that overrides the
/// method stops the request.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// The kind of form that a request has as its body.
pub(super) fn kind_of(parts: &Parts, body: &Received) -> Option<FormKind> {
    let empty = match body {
        Received::Coming(body, _) => body.is_end_stream(),
        Received::Read(whole) => whole.is_empty(),
        Received::Begun(_) => false,
    };
    // No server overrides another method.
    if parts.method == Method::POST && !empty { FormKind::of(&parts.headers) } else { None }
}

/// Watches a body without a content type, which Rack reads as a form. A field that overrides the
/// method stops the request. The body is not held back: it may be anything, such as an upload whose
/// end depends on the response.
pub(super) fn watch(body: Received, bounds: &SharedLimits, record: &Record) -> Received {
    let stream = match body {
        Received::Coming(body, hash) => Received::stream(body, hash, bounds, record),
        Received::Begun(stream) => *stream,
        read @ Received::Read(_) => return read,
    };
    let scan = FormScan::new(FormKind::UrlEncoded, false);
    Received::Begun(Box::new(stream.watched(Box::new(scan))))
}

/// Looks for an overriding method in the form, all of which goes on.
pub(super) async fn scan(
    body: Received,
    kind: FormKind,
    service: &Service,
    tenant: &TenantName,
    bounds: &SharedLimits,
    record: &Record,
) -> Result<(Received, Option<Method>), Refusal> {
    let mut scan = FormScan::new(kind, service.allow_method_override);
    let mut stream = match body {
        Received::Read(whole) => {
            scan.push(&whole).and_then(|()| scan.finish()).map_err(refused)?;
            return Ok((Received::Read(whole), scan.method().cloned()));
        }
        Received::Coming(body, hash) => Received::stream(body, hash, bounds, record),
        Received::Begun(stream) => *stream,
    };
    let mut read = bounds.buffers.body(tenant, stream.size_hint().exact(), true);
    while let Some(frame) = stream.frame().await {
        let Ok(data) = frame.map_err(Refusal::from)?.into_data() else { continue };
        scan.push(&data).map_err(refused)?;
        read.push(&data).await?;
        if read.len() >= READ_AHEAD_BYTES && !stream.is_end_stream() {
            let method = scan.method().cloned();
            stream.put_back(read.freeze());
            scan.refuse_overrides();
            return Ok((Received::Begun(Box::new(stream.watched(Box::new(scan)))), method));
        }
    }
    scan.finish().map_err(refused)?;
    let whole: Bytes = read.freeze();
    Ok((Received::Read(whole), scan.method().cloned()))
}

fn refused(error: FormError) -> Refusal {
    Refusal::from(Code::RequestInvalid).with_detail(error.text())
}

impl Watcher for FormScan {
    fn may_go_on(&mut self, data: Option<&[u8]>) -> bool {
        match data {
            Some(data) => self.push(data),
            None => self.finish(),
        }
        .is_ok()
    }
}
