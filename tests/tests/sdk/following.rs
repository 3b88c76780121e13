//! Clients that follow the upstream's own URLs, unchanged, in path mode: pages, uploads in parts,
//! operations that are polled, MCP over both of its transports. The stand-ins accept the real key
//! only, so that a client that left the node would fail.

use std::sync::{Arc, OnceLock};

use seks_tests::{
    Sandbox, Upstream,
    process::{Finished, Process, installed, program, run},
    upstream::{Answer, Request},
};

use crate::{client, root};

const KEY: &str = "real-following-key-CANARY-00000001";

/// A stand-in that answers as `answer` says, told its own origin, and refuses what holds a token or
/// lacks `credential`.
fn stand_in(credential: &str, answer: impl Fn(&Request, &str) -> Answer + Send + Sync + 'static) -> Upstream {
    let (origin, credential): (Arc<OnceLock<String>>, _) = (Arc::default(), credential.to_owned());
    let own = origin.clone();
    let upstream = Upstream::start(move |request| {
        let text = String::from_utf8_lossy(&request.bytes()).into_owned();
        if text.contains("seks_") || !text.contains(&credential) {
            return Answer::json(418, r#"{"message":"not the real key"}"#);
        }
        answer(request, own.get().unwrap())
    });
    origin.set(upstream.origin()).unwrap();
    upstream
}

fn sandbox(service: &str, upstream: &Upstream, credential: &str) -> (Sandbox, String) {
    let sandbox = Sandbox::start();
    sandbox.service(service, upstream, credential);
    let token = sandbox.token("agent", &[service]).secret;
    (sandbox, token)
}

/// Runs a client against a service; what it printed.
fn follow(script: &str, sandbox: &Sandbox, service: &str, token: &str) -> Finished {
    let (language, file) = script.split_once('/').unwrap();
    let mut command = match language {
        "python" => client(&installed("python/bin/python")),
        _ => client(&program("node")),
    };
    command.arg(root().join("tests/sdk").join(language).join(file));
    command.env("SDK_BASE_URL", format!("{}/api/{service}", sandbox.proxy_url())).env("SDK_TOKEN", token);
    command.env("SDK_MODULES", installed("node"));
    run(&mut command, b"")
}

fn prints(script: &str, (sandbox, token): &(Sandbox, String), service: &str, expect: &str) {
    let finished = follow(script, sandbox, service, token);
    assert_eq!((finished.code, finished.stdout.trim()), (Some(0), expect), "{}", finished.stderr);
    assert!(!sandbox.everything_emitted().contains(KEY));
}

/// A repository, and two pages of its issues: the second below the repository's id, as at GitHub.
fn github(request: &Request, own: &str) -> Answer {
    let issue = |number: u32| format!(r#"[{{"number":{number},"url":"{own}/repos/seks/demo/issues/{number}"}}]"#);
    match request.path().as_str() {
        "/repos/seks/demo" => {
            let body = format!(
                r#"{{"id":7,"full_name":"seks/demo","url":"{}"}}"#,
                format!("{own}/repos/seks/demo").replace('/', "\\/")
            );
            Answer::json(200, &body)
        }
        "/repos/seks/demo/issues" => {
            let link = format!(
                "<{own}/repositories/7/issues?page=2>; rel=\"next\", <{own}/repositories/7/issues?page=2>; rel=\"last\""
            );
            Answer::with(200, &[("Content-Type", "application/json"), ("Link", &link)], issue(1))
        }
        "/repositories/7/issues" => Answer::json(200, &issue(2)),
        _ => Answer::json(404, r#"{"message":"Not Found"}"#),
    }
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn pygithub_reads_every_page() {
    let upstream = stand_in(KEY, github);
    prints("python/follow_github.py", &sandbox("github", &upstream, KEY), "github", "[1, 2]");
}

#[test]
#[cfg_attr(not(has = "node-sdks"), ignore = "needs node-sdks")]
fn octokit_paginates() {
    let upstream = stand_in(KEY, github);
    prints("node/follow_github.mjs", &sandbox("github", &upstream, KEY), "github", "[1,2]\n[1,2]\n[1,2]");
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn google_genai_uploads_a_file_without_a_key() {
    let upstream = stand_in(KEY, |request, own| match request.header("x-goog-upload-command").as_deref() {
        Some("start") => {
            let url = format!("{own}/upload/v1beta/files?upload_id=a7&upload_protocol=resumable");
            Answer::with(200, &[("X-Goog-Upload-URL", &url), ("X-Goog-Upload-Status", "active")], "")
        }
        _ => {
            let body =
                r#"{"file":{"name":"files/seks-1","uri":"https://generativelanguage.googleapis.com/v1beta/files/1"}}"#;
            Answer::with(200, &[("X-Goog-Upload-Status", "final"), ("Content-Type", "application/json")], body)
        }
    });
    prints("python/follow_gemini.py", &sandbox("gemini", &upstream, KEY), "gemini", "files/seks-1");
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn google_api_client_uploads_in_parts() {
    let upstream = stand_in(KEY, |request, own| {
        let range = request.header("content-range").unwrap_or_default();
        match (request.method().as_str(), range.split_once('/')) {
            ("POST", _) => Answer::with(
                200,
                &[("Location", &format!("{own}/upload/drive/v3/files?uploadType=resumable&upload_id=b8"))],
                "",
            ),
            ("PUT", Some((part, total))) if !part.ends_with(&format!("-{}", total.parse::<u32>().unwrap() - 1)) => {
                let last = part.rsplit('-').next().unwrap();
                Answer::with(308, &[("Range", &format!("bytes=0-{last}"))], "")
            }
            _ => Answer::json(200, r#"{"id":"drive-1"}"#),
        }
    });
    prints("python/follow_google_api.py", &sandbox("google-apis", &upstream, KEY), "google-apis", "drive-1");
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn azure_polls_an_operation() {
    let upstream = stand_in(KEY, |request, own| {
        let path = "/documentintelligence/documentModels/prebuilt-read/analyzeResults/1";
        if request.method() == "POST" {
            return Answer::with(202, &[("Operation-Location", &format!("{own}{path}?api-version=2024-11-30"))], "");
        }
        assert_eq!(request.path(), path);
        let result = r#""apiVersion":"1","modelId":"m","stringIndexType":"utf16CodeUnit","content":"read","pages":[]"#;
        Answer::json(200, &format!(r#"{{"status":"succeeded","analyzeResult":{{{result}}}}}"#))
    });
    let sandbox = Sandbox::start();
    sandbox.cli().apply_service(&format!(
        "name = 'docs'\nupstream = '{}'\nallow_private = true\ninject = {{ header = 'Ocp-Apim-Subscription-Key' }}\nrewrite_urls = true\n",
        upstream.origin()
    ));
    sandbox.cli().put_credential("docs", "docs", KEY);
    let token = sandbox.token("agent", &["docs"]).secret;
    prints("python/follow_azure.py", &(sandbox, token), "docs", "read");
}

/// `{"sid":…,"token":…}` as Basic sends it.
fn basic(user: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(format!("{user}:{KEY}"))
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn twilio_reads_pages_by_path_and_by_url() {
    const SID: &str = "AC0123456789abcdef0123456789abcdef";
    let upstream = stand_in(&basic(SID), |request, own| {
        let calls = format!("/2010-04-01/Accounts/{SID}/Calls.json");
        let second = request.target().contains("Page=1");
        let next = |text: String| if second { "null".to_owned() } else { format!("\"{text}\"") };
        let number = if second { 2 } else { 1 };
        if request.path() == calls {
            let next = next(format!("{calls}?PageSize=1&Page=1&PageToken=x"));
            return Answer::json(
                200,
                &format!(r#"{{"calls":[{{"sid":"CA{number}","account_sid":"{SID}"}}],"next_page_uri":{next}}}"#),
            );
        }
        let next = next(format!("{own}/v1/Services?PageSize=1&Page=1"));
        Answer::json(
            200,
            &format!(r#"{{"services":[{{"sid":"MG{number}"}}],"meta":{{"key":"services","next_page_url":{next}}}}}"#),
        )
    });
    let credential = format!(r#"{{"sid":"{SID}","token":"{KEY}"}}"#);
    prints(
        "python/follow_twilio.py",
        &sandbox("twilio", &upstream, &credential),
        "twilio",
        "['CA1', 'CA2'] ['MG1', 'MG2']",
    );
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn elasticsearch_with_a_plain_user_name() {
    let upstream = stand_in(&basic("elastic"), |_, _| {
        let fields = [("X-Elastic-Product", "Elasticsearch"), ("Content-Type", "application/json")];
        let body = r#"{"name":"n","cluster_name":"elasticsearch","version":{"number":"9.5.1"},"tagline":"You Know, for elastic Search"}"#;
        Answer::with(200, &fields, body)
    });
    let credential = format!(r#"{{"username":"elastic","password":"{KEY}"}}"#);
    let rig = sandbox("elasticsearch-basic", &upstream, &credential);
    prints("python/follow_elasticsearch.py", &rig, "elasticsearch-basic", "elasticsearch You Know, for elastic Search");
}

const TOOLS: &str = r#"
@id("streams") permit (principal, action in [Seks::Action::"GET", Seks::Action::"DELETE"], resource);
@id("setup") permit (principal, action == Seks::Action::"POST", resource)
  when { context has mcp.method && context.mcp.method != "tools/call" };
@id("get") permit (principal, action, resource) when { context has mcp.name && context.mcp.name like "get_*" };
"#;

/// What a client prints that uses a stand-in MCP server over both transports, under policies on
/// tools.
fn use_tools(script: &str) -> Finished {
    let directory = tempfile::tempdir().unwrap();
    let mut command = client(&installed("python/bin/python"));
    command.arg(root().join("tests/sdk/python/mcp_server.py")).arg(KEY);
    let mut server = Process::spawn("mcp", directory.path(), &mut command);
    let port: u16 =
        server.wait_for_output("the MCP server's port", |log| log.lines().find_map(|line| line.trim().parse().ok()));
    let sandbox = Sandbox::start();
    let upstream = format!("http://127.0.0.1:{port}");
    sandbox.cli().json(&["service", "enable", "linear-mcp", "--upstream", &upstream, "--allow-private"]);
    sandbox.cli().put_credential("linear-mcp", "linear-mcp", KEY);
    let token = sandbox.token("agent", &["linear-mcp"]).secret;
    sandbox.cli().json(&["policy", "delete", "granted-services", "--yes"]);
    sandbox.cli().apply_policies(TOOLS);
    let finished = follow(script, &sandbox, "linear-mcp", &token);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(!finished.stdout.contains("deleted"), "{finished:?}");
    assert!(!sandbox.everything_emitted().contains(KEY));
    finished
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn mcp_over_streamable_http_and_over_sse_with_a_policy_on_tools() {
    let finished = use_tools("python/mcp_client.py");
    let lines: Vec<&str> = finished.stdout.lines().collect();
    let list = "['delete_everything', 'get_greeting']";
    assert_eq!(lines.get(..2), Some(&[list, "Hello agent"][..]), "{finished:?}");
    assert!(lines[2].contains("no policy permits this request"), "{finished:?}");
    assert_eq!(lines.get(3..5), Some(&[list, "Hello agent"][..]), "{finished:?}");
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
#[cfg_attr(all(has = "python-sdks", not(has = "node-sdks")), ignore = "needs node-sdks")]
fn mcp_from_typescript_over_both_transports_with_a_policy_on_tools() {
    let finished = use_tools("node/mcp.mjs");
    let lines: Vec<&str> = finished.stdout.lines().collect();
    let list = r#"["delete_everything","get_greeting"]"#;
    for lines in [&lines[..3], &lines[3..]] {
        assert_eq!(lines[..2], [list, "Hello agent"], "{finished:?}");
        assert!(lines[2].contains("no policy permits this request"), "{finished:?}");
    }
}
