//! A URL that a client uses without a key stands for the token, for exactly what the upstream gave
//! it out for.

use std::sync::{Arc, OnceLock};

use seks_tests::{
    Sandbox, Upstream,
    raw::{Connection, Reply},
    sandbox::Token,
    upstream::Answer,
};

const KEY: &str = "real-google-key-CANARY-000000000001";
const UPLOAD: &str = "/upload/v1beta/files?upload_id=a7&upload_protocol=resumable";

struct Rig {
    sandbox: Sandbox,
    upstream: Upstream,
    token: Token,
    /// Path and query of the URL that the node gave out.
    url: String,
}

/// An upload has been begun with a token; its URL is in `X-Goog-Upload-URL`.
fn begun() -> Rig {
    let origin: Arc<OnceLock<String>> = Arc::default();
    let own = origin.clone();
    let upstream = Upstream::start(move |request| match request.header("x-goog-upload-command").as_deref() {
        Some("start") => {
            let url = format!("{}{UPLOAD}", own.get().unwrap());
            Answer::with(200, &[("X-Goog-Upload-URL", &url), ("Content-Type", "application/json")], "{}")
        }
        _ => Answer::json(200, r#"{"file":{"name":"files/1"}}"#),
    });
    origin.set(upstream.origin()).unwrap();
    let sandbox = Sandbox::start();
    sandbox.service("gemini", &upstream, KEY);
    let token = sandbox.token("agent", &["gemini"]);
    let reply = ask(
        &sandbox,
        "/upload/v1beta/files",
        &format!("x-goog-api-key: {}\r\nX-Goog-Upload-Command: start\r\n", token.secret),
    );
    let url = reply.header("x-goog-upload-url").unwrap().to_owned();
    let rest = url.strip_prefix("http://localhost/api/gemini").unwrap().to_owned();
    assert!(rest.starts_with(UPLOAD) && rest.contains("&seks_capability="), "{url}");
    assert!(!url.contains("seks_token_"));
    Rig { sandbox, upstream, token, url: rest }
}

fn ask(sandbox: &Sandbox, rest: &str, lines: &str) -> Reply {
    let mut client = Connection::open(sandbox.proxy());
    client.send(format!("POST /api/gemini{rest} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: 4\r\n\r\ndata"));
    client.read_reply(false)
}

#[test]
fn an_upload_goes_on_without_a_key() {
    let rig = begun();
    let reply = ask(&rig.sandbox, &rig.url, "X-Goog-Upload-Command: upload, finalize\r\n");
    assert_eq!((reply.status, reply.text().as_str()), (200, r#"{"file":{"name":"files/1"}}"#));
    let last = rig.upstream.requests().last().unwrap().clone();
    assert_eq!((last.target().as_str(), last.header("x-goog-api-key").as_deref()), (UPLOAD, Some(KEY)));
    assert!(!rig.sandbox.everything_emitted().contains("seks_capability"), "a query is never logged");
    // With the token beside it, as clients send it that put it into every request.
    let with = ask(&rig.sandbox, &rig.url, &format!("x-goog-api-key: {}\r\n", rig.token.secret));
    assert_eq!((with.status, rig.upstream.requests().last().unwrap().target().as_str()), (200, UPLOAD));
}

#[test]
fn a_stolen_url_is_good_for_nothing_else() {
    let rig = begun();
    let before = rig.upstream.complete();
    let capability = rig.url.split_once("&seks_capability=").unwrap().1.to_owned();
    let other = |rest: &str| format!("{rest}seks_capability={capability}");
    for rest in [
        other("/v1beta/models?"),
        other("/upload/v1beta/files?upload_id=a8&upload_protocol=resumable&"),
        other("/upload/v1beta/files?upload_id=a7&"),
        other("/upload/v1beta/files?upload_protocol=resumable&upload_id=a7&"),
        format!("{}&x=1", rig.url),
        format!("{}A", rig.url),
        format!("{}&seks_capability={capability}", rig.url),
        rig.url.replace("seks_capability=A", "seks_capability=B"),
    ] {
        let reply = ask(&rig.sandbox, &rest, "");
        assert_eq!(reply.status, 401, "{rest}: {}", reply.text());
    }
    // Another token beside it is two tokens.
    let second = rig.sandbox.token("second", &["gemini"]).secret;
    assert_eq!(ask(&rig.sandbox, &rig.url, &format!("x-goog-api-key: {second}\r\n")).code(), "token_ambiguous");
    assert_eq!(rig.upstream.complete(), before, "nothing reached the upstream");
}

#[test]
fn the_url_ends_with_its_token_and_obeys_policies() {
    let rig = begun();
    rig.sandbox.cli().apply_policies(
        "@id(\"no-uploads\")\nforbid (principal, action, resource) when { context.path like \"/upload/*\" };",
    );
    let denied = ask(&rig.sandbox, &rig.url, "");
    assert_eq!((denied.status, denied.code().as_str()), (403, "policy_denied"));
    rig.sandbox.cli().revoke(&rig.token.id);
    assert_eq!(ask(&rig.sandbox, &rig.url, "").code(), "token_revoked");
}

#[test]
fn a_service_without_keyless_urls_neither_gives_nor_takes_them() {
    let rig = begun();
    let origin = rig.upstream.origin();
    rig.sandbox.cli().apply_service(&format!(
        "name = 'plain'\nupstream = '{origin}'\nallow_private = true\ninject = {{ header = 'x-goog-api-key' }}\n"
    ));
    rig.sandbox.cli().put_credential("plain", "plain", KEY);
    let token = rig.sandbox.token("third", &["plain"]).secret;
    let mut client = Connection::open(rig.sandbox.proxy());
    client.send(format!("GET /api/plain{} HTTP/1.1\r\nHost: localhost\r\n\r\n", rig.url));
    assert_eq!(client.read_reply(false).code(), "token_missing");
    let mut client = Connection::open(rig.sandbox.proxy());
    client.send(format!("GET /api/plain/x HTTP/1.1\r\nHost: localhost\r\nx-goog-api-key: {token}\r\nX-Goog-Upload-Command: start\r\n\r\n"));
    let url = client.read_reply(false).header("x-goog-upload-url").unwrap().to_owned();
    assert_eq!(url, format!("http://localhost/api/plain{UPLOAD}"));
}
