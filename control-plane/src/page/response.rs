//! Responses, and the headers of every one of them.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use maud::Markup;
use tonic::{Code, Status};

use super::html;
use crate::page_sessions::NewSession;

/// The cookie with a session's key.
pub(super) const COOKIE: &str = "seks_page";

/// No script, no frame, nothing from another origin, no copy on disk, and no address of ours in
/// another server's log.
const HEADERS: [(HeaderName, &str); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// An HTML page.
pub(super) fn html(status: StatusCode, page: Markup) -> Response<Full<Bytes>> {
    respond(status, "text/html; charset=utf-8", page.into_string())
}

/// One line.
pub(super) fn text(status: StatusCode, line: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

/// A part of every page.
pub(super) fn asset(kind: &'static str, text: &'static str) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, kind, text)
}

/// Leads into a session that a link has opened. It is a page of its own rather than a redirect:
/// after a link on another site, a browser sends no `SameSite=Strict` cookie along a redirect.
pub(super) fn session(session: &NewSession, is_tls: bool) -> Response<Full<Bytes>> {
    let base = format!("/p/{}/", session.id);
    let secure = if is_tls { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={}; Path={base}; HttpOnly; SameSite=Strict{secure}", session.key.as_str());
    let mut response = html(StatusCode::OK, html::opened(&base));
    if let (Ok(cookie), Ok(refresh)) = (cookie.parse(), format!("0; url={base}").parse()) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
        response.headers_mut().insert(header::REFRESH, refresh);
    }
    response
}

/// What a refusal of the admin API is in HTTP.
pub(super) fn status_of(status: &Status) -> StatusCode {
    match status.code() {
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::PermissionDenied | Code::Unauthenticated => StatusCode::FORBIDDEN,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable | Code::DeadlineExceeded | Code::FailedPrecondition => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
