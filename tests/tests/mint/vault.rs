//! A credential as a reference: the secret stays in a stand-in for Vault, and the control plane
//! reads it.

use std::sync::Arc;

use parking_lot::Mutex;
use seks_tests::{
    Sandbox, Upstream,
    process::wait_for,
    upstream::{Answer, Request},
};
use serde_json::{Value, json};

const ROLE: &str = "role-0000000001";
const SECRET_ID: &str = "real-secret-id-0000000001";
const CLIENT_TOKEN: &str = "hvs.real-client-token-0000000001";

/// Vault's KV engine and AppRole login, and an API that accepts the secret that is in it.
struct Vault {
    upstream: Upstream,
    state: Arc<Mutex<State>>,
}

struct State {
    secret: String,
    reads: usize,
    sealed: bool,
}

impl Vault {
    fn start(secret: &str) -> Self {
        let state = Arc::new(Mutex::new(State { secret: secret.into(), reads: 0, sealed: false }));
        let shared = Arc::clone(&state);
        Self { upstream: Upstream::start(move |request| shared.lock().answer(request)), state }
    }

    fn reference(&self, login: &Value) -> Value {
        let mut reference = json!({ "address": self.upstream.origin(), "mount": "kv", "path": "apps/acme",
            "field": "api_key", "namespace": "team-a", "refresh_seconds": 10 });
        for (key, value) in login.as_object().unwrap() {
            reference[key] = value.clone();
        }
        reference
    }
}

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        let header = |name: &str| request.header(name).unwrap_or_default();
        if !request.path().starts_with("/v1/") || request.path() == "/v1/things" {
            let is_good = header("authorization") == format!("Bearer {}", self.secret);
            return Answer::json(if is_good { 200 } else { 401 }, "{}");
        }
        if self.sealed {
            return Answer::json(503, r#"{"errors":["Vault is sealed"]}"#);
        }
        if header("x-vault-namespace") != "team-a" {
            return Answer::json(404, r#"{"errors":[]}"#);
        }
        match request.path().as_str() {
            "/v1/auth/approle/login" => {
                let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
                if body != json!({ "role_id": ROLE, "secret_id": SECRET_ID }) {
                    return Answer::json(400, r#"{"errors":["invalid role or secret ID"]}"#);
                }
                Answer::json(200, &json!({ "auth": { "client_token": CLIENT_TOKEN } }).to_string())
            }
            "/v1/kv/data/apps/acme" if header("x-vault-token") == CLIENT_TOKEN => {
                self.reads += 1;
                let data = json!({ "api_key": self.secret, "other": "x" });
                Answer::json(200, &json!({ "data": { "data": data, "metadata": { "version": 1 } } }).to_string())
            }
            _ => Answer::json(403, r#"{"errors":["permission denied"]}"#),
        }
    }
}

fn put(sandbox: &Sandbox, reference: &Value) -> seks_tests::process::Finished {
    let arguments =
        ["credential", "put", "key", "--service", "acme", "--mint", "vault-kv", "--from-stdin", "-o", "json"];
    sandbox.cli().run(&arguments, &reference.to_string())
}

fn start(vault: &Vault) -> Sandbox {
    let sandbox = Sandbox::start();
    let origin = vault.upstream.origin();
    sandbox.cli().apply_service(&format!(
        "name = \"acme\"\nupstream = \"{origin}\"\nallow_private = true\ninject = \"bearer\"\n"
    ));
    sandbox
}

#[test]
fn a_secret_in_vault_is_read_again_and_a_change_reaches_the_nodes() {
    let vault = Vault::start("vaulted-key-0000000001");
    let sandbox = start(&vault);
    let stored = put(&sandbox, &vault.reference(&json!({ "role_id": ROLE, "secret_id": SECRET_ID })));
    assert_eq!(stored.code, Some(0), "{stored:?}");
    let token = sandbox.token("agent", &["acme"]).secret;
    let ask = || sandbox.get("/api/acme/things", &token).status;
    assert_eq!(ask(), 200);
    let show = || sandbox.cli().json(&["credential", "show", "key"]);
    let reads = vault.state.lock().reads;
    wait_for("another read", || (vault.state.lock().reads > reads + 1).then_some(()));
    assert_eq!(
        (&show()["version"], &show()["mint"]["kind"]),
        (&json!(1), &json!("vault-kv")),
        "unchanged: no new version"
    );
    // Vault is away: the last good version stays, and its state says so.
    vault.state.lock().sealed = true;
    wait_for("the failure to show", || show()["mint"]["failing_since"].is_string().then_some(()));
    assert_eq!(ask(), 200);
    {
        let mut state = vault.state.lock();
        (state.sealed, state.secret) = (false, "vaulted-key-0000000002".into());
    }
    wait_for("the changed secret", || (ask() == 200).then_some(()));
    assert_eq!(show()["version"], 2);
    let emitted = sandbox.everything_emitted();
    for secret in [SECRET_ID, CLIENT_TOKEN, "vaulted-key-0000000001", "vaulted-key-0000000002"] {
        assert!(!emitted.contains(secret), "{secret} was emitted");
    }
}

#[test]
fn a_reference_that_can_not_be_read_is_not_stored() {
    let vault = Vault::start("vaulted-key-0000000001");
    let sandbox = start(&vault);
    for (login, expect) in [
        (json!({ "token": "hvs.wrong-0000000001" }), "answered 403"),
        (json!({ "role_id": ROLE, "secret_id": "wrong-0000000001" }), "answered 400"),
        (json!({ "token": CLIENT_TOKEN, "field": "none" }), "no such key"),
        (json!({ "token": CLIENT_TOKEN, "field": "" }), "several keys"),
        (json!({ "token": CLIENT_TOKEN, "path": "../sys" }), "field `path`"),
        (json!({}), "either `token`"),
    ] {
        let refused = put(&sandbox, &vault.reference(&login));
        assert!(refused.code != Some(0) && refused.stderr.contains(expect), "{login}: {refused:?}");
        assert!(!refused.stderr.contains("0000000001"), "{refused:?}");
    }
    assert_eq!(sandbox.cli().run(&["credential", "show", "key"], "").code, Some(3));
    let stored = put(&sandbox, &vault.reference(&json!({ "token": CLIENT_TOKEN })));
    assert_eq!(stored.code, Some(0), "{stored:?}");
}
