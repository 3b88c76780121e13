//! Clients that people have, in path mode: those that wait for a challenge before they show a
//! token, and those whose names and methods are unusual.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, OnceLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::{
    Upstream,
    process::{Finished, installed, program, run},
    upstream::{Answer, Request},
};

use crate::rig::{KEY, Rig};

const COMMIT: &str = "1234567890abcdef1234567890abcdef12345678";

fn basic() -> String {
    format!("Basic {}", STANDARD.encode(format!("x-access-token:{KEY}")))
}

/// A repository that serves whoever brings the real key.
fn repository(request: &Request) -> Answer {
    if request.header("authorization") != Some(basic()) {
        return Answer::with(401, &[("WWW-Authenticate", "Basic realm=\"stand-in\"")], "who are you?");
    }
    let line = |text: String| format!("{:04x}{text}", text.len() + 4);
    let refs = [
        line("# service=git-upload-pack\n".into()),
        "0000".into(),
        line(format!("{COMMIT} HEAD\0agent=stand-in\n")),
        line(format!("{COMMIT} refs/heads/main\n")),
        "0000".into(),
    ];
    match request.path().as_str() {
        "/o/r.git/info/refs" => {
            Answer::with(200, &[("Content-Type", "application/x-git-upload-pack-advertisement")], refs.concat())
        }
        _ => Answer::text("a file"),
    }
}

const GIT: &str = "inject = { basic = \"x-access-token:{key}\" }\nslots = [\"basic:either\"]";

/// A program without a developer's settings.
fn client(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", home).env("GIT_TERMINAL_PROMPT", "0").env("GIT_CONFIG_NOSYSTEM", "1");
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
}

fn succeeded(finished: &Finished) -> &str {
    assert_eq!(finished.code, Some(0), "{}\n{}", finished.stdout, finished.stderr);
    &finished.stdout
}

#[test]
#[cfg_attr(not(has = "git"), ignore = "needs git")]
fn git_with_the_token_in_the_url_and_from_a_helper() {
    let (rig, home) = (Rig::with(Upstream::start(repository), GIT), tempfile::tempdir().unwrap());
    let git = program("git");
    let host = rig.sandbox.proxy();
    let listed = format!("{COMMIT}\trefs/heads/main");
    for user in [format!("agent:{}@", rig.token), format!("{}:x-oauth-basic@", rig.token), format!("{}@", rig.token)] {
        let mut command = client(&git, home.path());
        command.args(["-c", "credential.helper=", "ls-remote", &format!("http://{user}{host}/api/acme/o/r.git")]);
        if !user.contains(':') {
            command.env("GIT_ASKPASS", "true"); // an empty password
        }
        assert!(succeeded(&run(&mut command, b"")).contains(&listed), "{user}");
    }
    let helper = format!("credential.helper=!f() {{ echo username=agent; echo password={}; }}; f", rig.token);
    let mut command = client(&git, home.path());
    command.args(["-c", &helper, "ls-remote", &format!("http://{host}/api/acme/o/r.git")]);
    assert!(succeeded(&run(&mut command, b"")).contains(&listed));
    assert!(!String::from_utf8_lossy(&rig.upstream.received()).contains("seks_token_"));
}

#[test]
#[cfg_attr(not(has = "wget"), ignore = "needs wget")]
fn wget_waits_for_a_challenge() {
    let (rig, home) = (Rig::with(Upstream::start(repository), GIT), tempfile::tempdir().unwrap());
    let url = format!("{}/api/acme/files/a.txt", rig.sandbox.proxy_url());
    let mut command = client(&program("wget"), home.path());
    command.args(["-q", "-O", "-", "--user", "agent", "--password", &rig.token, &url]);
    assert_eq!(succeeded(&run(&mut command, b"")), "a file");
}

#[test]
#[cfg_attr(not(has = "curl"), ignore = "needs curl")]
fn curl_takes_what_is_offered() {
    let (rig, home) = (Rig::with(Upstream::start(repository), GIT), tempfile::tempdir().unwrap());
    let url = format!("{}/api/acme/files/a.txt", rig.sandbox.proxy_url());
    for more in [&["--anyauth"][..], &["--anyauth", "--data", "a=b"], &["--basic"]] {
        let mut command = client(&program("curl"), home.path());
        command.args(["-sS", "--fail-with-body", "--user", &format!("agent:{}", rig.token), &url]).args(more);
        assert_eq!(succeeded(&run(&mut command, b"")), "a file", "{more:?}");
    }
    let mut command = client(&program("curl"), home.path());
    command.args(["-sS", "--http2-prior-knowledge", "--dump-header", "-", "--output", "/dev/null", &url]);
    let head = succeeded(&run(&mut command, b"")).to_owned();
    assert!(head.starts_with("HTTP/2 401") && head.contains("www-authenticate: Basic realm=\"seks\""), "{head}");
    let bearer = Rig::with(Upstream::ok(), "inject = \"bearer\"");
    let url = format!("{}/api/acme/x", bearer.sandbox.proxy_url());
    let mut command = client(&program("curl"), home.path());
    command.args(["-sS", "--fail-with-body", "--anyauth", "--oauth2-bearer", &bearer.token, &url]);
    succeeded(&run(&mut command, b""));
}

const AUTHENTICATOR: &str = r#"
import java.net.*;
import java.net.http.*;

class Challenged {
    public static void main(String[] arguments) throws Exception {
        Authenticator authenticator = new Authenticator() {
            protected PasswordAuthentication getPasswordAuthentication() {
                return new PasswordAuthentication("agent", arguments[1].toCharArray());
            }
        };
        Authenticator.setDefault(authenticator);
        HttpURLConnection connection = (HttpURLConnection) new URI(arguments[0]).toURL().openConnection();
        System.out.println(new String(connection.getInputStream().readAllBytes()));
        HttpClient client = HttpClient.newBuilder().authenticator(authenticator).build();
        HttpRequest request = HttpRequest.newBuilder(new URI(arguments[0])).build();
        System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"#;

#[test]
#[cfg_attr(not(has = "java"), ignore = "needs java")]
fn javas_authenticator_waits_for_a_challenge() {
    let (rig, home) = (Rig::with(Upstream::start(repository), GIT), tempfile::tempdir().unwrap());
    let source = home.path().join("Challenged.java");
    std::fs::write(&source, AUTHENTICATOR).unwrap();
    let url = format!("{}/api/acme/files/a.txt", rig.sandbox.proxy_url());
    let mut command = client(&program("java"), home.path());
    command.arg(&source).args([&url, &rig.token]);
    assert_eq!(succeeded(&run(&mut command, b"")), "a file\na file\n");
}

fn python(script: &str, environment: &str, arguments: &[&str]) -> Finished {
    let home = tempfile::tempdir().unwrap();
    let mut command = client(&installed(environment), home.path());
    command.args(["-c", script]).args(arguments);
    run(&mut command, b"")
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn python_gitlab_with_names_that_it_escapes_needlessly() {
    let upstream = Upstream::start(|request| match request.path().as_str() {
        path if path.contains("/repository/files/") => Answer::json(200, r#"{"file_name":"key.rb","content":"eA=="}"#),
        _ => Answer::json(200, r#"{"id":7,"name":"my-project"}"#),
    });
    let definition = "base_path = \"/api\"\ninject = { header = \"PRIVATE-TOKEN\" }\nallow_encoded_slash = true\n\
                      allow_in_paths = [\"utf8\", \"percent\", \"semicolon\"]";
    let rig = Rig::with(upstream, definition);
    let script = "import gitlab, sys\n\
        client = gitlab.Gitlab(sys.argv[1], private_token=sys.argv[2])\n\
        project = client.projects.get('g/my-project')\n\
        print(project.name)\n\
        for name in ['key.rb', 'dir/r\u{e9}sum\u{e9}.md', 'a;b~c', '50%.txt']:\n\
        \x20   print(project.files.get(name, ref='main').file_name)\n";
    let url = format!("{}/api/acme", rig.sandbox.proxy_url());
    for url in [url.clone(), format!("{url}/")] {
        let finished = python(script, "python/bin/python", &[&url, &rig.token]);
        assert_eq!(succeeded(&finished), "my-project\nkey.rb\nkey.rb\nkey.rb\nkey.rb\n");
        let targets: Vec<String> = rig.upstream.requests().iter().map(Request::path).collect();
        assert_eq!(targets[0], "/api/v4/projects/g%2Fmy-project", "{targets:?}");
        assert!(
            targets.iter().any(|t| t.ends_with("/files/dir%2Fr%C3%A9sum%C3%A9%2Emd")
                || t.ends_with("/files/dir%2Fr%C3%A9sum%C3%A9.md"))
        );
        rig.upstream.forget();
    }
}

/// Writes a wheel of an empty package in base64.
const WHEEL: &str = "import base64, io, sys, zipfile\n\
    buffer = io.BytesIO()\n\
    wheel, info = zipfile.ZipFile(buffer, 'w'), 'demo_pkg-1.0.dist-info/'\n\
    wheel.writestr('demo_pkg/__init__.py', '')\n\
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: demo-pkg\\nVersion: 1.0\\n')\n\
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
    wheel.writestr(info + 'RECORD', '')\n\
    wheel.close()\n\
    print(base64.b64encode(buffer.getvalue()).decode(), end='')\n";

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn pip_downloads_from_an_index_that_names_itself() {
    let wheel = STANDARD.decode(succeeded(&python(WHEEL, "python/bin/python", &[]))).unwrap();
    for html in [false, true] {
        let (origin, wheel): (Arc<OnceLock<String>>, _) = (Arc::default(), wheel.clone());
        let own = origin.clone();
        let upstream = Upstream::start(move |request| {
            let file = "demo_pkg-1.0-py3-none-any.whl";
            let url = format!("{}/packages/{file}", own.get().unwrap());
            let page = |kind: &str, body: String| Answer::with(200, &[("Content-Type", kind)], body);
            match request.path().as_str() {
                _ if request.header("authorization") != Some(basic()) => Answer::with(401, &[], ""),
                "/simple/demo-pkg/" if html => {
                    page("application/vnd.pypi.simple.v1+html", format!("<!DOCTYPE html><a href=\"{url}\">{file}</a>"))
                }
                "/simple/demo-pkg/" => page(
                    "application/vnd.pypi.simple.v1+json",
                    format!(
                        r#"{{"meta":{{"api-version":"1.0"}},"name":"demo-pkg","files":[{{"filename":"{file}","url":"{url}","hashes":{{}}}}]}}"#
                    ),
                ),
                path if path.ends_with(file) => Answer::with(200, &[], wheel.clone()),
                _ => Answer::with(404, &[], ""),
            }
        });
        origin.set(upstream.origin()).unwrap();
        let rig = Rig::with(upstream, &format!("rewrite_urls = true\n{GIT}"));
        let home = tempfile::tempdir().unwrap();
        let mut command = client(&installed("python/bin/python"), home.path());
        let address = rig.sandbox.proxy();
        let index = format!("http://x:{}@localhost:{}/api/acme/simple/", rig.token, address.port());
        command.args(["-m", "pip", "download", "--isolated", "--no-cache-dir", "--no-deps"]);
        command.args(["--disable-pip-version-check", "--index-url", &index, "--dest"]).arg(home.path()).arg("demo-pkg");
        succeeded(&run(&mut command, b""));
        assert!(home.path().join("demo_pkg-1.0-py3-none-any.whl").exists(), "html: {html}");
    }
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn hvac_lists() {
    let upstream = Upstream::start(|request| match (request.method().as_str(), request.path().as_str()) {
        ("LIST", "/v1/secret/metadata/team") => Answer::json(200, r#"{"data":{"keys":["a","b/"]}}"#),
        _ => Answer::json(404, r#"{"errors":[]}"#),
    });
    let rig = Rig::with(upstream, "inject = { header = \"X-Vault-Token\" }\nmethods = [\"LIST\"]");
    let script = "import hvac, sys\n\
        client = hvac.Client(url=sys.argv[1], token=sys.argv[2])\n\
        print(client.secrets.kv.v2.list_secrets(path='team')['data']['keys'])\n";
    let url = format!("{}/api/acme", rig.sandbox.proxy_url());
    assert_eq!(succeeded(&python(script, "python/bin/python", &[&url, &rig.token])), "['a', 'b/']\n");
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn boto3_with_any_key_of_an_object() {
    let sandbox = seks_tests::Sandbox::start();
    let upstream = Upstream::start(|request| {
        // Of an upload, the SDK expects XML or nothing.
        let body = if request.method() == "GET" { request.target() } else { String::new() };
        Answer::with(200, &[("ETag", "\"x\"")], body)
    });
    let origin = upstream.origin();
    sandbox.cli().apply_service(&format!(
        "name = \"s3\"\nupstream = \"{origin}\"\nallow_private = true\ninject = {{ aws_sigv4 = {{ service = \"s3\", region = \"us-east-1\" }} }}\n"
    ));
    sandbox.cli().put_credential(
        "s3",
        "s3",
        r#"{"access_key_id":"AKIAREALREALREALREAL","secret_access_key":"real+secret/key0000000000000000000000000"}"#,
    );
    let arguments = ["token", "issue", "--agent", "agent", "--service", "s3"];
    sandbox.cli().create_agent("agent");
    let issued = sandbox.cli().json(&arguments);
    let key = |name: &str| issued["aws"][name].as_str().unwrap().to_owned();
    let script = "import boto3, sys\n\
        from botocore.config import Config\n\
        client = boto3.client('s3', endpoint_url=sys.argv[1], aws_access_key_id=sys.argv[2], aws_secret_access_key=sys.argv[3],\n\
        \x20   region_name='us-east-1', config=Config(s3={'addressing_style': 'path'}, retries={'max_attempts': 1}))\n\
        for key in ['50%.txt', 'a;b', 'a//b', '/a', 'back\\\\slash', '\u{e9}', 'a b+c', 'a%41', '(x)!*\\'', 'tab\\t', 'dir./x', '\u{65e5}\u{672c}', 'q?a=b#c', '{x}|<y>\"^`', '~a-_.']:\n\
        \x20   print(client.get_object(Bucket='b', Key=key)['Body'].read().decode())\n\
        \x20   client.put_object(Bucket='b', Key=key, Body=b'x')\n";
    let url = format!("{}/api/s3", sandbox.proxy_url());
    let (id, secret) = (key("access_key_id"), key("secret_access_key"));
    let finished = python(script, "aws/bin/python", &[&url, &id, &secret]);
    let paths: Vec<&str> = succeeded(&finished).lines().collect();
    assert_eq!(
        paths,
        [
            "/b/50%25.txt",
            "/b/a%3Bb",
            "/b/a//b",
            "/b//a",
            "/b/back%5Cslash",
            "/b/%C3%A9",
            "/b/a%20b%2Bc",
            "/b/a%2541",
            "/b/%28x%29%21%2A%27",
            "/b/tab%09",
            "/b/dir./x",
            "/b/%E6%97%A5%E6%9C%AC",
            "/b/q%3Fa%3Db%23c",
            "/b/%7Bx%7D%7C%3Cy%3E%22%5E%60",
            "/b/~a-_.",
        ]
    );
}

/// What Terraform's backend "http" keeps, and who has locked it.
fn state(request: &Request) -> Answer {
    use parking_lot::Mutex;
    static STATE: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    let mut state = STATE.lock();
    match request.method().as_str() {
        "GET" if state.is_empty() => Answer::with(204, &[], ""),
        "GET" => Answer::with(200, &[("Content-Type", "application/json")], state.clone()),
        "POST" => {
            state.clone_from(&request.body);
            Answer::with(200, &[], "")
        }
        "LOCK" | "UNLOCK" => Answer::with(200, &[], ""),
        _ => Answer::with(405, &[], ""),
    }
}

#[test]
#[cfg_attr(not(has = "terraform"), ignore = "needs terraform")]
fn terraform_keeps_its_state() {
    let definition = "inject = { basic = \"u:{key}\" }\nslots = [\"basic:password\"]\nmethods = [\"LOCK\", \"UNLOCK\"]";
    let (rig, home) = (Rig::with(Upstream::start(state), definition), tempfile::tempdir().unwrap());
    let address = format!("{}/api/acme/state/x", rig.sandbox.proxy_url());
    let backend = format!(
        "terraform {{\n backend \"http\" {{\n address = \"{address}\"\n lock_address = \"{address}\"\n unlock_address = \"{address}\"\n \
         username = \"agent\"\n password = \"{}\"\n }}\n}}\nresource \"terraform_data\" \"x\" {{ input = \"y\" }}\n",
        rig.token
    );
    std::fs::write(home.path().join("main.tf"), backend).unwrap();
    for arguments in
        [&["init", "-input=false", "-no-color"][..], &["apply", "-auto-approve", "-input=false", "-no-color"]]
    {
        let mut command = client(&program("terraform"), home.path());
        command.env("CHECKPOINT_DISABLE", "1").current_dir(home.path()).args(arguments);
        succeeded(&run(&mut command, b""));
    }
    let methods: Vec<String> = rig.upstream.requests().iter().map(Request::method).collect();
    for method in ["GET", "LOCK", "POST", "UNLOCK"] {
        assert!(methods.iter().any(|m| m == method), "{method}: {methods:?}");
    }
    assert!(
        rig.upstream
            .requests()
            .iter()
            .all(|r| r.header("authorization") == Some(format!("Basic {}", STANDARD.encode(format!("u:{KEY}")))))
    );
}
