//! The vendors' own SDKs and `curl`, unchanged, through the broker to stand-ins that accept the real key only and refuse
//! whoever brings them a byte of a token.
//!
//! `tests/sdk/install` puts the SDKs into `.test-env`; without them these tests say what they skip.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use seks_tests::{
    Sandbox, Upstream,
    process::{Finished, find_program, run, skip},
    upstream::vendors::Vendor,
};

const OPENAI_KEY: &str = "sk-proj-real-openai-key-000000000000001";
const ANTHROPIC_KEY: &str = "sk-ant-api03-real-anthropic-key-0000001";
const GITHUB_KEY: &str = "ghp_RealGitHubKey000000000000000000001";
const GEMINI_KEY: &str = "AIzaRealGeminiKey00000000000000000001";
const WRONG: &str = "seks_token_wrong";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A part of `.test-env`, or `None` and a line that says what is skipped.
fn installed(part: &str) -> Option<PathBuf> {
    let path = root().join(".test-env").join(part);
    if path.exists() {
        return Some(path);
    }
    skip(&format!("an SDK that needs .test-env/{part}"), "tests/sdk/install has not put it there");
    None
}

fn script(name: &str) -> PathBuf {
    root().join("tests/sdk").join(name)
}

fn client(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name);
    }
    command
}

/// A broker with one vendor behind it, and a token for it.
fn world(service: &str, vendor: Vendor, key: &str, shape: &str) -> (Sandbox, Upstream, String) {
    let (sandbox, upstream) = (Sandbox::start(), vendor.start(key));
    sandbox.service(service, &upstream, key);
    sandbox.cli().create_agent("agent");
    let shape = if shape.is_empty() { vec![] } else { vec!["--shape", shape] };
    let token = sandbox.cli().issue("agent", &[service], &shape).secret;
    (sandbox, upstream, token)
}

fn expect_ok(finished: &Finished) {
    assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stdout.trim_end().ends_with("ok"), "{}", finished.stdout);
}

/// What matters most, seen by the upstream itself: the key and only the key.
fn only_the_key_arrived(upstream: &Upstream, sandbox: &Sandbox, key: &str, at_least: usize) {
    let (requests, received) = (upstream.requests(), upstream.received());
    assert!(requests.len() >= at_least, "{requests:?}");
    assert!(!received.windows(11).any(|w| w == b"seks_token_"), "a token reached the vendor");
    assert!(!sandbox.everything_emitted().contains(key), "the key was emitted");
}

#[test]
fn the_openai_sdk_for_python() {
    let Some(python) = installed("python/bin/python") else { return };
    for (shape, path) in [("", "/api/openai"), ("openai", "/api/openai/v1")] {
        let (sandbox, upstream, token) = world("openai", Vendor::OpenAi, OPENAI_KEY, shape);
        let base_url = format!("{}{path}", sandbox.proxy_url());
        let mut command = client(&python);
        command.arg(script("openai_client.py")).args([&token, &base_url, WRONG]);
        expect_ok(&run(&mut command, b""));
        only_the_key_arrived(&upstream, &sandbox, OPENAI_KEY, 4);
    }
}

#[test]
fn the_seed_example_as_it_stands() {
    let Some(python) = installed("python/bin/python") else { return };
    let (sandbox, upstream, token) = world("openai", Vendor::OpenAi, OPENAI_KEY, "");
    let mut command = client(&python);
    command.arg(script("seed_example.py")).args([token.as_str(), sandbox.proxy_url()]);
    let finished = run(&mut command, b"");
    assert_eq!((finished.code, finished.stdout.trim()), (Some(0), "Hello from the stand-in"), "{}", finished.stderr);
    only_the_key_arrived(&upstream, &sandbox, OPENAI_KEY, 1);
}

#[test]
fn the_anthropic_sdk_for_python() {
    let Some(python) = installed("python/bin/python") else { return };
    for shape in ["", "anthropic"] {
        let (sandbox, upstream, token) = world("anthropic", Vendor::Anthropic, ANTHROPIC_KEY, shape);
        let base_url = format!("{}/api/anthropic", sandbox.proxy_url());
        let mut command = client(&python);
        command.arg(script("anthropic_client.py")).args([&token, &base_url, WRONG]);
        expect_ok(&run(&mut command, b""));
        only_the_key_arrived(&upstream, &sandbox, ANTHROPIC_KEY, 2);
    }
}

#[test]
fn the_openai_sdk_for_node() {
    let (Some(node), Some(modules)) = (find_program("SEKS_NODE", "node"), installed("node/node_modules")) else {
        skip("the OpenAI SDK for Node", "no node, or no SDK for it");
        return;
    };
    for path in ["/api/openai", "/api/openai/v1"] {
        let (sandbox, upstream, token) = world("openai", Vendor::OpenAi, OPENAI_KEY, "");
        let base_url = format!("{}{path}", sandbox.proxy_url());
        let mut command = client(&node);
        command.arg(script("openai_client.mjs")).arg(modules.parent().unwrap()).args([&token, &base_url, WRONG]);
        expect_ok(&run(&mut command, b""));
        only_the_key_arrived(&upstream, &sandbox, OPENAI_KEY, 2);
    }
}

/// Runs `curl` with arguments; status and body.
fn curl(arguments: &[&str]) -> Option<(String, String)> {
    let Some(program) = find_program("SEKS_CURL", "curl") else {
        skip("what curl does", "no curl");
        return None;
    };
    let mut command = client(&program);
    command.args(["--silent", "--show-error", "--write-out", "\n%{http_code}"]).args(arguments);
    let finished = run(&mut command, b"");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let (body, status) = finished.stdout.rsplit_once('\n').unwrap();
    Some((status.into(), body.into()))
}

#[test]
fn github_by_curl_with_bearer_and_basic() {
    let (sandbox, upstream, token) = world("github", Vendor::GitHub, GITHUB_KEY, "");
    let user = format!("{}/api/github/user", sandbox.proxy_url());
    for authorization in [format!("Authorization: Bearer {token}"), format!("Authorization: token {token}")] {
        let Some((status, body)) = curl(&["--header", &authorization, &user]) else { return };
        assert_eq!(status, "200", "{body}");
        assert!(body.contains("stand-in"), "{body}");
    }
    let Some((status, body)) = curl(&["--user", &format!("x-access-token:{token}"), &user]) else { return };
    assert_eq!(status, "200", "Basic: {body}");
    let Some((status, body)) = curl(&["--header", &format!("Authorization: Bearer {WRONG}"), &user]) else { return };
    assert_eq!(status, "401");
    assert!(body.contains("token_malformed"), "{body}");
    only_the_key_arrived(&upstream, &sandbox, GITHUB_KEY, 3);
}

#[test]
fn gemini_by_curl_with_header_and_query() {
    let (sandbox, upstream, token) = world("gemini", Vendor::Gemini, GEMINI_KEY, "");
    let model = format!("{}/api/gemini/v1beta/models/stand-in", sandbox.proxy_url());
    let json =
        ["--header", "Content-Type: application/json", "--data", r#"{"contents":[{"parts":[{"text":"Hello?"}]}]}"#];
    let header = format!("x-goog-api-key: {token}");
    let by_header = format!("{model}:generateContent");
    let by_query = format!("{model}:generateContent?key={token}");
    let streamed = format!("{model}:streamGenerateContent?alt=sse&key={token}");
    for more in [vec!["--header", &header, &by_header], vec![&by_query], vec![&streamed]] {
        let Some((status, body)) = curl(&[json.as_slice(), more.as_slice()].concat()) else { return };
        assert_eq!(status, "200", "{body}");
        assert!(body.contains("Hello from the stand-in"), "{body}");
    }
    only_the_key_arrived(&upstream, &sandbox, GEMINI_KEY, 3);
    assert!(!sandbox.everything_emitted().contains(&token), "a token in a query ends up nowhere");
}
