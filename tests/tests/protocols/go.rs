//! Programs in Go, which find proxy and roots by `HTTPS_PROXY` and `SSL_CERT_FILE`: GitHub's `gh`,
//! and the standard library's client (`tests/sdk/go/plain`). Go reaches `localhost` past every
//! proxy, so that stand-ins have another name.

use std::process::Command;

use seks_tests::{
    Upstream,
    process::{Process, installed, program, run},
    upstream::{
        Answer, Gate, Host, Request,
        answer::{Step, chunk},
    },
};

use super::intercepting_sandbox::{InterceptingSandbox, KEY, client};

fn host() -> Host {
    Host::of_this_machine().unwrap()
}

pub(super) fn gh_asks_an_enterprise_host() {
    let gh = program("gh");
    let credential = format!("Bearer {KEY}");
    let wanted = credential.clone();
    let api = move |request: &Request| {
        if request.header("authorization").as_ref() != Some(&wanted) {
            return Answer::json(401, r#"{"message":"Bad credentials"}"#);
        }
        match request.path().as_str() {
            "/api/v3/user" => Answer::json(200, &format!(r#"{{"login":"octo","key":"{KEY}"}}"#)),
            _ => Answer::json(404, r#"{"message":"Not Found"}"#),
        }
    };
    let rig = InterceptingSandbox::with("", Upstream::start_tls_as(host(), api), credential, |cli, upstream| {
        cli.enable("github-enterprise", "code", upstream);
    });
    let (gh, at) = (gh.to_str().unwrap(), format!("GH_HOST={}", rig.authority()));
    // Its token is what the catalogue's entry sets for it: GH_ENTERPRISE_TOKEN.
    let user = rig.seks_run(&["env", &at, gh, "api", "user"]);
    rig.check(&user, &format!(r#"{{"login":"octo","key":"{}"}}"#, "*".repeat(KEY.len())), "/api/v3/user");
    let heard = rig.upstream.requests().len();
    let refused = rig.seks_run(&["env", &at, gh, "api", "user/keys", "--method", "POST"]);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(refused.code == Some(1) && said.contains("hand out keys") && said.contains("HTTP 403"), "{said}");
    assert_eq!(rig.upstream.requests().len(), heard, "it got no further than the node");
    assert!(!rig.sandbox.everything_emitted().contains(KEY));
}

pub(super) fn the_standard_library_of_go_calls_and_streams() {
    let plain = installed("go/plain");
    let gate = Gate::default();
    let held = gate.clone();
    let api = move |request: &Request| match request.path().as_str() {
        _ if request.header("authorization").as_deref() != Some(&format!("Bearer {KEY}")) => Answer::json(401, "{}"),
        "/events" => {
            let events = vec![chunk(b"data: one\n\n"), Step::Hold(held.clone()), chunk(b"data: two\n\n")];
            Answer::chunked(200, &[("Content-Type", "text/event-stream")], events, &[])
        }
        _ => Answer::json(200, &format!(r#"{{"ok":true,"key":"{KEY}"}}"#)),
    };
    let rig = InterceptingSandbox::bearer("", Upstream::start_tls_as(host(), api));
    let ok = format!(r#"{{"ok":true,"key":"{}"}}"#, "*".repeat(KEY.len()));
    let (program, user) = (plain.to_str().unwrap(), format!("{}/user", rig.origin()));
    rig.check(&rig.seks_run(&[program, &user]), &format!("HTTP/2.0 200\n{ok}"), "/user");

    let base = format!("{}/api/code", rig.sandbox.proxy_url());
    let by_path = |token: &str, rest: &str| {
        let mut command = client(plain.clone());
        command.arg(format!("{base}{rest}")).env("TOKEN", token);
        command
    };
    let posted = run(by_path(&rig.token.secret, "/user").arg("{}"), b"");
    rig.check(&posted, &format!("HTTP/1.1 200\n{ok}"), "/user");

    let mut within = client(plain.clone());
    within.arg(format!("{}/events", rig.origin())).env("HTTPS_PROXY", rig.proxy()).env("SSL_CERT_FILE", rig.ca());
    for (name, mut command) in [("within", within), ("by-path", by_path(&rig.token.secret, "/events"))] {
        streams(&rig, &gate, name, &mut command);
    }

    rig.sandbox.cli().revoke(&rig.token.id);
    let refused = run(&mut by_path(&rig.token.secret, "/user"), b"");
    assert!(refused.stdout.starts_with("HTTP/1.1 401\n"), "{refused:?}");
    assert!(refused.stdout.contains("the token was revoked"), "{refused:?}");
    assert!(!rig.sandbox.everything_emitted().contains(KEY));
}

/// The first event is there before the upstream has the second.
fn streams(rig: &InterceptingSandbox, gate: &Gate, name: &str, command: &mut Command) {
    gate.shut();
    let mut process = Process::spawn(name, rig.folder(), command);
    process.wait_for("the first event", || {
        let file = rig.folder().join(format!("{name}.out"));
        std::fs::read_to_string(file).is_ok_and(|text| text.contains("data: one\n")).then_some(())
    });
    gate.open();
    assert!(process.ended().success(), "{}", process.output());
    assert!(process.output().contains("data: one\n\ndata: two\n"), "{}", process.output());
    rig.check_secrets(&process.output());
}
