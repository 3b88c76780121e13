//! `curl`, told nothing but a token and a URL.

use seks_tests::{
    process::{program, run},
    upstream::vendors::Vendor,
};

use crate::{client, only_the_key_arrived, start_vendor};

const GITHUB_KEY: &str = "ghp_RealGitHubKey000000000000000000001";
const GEMINI_KEY: &str = "AIzaRealGeminiKey00000000000000000001";
const WRONG: &str = "seks_token_wrong";

/// Runs `curl` with arguments; status and body.
fn curl(arguments: &[&str]) -> (String, String) {
    let mut command = client(&program("curl"));
    command.args(["--silent", "--show-error", "--write-out", "\n%{http_code}"]).args(arguments);
    let finished = run(&mut command, b"");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let (body, status) = finished.stdout.rsplit_once('\n').unwrap();
    (status.into(), body.into())
}

#[test]
#[cfg_attr(not(has = "curl"), ignore = "needs curl")]
fn github_by_curl_with_bearer_and_basic() {
    let (sandbox, upstream, token) = start_vendor("github", Vendor::GitHub, GITHUB_KEY);
    let user = format!("{}/api/github/user", sandbox.proxy_url());
    for authorization in [format!("Authorization: Bearer {token}"), format!("Authorization: token {token}")] {
        let (status, body) = curl(&["--header", &authorization, &user]);
        assert_eq!(status, "200", "{body}");
        assert!(body.contains("stand-in"), "{body}");
    }
    let (status, body) = curl(&["--user", &format!("x-access-token:{token}"), &user]);
    assert_eq!(status, "200", "Basic: {body}");
    let (status, body) = curl(&["--header", &format!("Authorization: Bearer {WRONG}"), &user]);
    assert_eq!(status, "401");
    assert!(body.contains("token_malformed"), "{body}");
    only_the_key_arrived(&upstream, &sandbox, GITHUB_KEY, 3);
}

#[test]
#[cfg_attr(not(has = "curl"), ignore = "needs curl")]
fn gemini_by_curl_with_header_and_query() {
    let (sandbox, upstream, token) = start_vendor("gemini", Vendor::Gemini, GEMINI_KEY);
    let model = format!("{}/api/gemini/v1beta/models/stand-in", sandbox.proxy_url());
    let json =
        ["--header", "Content-Type: application/json", "--data", r#"{"contents":[{"parts":[{"text":"Hello?"}]}]}"#];
    let header = format!("x-goog-api-key: {token}");
    let by_header = format!("{model}:generateContent");
    let by_query = format!("{model}:generateContent?key={token}");
    let streamed = format!("{model}:streamGenerateContent?alt=sse&key={token}");
    for more in [vec!["--header", &header, &by_header], vec![&by_query], vec![&streamed]] {
        let (status, body) = curl(&[json.as_slice(), more.as_slice()].concat());
        assert_eq!(status, "200", "{body}");
        assert!(body.contains("Hello from "), "{body}");
    }
    only_the_key_arrived(&upstream, &sandbox, GEMINI_KEY, 3);
    assert!(!sandbox.everything_emitted().contains(&token), "a token in a query ends up nowhere");
}
