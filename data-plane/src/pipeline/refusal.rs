//! Refusals: the code, status and fixed text that an agent gets when its request is not served.
//!
//! An agent is an untrusted reader. Nothing of the request, the upstream or a credential is part of
//! a refusal. Refusals are not errors: an error tells an operator what went wrong, a refusal tells
//! an agent what to do.

pub(crate) mod grpc;

use std::{borrow::Cow, sync::Arc};

use super::needed_approval::NeededApproval;
use crate::{
    code::{Code, Retry},
    http::{client::UpstreamError, fields, server::Violation},
    table::Schemes,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use seks_service::Service;
use seks_types::id::PolicyId;

/// A refusal: made by a stage, turned into an answer once, in `handle`.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Its code, as agents, records and metrics name it.
    pub code: Code,
    /// Its status; most codes have one only.
    pub status: StatusCode,
    /// The policies that determined it, for the audit record.
    pub policies: Option<Arc<[PolicyId]>>,
    /// What was wrong with the upstream, for the audit record.
    pub upstream: Option<UpstreamError>,
    detail: Cow<'static, str>,
    retry: Retry,
    retry_after: u32,
    allow: Option<Cow<'static, str>>,
    /// The schemes that a 401 offers; `None`: Bearer.
    schemes: Option<Schemes>,
    reader: Reader,
    /// What it needs an operator's approval for.
    needed: Option<Arc<NeededApproval>>,
}

/// Whose SDK will read a refusal: some see nothing but their own vendor's form of an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reader {
    /// The default: JSON with an `error` object.
    #[default]
    Any,
    /// AWS's JSON protocols: the same, with `__type` and `message`.
    AwsJson,
    /// AWS's other protocols: XML.
    AwsXml,
    /// MCP clients: a JSON-RPC error. Its id is null, because the message was not always read.
    JsonRpc,
}

/// The code of a JSON-RPC error that is no invalid request. JSON-RPC leaves -32000 to -32099 to
/// servers; MCP uses some of them.
const JSON_RPC_REFUSED: i64 = -32010;
/// The code of a JSON-RPC error for an invalid request.
const JSON_RPC_INVALID: i64 = -32600;

impl Reader {
    /// Who has sent this: an AWS SDK signs.
    #[must_use]
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let by_header = headers.get(header::AUTHORIZATION).is_some_and(|v| v.as_bytes().starts_with(b"AWS4-"));
        let by_query = || request.uri().query().is_some_and(|query| query.contains("X-Amz-Signature="));
        if !by_header && !by_query() {
            let says_mcp = request.method() == Method::POST && headers.contains_key("mcp-protocol-version");
            return if says_mcp && Self::accepts_json_rpc(headers) { Self::JsonRpc } else { Self::Any };
        }
        let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |v| v.as_bytes());
        if headers.contains_key("x-amz-target") || memchr::memmem::find(kind, b"json").is_some() {
            Self::AwsJson
        } else {
            Self::AwsXml
        }
    }

    /// Whether these are the headers of a client that posts a message to an MCP server: they must
    /// accept both of its answers.
    #[must_use]
    pub(crate) fn accepts_json_rpc(headers: &HeaderMap) -> bool {
        let holds = |name, what: &[u8]| {
            headers.get(name).is_some_and(|v: &HeaderValue| memchr::memmem::find(v.as_bytes(), what).is_some())
        };
        holds(header::CONTENT_TYPE, b"application/json")
            && holds(header::ACCEPT, b"application/json")
            && holds(header::ACCEPT, b"text/event-stream")
    }
}

/// The methods that a service can be called with.
pub(crate) const METHODS: &str = "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE";

/// Seconds that an SDK waits for at most. Those of OpenAI and Anthropic ignore a longer
/// `Retry-After` and try again at once, so they are told not to.
const LONGEST_WAIT: u32 = 60;

/// Tell an SDK whether to send its request again, whatever the status: those of OpenAI, Anthropic
/// and others, and Stripe's.
const SHOULD_RETRY: [HeaderName; 2] =
    [HeaderName::from_static("x-should-retry"), HeaderName::from_static("stripe-should-retry")];

/// The type of [`Format::ProblemAsText`].
pub(crate) const PROBLEM_AS_TEXT: HeaderValue = HeaderValue::from_static("application/problem+json; charset=utf-8");

/// How a client reads a refusal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// As `application/problem+json`.
    #[default]
    Problem,
    /// The same, said to be text. A client that asks for a vendor's media types first may read JSON
    /// of these alone, and what is not text as bytes: Octokit shows "Unknown error" for a plain
    /// `application/problem+json`.
    ProblemAsText,
    /// As `grpc-status`.
    Grpc,
}

impl Format {
    pub(crate) fn asked_for(version: Version, headers: &HeaderMap) -> Self {
        let vendors = |accept: &HeaderValue| accept.as_bytes().starts_with(b"application/vnd.");
        match headers.get(header::ACCEPT) {
            _ if fields::is_grpc(version, headers) => Self::Grpc,
            Some(accept) if vendors(accept) => Self::ProblemAsText,
            _ => Self::Problem,
        }
    }
}

impl From<UpstreamError> for Refusal {
    fn from(error: UpstreamError) -> Self {
        use UpstreamError as E;
        let code = match error {
            E::TooManyPools => Code::LimitExceeded,
            E::ConnectTimeout | E::TlsTimeout | E::StreamTimeout | E::FirstByteTimeout => Code::UpstreamTimeout,
            E::TlsHandshake => Code::UpstreamTls,
            error if error.is_lasting() => Code::UpstreamTls,
            _ => Code::UpstreamUnreachable,
        };
        let mut refusal = Self::from(code).with_detail(error.detail());
        refusal.upstream = Some(error);
        match (error.is_unprocessed(), error.is_lasting()) {
            (false, _) => refusal.begun(),
            (true, true) => refusal,
            (true, false) if code == Code::LimitExceeded => refusal,
            (true, false) => Self { retry: Retry::Unsaid, ..refusal },
        }
    }
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        let code = match violation {
            Violation::UriTooLong | Violation::HeadTooLarge => Code::RequestTooLarge,
            _ => Code::RequestInvalid,
        };
        Self::from(code).with_detail(violation.detail()).with_status(violation.status())
    }
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        let (_, status, retry, _) = code.row();
        Self {
            code,
            status,
            policies: None,
            upstream: None,
            detail: Cow::Borrowed(""),
            retry,
            retry_after: 1,
            allow: None,
            schemes: None,
            reader: Reader::Any,
            needed: None,
        }
    }
}

impl Refusal {
    /// `request_invalid` with the reason, a fixed text.
    #[must_use]
    pub(crate) fn invalid(detail: &'static str) -> Self {
        Self::from(Code::RequestInvalid).with_detail(detail)
    }

    /// The same code under another status: 405, 414, 421, 426, 431, 501, 505.
    #[must_use]
    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.allow = (status == StatusCode::METHOD_NOT_ALLOWED).then_some(Cow::Borrowed(METHODS));
        if status == StatusCode::REQUEST_TIMEOUT {
            self.retry = Retry::Unsaid; // the agent was slow, which may pass
        }
        self.status = status;
        self
    }

    /// `request_invalid` under 405 where the node itself answers, which takes the methods of
    /// `allow` alone.
    #[must_use]
    pub(crate) fn method_not_allowed(detail: &'static str, allow: &'static str) -> Self {
        let refusal = Self::invalid(detail).with_status(StatusCode::METHOD_NOT_ALLOWED);
        Self { allow: Some(Cow::Borrowed(allow)), ..refusal }
    }

    /// `request_invalid` under 405 for a method that the service doesn't list.
    #[must_use]
    pub(crate) fn method_not_listed(service: &Service) -> Self {
        let further = service.methods.iter().map(|further| further.method.as_str());
        let allow = std::iter::once(METHODS).chain(further).collect::<Vec<_>>().join(", ");
        let refusal = Self::invalid("the service does not take this method, which needs to be in its `methods`")
            .with_status(StatusCode::METHOD_NOT_ALLOWED);
        Self { allow: Some(Cow::Owned(allow)), ..refusal }
    }

    /// It can be repeated once an operator has approved this.
    #[must_use]
    pub(crate) fn needing(mut self, needed: Arc<NeededApproval>) -> Self {
        self.needed = Some(needed);
        self
    }

    /// What an operator has to approve.
    #[must_use]
    pub(crate) fn needed(&self) -> Option<&Arc<NeededApproval>> {
        self.needed.as_ref()
    }

    /// Says more. Only fixed texts and names of policies: never bytes of a request.
    #[must_use]
    pub(crate) fn with_detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = detail.into();
        self
    }

    /// The request was sent before this came up: the upstream may have begun to process it.
    #[must_use]
    pub(crate) fn begun(mut self) -> Self {
        if self.status.is_server_error() {
            self.retry = Retry::Begun;
        }
        self
    }

    /// Says in how many seconds to try again.
    #[must_use]
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = seconds;
        self
    }

    /// A 401 that offers these schemes.
    #[must_use]
    pub(crate) fn offering(mut self, schemes: Option<Schemes>) -> Self {
        self.schemes = schemes;
        self
    }

    /// A field for each scheme: clients such as wget read one scheme of a field only. Bearer where
    /// nothing else is known, because a 401 must offer something (RFC 9110, 15.5.2).
    fn write_challenges(&self, headers: &mut HeaderMap) {
        let challenge = |scheme: &str| HeaderValue::from_str(&format!("{scheme} realm=\"seks\"")).ok();
        let schemes = self.schemes.as_deref().unwrap_or_default();
        for challenge in schemes.iter().filter_map(|scheme| challenge(scheme)) {
            headers.append(header::WWW_AUTHENTICATE, challenge);
        }
        if schemes.is_empty() {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"seks\""));
        }
    }

    /// Says it in the form that `reader` shows, unless a stage has said in which.
    #[must_use]
    pub(crate) fn worded_for(mut self, reader: Reader) -> Self {
        if self.reader == Reader::Any {
            self.reader = reader;
        }
        self
    }

    /// Adds a fixed text to what it says.
    #[must_use]
    pub(crate) fn with_more_detail(mut self, more: &'static str) -> Self {
        self.detail = Cow::Owned([self.text(), more].concat());
        self
    }

    /// Names the policies that determined it.
    #[must_use]
    pub(crate) fn with_policies(mut self, policies: Arc<[PolicyId]>) -> Self {
        self.policies = Some(policies);
        self
    }

    /// What it says to a person.
    #[must_use]
    pub(crate) fn text(&self) -> &str {
        if self.detail.is_empty() { self.code.row().3 } else { &self.detail }
    }

    /// The answer's body: `application/problem+json`, with the `error` object that vendors' SDKs
    /// show, and the `message` that GitHub's and others' show instead.
    #[must_use]
    pub(crate) fn body(&self, request_id: &str) -> Bytes {
        let (code, _, _, title) = self.code.row();
        let detail = self.text();
        if self.reader == Reader::AwsXml {
            // The detail is ours: fixed texts, and names of policies and services, which hold no
            // markup.
            return Bytes::from(format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code>\
                 <Message>{}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>",
                detail.replace('&', "&amp;").replace('<', "&lt;")
            ));
        }
        if self.reader == Reader::JsonRpc {
            let invalid = self.code == Code::RequestInvalid;
            let message = serde_json::json!({
                "jsonrpc": "2.0",
                "id": null,
                "error": {
                    "code": if invalid { JSON_RPC_INVALID } else { JSON_RPC_REFUSED },
                    "message": detail,
                    "data": {
                        "type": format!("urn:seks:error:{code}"),
                        "title": title,
                        "status": self.status.as_u16(),
                        "code": code,
                        "request_id": request_id,
                    },
                },
            });
            return Bytes::from(message.to_string());
        }
        let mut problem = serde_json::json!({
            "type": format!("urn:seks:error:{code}"),
            "title": title,
            "status": self.status.as_u16(),
            "detail": detail,
            "request_id": request_id,
            "message": detail,
            "error": { "message": detail, "type": "seks_error", "code": code },
        });
        if self.reader == Reader::AwsJson
            && let Some(fields) = problem.as_object_mut()
        {
            fields.insert("__type".into(), code.into());
        }
        Bytes::from(problem.to_string())
    }

    /// Whether a client must not send the request again by itself, as the upstream may have begun
    /// to process it.
    #[must_use]
    pub(crate) fn has_begun(&self) -> bool {
        self.retry == Retry::Begun
    }

    /// Whether the connection's framing is in doubt, so that nothing more is read from it.
    #[must_use]
    pub(crate) fn ends_connection(&self) -> bool {
        matches!(self.code, Code::RequestInvalid | Code::RequestTooLarge)
    }

    /// The answer without its `x-seks-request-id`, which every answer gets in one place.
    #[must_use]
    pub(crate) fn response(&self, request_id: &str) -> Response<Bytes> {
        let mut response = Response::new(self.body(request_id));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let kind = match self.reader {
            Reader::AwsXml => "text/xml",
            Reader::JsonRpc => "application/json",
            Reader::Any | Reader::AwsJson => "application/problem+json",
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if self.reader == Reader::AwsJson {
            headers.insert("x-amzn-errortype", HeaderValue::from_static(self.code.as_str()));
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UPGRADE_REQUIRED {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            self.write_challenges(headers);
        }
        if let Some(allow) = self.allow.as_deref().and_then(|allow| HeaderValue::from_str(allow).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        match self.retry {
            Retry::Later => drop(headers.insert(header::RETRY_AFTER, HeaderValue::from(self.retry_after))),
            Retry::Useless | Retry::Begun | Retry::Unsaid => {}
        }
        let is_long = self.retry == Retry::Later && self.retry_after > LONGEST_WAIT;
        if is_long || matches!(self.retry, Retry::Useless | Retry::Begun) {
            for name in SHOULD_RETRY {
                headers.insert(name, HeaderValue::from_static("false"));
            }
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_problem_and_an_error_that_sdks_show() {
        let response = Refusal::from(Code::PolicyDenied).with_detail("denied by `no-deletes`").response("req-1");
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["type"], "urn:seks:error:policy_denied");
        assert_eq!(body["status"], 403);
        assert_eq!(body["detail"], "denied by `no-deletes`");
        assert_eq!(body["request_id"], "req-1");
        assert_eq!(body["message"], body["detail"]);
        assert_eq!(
            body["error"],
            serde_json::json!({"message": "denied by `no-deletes`", "type": "seks_error", "code": "policy_denied"})
        );
    }

    #[test]
    fn only_a_client_that_asks_for_a_vendors_types_gets_a_problem_as_text() {
        let form = |accept: &'static str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            Format::asked_for(Version::HTTP_11, &headers)
        };
        assert_eq!(form("application/vnd.github.v3+json"), Format::ProblemAsText);
        assert_eq!(form("application/json"), Format::Problem);
        assert_eq!(form("*/*"), Format::Problem);
        assert_eq!(Format::asked_for(Version::HTTP_11, &HeaderMap::new()), Format::Problem);
    }

    #[test]
    fn an_aws_sdk_is_told_in_its_own_form() {
        let signed = |name: &str, value: &str| {
            let request = Request::builder().uri("/api/x").header("authorization", "AWS4-HMAC-SHA256 Credential=x");
            Reader::of(&request.header(name, value).body(()).unwrap())
        };
        assert_eq!(signed("content-type", "application/x-www-form-urlencoded"), Reader::AwsXml);
        assert_eq!(signed("content-type", "application/x-amz-json-1.0"), Reader::AwsJson);
        assert_eq!(signed("x-amz-target", "DynamoDB_20120810.GetItem"), Reader::AwsJson);
        assert_eq!(Reader::of(&Request::builder().uri("/a?X-Amz-Signature=00").body(()).unwrap()), Reader::AwsXml);
        assert_eq!(Reader::of(&Request::builder().uri("/a?b=c").body(()).unwrap()), Reader::Any);

        let refusal = |reader| Refusal::from(Code::PolicyDenied).with_detail("denied by `a<b`").worded_for(reader);
        let xml = refusal(Reader::AwsXml).response("req-1");
        let text = std::str::from_utf8(xml.body()).unwrap();
        assert!(text.contains("<Code>policy_denied</Code><Message>denied by `a&lt;b`</Message>"), "{text}");
        assert!(text.contains("<RequestId>req-1</RequestId>"), "{text}");
        let json = refusal(Reader::AwsJson).response("req-1");
        let body: serde_json::Value = serde_json::from_slice(json.body()).unwrap();
        assert_eq!((&body["__type"], &body["message"]), (&body["error"]["code"], &body["detail"]));
        assert_eq!(json.headers()["x-amzn-errortype"], "policy_denied");
    }

    #[test]
    fn an_mcp_client_is_told_by_a_json_rpc_error() {
        let reader = |version: &str, accept: &str| {
            let request = Request::post("/api/x").header("content-type", "application/json").header("accept", accept);
            Reader::of(&request.header(version, "2026-07-28").body(()).unwrap())
        };
        let both = "application/json, text/event-stream";
        assert_eq!(reader("mcp-protocol-version", both), Reader::JsonRpc);
        assert_eq!(reader("mcp-protocol-version", "application/json"), Reader::Any);
        assert_eq!(reader("x-version", both), Reader::Any);

        let refusal = Refusal::from(Code::PolicyDenied).with_detail("denied by `x`").worded_for(Reader::JsonRpc);
        let response = refusal.worded_for(Reader::Any).response("req-1");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (403, &HeaderValue::from_static("application/json"))
        );
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!((&body["jsonrpc"], &body["id"]), (&"2.0".into(), &serde_json::Value::Null));
        assert_eq!(
            (&body["error"]["message"], &body["error"]["code"]),
            (&"denied by `x`".into(), &JSON_RPC_REFUSED.into())
        );
        assert_eq!(body["error"]["data"]["code"], "policy_denied");
        assert_eq!(body.as_object().unwrap().len(), 3, "strict clients accept no other members");
    }

    #[test]
    fn statuses_are_the_contracts() {
        for (code, status) in [
            (Code::TokenMissing, 401),
            (Code::TokenAmbiguous, 401),
            (Code::TokenBinding, 403),
            (Code::ServiceUnknown, 404),
            (Code::RequestInvalid, 400),
            (Code::RequestTooLarge, 413),
            (Code::LimitExceeded, 429),
            (Code::UpstreamTls, 502),
            (Code::UpstreamTimeout, 504),
            (Code::NodeStale, 503),
            (Code::AuditUnavailable, 503),
            (Code::CredentialUnbound, 403),
        ] {
            assert_eq!(Refusal::from(code).response("x").status(), status, "{}", code.as_str());
        }
        assert_eq!(Refusal::from(Code::LimitExceeded).response("x").headers()["retry-after"], "1");
        for code in Code::ALL {
            let headers = Refusal::from(code).response("x").headers().clone();
            let said = (headers.contains_key("retry-after"), headers.get("x-should-retry").is_some());
            let right = match code {
                Code::LimitExceeded | Code::NodeStale | Code::AuditUnavailable => (true, false),
                Code::UpstreamUnreachable | Code::UpstreamTimeout => (false, false),
                _ => (false, true),
            };
            assert_eq!(said, right, "{}", code.as_str());
        }
        for error in UpstreamError::ALL {
            let refusal = Refusal::from(*error);
            let headers = refusal.response("x").headers().clone();
            let forbidden = headers.get("x-should-retry").is_some_and(|v| v == "false");
            assert_eq!(forbidden, !error.is_unprocessed() || error.is_lasting(), "{}", error.as_str());
            assert_eq!((headers.contains_key("stripe-should-retry"), refusal.text()), (forbidden, error.detail()));
        }
        assert!(!Refusal::from(Code::NodeStale).begun().response("x").headers().contains_key("retry-after"));
        let slow = Refusal::invalid("m").with_status(StatusCode::REQUEST_TIMEOUT).response("x");
        assert!(!slow.headers().contains_key("x-should-retry"));
        let version = Refusal::invalid("m").with_status(StatusCode::UPGRADE_REQUIRED).response("x");
        assert_eq!(version.headers()["sec-websocket-version"], "13");
        let odd = Refusal::invalid("m").with_status(StatusCode::METHOD_NOT_ALLOWED).response("x");
        assert_eq!((odd.status().as_u16(), odd.headers()["allow"].to_str().unwrap()), (405, METHODS));
    }
}
