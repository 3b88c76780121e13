//! Minted credentials, whole: a stand-in token endpoint and API behind a broker, and an agent that
//! never notices.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod idp;
mod vault;

use seks_tests::{Sandbox, oracle, process::wait_for};
use serde_json::{Value, json};

use crate::idp::{CLIENT_SECRET, Idp};

fn start_idp() -> (Sandbox, Idp) {
    let (sandbox, idp) = (Sandbox::start(), Idp::start());
    let definition =
        format!("name = \"acme\"\nupstream = \"{}\"\nallow_private = true\ninject = \"bearer\"\n", idp.origin());
    sandbox.cli().apply_service(&definition);
    (sandbox, idp)
}

fn put(sandbox: &Sandbox, kind: &str, secret: &Value) -> Value {
    let arguments = ["credential", "put", "key", "--service", "acme", "--mint", kind, "--from-stdin"];
    sandbox.cli().json_with(&arguments, &secret.to_string())
}

fn show(sandbox: &Sandbox) -> Value {
    sandbox.cli().json(&["credential", "show", "key"])
}

/// What the API says to an agent: the token that the node brought, or a status.
fn ask(sandbox: &Sandbox, token: &str) -> (u16, String) {
    let reply = sandbox.get("/api/acme/v1/things", token);
    (reply.status, reply.text())
}

fn nothing_long_lived_came_out(sandbox: &Sandbox, idp: &Idp) {
    let emitted = sandbox.everything_emitted();
    for secret in idp.long_lived() {
        assert!(!emitted.contains(&secret), "{secret} was emitted");
    }
    for minted in idp.minted() {
        assert!(!emitted.contains(&minted), "{minted} was emitted");
    }
}

#[test]
fn client_credentials_become_a_token_that_is_renewed_before_it_ends() {
    let (sandbox, idp) = start_idp();
    idp.tokens_live(3);
    let stored = put(&sandbox, "oauth2-client", &idp.client());
    assert_eq!((&stored["mint"]["kind"], &stored["version"]), (&json!("oauth2-client"), &json!(1)), "{stored}");
    let token = sandbox.token("agent", &["acme"]).secret;
    // Over three lives of a token, no request meets one that has ended.
    let mut served = 0;
    wait_for("the fourth token", || {
        let (status, text) = ask(&sandbox, &token);
        assert_eq!((status, text.as_str()), (200, "{\"ok\":true}"), "after {served} requests");
        served += 1;
        (idp.minted().len() >= 4).then_some(())
    });
    let shown = show(&sandbox);
    assert!(shown["version"].as_u64().unwrap() >= 3 && shown["mint"]["failing_since"].is_null(), "{shown}");
    let last = idp.exchanges().pop().unwrap();
    assert!(last.contains("grant_type=client_credentials") && last.contains("scope=read%20write"), "{last}");
    assert!(sandbox.metrics_page().contains("seks_mint_refreshes_total{outcome=\"ok\"}"));
    nothing_long_lived_came_out(&sandbox, &idp);
}

#[test]
fn what_is_minted_for_a_service_that_goes_elsewhere_is_not_used_there() {
    let (sandbox, idp) = start_idp();
    idp.tokens_live(3);
    put(&sandbox, "oauth2-client", &idp.client());
    let token = sandbox.token("agent", &["acme"]).secret;
    assert_eq!(ask(&sandbox, &token).0, 200);
    let other = seks_tests::Upstream::ok();
    let definition =
        format!("name = \"acme\"\nupstream = \"{}\"\nallow_private = true\ninject = \"bearer\"\n", other.origin());
    sandbox.cli().apply_service(&definition);
    let before = idp.minted().len();
    // Over two more lives of a token: what is minted after the change is bound as the first was.
    wait_for("two more tokens", || {
        let (status, text) = ask(&sandbox, &token);
        assert!(status == 403 && text.contains("credential_unbound"), "{status}: {text}");
        (idp.minted().len() >= before + 2).then_some(())
    });
    assert_eq!(show(&sandbox)["unbound"], true);
    assert!(other.received().is_empty(), "not even a connection is made");
    put(&sandbox, "oauth2-client", &idp.client());
    assert_eq!(ask(&sandbox, &token).0, 200, "stored again, it is for the other destination");
    nothing_long_lived_came_out(&sandbox, &idp);
}

#[test]
fn a_rotating_refresh_token_is_never_used_twice_and_survives_a_crash() {
    let (mut sandbox, idp) = start_idp();
    idp.tokens_live(3);
    idp.rotate();
    put(&sandbox, "oauth2-refresh", &idp.refresh());
    let token = sandbox.token("agent", &["acme"]).secret;
    let version = || show(&sandbox)["version"].as_u64().unwrap();
    wait_for("three rotations", || (version() >= 3).then_some(()));
    // Not within an exchange: what is lost then only the provider can give again. A token of 60
    // days ends in another month.
    idp.tokens_live(60 * 24 * 3600);
    wait_for("a token that lasts", || {
        let shown = show(&sandbox);
        let month = |name: &str| shown["mint"][name].as_str().unwrap()[..7].to_owned();
        (month("expires_at") != month("refreshed_at")).then_some(())
    });
    sandbox.crash();
    assert_eq!(ask(&sandbox, &token).0, 200, "what was minted before the crash");
    idp.revoke_all();
    wait_for("the next rotation", || (ask(&sandbox, &token).0 == 200).then_some(()));
    assert_eq!(idp.reused(), 0, "a refresh token was used twice");
    nothing_long_lived_came_out(&sandbox, &idp);
}

#[test]
fn a_failing_endpoint_leaves_the_last_good_token_and_says_so() {
    let (sandbox, idp) = start_idp();
    idp.tokens_live(600);
    put(&sandbox, "oauth2-client", &idp.client());
    let token = sandbox.token("agent", &["acme"]).secret;
    assert_eq!(ask(&sandbox, &token).0, 200);
    idp.answer_with(503);
    idp.expire_soon();
    // The API refuses once: the node asks for another, and there is none.
    assert_eq!(ask(&sandbox, &token).0, 401);
    let shown = wait_for("the failure to show", || {
        let shown = show(&sandbox);
        shown["mint"]["failing_since"].is_string().then_some(shown)
    });
    assert_eq!(shown["mint"]["error"], "the token endpoint answered 503", "{shown}");
    assert_eq!(shown["version"], 1);
    let listed = sandbox.cli().run(&["credential", "list"], "").stdout;
    assert!(listed.contains("FAILING since"), "{listed}");
    assert!(sandbox.metrics_page().contains("seks_mint_failing 1"));
    assert_eq!(ask(&sandbox, &token).0, 200, "the last good token stays in use");
    idp.answer_with(200);
    wait_for("the next token", || show(&sandbox)["mint"]["failing_since"].is_null().then_some(()));
    assert_eq!(show(&sandbox)["version"], 2);
}

#[test]
fn a_token_that_an_upstream_refuses_is_renewed_once_however_many_requests_meet_that() {
    let (sandbox, idp) = start_idp();
    idp.tokens_live(3600);
    put(&sandbox, "oauth2-client", &idp.client());
    let token = sandbox.token("agent", &["acme"]).secret;
    assert_eq!(ask(&sandbox, &token).0, 200);
    idp.revoke_all();
    for _ in 0..20 {
        let (status, _) = ask(&sandbox, &token);
        assert!(status == 401 || status == 200);
    }
    wait_for("a new token", || (ask(&sandbox, &token).0 == 200).then_some(()));
    assert_eq!(idp.minted().len(), 2, "one refresh");
    // A second refusal at once: no storm.
    idp.revoke_all();
    for _ in 0..20 {
        assert_eq!(ask(&sandbox, &token).0, 401);
    }
    assert_eq!(idp.minted().len(), 2, "refreshes on demand are rate-limited");
}

#[test]
fn what_can_not_mint_is_not_stored() {
    let (sandbox, idp) = start_idp();
    let try_put = |kind: &str, secret: &Value| {
        let arguments = ["credential", "put", "key", "--service", "acme", "--mint", kind, "--from-stdin"];
        let finished = sandbox.cli().run(&arguments, &secret.to_string());
        (finished.code, finished.stderr)
    };
    let (code, said) =
        try_put("oauth2-client", &json!({ "token_url": format!("{}/token", idp.origin()), "client_id": "x" }));
    assert!(code == Some(2) && said.contains("`client_secret` is missing"), "{code:?} {said}");
    let mut wrong = idp.client();
    wrong["client_secret"] = "wrong-client-secret-000001".into();
    let (code, said) = try_put("oauth2-client", &wrong);
    assert!(code != Some(0) && said.contains("answered 401 (invalid_client)"), "{code:?} {said}");
    assert!(!said.contains("wrong-client-secret") && !said.contains("do not tell"), "{said}");
    for inside in ["http://169.254.169.254/token", "https://metadata.google.internal/token"] {
        let mut never = idp.client();
        never["token_url"] = inside.into();
        let (code, said) = try_put("oauth2-client", &never);
        assert!(code == Some(2) && said.contains("always forbidden"), "{code:?} {said}");
    }
    let key = json!({ "client_email": "a@b", "private_key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "scope": "s" });
    let (code, said) = try_put("service-account", &key);
    assert!(code == Some(2) && said.contains("`private_key` is not an RSA key"), "{code:?} {said}");
    assert_eq!(sandbox.cli().run(&["credential", "show", "key"], "").code, Some(3));
}

#[test]
fn a_secret_put_as_it_is_ends_the_minting() {
    let (sandbox, idp) = start_idp();
    idp.tokens_live(3);
    put(&sandbox, "oauth2-client", &idp.client());
    let rollback = sandbox.cli().run(&["credential", "rollback", "key"], "");
    assert_eq!(rollback.code, Some(5), "{}", rollback.stderr);
    let plain = sandbox.cli().put_credential("key", "acme", "a-plain-key-0000000001");
    assert!(plain.get("mint").is_none(), "{plain}");
    let token = sandbox.token("agent", &["acme"]).secret;
    idp.accept("a-plain-key-0000000001");
    let (minted, asked) = (idp.minted().len(), std::time::Instant::now());
    wait_for("two lives of a token", || (asked.elapsed().as_secs() >= 6).then_some(()));
    assert!(idp.minted().len() <= minted + 1, "one may have been under way");
    assert_eq!(ask(&sandbox, &token).0, 200);
    assert!(!oracle::contains(show(&sandbox).to_string().as_bytes(), CLIENT_SECRET.as_bytes()));
}
