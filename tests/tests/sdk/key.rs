//! `seks service test`: whether a key works, found out the way that an agent's call takes.

use seks_tests::{Sandbox, Upstream, process::Finished, upstream::Answer, upstream::vendors::Vendor};
use serde_json::Value;

const KEY: &str = "real-key-under-test-CANARY-0000001";

fn test(sandbox: &Sandbox, arguments: &[&str]) -> (Finished, Value) {
    let finished = sandbox.cli().run(&[&["service", "test"], arguments, &["-o", "json"]].concat(), "");
    let view = serde_json::from_str(&finished.stdout).unwrap_or_default();
    assert!(!format!("{finished:?}").contains(KEY), "{finished:?}");
    (finished, view)
}

/// No agent and no token is left of it.
fn nothing_is_left(sandbox: &Sandbox) {
    for noun in ["agent", "token"] {
        assert_eq!(sandbox.cli().json(&[noun, "list"]), serde_json::json!([]), "{noun}");
    }
}

#[test]
fn a_key_works_or_the_upstream_refuses_it() {
    let (sandbox, vendor) = (Sandbox::start(), Vendor::OpenAi.start(KEY));
    sandbox.service("openai", &vendor, KEY);
    let (finished, view) = test(&sandbox, &["openai"]);
    assert_eq!(
        (finished.code, &view["result"], &view["status"]),
        (Some(0), &"valid".into(), &200.into()),
        "{finished:?}"
    );
    assert_eq!((&view["call"], &view["credential"]), (&"GET /v1/models".into(), &"openai".into()));
    let lines: Vec<_> = vendor.requests().iter().map(|r| r.line()).collect();
    assert_eq!(lines, ["GET /v1/models HTTP/1.1"], "one call, through the proxy");
    nothing_is_left(&sandbox);

    sandbox.cli().put_credential("openai", "openai", "sk-mistyped-000000000000000000000001");
    let (finished, view) = test(&sandbox, &["openai"]);
    assert_eq!(
        (finished.code, &view["result"], &view["status"]),
        (Some(4), &"rejected".into(), &401.into()),
        "{finished:?}"
    );
    assert!(view["message"].as_str().unwrap().contains("Incorrect API key"), "{view}");
    assert!(finished.stderr.starts_with("error: service `openai`: the upstream refuses the key (401)"), "{finished:?}");
    nothing_is_left(&sandbox);
}

#[test]
fn an_api_that_refuses_with_200_is_understood() {
    let (sandbox, slack) =
        (Sandbox::start(), Upstream::start(|_| Answer::json(200, r#"{"ok":false,"error":"invalid_auth"}"#)));
    sandbox.service("slack", &slack, KEY);
    let (finished, view) = test(&sandbox, &["slack"]);
    assert_eq!((finished.code, &view["result"]), (Some(4), &"rejected".into()), "{finished:?}");
    assert!(view["message"].as_str().unwrap().contains("invalid_auth"), "{view}");
}

#[test]
fn what_says_nothing_about_the_key_is_not_taken_for_an_answer() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::start(|_| Answer::json(500, "{}")));
    sandbox.service("openai", &upstream, KEY);
    let (finished, view) = test(&sandbox, &["openai"]);
    assert_eq!((finished.code, &view["result"]), (Some(1), &"unclear".into()), "{finished:?}");

    // Nobody listens there any more.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let origin = format!("http://{closed}");
    sandbox.cli().json(&["service", "enable", "openai", "--upstream", &origin, "--allow-private"]);
    // The stored key is bound to the upstream of before: it is stored again for the new one.
    sandbox.cli().put_credential("openai", "openai", KEY);
    let (finished, view) = test(&sandbox, &["openai"]);
    assert_eq!((finished.code, &view["code"]), (Some(6), &"upstream_unreachable".into()), "{finished:?}");
    assert_eq!(view["result"], "unreachable");

    sandbox.cli().apply_policies("@id(\"shut\")\nforbid (principal, action, resource);");
    let (finished, view) = test(&sandbox, &["openai"]);
    assert_eq!((finished.code, &view["code"]), (Some(1), &"policy_denied".into()), "{finished:?}");
    assert!(finished.stderr.contains("hint: --agent"), "{finished:?}");
    nothing_is_left(&sandbox);
}

#[test]
fn every_shape_of_injection_can_be_tested() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    for (entry, secret, line, header) in [
        ("telegram", KEY, format!("GET /bot{KEY}/getMe HTTP/1.1"), None),
        ("serpapi", KEY, format!("GET /account.json?api_key={KEY} HTTP/1.1"), None),
        ("mailchimp", KEY, "GET /3.0/ping HTTP/1.1".into(), Some("authorization")),
        (
            "datadog",
            r#"{"api_key":"real-key-under-test-CANARY-0000001","app_key":"b"}"#,
            "GET /api/v1/validate HTTP/1.1".into(),
            Some("dd-api-key"),
        ),
        ("linear", KEY, "POST /graphql HTTP/1.1".into(), Some("authorization")),
        ("gemini", KEY, "GET /v1beta/models?pageSize=1 HTTP/1.1".into(), Some("x-goog-api-key")),
    ] {
        upstream.forget();
        sandbox.service(entry, &upstream, secret);
        let (finished, _) = test(&sandbox, &[entry]);
        assert_eq!(finished.code, Some(0), "{entry}: {finished:?}");
        let requests = upstream.requests();
        assert_eq!(requests.iter().map(|r| r.line()).collect::<Vec<_>>(), [line], "{entry}");
        assert!(header.is_none_or(|h| requests[0].header(h).is_some()), "{entry}: {requests:?}");
        assert!(!String::from_utf8_lossy(&requests[0].bytes()).contains("seks_token_"), "{entry}");
    }
}

#[test]
fn a_service_of_ones_own_is_tested_with_its_own_call() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    let definition = |test: &str| {
        format!(
            "name = \"own\"\nupstream = \"{}\"\nallow_private = true\ninject = \"bearer\"\n{test}",
            upstream.origin()
        )
    };
    sandbox.cli().apply_service(&definition(""));
    sandbox.cli().put_credential("own", "own", KEY);
    let (finished, _) = test(&sandbox, &["own"]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("hint: say one"), "{finished:?}");
    for bad in ["DELETE /everything", "nonsense"] {
        assert_eq!(test(&sandbox, &["own", "--call", bad]).0.code, Some(2), "{bad}");
    }
    assert_eq!(test(&sandbox, &["own", "--call", "GET /me"]).0.code, Some(0));
    sandbox.cli().apply_service(&definition("test = \"GET /who\""));
    assert_eq!(test(&sandbox, &["own"]).0.code, Some(0));
    let lines: Vec<_> = upstream.requests().iter().map(|r| r.line()).collect();
    assert_eq!(lines, ["GET /me HTTP/1.1", "GET /who HTTP/1.1"]);
    sandbox.cli().create_agent("mine");
    assert_eq!(test(&sandbox, &["own", "--agent", "mine"]).0.code, Some(0));
    assert_eq!(sandbox.cli().json(&["token", "list"]), serde_json::json!([]), "its token is revoked");
    assert_eq!(test(&sandbox, &["nothing"]).0.code, Some(3));
}
