//! Tripwires: what a stolen or misused token causes is an alarm with its source, in the chain, in
//! the metric and in the tail.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use seks_tests::{Sandbox, Upstream, process::wait_for, sandbox::Options, upstream::Answer};
use seks_types::token::FreshToken;
use serde_json::Value;

const SECRET: &str = "sk-real-0123456789abcdef";

fn alarms(sandbox: &Sandbox) -> Vec<(String, Value)> {
    let changes = sandbox.cli().json(&["audit", "admin", "--verb", "Tripwire"]);
    let alarm = |change: &Value| {
        let object = &change["objects"][0];
        (object["after"]["tripwire"].as_str().unwrap_or_default().to_owned(), change.clone())
    };
    let alarms = changes.as_array().unwrap().iter().filter(|change| change["outcome"] == "alarm");
    alarms.map(alarm).collect()
}

/// Waits for an alarm of this kind.
fn alarm(sandbox: &Sandbox, kind: &str) -> Value {
    wait_for(kind, || alarms(sandbox).into_iter().find(|(found, _)| found == kind).map(|(_, change)| change))
}

fn count(sandbox: &Sandbox, kind: &str) -> u64 {
    let name = format!("seks_audit_tripwires_total{{kind=\"{kind}\"}} ");
    let page = sandbox.metrics_page();
    page.lines()
        .find_map(|line| line.strip_prefix(&name))
        .unwrap_or_else(|| panic!("no {name}: {page}"))
        .parse()
        .unwrap()
}

#[test]
fn each_misuse_of_a_token_is_one_alarm_with_its_source_and_ordinary_use_is_none() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let sandbox = Sandbox::start();
    let cli = sandbox.cli();
    sandbox.service("openai", &upstream, SECRET);
    sandbox.service("github", &upstream, SECRET);
    let bot = sandbox.token("ci-bot", &["openai"]);
    let kinds = ["canary", "revoked_token", "unknown_token", "service_not_granted", "token_in_path", "new_network"];
    assert_eq!(sandbox.get("/api/openai/v1/models", &bot.secret).status, 200);
    assert_eq!(sandbox.get("/api/openai/v1/models", "nobody").status, 401);
    assert_eq!(sandbox.get("/api/nothing/v1/models", &bot.secret).status, 404);

    let (other, revoked) = (cli.issue("ci-bot", &["openai"], &[]), cli.issue("ci-bot", &["openai"], &[]));
    cli.revoke(&revoked.id);
    let canary = cli.json(&["token", "issue", "--canary"]);
    let (canary_id, canary) = (canary["id"].as_str().unwrap(), canary["token"].as_str().unwrap());
    assert!(canary_id.starts_with("tok-canary-"), "{canary_id}");
    assert_eq!(cli.json(&["token", "show", canary_id])["services"], Value::Array(Vec::new()));
    let unknown = FreshToken::generate().unwrap();
    for _ in 0..3 {
        assert_eq!(sandbox.get("/api/openai/v1/models", &revoked.secret).status, 401);
        assert_eq!(sandbox.get("/api/openai/v1/models", unknown.as_str()).status, 401);
        assert_eq!(sandbox.get("/api/github/user", &bot.secret).status, 403);
        assert_eq!(sandbox.get(&format!("/api/openai/v1/{}", other.secret), &bot.secret).status, 400);
        assert_eq!(sandbox.get("/api/openai/v1/models", canary).status, 403);
    }
    for (kind, token) in [
        ("revoked_token", revoked.id.as_str()),
        ("unknown_token", ""),
        ("service_not_granted", &bot.id),
        ("token_in_path", &bot.id),
        ("canary", canary_id),
    ] {
        let alarm = alarm(&sandbox, kind);
        let object = &alarm["objects"][0];
        assert_eq!((&object["name"], &object["after"]["source"]), (&token.into(), &"127.0.0.1".into()), "{alarm}");
        assert_eq!(object["after"]["node"], "dev", "{alarm}");
    }
    wait_for("all of them", || (count(&sandbox, "canary") == 3).then_some(()));
    assert_eq!(kinds.map(|kind| count(&sandbox, kind)), [3, 3, 3, 3, 3, 0], "{kinds:?}");
    assert_eq!(alarms(&sandbox).len(), 5, "one for each token and network: {:?}", alarms(&sandbox));

    let tail = cli.run(&["audit", "tail", "-n", "50", "-o", "json"], "").stdout;
    let lines: Vec<Value> = tail.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tripped: Vec<&Value> = lines.iter().filter(|line| line["tripwire"] != Value::Null).collect();
    assert_eq!(tripped.len(), 15, "{tail}");
    assert!(tripped.iter().any(|line| line["tripwire"] == "canary" && line["token"] == canary_id));
    let printed = cli.run(&["audit", "tail", "--token", canary_id], "").stdout;
    assert!(printed.contains("tripwire: canary"), "{printed}");
    for secret in [canary, unknown.as_str(), &revoked.secret] {
        assert!(!format!("{:?}", alarms(&sandbox)).contains(&secret[11..33]), "a token is in an alarm");
    }
}

#[test]
fn a_tripwire_can_revoke_the_token() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let store = "kind = \"embedded\"\npath = \"store/seks.redb\"\n[audit]\nrevoke_on = [\"service_not_granted\"]\n";
    let sandbox = Sandbox::with(Options::planes(store));
    sandbox.service("openai", &upstream, SECRET);
    sandbox.service("github", &upstream, SECRET);
    let bot = sandbox.token("ci-bot", &["openai"]);
    assert_eq!(sandbox.get("/api/openai/v1/models", &bot.secret).status, 200);
    assert_eq!(sandbox.get("/api/github/user", &bot.secret).status, 403);
    wait_for("the revocation", || (sandbox.get("/api/openai/v1/models", &bot.secret).status == 401).then_some(()));
    let revoked = sandbox.cli().json(&["audit", "admin", "--object", &bot.id, "--verb", "Tripwire"]);
    let revoked: Vec<&Value> = revoked.as_array().unwrap().iter().filter(|change| change["outcome"] == "ok").collect();
    assert_eq!((revoked.len(), &revoked[0]["objects"][0]["after"]), (1, &Value::Null), "{revoked:?}");
}
