//! A store that the last release wrote, opened by this version. `tests/data/released-store.tar.gz`
//! is the data directory of `seks dev`, with a service `acme`, its credential `acme-key` in two
//! versions, an agent `ci-bot` and a policy `readers`. Its keys protect nothing else.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::path::Path;

use seks_tests::{Sandbox, Upstream, sandbox::Options};
use serde_json::json;

#[test]
fn a_store_of_the_last_release_opens_and_serves() {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/released-store.tar.gz");
    let mut sandbox = Sandbox::with(Options { data: Some(archive), ..Options::default() });
    let show = |sandbox: &Sandbox, noun: &str, name: &str| sandbox.cli().json(&[noun, "show", name]);
    assert_eq!(show(&sandbox, "agent", "ci-bot")["attributes"], json!({ "team": "ops" }));
    assert_eq!(show(&sandbox, "policy", "readers")["id"], "readers");
    let credential = show(&sandbox, "credential", "acme-key");
    assert_eq!((&credential["version"], &credential["unbound"]), (&json!(2), &json!(false)), "{credential}");
    // An envelope of the release opens: an earlier version is used again.
    let rolled_back = sandbox.cli().json(&["credential", "rollback", "acme-key", "--version", "1"]);
    assert_eq!(rolled_back["version"], 3, "{rolled_back}");
    // The service moves to a server of this test, and the secret with it, by an owner's decision.
    let upstream = Upstream::ok();
    let origin = upstream.origin();
    sandbox.cli().apply_service(&format!(
        "name = \"acme\"\nupstream = \"{origin}\"\nallow_private = true\ninject = \"bearer\"\n"
    ));
    sandbox.cli().json(&["credential", "rebind", "acme-key", "--yes"]);
    let token = sandbox.cli().issue("ci-bot", &["acme"], &[]).secret;
    assert_eq!(sandbox.get("/api/acme/things", &token).status, 200);
    let given = upstream.requests()[0].header("authorization");
    assert_eq!(given.as_deref(), Some("Bearer released-key-1"));
    sandbox.restart();
    assert_eq!(sandbox.get("/api/acme/things", &token).status, 200);
}
