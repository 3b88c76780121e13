//! The method that a body asks for instead of its request's, in a field such as `_method`: decided
//! on as a header or the query that does so.
//!
//! Forms are read for every service. JSON is read only for services with `allow_method_override`:
//! few frameworks obey a member of it, and most bodies are JSON.

use bytes::Bytes;
use http::{HeaderValue, Method, header, request::Parts};
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

const CODED: &str = "a form with a Content-Encoding cannot be read for fields such as `_method`, which override the method: send it without one";

/// The kind of form that a request has as its body.
pub(super) fn kind_of(parts: &Parts, body: &Received, service: &Service) -> Option<FormKind> {
    let empty = match body {
        Received::Coming(body, _) => body.is_end_stream(),
        Received::Read(whole) => whole.is_empty(),
        Received::Begun(_) => false,
    };
    // No server overrides another method.
    if parts.method != Method::POST || empty {
        return None;
    }
    let is_json = || service.allow_method_override && FormKind::is_json(&parts.headers);
    FormKind::of(&parts.headers).or_else(|| is_json().then_some(FormKind::Json))
}

/// Refuses a form in a content coding: servers that decode requests (Express, mod_deflate) find
/// fields in it that nobody has read. A multipart body of another type is an upload. JSON passes:
/// Google's Java client compresses all of it, and Google's servers obey no member of it. It is read
/// as it comes, for servers that ignore the coding.
pub(super) fn check_coding(parts: &Parts) -> Result<(), Refusal> {
    let is_plain = |value: &HeaderValue| value.is_empty() || value.as_bytes().eq_ignore_ascii_case(b"identity");
    if parts.headers.get_all(header::CONTENT_ENCODING).iter().all(is_plain) {
        return Ok(());
    }
    const FORMS: [&[u8]; 2] = [b"application/x-www-form-urlencoded", b"multipart/form-data"];
    let is_form = |value: &HeaderValue| {
        let value = value.as_bytes().trim_ascii_start();
        FORMS.iter().any(|form| value.get(..form.len()).is_some_and(|own| own.eq_ignore_ascii_case(form)))
    };
    match parts.headers.get_all(header::CONTENT_TYPE).iter().any(is_form) {
        true => Err(Refusal::invalid(CODED)),
        false => Ok(()),
    }
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
