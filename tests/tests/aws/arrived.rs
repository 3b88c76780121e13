//! What an upstream gets, byte for byte.

use std::{
    process::Command,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use seks_tests::{Sandbox, Upstream, oracle, process::run, raw, upstream::Answer};

use crate::moto::{bin, command, node, script};

const REAL: &str = r#"{"access_key_id":"AKIAREALREALREAL0001","secret_access_key":"real/secret/access+key/0000000000000001","session_token":"real-session-token-0000000000000000001"}"#;
const SECRETS: [&str; 3] =
    ["AKIAREALREALREAL0001", "real/secret/access+key/0000000000000001", "real-session-token-0000000000000000001"];

fn definition(upstream: &Upstream, service: &str) -> String {
    format!(
        "name = \"{service}\"\nupstream = \"{}\"\nallow_private = true\n\
         inject = {{ aws_sigv4 = {{ service = \"{service}\", region = \"eu-central-1\" }} }}\n",
        upstream.origin()
    )
}

/// The fake pair of a token.
fn pair(sandbox: &Sandbox, service: &str) -> (String, String) {
    sandbox.cli().create_agent("agent");
    let issued = sandbox.cli().json(&["token", "issue", "--agent", "agent", "--service", service]);
    let text = |name: &str| issued["aws"][name].as_str().unwrap_or_else(|| panic!("no `{name}`: {issued}")).to_owned();
    (text("access_key_id"), text("secret_access_key"))
}

fn python(code: &str, (id, secret): &(String, String)) -> Command {
    let mut command = command(&bin().join("python"));
    command.args(["-c", code]).env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
    command.env("AWS_DEFAULT_REGION", "eu-central-1");
    command
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn a_model_is_called_with_the_real_key_and_an_echo_gives_nothing_away() {
    // The upstream answers with all that it got, as a hostile one would.
    let upstream = Upstream::start(|r| {
        let text = String::from_utf8_lossy(&r.head).into_owned();
        Answer::json(200, &serde_json::json!({ "head": text }).to_string())
    });
    let sandbox = Sandbox::start();
    sandbox.cli().apply_service(&definition(&upstream, "bedrock"));
    sandbox.cli().put_credential("bedrock", "bedrock", REAL);
    let pair = pair(&sandbox, "bedrock");
    let mut client = command(&bin().join("python"));
    client.arg(script("aws_client.py")).arg("bedrock").env("AWS_ACCESS_KEY_ID", &pair.0);
    client.env("AWS_SECRET_ACCESS_KEY", &pair.1).env("AWS_DEFAULT_REGION", "eu-central-1");
    client.env("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", format!("{}/api/bedrock", sandbox.proxy_url()));
    let finished = run(&mut client, b"");
    assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);

    let seen = upstream.requests();
    let [request] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(request.path(), "/model/anthropic.claude-3-haiku-20240307-v1%3A0/invoke");
    let authorization = request.header("authorization").unwrap();
    let signature = authorization.split("Signature=").nth(1).unwrap().to_owned();
    assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIAREALREALREAL0001/"), "{authorization}");
    assert!(authorization.contains("/eu-central-1/bedrock/aws4_request"), "{authorization}");
    assert_eq!(request.header("x-amz-security-token").as_deref(), Some(SECRETS[2]));
    for fake in [&pair.0, &pair.1] {
        assert!(!oracle::contains(&upstream.received(), fake.as_bytes()), "something of the fake pair arrived");
    }
    for secret in SECRETS.into_iter().chain([signature.as_str()]) {
        assert_eq!(oracle::find(finished.stdout.as_bytes(), secret), None, "{}", finished.stdout);
        assert!(!sandbox.everything_emitted().contains(secret), "{secret} was emitted");
    }
}

#[test]
fn an_access_key_id_alone_is_nobodys() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.cli().apply_service(&definition(&upstream, "s3"));
    sandbox.cli().put_credential("s3", "s3", REAL);
    let (id, _) = pair(&sandbox, "s3");
    let long_ago = "20150830T123600Z";
    let signed = |id: &str, when: &str, region: &str| {
        let day = &when[..8];
        raw::exchange(
            sandbox.proxy(),
            format!(
                "GET /api/s3/b/k HTTP/1.1\r\nHost: localhost\r\nx-amz-date: {when}\r\nx-amz-content-sha256: UNSIGNED-PAYLOAD\r\n\
                 Authorization: AWS4-HMAC-SHA256 Credential={id}/{day}/{region}/s3/aws4_request, \
                 SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={}\r\n\r\n",
                "0".repeat(64)
            ),
        )
    };
    let said = |reply: raw::Reply| (reply.status, reply.text());
    let (status, text) = said(signed(&id, long_ago, "eu-central-1"));
    assert!(status == 401 && text.contains("too old"), "{status} {text}");
    let (status, text) = said(signed(&id, long_ago, "us-east-1"));
    assert!(status == 400 && text.contains("eu-central-1"), "{status} {text}");
    for foreign in ["AKIAIOSFODNN7EXAMPLE", &id[..id.len() - 1], &id.to_lowercase()] {
        let (status, text) = said(signed(foreign, long_ago, "eu-central-1"));
        assert!(status == 401 && text.contains("token_malformed"), "{foreign}: {status} {text}");
    }
    let mut other = id.clone().into_bytes();
    other[10] = if other[10] == b'A' { b'B' } else { b'A' };
    let (status, text) = said(signed(std::str::from_utf8(&other).unwrap(), long_ago, "eu-central-1"));
    assert!(status == 401 && text.contains("token_unknown"), "{status} {text}");
    assert!(upstream.requests().is_empty());
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn a_body_that_was_changed_on_the_way_does_not_arrive() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.cli().apply_service(&definition(&upstream, "s3"));
    sandbox.cli().put_credential("s3", "s3", REAL);
    let pair = pair(&sandbox, "s3");
    // Signed by botocore for one body, sent with another.
    let code = r#"
import sys, hashlib, urllib.request, urllib.error
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.session import get_session
def put(signed, sent):
    request = AWSRequest("PUT", sys.argv[1], data=signed)
    request.context["payload_signing_enabled"] = True
    S3SigV4Auth(get_session().get_credentials(), "s3", "eu-central-1").add_auth(request)
    try:
        with urllib.request.urlopen(urllib.request.Request(sys.argv[1], sent, dict(request.headers), method="PUT")) as a:
            return str(a.status)
    except urllib.error.HTTPError as e:
        return f"{e.code} {e.read().decode()}"
print(put(b"good", b"good")); print(put(b"good", b"evil")); print(put(b"good", b"")); print(put(b"", b"evil"))
"#;
    let mut client = python(code, &pair);
    let finished = run(client.arg(format!("{}/api/s3/bucket/key", sandbox.proxy_url())), b"");
    let lines: Vec<&str> = finished.stdout.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_digit())).collect();
    assert_eq!((finished.code, lines.len()), (Some(0), 4), "{}{}", finished.stdout, finished.stderr);
    assert_eq!(lines[0], "200");
    for refused in &lines[1..] {
        assert!(refused.starts_with("401"), "{}", finished.stdout);
    }
    assert!(finished.stdout.contains("the body is not the one that was signed"), "{}", finished.stdout);
    assert!(!oracle::contains(&upstream.received(), b"evil"));
}

/// An upstream that is too busy for the first request.
fn busy_once() -> Upstream {
    let asked = AtomicUsize::new(0);
    Upstream::start(move |_| match asked.fetch_add(1, SeqCst) {
        0 => Answer::json(503, r#"{"__type":"ServiceUnavailable","message":"busy"}"#),
        _ => Answer::json(200, r#"{"TableNames":["table"]}"#),
    })
}

/// What a client says of a call that is retried, and of one that is refused: how often it asked,
/// and what it made of it.
fn retries(client: impl Fn(&Sandbox, &(String, String)) -> Command) {
    let (sandbox, upstream) = (Sandbox::start(), busy_once());
    sandbox.cli().apply_service(&definition(&upstream, "dynamodb"));
    sandbox.cli().put_credential("dynamodb", "dynamodb", REAL);
    let pair = pair(&sandbox, "dynamodb");
    let said = || {
        let finished = run(&mut client(&sandbox, &pair), b"");
        assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
        let said: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        said.get("retried").unwrap_or(&said).clone()
    };
    assert_eq!(said(), serde_json::json!([2, "table"]));
    let real = |r: &seks_tests::upstream::Request| r.header("authorization").unwrap().contains(SECRETS[0]);
    assert!(upstream.requests().len() == 2 && upstream.requests().iter().all(real), "signed anew each time");

    sandbox.cli().json(&["agent", "disable", "agent"]);
    let refused = said();
    assert_eq!(refused[0], 1, "a refusal isn't asked about again: {refused}");
    assert!(refused[1].as_str().unwrap().contains("agent_disabled"), "{refused}");
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn boto3_asks_again_when_the_upstream_is_busy_and_not_when_it_is_refused() {
    let code = r#"
import boto3, botocore.exceptions, json, os
try:
    answer = boto3.client("dynamodb", endpoint_url=os.environ["URL"]).list_tables()
    said = answer["TableNames"][0]
except botocore.exceptions.ClientError as error:
    answer, said = error.response, str(error)
print(json.dumps([answer["ResponseMetadata"]["RetryAttempts"] + 1, said]))
"#;
    retries(|sandbox, pair| {
        let mut client = python(code, pair);
        client.env("URL", format!("{}/api/dynamodb", sandbox.proxy_url()));
        client
    });
}

#[test]
#[cfg_attr(not(has = "node-sdks"), ignore = "needs node-sdks")]
fn the_sdk_for_node_asks_again_when_the_upstream_is_busy_and_not_when_it_is_refused() {
    retries(|sandbox, (id, secret)| {
        let mut client = node(&["retried"]);
        client.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
        client
            .env("AWS_ENDPOINT_URL", format!("{}/api/dynamodb", sandbox.proxy_url()))
            .env("AWS_REGION", "eu-central-1");
        client
    });
}
