//! A field that is no secret is injected and stays readable in answers; the pair that Basic makes
//! of it does not.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::{Sandbox, Upstream, upstream::Answer};

/// What the agent reads when the upstream of a service with these lines answers with `body`.
fn read(definition: &str, credential: &str, body: String) -> String {
    let upstream = Upstream::start(move |_| Answer::json(200, &body));
    let sandbox = Sandbox::start();
    sandbox.cli().apply_service(&format!(
        "name = 'acme'\nupstream = '{}'\nallow_private = true\n{definition}\n",
        upstream.origin()
    ));
    sandbox.cli().put_credential("acme", "acme", credential);
    let token = sandbox.token("agent", &["acme"]).secret;
    let basic = STANDARD.encode(format!("agent:{token}"));
    let head = format!("GET /api/acme/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {basic}\r\n\r\n");
    let reply = seks_tests::raw::exchange(sandbox.proxy(), head.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.text()
}

const BASIC: &str = "inject = { basic = '{user}:{secret}' }\nslots = ['basic:either']\n";
const SECRET: &str = "s3cret-CANARY-000000000001";

#[test]
fn a_public_user_name_stays_and_the_pair_and_the_secret_are_masked() {
    for user in ["elastic", "AC0123456789abcdef0123456789abcdef", "bot@example.com", "a", "user"] {
        let credential = format!(r#"{{"user":"{user}","secret":"{SECRET}"}}"#);
        let pair = STANDARD.encode(format!("{user}:{SECRET}"));
        let body = format!(
            r#"{{"tagline":"{user}search","next":"/Accounts/{user}/x","a":"{SECRET}","b":"{pair}","c":"{user}:{SECRET}"}}"#
        );
        let text = read(&format!("{BASIC}public = ['user']"), &credential, body);
        assert!(
            text.starts_with(&format!(r#"{{"tagline":"{user}search","next":"/Accounts/{user}/x","a":""#)),
            "{text}"
        );
        assert!(!text.contains(SECRET) && !text.contains(&pair) && !text.contains("s3cret"), "{text}");
    }
}

#[test]
fn a_field_that_is_not_public_is_masked_as_before() {
    let credential = format!(r#"{{"user":"elastic","secret":"{SECRET}"}}"#);
    assert_eq!(read(BASIC, &credential, r#"{"tagline":"elasticsearch"}"#.into()), r#"{"tagline":"*******search"}"#);
}

#[test]
fn catalogue_entries_say_which_fields_are_public() {
    for (name, field) in [("twilio", "sid"), ("atlassian", "email"), ("elasticsearch-basic", "username")] {
        let sandbox = Sandbox::start();
        let upstream = Upstream::ok();
        sandbox.cli().enable(name, name, &upstream);
        let shown = sandbox.cli().json(&["service", "show", name]);
        assert_eq!(shown["public"], serde_json::json!([field]), "{name}");
    }
}
