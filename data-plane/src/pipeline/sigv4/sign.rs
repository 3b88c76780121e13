//! The upstream's signature, with the real key.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation, SigningSettings,
        UriPathNormalizationMode,
    },
    sign::v4,
};
use http::{HeaderName, HeaderValue, Method, header};
use seks_service::Service;
use seks_types::secret::Fields;
use zeroize::Zeroize as _;

use super::{Payload, Signed, canonical::canonical_path, claim::Placement, encoding};
use crate::http::HeaderList;

/// A request in a presigned form is sent at once: this is for slow clocks.
const PRESIGNED_LIFE: Duration = Duration::from_secs(15 * 60);

/// Signs the request that is about to be sent. `headers` are final except for the signature's own,
/// and `line` is path and query. Returns the signature. It is a secret too, because whoever has it
/// can repeat the request for some minutes.
pub(crate) fn sign(
    signed: &Signed,
    service: &Service,
    fields: &Fields,
    (method, headers, host, line): (&Method, &mut HeaderList, &HeaderValue, &mut String),
) -> Option<String> {
    let sigv4 = service.sigv4.as_ref()?;
    for own in ["x-amz-date", "x-amz-content-sha256"].iter().chain(&signed.unsigned) {
        headers.remove(own);
    }
    let text = |name| fields.get(name).map(|v| std::str::from_utf8(v).map(str::to_owned));
    let (id, secret) = (text("access_key_id")?.ok()?, text("secret_access_key")?.ok()?);
    let identity = Credentials::new(id, secret, text("session_token").transpose().ok()?, None, "seks").into();
    let mut settings = SigningSettings::default();
    if !sigv4.escapes_path_twice() {
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    }
    match signed.form {
        Placement::Head if signed.says_payload => settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256,
        Placement::Head => {}
        Placement::Query => {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(PRESIGNED_LIFE);
        }
    }
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(&signed.region)
        .name(&sigv4.service)
        .time(SystemTime::now())
        .settings(settings)
        .build()
        .ok()?
        .into();
    let (instructions, signature) = {
        let signable = signable(headers, host)?;
        let signed_line = if sigv4.escapes_path_twice() { Cow::Borrowed(line.as_str()) } else { canonical_line(line) };
        let request =
            SignableRequest::new(method.as_str(), &*signed_line, signable.into_iter(), body(&signed.payload)).ok()?;
        aws_sigv4::http_request::sign(request, &params).ok()?.into_parts()
    };
    let (new_headers, new_parameters) = instructions.into_parts();
    for made in new_headers {
        let mut value = HeaderValue::from_str(made.value()).ok()?;
        value.set_sensitive(true);
        headers.set(HeaderName::from_static(made.name()), value);
    }
    if !new_parameters.is_empty() {
        append(line, &new_parameters);
    }
    Some(signature)
}

/// Path and query with the path as S3 signs it. It is sent as the agent wrote it.
fn canonical_line(line: &str) -> Cow<'_, str> {
    let (path, query) = line.find('?').and_then(|at| line.split_at_checked(at)).unwrap_or((line, ""));
    match canonical_path(path) {
        Cow::Borrowed(_) => Cow::Borrowed(line),
        Cow::Owned(path) => Cow::Owned(path + query),
    }
}

/// What is signed: where the request goes, what the body is, and all orders to the upstream.
fn signable<'a>(headers: &'a HeaderList, host: &'a HeaderValue) -> Option<Vec<(&'a str, &'a str)>> {
    let mut signable = vec![(header::HOST.as_str(), host.to_str().ok()?)];
    for (name, value) in headers.iter() {
        if name.as_str().starts_with("x-amz-") || *name == header::CONTENT_TYPE || name.as_str() == "content-md5" {
            signable.push((name.as_str(), value.to_str().ok()?));
        }
    }
    Some(signable)
}

fn body(payload: &Payload) -> SignableBody<'static> {
    match payload {
        Payload::Hash(hash) => {
            let mut text = String::with_capacity(64);
            encoding::write_hex(hash, &mut text);
            SignableBody::Precomputed(text)
        }
        Payload::Unsigned => SignableBody::UnsignedPayload,
        Payload::UnsignedTrailer => SignableBody::StreamingUnsignedPayloadTrailer,
    }
}

/// Into a text that needn't grow: what it leaves behind is wiped.
fn append(line: &mut String, parameters: &[(&'static str, std::borrow::Cow<'static, str>)]) {
    let room: usize = parameters.iter().map(|(name, value)| name.len() + 3 * value.len() + 2).sum();
    let mut text = String::with_capacity(line.len() + room);
    text.push_str(line);
    let mut separator = if line.contains('?') { '&' } else { '?' };
    for (name, value) in parameters {
        text.push(separator);
        text.push_str(name);
        text.push('=');
        encoding::encode(value.as_bytes(), b"", &mut text);
        separator = '&';
    }
    line.zeroize();
    *line = text;
}
