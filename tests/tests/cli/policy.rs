//! Policies as an operator writes and questions them.

use std::fs;

use seks_tests::{Sandbox, Upstream, process::wait_for, raw};
use serde_json::Value;

use super::{KEY, failure, succeed};

const PAYMENTS: &str = "name='payments'\nupstream='https://payments.test'\ninject='bearer'\n
    [body_fields]\namount='Long'\n\"card.number\"='String'\n";

fn write(sandbox: &Sandbox, name: &str, text: &str) -> String {
    let path = sandbox.data_dir().join("..").join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn the_schema_is_printed_with_the_fields_that_services_declare() {
    let sandbox = Sandbox::start();
    let schema = succeed(sandbox.cli().run(&["policy", "schema"], "")).stdout;
    assert!(schema.contains("namespace Seks {") && !schema.contains("amount"), "{schema}");
    sandbox.cli().apply_service(PAYMENTS);
    let schema = sandbox.cli().json(&["policy", "schema"]);
    let text = schema["schema"].as_str().unwrap();
    assert!(text.contains("\"amount\"?: Long, \"card\"?: { \"number\"?: String }"), "{text}");
    assert_eq!(sandbox.cli().json(&["service", "show", "payments"])["body_fields"]["amount"], "Long");
    let clash = PAYMENTS.replace("name='payments'", "name='other'").replace("amount='Long'", "amount='String'");
    let path = write(&sandbox, "other.toml", &clash);
    let (code, line) = failure(&sandbox.cli().run(&["service", "apply", "-f", &path], ""));
    assert!(code == 2 && line.contains("`amount`: declared as Long and as String"), "{line}");
    let bad = write(&sandbox, "bad.toml", &PAYMENTS.replace("Long", "Integer"));
    let (code, line) = failure(&sandbox.cli().run(&["service", "apply", "-f", &bad], ""));
    assert!(code == 2 && line.contains("body_fields: `amount`: its type is Long, String, Bool or decimal"), "{line}");
}

#[test]
fn refunds_up_to_50_can_be_written_for_forms_and_json() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("stripe", &upstream, KEY);
    let token = sandbox.token("bot", &["stripe"]).secret;
    sandbox.cli().apply_policies(
        r#"@id("refunds") permit (principal, action == Seks::Action::"POST", resource == Seks::Service::"stripe")
           when { context.path == "/v1/refunds" && context has body.amount && context.body.amount <= 50 };"#,
    );
    sandbox.cli().json(&["policy", "delete", "granted-services", "--yes"]);
    let send = |target: &str, kind: &str, body: &str| {
        let length = body.len();
        let head = format!(
            "POST /api/stripe{target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        raw::exchange(sandbox.proxy(), &head).status
    };
    let (form, json) = ("application/x-www-form-urlencoded", "application/json");
    for (target, kind, body, status) in [
        ("/v1/refunds", form, "charge=ch_1&amount=50", 200),
        ("/v1/refunds", json, r#"{"charge":"ch_1","amount":50}"#, 200),
        ("/v1/refunds", form, "charge=ch_1&amount=51", 403),
        ("/v1/refunds", form, "charge=ch_1", 403),
        ("/v1/refunds", form, "amount=5&amount=5000", 403),
        ("/v1/refunds", form, "amount=5;amount=5000", 403),
        ("/v1/refunds?amount=5000", form, "amount=5", 403),
        ("/v1/refunds", json, r#"{"amount":5,"amount":5000}"#, 403),
        ("/v1/refunds", json, r#"{"amount":"5"}"#, 403),
        ("/v1/refunds", "text/plain", "amount=5", 403),
        ("/v1/charges", form, "amount=5", 403),
    ] {
        assert_eq!(send(target, kind, body), status, "{target} {kind} {body}");
    }
    let arguments = ["policy", "simulate", "--agent", "bot", "--service", "stripe", "--method", "post"];
    let arguments = [&arguments[..], &["--path", "/v1/refunds", "--body", "-", "--content-type", form]].concat();
    assert_eq!(sandbox.cli().json_with(&arguments, "amount=50")["decision"], "allow");
    assert_eq!(sandbox.cli().json_with(&arguments, "amount=51")["decision"], "deny");
}

#[test]
fn a_policy_about_what_does_not_exist_is_applied_with_a_warning() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    sandbox.cli().json(&["agent", "create", "ci-bot", "--attr", "group=writers"]);
    let text =
        "@id(\"a\") permit (principal in Seks::Group::\"writer\", action,\n  resource == Seks::Service::\"opnai\");
        @id(\"b\") permit (principal == Seks::Agent::\"cibot\", action, resource == Seks::Service::\"openai\");
        @id(\"c\") permit (principal, action, resource) when { context has body.amount && context.body.amount < 5 };\n";
    let path = write(&sandbox, "typos.cedar", text);
    for verb in ["check", "apply"] {
        let warnings = sandbox.cli().json(&["policy", verb, "-f", &path])["warnings"].clone();
        let warnings: Vec<&str> = warnings.as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
        let has = |text: &str| warnings.iter().any(|warning| warning.contains(text));
        assert!(has("line 1: no agent is in group `writer`; did you mean `writers`?"), "{warnings:?}");
        assert!(has("line 2: there is no service `opnai`; did you mean `openai`?"), "{warnings:?}");
        assert!(has("line 3: there is no agent `cibot`; did you mean `ci-bot`?"), "{warnings:?}");
        assert!(has("the body field `amount` is declared by no service"), "{warnings:?}");
    }
    let table = succeed(sandbox.cli().run(&["policy", "apply", "-f", &path], ""));
    assert!(table.stderr.contains("warning: line 2: there is no service"), "{table:?}");
    let unknown = sandbox.cli().run(&["service", "show", "opnai"], "");
    assert_eq!(unknown.code, Some(3));
    assert!(unknown.stderr.contains("hint: did you mean `openai`?"), "{unknown:?}");
}

#[test]
fn a_denied_request_is_explained_by_its_id_and_by_its_description() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]).secret;
    sandbox.cli().apply_policies(
        r#"@id("chat") permit (principal, action == Seks::Action::"POST", resource == Seks::Service::"openai")
           when { context.path like "/v1/chat/*" && principal.hasTag("team") };
           @id("other") permit (principal, action, resource == Seks::Service::"github");
           @id("no-admin") forbid (principal, action, resource) when { context.path like "*/admin/*" };"#,
    );
    sandbox.cli().json(&["policy", "delete", "granted-services", "--yes"]);
    let denied = sandbox.post("/api/openai/v1/files?key=QUERY-CANARY", &token, "{}");
    assert_eq!(denied.status, 403);
    let id = denied.header("x-seks-request-id").unwrap().to_owned();
    let by_id = wait_for("the record of the request", || {
        let finished = sandbox.cli().run(&["policy", "explain", &id, "-o", "json"], "");
        (finished.code == Some(0)).then(|| serde_json::from_str::<Value>(&finished.stdout).unwrap())
    });
    assert_eq!(
        (&by_id["decision"], &by_id["recorded"]["reason"]),
        (&"deny".into(), &"policy_denied".into()),
        "{by_id}"
    );
    assert_eq!(by_id["policies"], serde_json::json!([]), "nothing that does not apply has denied: {by_id}");
    let closest = &by_id["explanation"][0];
    assert_eq!((&closest["policy"], &closest["applies"]), (&"chat".into(), &false.into()), "{by_id}");
    let unmet = closest["unmet"].to_string();
    assert!(unmet.contains("/v1/files") && unmet.contains("hasTag") && unmet.contains("no attributes"), "{unmet}");
    let describe = |path: &str, form: &str| {
        let arguments = ["policy", "explain", "--agent", "bot", "--service", "openai", "--method", "POST"];
        succeed(sandbox.cli().run(&[&arguments[..], &["--path", path, "-o", form]].concat(), "")).stdout
    };
    let text = describe("/v1/files", "table");
    assert!(text.contains("decision  deny (policy_denied)"), "{text}");
    assert!(text.contains("No policy permits the request") && text.contains("came closest is `chat`"), "{text}");
    assert!(!text.contains("Forbidden") && text.lines().all(|line| !line.contains("enied by")), "{text}");
    let forbidden = describe("/v1/ADMIN/keys", "table");
    assert!(forbidden.contains("came closest") || forbidden.contains("Forbidden by `no-admin`"), "{forbidden}");
    sandbox.cli().json(&["agent", "update", "bot", "--attr", "team=infra"]);
    let allowed = describe("/v1/chat/completions", "table");
    assert!(allowed.contains("decision  allow") && allowed.contains("Permitted by `chat`"), "{allowed}");
    assert!(!sandbox.cli().everything_printed().contains("QUERY-CANARY"));
    let unknown = sandbox.cli().run(&["policy", "explain", &"0".repeat(32)], "");
    assert_eq!(failure(&unknown).0, 3);
    assert_eq!(failure(&sandbox.cli().run(&["policy", "explain", "nonsense"], "")).0, 2);
    assert_eq!(failure(&sandbox.cli().run(&["policy", "explain", "--agent", "bot"], "")).0, 2);
}
