//! What AWS's own signer signs with a fake pair is verified, what was changed since is not, and
//! what the node signs is what an upstream with the real key verifies: the two sides are two
//! implementations that check each other.

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation, SigningSettings,
        UriPathNormalizationMode,
    },
    sign::v4,
};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use seks_proto::wire;
use seks_service::Service;
use seks_types::secret::{Fields, Secret};

use super::*;
use crate::http::HeaderList;

const NOW: i64 = 1_795_645_251; // 2026-11-25T22:20:51Z
const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const REAL: &str =
    r#"{"access_key_id":"AKIAREAL000000000001","secret_access_key":"real/secret+access/key0000000000000000000"}"#;

fn service(name: &str, denied: &[&str]) -> Service {
    let signed = wire::AwsSigV4 { service: name.into(), region: "us-east-1".into() };
    Service::try_from(&wire::Service {
        tenant: "default".into(),
        name: "aws".into(),
        upstream: format!("https://{name}.us-east-1.amazonaws.com"),
        fields: seks_service::sigv4::FIELDS.map(String::from).into(),
        injection: Some(wire::Injection { sites: vec![], aws_sigv4: Some(signed) }),
        slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::AwsSigv4(true)) }],
        denied_actions: denied.iter().map(|d| (*d).into()).collect(),
        ..Default::default()
    })
    .unwrap()
}

fn digest() -> Digest {
    Digest::of(b"a token")
}

fn fields() -> Fields {
    let fields = Fields::parse(&seks_service::sigv4::FIELDS, &Secret::new(REAL.into())).unwrap();
    fields.with(aws::KEY_FIELD, &Secret::new(KEY.into())).unwrap()
}

/// A request as an SDK makes it.
struct Agent {
    service: &'static str,
    method: Method,
    target: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: Option<&'static [u8]>,
    unsigned: bool,
    trailer: bool,
    presigned: Option<u64>,
    secret: Option<String>,
    at: i64,
}

fn agent(service: &'static str, method: Method, target: &'static str) -> Agent {
    Agent {
        service,
        method,
        target,
        headers: vec![("host", "localhost:8300")],
        body: None,
        unsigned: false,
        trailer: false,
        presigned: None,
        secret: None,
        at: NOW,
    }
}

impl Agent {
    fn signed(&self) -> Request<()> {
        let pair = (aws::access_key_id(&digest()), aws::secret_access_key(KEY.as_bytes(), &digest()).to_string());
        let secret = self.secret.clone().unwrap_or(pair.1);
        let identity = Credentials::new(pair.0, secret, None, None, "test").into();
        let mut settings = SigningSettings::default();
        if self.service == "s3" {
            settings.percent_encoding_mode = PercentEncodingMode::Single;
            settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        }
        if let Some(seconds) = self.presigned {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(std::time::Duration::from_secs(seconds));
        }
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(self.at.unsigned_abs());
        let params = v4::SigningParams::builder().identity(&identity).region("us-east-1").name(self.service);
        let params = params.time(at).settings(settings).build().unwrap().into();
        let body = match self.body {
            _ if self.trailer => SignableBody::StreamingUnsignedPayloadTrailer,
            _ if self.unsigned => SignableBody::UnsignedPayload,
            body => SignableBody::Bytes(body.unwrap_or_default()),
        };
        let url = format!("http://localhost:8300{}", self.target);
        let signable = SignableRequest::new(self.method.as_str(), &url, self.headers.iter().copied(), body).unwrap();
        let (instructions, _) = aws_sigv4::http_request::sign(signable, &params).unwrap().into_parts();
        let mut request = Request::builder().method(self.method.clone()).uri(&url).body(()).unwrap();
        for (name, value) in &self.headers {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        instructions.apply_to_request_http1x(&mut request);
        request
    }

    fn verify(&self, request: Request<()>) -> Result<(Signed, Service), Refusal> {
        self.verify_by(request, service(self.service, &[]))
    }

    fn verify_by(&self, request: Request<()>, service: Service) -> Result<(Signed, Service), Refusal> {
        let (parts, ()) = request.into_parts();
        let target = parts.uri.path_and_query().unwrap().to_string();
        let sigv4 = service.sigv4.as_ref().unwrap();
        let presented = PresentedSignature::read(&parts, &target, sigv4, NOW)?;
        let body = self.body.filter(|_| presented.needs_body(sigv4));
        let body = body.map(|body| SeenBody::of(body, is_form(&parts.headers)));
        let signed = presented.verify(&parts, &target, (sigv4, &digest(), &fields()), body.as_ref())?;
        Ok((signed, service))
    }
}

#[track_caller]
fn detail(result: Result<(Signed, Service), Refusal>) -> String {
    let refusal = result.err().expect("must be refused");
    serde_json::from_slice::<serde_json::Value>(&refusal.body("r")).unwrap()["detail"].as_str().unwrap().to_owned()
}

fn requests() -> Vec<Agent> {
    let json = Agent {
        headers: vec![
            ("host", "localhost:8300"),
            ("content-type", "application/x-amz-json-1.0"),
            ("x-amz-target", "DynamoDB_20120810.GetItem"),
        ],
        body: Some(br#"{"TableName":"t"}"#),
        ..agent("dynamodb", Method::POST, "/api/dynamodb/")
    };
    let put = Agent { body: Some(b"content"), ..agent("s3", Method::PUT, "/api/s3/bucket/a%20b/c%2Bd%3De~f") };
    let list =
        agent("s3", Method::GET, "/api/s3/bucket?list-type=2&prefix=a%2Fb%20c&delimiter=%2F&max-keys&Z=1&a=%E2%82%AC");
    let unsigned = Agent { unsigned: true, ..agent("s3", Method::PUT, "/api/s3/bucket/key") };
    let trailer = Agent { trailer: true, ..agent("s3", Method::PUT, "/api/s3/bucket/key") };
    let presigned =
        Agent { presigned: Some(600), unsigned: true, ..agent("s3", Method::GET, "/api/s3/bucket/key?versionId=7") };
    let model = Agent { body: Some(b"{}"), ..agent("bedrock", Method::POST, "/api/b/model/a.b-v1%3A0/invoke") };
    let spaced = Agent {
        headers: vec![("host", "localhost:8300"), ("x-amz-meta-a", "  b   c "), ("x-amz-meta-a", "d")],
        ..agent("s3", Method::GET, "/api/s3/b/k")
    };
    vec![json, put, list, unsigned, trailer, presigned, model, spaced]
}

#[test]
fn what_awss_own_signer_signs_is_verified() {
    for agent in requests() {
        let verified = agent.verify(agent.signed());
        assert!(verified.is_ok(), "{} {}: {}", agent.method, agent.target, detail(verified));
    }
}

#[test]
fn whoever_has_another_secret_is_nobody() {
    for agent in requests() {
        let agent = Agent { secret: Some("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into()), ..agent };
        assert_eq!(detail(agent.verify(agent.signed())), "the request's signature does not match", "{}", agent.target);
    }
}

#[test]
fn what_was_changed_since_is_refused() {
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let agent = Agent { body: Some(b"{}"), ..agent("s3", Method::PUT, "/api/s3/bucket/key?acl") };
    let change = |change: fn(&mut Request<()>)| {
        let mut request = agent.signed();
        change(&mut request);
        detail(agent.verify(request))
    };
    let mismatch = "the request's signature does not match";
    assert_eq!(change(|r| *r.method_mut() = Method::DELETE), mismatch);
    assert_eq!(change(|r| *r.uri_mut() = "http://localhost:8300/api/s3/bucket/other?acl".parse().unwrap()), mismatch);
    assert_eq!(change(|r| *r.uri_mut() = "http://localhost:8300/api/s3/bucket/key".parse().unwrap()), mismatch);
    assert_eq!(change(|r| drop(r.headers_mut().insert("host", HeaderValue::from_static("evil")))), mismatch);
    assert_eq!(
        change(|r| drop(r.headers_mut().insert("x-amz-content-sha256", HeaderValue::from_static(EMPTY)))),
        mismatch
    );
    let added = change(|r| drop(r.headers_mut().insert("x-amz-acl", HeaderValue::from_static("public-read"))));
    assert_eq!(added, "all headers that begin with `x-amz-` must be signed");
}

#[test]
fn a_signature_is_good_for_a_quarter_of_an_hour_and_a_url_for_as_long_as_it_says() {
    let at = |at, presigned| {
        let agent = Agent { at, presigned, unsigned: true, ..agent("s3", Method::GET, "/api/s3/b/k") };
        agent.verify(agent.signed()).is_ok()
    };
    assert!(at(NOW - 900, None) && at(NOW + 900, None));
    assert!(!at(NOW - 901, None) && !at(NOW + 901, None));
    assert!(at(NOW - 3600, Some(3600)) && !at(NOW - 3601, Some(3600)));
    assert!(!at(NOW, Some(7 * 86_400 + 1)), "longer than AWS allows");
}

#[test]
fn a_signature_for_another_service_or_region_is_refused_by_name() {
    let agent = agent("sqs", Method::GET, "/api/x/");
    let refused = detail(agent.verify_by(agent.signed(), service("sns", &[])));
    assert_eq!(refused, "the request is signed for another AWS service: this service takes `sns`");
}

#[test]
fn bodies_signed_in_chunks_are_refused_with_what_to_do() {
    let mut request = agent("s3", Method::PUT, "/api/s3/b/k").signed();
    let chunked = HeaderValue::from_static("STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
    request.headers_mut().insert("x-amz-content-sha256", chunked);
    let refused = detail(agent("s3", Method::PUT, "/api/s3/b/k").verify(request));
    assert!(refused.contains("sign the whole body, or send it unsigned"), "{refused}");
}

#[test]
fn actions_that_mint_keys_are_refused_wherever_they_stand() {
    let form = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
    let host = ("host", "localhost:8300");
    let ask = |target, headers: Vec<_>, body: Option<&'static [u8]>| {
        let agent = Agent { headers, body, ..agent("sts", Method::POST, target) };
        match agent.verify_by(agent.signed(), service("sts", &["Assume*", "Get*Token"])) {
            Ok(_) => String::new(),
            refused => detail(refused),
        }
    };
    let (minting, unknown) = (
        "the service refuses actions that hand out keys",
        "the request doesn't say in a form that is known here which action it asks for",
    );
    assert_eq!(ask("/api/sts/", vec![host, form], Some(b"Action=GetCallerIdentity&Version=2011-06-15")), "");
    assert_eq!(ask("/api/sts/?Action=GetCallerIdentity", vec![host], None), "");
    for body in [
        &b"Action=AssumeRole&Version=2011-06-15"[..],
        b"Version=2011-06-15&Action=GetSessionToken",
        b"Action=GetCallerIdentity&Action=AssumeRole",
        b"%41ction=AssumeRole",
        b"Action=%41ssumeRole",
        b"a=b;Action=AssumeRole",
        b"action=assumerole",
    ] {
        assert_eq!(ask("/api/sts/", vec![host, form], Some(body)), minting, "{}", body.escape_ascii());
    }
    assert_eq!(ask("/api/sts/?Action=AssumeRole", vec![host, form], Some(b"Action=GetCallerIdentity")), minting);
    assert_eq!(
        ask(
            "/api/sts/",
            vec![host, ("x-amz-target", "Sts.AssumeRole"), ("content-type", "application/x-amz-json-1.1")],
            Some(b"{}")
        ),
        minting
    );
    for (headers, body) in [
        (vec![host, form], &b"Version=2011-06-15"[..]),
        (vec![host], b"Action=GetCallerIdentity"),
        (
            vec![host, ("content-type", "application/x-www-form-urlencoded; charset=utf-16")],
            b"Action=GetCallerIdentity",
        ),
        (vec![host, form, ("content-encoding", "gzip")], b"Action=GetCallerIdentity"),
        (vec![host, ("content-type", "application/cbor"), ("smithy-protocol", "rpc-v2-cbor")], b"\xa0"),
    ] {
        assert_eq!(ask("/api/sts/", headers.clone(), Some(body)), unknown, "{headers:?}");
    }
}

#[test]
fn what_the_node_signs_is_what_the_real_key_verifies() {
    for agent in requests() {
        let (signed, service) = agent.verify(agent.signed()).ok().unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in &agent.headers {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers.remove("host");
        let mut headers = HeaderList::kept_of(headers, 0, |_, _| true);
        let host = HeaderValue::from_static("upstream.amazonaws.com");
        // What authorize leaves of the path: the node's own prefix is gone.
        let mut line = agent.target.splitn(4, '/').nth(3).map_or("/".into(), |rest| format!("/{rest}"));
        let signature = sign(&signed, &service, &fields(), (&agent.method, &mut headers, &host, &mut line)).unwrap();
        headers.set(header::HOST, host);
        let headers = headers.into_map();
        let written = format!("{line} {headers:?}");
        assert_eq!(signature.len(), 64);
        assert!(written.contains("Sensitive") || line.contains(&signature), "{written}");
        assert_real_signature(&agent, &headers, &line);
    }
}

/// The upstream's part: verified by this module's own reading of the rules, with the real secret.
#[track_caller]
fn assert_real_signature(agent: &Agent, headers: &HeaderMap, line: &str) {
    let mut request = Request::builder().method(agent.method.clone()).uri(line).body(()).unwrap();
    *request.headers_mut() = headers.clone();
    let (parts, ()) = request.into_parts();
    let claim = Claim::read(&parts, line).ok().unwrap();
    let service = service(agent.service, &[]);
    let sigv4 = service.sigv4.as_ref().unwrap();
    let hash = Payload::Hash(Sha256::digest(agent.body.unwrap_or_default()).into());
    let payload = claim.payload(&parts.headers, sigv4).ok().unwrap().unwrap_or(hash);
    let canonical = Canonical { claim: &claim, parts: &parts, target: line, payload: &payload, sigv4 };
    assert!(canonical.is_signed_with("real/secret+access/key0000000000000000000"), "{line} {:?}", parts.headers);
    let id = match parts.headers.get("authorization") {
        Some(value) => header_access_key_id(value.as_bytes().strip_prefix(b"AWS4-HMAC-SHA256 ").unwrap()),
        None => query_access_key_id(line).map(str::as_bytes),
    };
    assert_eq!(id, Some(&b"AKIAREAL000000000001"[..]));
}
