//! kubectl through the broker to a stand-in API server: get, watch, logs, and exec over WebSocket.

use std::{fs, process::Command, time::Duration};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::{
    Sandbox, Upstream, process,
    sandbox::Options,
    upstream::{
        Answer, Request,
        answer::{Step, chunk},
        tls,
    },
};

const KEY: &str = "real-kubernetes-token-000000000001";

fn pod(phase: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p","namespace":"default","uid":"1","resourceVersion":"1"}},"spec":{{"containers":[{{"name":"c","image":"i"}}]}},"status":{{"phase":"{phase}"}}}}"#
    )
}

/// Far enough an API server for one pod.
fn api_server(request: &Request) -> Answer {
    if request.header("authorization").as_deref() != Some(&format!("Bearer {KEY}")) {
        return Answer::json(401, r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":401}"#);
    }
    let pause = || Step::Pause(Duration::from_millis(50));
    match request.path().as_str() {
        "/api" => Answer::json(200, r#"{"kind":"APIVersions","versions":["v1"]}"#),
        "/apis" => Answer::json(200, r#"{"kind":"APIGroupList","apiVersion":"v1","groups":[]}"#),
        "/api/v1" => Answer::json(
            200,
            r#"{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"pods","singularName":"pod","namespaced":true,"kind":"Pod","verbs":["get","list","watch","create"]}]}"#,
        ),
        "/api/v1/namespaces/default/pods" if request.target().contains("watch=true") => {
            let event = |phase| chunk(format!("{{\"type\":\"MODIFIED\",\"object\":{}}}\n", pod(phase)).as_bytes());
            let events = vec![event("One"), pause(), event("Two")];
            Answer::chunked(200, &[("Content-Type", "application/json")], events, &[])
        }
        "/api/v1/namespaces/default/pods" => Answer::json(
            200,
            &format!(
                r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{"resourceVersion":"1"}},"items":[{}]}}"#,
                pod("Running")
            ),
        ),
        "/api/v1/namespaces/default/pods/p" => Answer::json(200, &pod("Running")),
        "/api/v1/namespaces/default/pods/p/log" => {
            let lines = vec![chunk(b"first line\n"), pause(), chunk(b"second line\n")];
            Answer::chunked(200, &[("Content-Type", "text/plain")], lines, &[])
        }
        "/api/v1/namespaces/default/pods/p/exec" => exec(request),
        _ => Answer::json(404, r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":404}"#),
    }
}

/// A WebSocket with some output and the exit status of a command that succeeded.
fn exec(request: &Request) -> Answer {
    let key = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", request.header("sec-websocket-key").unwrap());
    let accept = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes()));
    let protocols = request.header("sec-websocket-protocol").unwrap();
    let protocol = protocols.split(',').next().unwrap().trim();
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    let frame = |payload: &[u8]| [&[0x82, u8::try_from(payload.len()).unwrap()], payload].concat();
    let output = frame(&[b"\x01the key is ", KEY.as_bytes(), b"\n"].concat());
    let status = frame(b"\x03{\"metadata\":{},\"status\":\"Success\"}");
    Answer::steps(vec![Step::Send([head.as_bytes(), &output, &status, &[0x88, 2, 3, 232]].concat()), Step::Stall])
}

#[test]
#[cfg_attr(not(has = "kubectl"), ignore = "needs kubectl")]
fn kubectl_gets_watches_reads_logs_and_executes() {
    // kubectl sends a token over TLS alone.
    let (directory, identity) = (tempfile::tempdir().unwrap(), tls::identity());
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path
    };
    let (cert, key) = (file("cert.pem", &identity.certificate_pem), file("key.pem", &identity.key_pem));
    let ca = file("ca.pem", &identity.ca_pem);
    let config = format!("[proxy.tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n");
    let (sandbox, upstream) = (Sandbox::with(Options { config, ..Options::default() }), Upstream::start(api_server));
    sandbox.cli().apply_service(&format!(
        "name = 'k8s'\nupstream = '{}'\nallow_private = true\ninject = 'bearer'\nallow_websocket = true\n",
        upstream.origin()
    ));
    sandbox.cli().put_credential("k8s", "k8s", KEY);
    let token = sandbox.token("agent", &["k8s"]).secret;
    let masked = "*".repeat(KEY.len());
    for (arguments, printed) in [
        (&["get", "pods", "-o", "name"][..], "pod/p\n".to_owned()),
        (&["get", "pods", "--watch", "-o", "jsonpath={.status.phase} "], "Running One Two ".into()),
        (&["logs", "p", "--follow"], "first line\nsecond line\n".into()),
        (&["exec", "p", "--", "printenv"], format!("the key is {masked}\n")),
    ] {
        let mut command = Command::new("kubectl");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", directory.path());
        command.args(["--server", &format!("{}/api/k8s", sandbox.proxy_url()), "--token", &token]);
        command.arg("--certificate-authority").arg(&ca).args(arguments);
        let finished = process::run(&mut command, b"");
        assert_eq!(
            (finished.code, finished.stdout.as_str()),
            (Some(0), printed.as_str()),
            "{arguments:?}: {}",
            finished.stderr
        );
    }
}
