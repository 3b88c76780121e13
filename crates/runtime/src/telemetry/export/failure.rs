//! Why a batch was not accepted, and the reaction that the OTLP specification requires (1.9,
//! "Failures").

use std::{error::Error as _, fmt, sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode, header};
use prost::Message;
use tonic::{Code, Status};

/// The type of the detail with a gRPC server's retry delay.
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
/// Longest collector message that is kept for a log line, in bytes.
const REASON_BYTES: usize = 200;

/// Why a batch didn't get through. Never holds a span.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{why}")]
pub(in crate::telemetry) struct ExportError {
    /// What is to be done.
    pub(in crate::telemetry) advice: Advice,
    why: Arc<str>,
}

/// What is to be done with a batch that was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::telemetry) enum Advice {
    /// The same batch may be accepted later, after the delay that the collector requested.
    Retry(Option<Duration>),
    /// This batch will never be accepted, but a part of it may be: it is too large, or holds an
    /// invalid record.
    Split,
    /// No part of it will be accepted.
    Drop,
}

impl ExportError {
    /// No answer, or a broken connection. The batch may be accepted later.
    pub(super) fn unreachable(why: impl fmt::Display) -> Self {
        Self::new(Advice::Retry(None), &why.to_string())
    }

    fn new(advice: Advice, why: &str) -> Self {
        let clean = why.chars().filter(|c| !c.is_control());
        let mut text: String = clean.take(REASON_BYTES).collect();
        text.truncate(text.floor_char_boundary(REASON_BYTES));
        Self { advice, why: text.into() }
    }

    /// A gRPC status. Retryable are `CANCELLED`, `DEADLINE_EXCEEDED`, `ABORTED`, `OUT_OF_RANGE`,
    /// `UNAVAILABLE`, `DATA_LOSS`, and `RESOURCE_EXHAUSTED` with a retry delay.
    pub(super) fn status(status: &Status) -> Self {
        let retry_after = retry_delay(status.details());
        let advice = match status.code() {
            // Made on this side: the connection is at fault, and no server has said anything.
            _ if status.source().is_some() => Advice::Retry(None),
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => Advice::Retry(retry_after),
            Code::ResourceExhausted if retry_after.is_some() => Advice::Retry(retry_after),
            // Without it: a message too large for the server, or a quota that no repetition will
            // get past.
            Code::ResourceExhausted | Code::InvalidArgument => Advice::Split,
            _ => Advice::Drop,
        };
        Self::new(advice, &format!("{:?}: {}", status.code(), status.message()))
    }

    /// An HTTP error status. Retryable are 429, 502, 503 and 504.
    pub(super) fn http(status: StatusCode, headers: &HeaderMap) -> Self {
        let advice = match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Advice::Retry(retry_after(headers)),
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => Advice::Split,
            _ => Advice::Drop,
        };
        Self::new(advice, &format!("HTTP status {}", status.as_u16()))
    }
}

/// `Retry-After` in seconds, or as a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

/// The delay of the `RetryInfo` in a status's details, which are a `google.rpc.Status`.
fn retry_delay(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let detail = status.details.into_iter().find(|detail| detail.type_url == RETRY_INFO)?;
    let delay = RetryInfo::decode(&*detail.value).ok()?.retry_delay.unwrap_or_default();
    let nanos = u32::try_from(delay.nanos).unwrap_or_default().min(999_999_999);
    Some(Duration::new(u64::try_from(delay.seconds).unwrap_or_default(), nanos))
}

/// The used part of `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn details(seconds: i64) -> Vec<u8> {
        let info = RetryInfo { retry_delay: Some(prost_types::Duration { seconds, nanos: 0 }) };
        let any = prost_types::Any { type_url: RETRY_INFO.into(), value: info.encode_to_vec() };
        RpcStatus { details: vec![any] }.encode_to_vec()
    }

    #[test]
    fn grpc_codes_are_retried_as_the_specification_says() {
        let retried = [
            Code::Cancelled,
            Code::DeadlineExceeded,
            Code::Aborted,
            Code::OutOfRange,
            Code::Unavailable,
            Code::DataLoss,
        ];
        for code in (0..=16).map(Code::from_i32).filter(|code| *code != Code::Ok) {
            let advice = ExportError::status(&Status::new(code, "x")).advice;
            assert_eq!(matches!(advice, Advice::Retry(_)), retried.contains(&code), "{code:?}");
        }
        let told = Status::with_details(Code::ResourceExhausted, "busy", details(7).into());
        assert_eq!(ExportError::status(&told).advice, Advice::Retry(Some(Duration::from_secs(7))));
        let told = Status::with_details(Code::InvalidArgument, "bad", details(7).into());
        assert_eq!(ExportError::status(&told).advice, Advice::Split, "an invalid batch stays invalid");
        let odd = Status::with_details(Code::Unavailable, "x", details(-7).into());
        assert_eq!(ExportError::status(&odd).advice, Advice::Retry(Some(Duration::ZERO)));
    }

    #[test]
    fn http_statuses_are_retried_as_the_specification_says() {
        for status in (300..600).filter_map(|status| StatusCode::from_u16(status).ok()) {
            let advice = ExportError::http(status, &HeaderMap::new()).advice;
            assert_eq!(matches!(advice, Advice::Retry(_)), [429, 502, 503, 504].contains(&status.as_u16()), "{status}");
        }
        let headers = |text: &str| HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_str(text).unwrap())]);
        let advice = |text| ExportError::http(StatusCode::SERVICE_UNAVAILABLE, &headers(text)).advice;
        assert_eq!(advice("120"), Advice::Retry(Some(Duration::from_secs(120))));
        assert_eq!(advice("Fri, 31 Dec 1999 23:59:59 GMT"), Advice::Retry(Some(Duration::ZERO)));
        assert_eq!(advice("soon"), Advice::Retry(None));
    }

    #[test]
    fn what_a_collector_says_is_cut_and_cleaned() {
        let status = Status::new(Code::Internal, format!("a\u{1b}[2J\n{}", "x".repeat(1000)));
        let text = ExportError::status(&status).to_string();
        assert!(text.len() <= 200 && !text.contains(['\u{1b}', '\n']), "{text}");
    }
}
