//! The chain of admin changes: what operators do is recorded with the change itself, on either
//! store, and only for who may see it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use seks_tests::{
    Sandbox, Upstream,
    etcd::Etcd,
    sandbox::{Cli, Options},
    upstream::Answer,
};
use serde_json::Value;

const SECRET: &str = "sk-real-0123456789abcdef";

fn changes(cli: &Cli, arguments: &[&str]) -> Vec<Value> {
    cli.json(&[&["audit", "admin"], arguments].concat()).as_array().unwrap().clone()
}

/// The newest change by this call.
fn newest(cli: &Cli, verb: &str) -> Value {
    changes(cli, &["--verb", verb]).first().unwrap_or_else(|| panic!("no {verb}")).clone()
}

/// A CLI of a new operator with this role.
fn operator(sandbox: &Sandbox, name: &str, role: &str) -> Cli {
    let file = format!("{name}.toml");
    sandbox.cli().json(&["operator", "create", name, "--role", role, "--out", &file]);
    let directory = sandbox.data_dir().parent().unwrap().to_path_buf();
    Cli::new(&directory, &directory.join(file))
}

/// Changes of each kind, and what the chain says of them.
fn each_change_names_what_it_touched(sandbox: &Sandbox) {
    let (first, second) = (Upstream::start(|_| Answer::json(200, "{}")), Upstream::start(|_| Answer::json(200, "{}")));
    let cli = sandbox.cli();
    sandbox.service("openai", &first, SECRET);
    let token = sandbox.token("ci-bot", &["openai"]);
    let issued = newest(cli, "IssueToken");
    let operator = &cli.json(&["operator", "list"])[0]["name"];
    assert_eq!((&issued["operator"], &issued["outcome"]), (operator, &"ok".into()), "{issued}");
    let object = &issued["objects"][0];
    assert_eq!((&object["kind"], &object["name"]), (&"token".into(), &token.id.clone().into()), "{issued}");
    assert_eq!((&object["after"]["agent"], &object["before"]), (&"ci-bot".into(), &Value::Null));

    cli.enable("openai", "openai", &second);
    let moved = newest(cli, "EnableService");
    let object = &moved["objects"][0];
    assert_eq!(object["before"]["upstream"], first.origin(), "{moved}");
    assert_eq!(object["after"]["upstream"], second.origin(), "{moved}");
    assert_eq!(object["after"]["fields"], Value::Null, "what did not change is left out: {moved}");

    cli.apply_policies(
        "@id(\"a\") permit (principal, action, resource);\n@id(\"b\") forbid (principal, action, resource);",
    );
    let applied = newest(cli, "ApplyPolicies");
    let ids: Vec<&str> = applied["objects"].as_array().unwrap().iter().map(|o| o["name"].as_str().unwrap()).collect();
    assert_eq!(ids, ["a", "b"], "{applied}");
    assert!(applied["objects"][0]["after"]["text"].as_str().unwrap().contains("permit"), "{applied}");

    cli.json(&["agent", "disable", "ci-bot"]);
    let disabled = newest(cli, "SetAgentDisabled");
    assert_eq!(
        (&disabled["objects"][0]["before"]["disabled"], &disabled["objects"][0]["after"]["disabled"]),
        (&false.into(), &true.into())
    );

    cli.revoke(&token.id);
    let revoked = newest(cli, "RevokeToken");
    assert_eq!(
        (&revoked["objects"][0]["name"], &revoked["objects"][0]["after"]),
        (&token.id.clone().into(), &Value::Null),
        "{revoked}"
    );
    assert_eq!(revoked["objects"][0]["before"]["agent"], "ci-bot", "{revoked}");

    // Deleting a name marks it first, which is no change of its own.
    cli.json(&["policy", "delete", "b", "--yes"]);
    assert_eq!(changes(cli, &["--object", "b"]).len(), 2, "applied and deleted");
    let put = newest(cli, "PutCredential");
    assert_eq!(
        (&put["objects"][0]["kind"], &put["objects"][0]["after"]["version"]),
        (&"credential".into(), &1.into()),
        "{put}"
    );
    let printed = cli.run(&["audit", "admin"], "").stdout;
    assert!(printed.contains(&format!("token/{}", token.id)) && printed.contains("RevokeToken"), "{printed}");
    for secret in [SECRET, &token.secret] {
        assert!(!format!("{:?}", changes(cli, &[])).contains(secret), "a secret is in the chain");
    }
    let verified = cli.json(&["audit", "verify"]);
    assert!(verified["ok"] == true && verified["admin_changes"].as_u64().unwrap() >= 10, "{verified}");
}

/// Refused calls have their operator, and tenants see their own chain only.
fn refusals_have_a_name_and_tenants_are_apart(sandbox: &Sandbox) {
    let cli = sandbox.cli();
    cli.json(&["tenant", "create", "acme"]);
    cli.json(&["agent", "create", "secret-agent", "--tenant", "acme"]);
    let viewer = operator(sandbox, "eve", "viewer:acme");
    assert_eq!(viewer.run(&["agent", "create", "x", "--tenant", "acme"], "").code, Some(4));
    assert_eq!(viewer.run(&["agent", "list", "--tenant", "default"], "").code, Some(3));
    assert_eq!(viewer.run(&["node", "list"], "").code, Some(4));

    let seen = changes(&viewer, &["--tenant", "acme"]);
    let verbs: Vec<(&str, &str)> =
        seen.iter().map(|c| (c["verb"].as_str().unwrap(), c["outcome"].as_str().unwrap())).collect();
    assert_eq!(verbs, [("CreateAgent", "denied"), ("CreateAgent", "ok"), ("CreateTenant", "ok")], "newest first");
    assert_eq!((&seen[0]["operator"], &seen[0]["objects"][0]["name"]), (&"eve".into(), &"x".into()));
    assert_eq!(viewer.run(&["audit", "admin", "--tenant", "default"], "").code, Some(3));
    let fleet = changes(cli, &["--operator", "eve"]);
    let refused: Vec<&str> = fleet.iter().map(|c| c["verb"].as_str().unwrap()).collect();
    assert_eq!(refused, ["ListAdminChanges", "ListNodes", "ListAgents", "CreateAgent"], "{fleet:?}");
    assert!(fleet.iter().all(|change| change["outcome"] == "denied"));

    // One of the same name that is made later begins with an empty past.
    cli.json(&["tenant", "delete", "acme", "--yes"]);
    cli.json(&["tenant", "create", "acme"]);
    let again = operator(sandbox, "adam", "viewer:acme");
    let seen = changes(&again, &["--tenant", "acme"]);
    assert_eq!((seen.len(), &seen[0]["verb"]), (1, &"CreateTenant".into()), "{seen:?}");
    assert!(changes(cli, &["--object", "secret-agent"]).len() >= 2, "the fleet's owner sees created and deleted");
}

#[test]
fn each_change_is_recorded_with_the_change_in_the_embedded_store() {
    let mut sandbox = Sandbox::start();
    each_change_names_what_it_touched(&sandbox);
    refusals_have_a_name_and_tenants_are_apart(&sandbox);
    let before = changes(sandbox.cli(), &[]);
    sandbox.crash();
    assert_eq!(changes(sandbox.cli(), &[]), before, "what was changed is recorded, whenever it is killed");
    let mut paged = sandbox.cli().json(&["audit", "admin", "--limit", "3"]).as_array().unwrap().clone();
    assert_eq!(paged.split_off(3), Vec::<Value>::new());
    assert_eq!(paged, before[..3]);
}

#[test]
fn each_change_is_recorded_with_the_change_in_etcd() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let etcd = runtime.block_on(Etcd::start());
    let store = format!(
        "kind = \"etcd\"\nallow_plaintext = true\nendpoints = [\"{}\"]\n[audit]\ndir = \"trail\"\n",
        etcd.url()
    );
    let sandbox = Sandbox::with(Options::planes(store));
    let joined = newest(sandbox.cli(), "Join");
    assert_eq!((&joined["operator"], &joined["chain"]), (&Value::Null, &"*".into()), "{joined}");
    let kinds: Vec<&str> = joined["objects"].as_array().unwrap().iter().map(|o| o["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["join-token", "node"], "{joined}");
    each_change_names_what_it_touched(&sandbox);
    refusals_have_a_name_and_tenants_are_apart(&sandbox);
}
