//! What is different for gRPC: it is HTTP/2 with trailers, and its clients read refusals from
//! `grpc-status` alone.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, header};

use super::Refusal;
use crate::code::Code;

/// A refusal as gRPC clients understand it: an answer of headers alone, with status 200 (as Envoy
/// does it too).
pub(crate) fn refused(refusal: &Refusal) -> Option<Response<Bytes>> {
    let mut response = Response::new(Bytes::new());
    let message: String =
        refusal.text().chars().map(|c| if (' '..='~').contains(&c) && c != '%' { c } else { '?' }).collect();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(status(refusal.code)));
    headers.insert(HeaderName::from_static("grpc-message"), HeaderValue::try_from(message).ok()?);
    if refusal.has_begun() {
        // gRPC's own "do not retry": a client's policy may retry UNAVAILABLE by itself.
        headers.insert(HeaderName::from_static("grpc-retry-pushback-ms"), HeaderValue::from_static("-1"));
    }
    Some(response)
}

/// The status codes of gRPC, as its HTTP mapping has them where that says something.
fn status(code: Code) -> u16 {
    const INVALID_ARGUMENT: u16 = 3;
    const DEADLINE_EXCEEDED: u16 = 4;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match code.status().as_u16() {
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        413 | 429 => RESOURCE_EXHAUSTED,
        504 => DEADLINE_EXCEEDED,
        502 | 503 => UNAVAILABLE,
        _ => INVALID_ARGUMENT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_status_and_a_message() {
        let response = refused(&Refusal::from(Code::PolicyDenied).with_detail("denied by `no-deletes`")).unwrap();
        assert_eq!((response.status().as_u16(), response.body().len()), (200, 0));
        assert_eq!(response.headers()["grpc-status"], "7");
        assert_eq!(response.headers()["grpc-message"], "denied by `no-deletes`");
        let statuses = Code::ALL.map(status);
        assert!(statuses.iter().all(|s| (1..=16).contains(s)), "{statuses:?}");
    }
}
