//! Every noun of the command line against a running `seks dev`: its life, its three forms, its exit
//! codes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod apply;
mod doctor;
mod fleet;
mod lists;
mod policy;
mod top;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use seks_tests::{
    Sandbox, Upstream,
    process::{Finished, binary, program, run},
    sandbox::Cli,
};
use serde_json::Value;

const KEY: &str = "sk-real-cli-CANARY-000000000001";
/// Well-formed, and never issued.
const ANOTHER_FLEETS_TOKEN: &str = "seks_token_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA2LmK7s";

/// The exit code and the error line.
#[track_caller]
fn failure(finished: &Finished) -> (i32, String) {
    let line = finished.stderr.lines().next().unwrap_or_default();
    assert!(line.starts_with("error: "), "{finished:?}");
    assert!(finished.stderr.lines().count() <= 2, "{finished:?}");
    (finished.code.unwrap(), line.into())
}

#[track_caller]
fn succeed(finished: Finished) -> Finished {
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished
}

#[test]
fn every_list_has_a_table_json_and_yaml() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    sandbox.token("bot", &["openai"]);
    for (noun, verb, header, name) in [
        ("tenant", "list", "NAME", "default"),
        ("service", "catalog", "GROUP", "openai"),
        ("service", "list", "NAME", "openai"),
        ("credential", "list", "NAME", "openai"),
        ("agent", "list", "NAME", "bot"),
        ("token", "list", "ID", "tok-"),
        ("policy", "list", "ID", "granted-services"),
        ("node", "list", "NODE", "local"),
        ("operator", "list", "NAME", "dev"),
    ] {
        let run = |form: &str| succeed(sandbox.cli().run(&[noun, verb, "-o", form], "")).stdout;
        let (table, json, yaml) = (run("table"), run("json"), run("yaml"));
        assert!(table.starts_with(header) && table.contains(name), "{noun}: {table}");
        let list: Value = serde_json::from_str(&json).unwrap();
        assert!(!list.as_array().unwrap().is_empty() && json.contains(name), "{noun}: {json}");
        assert!(yaml.starts_with("- ") && yaml.contains(name), "{noun}: {yaml}");
        assert!(!(table + &json + &yaml).contains("CANARY"), "{noun}");
    }
    let empty = succeed(sandbox.cli().run(&["agent", "list", "--tenant", "default", "-o", "json"], ""));
    assert!(empty.stdout.trim_start().starts_with('['));
}

#[test]
fn status_says_what_is_there_and_how_far_it_is() {
    let sandbox = Sandbox::start();
    let status = sandbox.cli().json(&["status"]);
    assert_eq!((&status["store"]["kind"], &status["store"]["healthy"]), (&"embedded".into(), &true.into()), "{status}");
    assert_eq!(status["nodes"][0]["connected"], true, "{status}");
    assert!(status["revision"].is_u64() && status["epoch"].is_string(), "{status}");
    let table = succeed(sandbox.cli().run(&["status"], "")).stdout;
    assert!(table.contains("embedded, healthy") && table.contains("APPLIED"), "{table}");
}

#[test]
fn a_service_can_be_applied_from_every_form_shown_and_deleted() {
    let sandbox = Sandbox::start();
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("a.toml", "name='acme'\nupstream='https://one.acme.test'\ninject={header='X-Key'}\n"),
        ("a.yaml", "name: acme\nupstream: https://two.acme.test\ninject: {header: X-Key}\n"),
        ("a.json", r#"{"name":"acme","upstream":"https://three.acme.test","inject":{"header":"X-Key"}}"#),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        let applied = sandbox.cli().json(&["service", "apply", "-f", path.to_str().unwrap()]);
        assert_eq!((&applied["name"], &applied["enforced"]), (&"acme".into(), &true.into()), "{applied}");
        assert_eq!(sandbox.cli().json(&["service", "show", "acme"])["upstream"], applied["upstream"]);
    }
    let stdin = sandbox
        .cli()
        .json_with(&["service", "apply", "-f", "-"], "name='b'\nupstream='https://b.test'\ninject='bearer'\n");
    assert_eq!(stdin["name"], "b");
    let refused = failure(&sandbox.cli().run(&["service", "delete", "acme"], ""));
    assert_eq!(refused.0, 2, "nobody to ask: {}", refused.1);
    sandbox.cli().json(&["service", "delete", "acme", "--yes"]);
    assert_eq!(failure(&sandbox.cli().run(&["service", "show", "acme"], "")).0, 3);
}

#[test]
fn the_catalogue_can_be_searched_and_an_entry_enabled_under_another_name() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    let found = sandbox.cli().json(&["service", "catalog", "openai"]);
    let names: Vec<_> = found.as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"openai") && !names.contains(&"github"), "{names:?}");
    sandbox.cli().enable("openai", "gateway", &upstream);
    assert_eq!(sandbox.cli().json(&["service", "show", "gateway"])["catalogue"], "openai");
    let origin = upstream.origin();
    let private = ["service", "enable", "openai", "--as", "x", "--upstream", &origin];
    assert_eq!(failure(&sandbox.cli().run(&private, "")).0, 2, "loopback only with --allow-private");
    assert_eq!(failure(&sandbox.cli().run(&["service", "enable", "no-such-entry"], "")).0, 3);
}

#[test]
fn a_credential_has_versions_and_never_shows_itself() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.cli().enable("openai", "openai", &upstream);
    for version in 1..=2 {
        let put = sandbox.cli().put_credential("key", "openai", &format!("{KEY}-{version}"));
        assert_eq!(
            (&put["id"], &put["version"], &put["enforced"]),
            (&"key".into(), &version.into(), &true.into()),
            "{put}"
        );
    }
    let file = sandbox.data_dir().join("../key.txt");
    fs::write(&file, format!("{KEY}-3\n")).unwrap();
    let put = ["credential", "put", "key", "--service", "openai", "--from-file", file.to_str().unwrap()];
    assert_eq!(sandbox.cli().json(&put)["version"], 3);
    let back = sandbox.cli().json(&["credential", "rollback", "key", "--version", "1"]);
    assert_eq!((&back["version"], &back["versions"][0]["restored_from"]), (&4.into(), &1.into()), "{back}");
    for form in ["table", "json", "yaml"] {
        let shown = succeed(sandbox.cli().run(&["credential", "show", "key", "-o", form], "")).stdout;
        assert!(!shown.contains("CANARY") && shown.contains("restored_from") == (form != "table"), "{shown}");
    }
    for (input, why) in [("", "the secret is empty"), ("\n", "the secret is empty"), ("a\u{7}b\n", "control character")]
    {
        let refused = sandbox.cli().run(&["credential", "put", "key", "--service", "openai", "--from-stdin"], input);
        let (code, line) = failure(&refused);
        assert!(code == 2 && line.contains(why), "{line}");
    }
    let nobody = sandbox.cli().run(&["credential", "put", "key", "--service", "openai"], KEY);
    assert_eq!(failure(&nobody).0, 2, "without a terminal it wants --from-stdin");
    sandbox.cli().json(&["credential", "delete", "key", "--yes"]);
    assert_eq!(failure(&sandbox.cli().run(&["credential", "show", "key"], "")).0, 3);
    assert!(!sandbox.everything_emitted().contains("CANARY"));
}

#[test]
fn an_agent_has_attributes_and_can_be_disabled() {
    let sandbox = Sandbox::start();
    let created = sandbox.cli().json(&["agent", "create", "bot", "--attr", "team=infra", "--attr", "env=a=b"]);
    assert_eq!(created["attributes"], serde_json::json!({"team": "infra", "env": "a=b"}));
    assert_eq!(failure(&sandbox.cli().run(&["agent", "create", "bot"], "")).0, 5, "there already");
    assert_eq!(failure(&sandbox.cli().run(&["agent", "create", "Not A Name"], "")).0, 2);
    let disabled = sandbox.cli().json(&["agent", "disable", "bot"]);
    assert_eq!((&disabled["id"], &disabled["enforced"]), (&"bot".into(), &true.into()), "{disabled}");
    assert_eq!(sandbox.cli().json(&["agent", "show", "bot"])["disabled"], true);
    sandbox.cli().json(&["agent", "enable", "bot"]);
    assert_eq!(sandbox.cli().json(&["agent", "show", "bot"])["disabled"], false);
    sandbox.cli().json(&["agent", "delete", "bot", "--yes"]);
    assert_eq!(failure(&sandbox.cli().run(&["agent", "show", "bot"], "")).0, 3);
}

#[test]
fn a_token_is_printed_once_and_can_be_rotated_and_revoked() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    sandbox.cli().create_agent("bot");
    let issue = ["token", "issue", "--agent", "bot", "--service", "openai", "--ttl", "1h", "--cidr", "127.0.0.0/8"];
    let issued = sandbox.cli().json(&issue);
    let (id, token) = (issued["id"].as_str().unwrap(), issued["token"].as_str().unwrap());
    assert!(token.starts_with("seks_token_") && token.len() == 60, "{token}");
    assert_eq!((&issued["agent"], &issued["services"]), (&"bot".into(), &serde_json::json!(["openai"])), "{issued}");
    assert!(issued["expires_at"].as_str().unwrap().ends_with('Z'), "{issued}");
    for form in ["table", "json", "yaml"] {
        let shown = succeed(sandbox.cli().run(&["token", "show", id, "-o", form], "")).stdout;
        assert!(shown.contains(id) && !shown.contains(token), "{shown}");
    }
    let table = succeed(sandbox.cli().run(&issue, "")).stdout;
    assert!(table.contains("seks_token_") && table.contains(&format!("{}/api/openai", sandbox.proxy_url())), "{table}");
    let shaped = sandbox.cli().issue("bot", &["openai"], &["--shape", "anthropic"]);
    assert!(shaped.secret.starts_with("sk-ant-seks_token_"), "{}", shaped.secret);
    let rotated = sandbox.cli().json(&["token", "rotate", id]);
    assert_ne!(rotated["token"], issued["token"]);
    assert_eq!(sandbox.get("/api/openai/v1/models", token).status, 401);
    let id = rotated["id"].as_str().unwrap();
    let revoked = sandbox.cli().json(&["token", "revoke", id]);
    assert_eq!(
        (&revoked["id"], &revoked["enforced"]),
        (&id.into(), &true.into()),
        "no terminal, no question: {revoked}"
    );
    assert_eq!(failure(&sandbox.cli().run(&["token", "revoke", "tok-0000000000000000"], "")).0, 3);
    assert_eq!(failure(&sandbox.cli().run(&["token", "issue", "--agent", "none", "--service", "openai"], "")).0, 3);
    let unwaited = sandbox.cli().issue("bot", &["openai"], &["--no-wait"]);
    let unwaited = sandbox.cli().json(&["token", "revoke", &unwaited.id, "--no-wait"]);
    assert_eq!((&unwaited["enforced"], unwaited["revision"].is_u64()), (&false.into(), true), "{unwaited}");
    let list = sandbox.cli().json(&["token", "list", "--agent", "nobody"]);
    assert_eq!(list, serde_json::json!([]));
}

#[test]
fn a_token_that_was_found_somewhere_is_looked_up_and_revoked() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]);
    let other = sandbox.cli().issue("bot", &["openai"], &[]);
    let found = sandbox.cli().json_with(&["token", "lookup", "--from-stdin"], &format!("sk-{}\n", token.secret));
    assert_eq!((&found["id"], &found["agent"]), (&token.id.as_str().into(), &"bot".into()), "{found}");
    assert!(!sandbox.cli().everything_printed().contains("\"digest\""));
    let damaged = format!("{}x", &token.secret[..59]);
    for (typed, code) in [("sk-live-of-somebody", 2), (damaged.as_str(), 2), (ANOTHER_FLEETS_TOKEN, 3)] {
        let failed = failure(&sandbox.cli().run(&["token", "lookup", "--from-stdin"], typed));
        assert_eq!(failed.0, code, "{failed:?}");
        assert!(!failed.1.contains(typed), "{failed:?}");
    }
    let revoked = sandbox.cli().json_with(&["token", "revoke", "--from-stdin"], &token.secret);
    assert_eq!((&revoked["id"], &revoked["enforced"]), (&token.id.as_str().into(), &true.into()), "{revoked}");
    assert_eq!(sandbox.get("/api/openai/v1/models", &token.secret).status, 401);
    assert_eq!(sandbox.get("/api/openai/v1/models", &other.secret).status, 200);
}

#[test]
fn tokens_are_revoked_by_id_agent_service_and_age() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    sandbox.service("groq", &upstream, KEY);
    for agent in ["a", "b"] {
        sandbox.cli().create_agent(agent);
    }
    let issue = |agent: &str, service: &str| sandbox.cli().issue(agent, &[service], &[]);
    let tokens =
        [issue("a", "openai"), issue("a", "groq"), issue("b", "openai"), issue("b", "groq"), issue("b", "groq")];
    let path = |service: &str| format!("/api/{service}/v1/models");
    let revoke = |more: &[&str]| sandbox.cli().json(&[&["token", "revoke"], more].concat());
    assert_eq!(revoke(&["--agent", "a", "--older-than", "1h"])["ids"], serde_json::json!([]));
    let by_agent = revoke(&["--agent", "a", "--service", "groq"]);
    assert_eq!(
        (&by_agent["ids"], &by_agent["enforced"]),
        (&serde_json::json!([tokens[1].id]), &true.into()),
        "{by_agent}"
    );
    let two = revoke(&[&tokens[0].id, &tokens[2].id]);
    assert_eq!(
        (&two["ids"], &two["enforced"]),
        (&serde_json::json!([tokens[0].id, tokens[2].id]), &true.into()),
        "{two}"
    );
    for token in &tokens[..3] {
        assert_eq!(sandbox.get(&path("openai"), &token.secret).status, 401);
    }
    assert_eq!(sandbox.get(&path("groq"), &tokens[3].secret).status, 200);
    assert_eq!(revoke(&["--service", "groq"])["ids"].as_array().unwrap().len(), 2);
    assert_eq!(sandbox.get(&path("groq"), &tokens[3].secret).status, 401);
    let (code, text) = failure(&sandbox.cli().run(&["token", "revoke"], ""));
    assert_eq!(code, 2, "{text}");
}

#[test]
fn agents_and_operators_are_updated_in_place() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    sandbox.cli().json(&["agent", "create", "bot", "--attr", "team=infra", "--attr", "env=test"]);
    let token = sandbox.cli().issue("bot", &["openai"], &[]);
    sandbox.cli().apply_policies(
        "@id(\"prod\") permit (principal, action, resource) when { principal.hasTag(\"env\") && principal.getTag(\"env\") == \"prod\" };",
    );
    sandbox.cli().json(&["policy", "delete", "granted-services", "--yes"]);
    assert_eq!(sandbox.get("/api/openai/v1/models", &token.secret).status, 403);
    let updated = sandbox.cli().json(&["agent", "update", "bot", "--attr", "env=prod", "--remove-attr", "team"]);
    assert_eq!(updated["attributes"], serde_json::json!({"env": "prod"}), "{updated}");
    assert_eq!(updated["enforced"], true, "{updated}");
    assert_eq!(sandbox.get("/api/openai/v1/models", &token.secret).status, 200);
    for (wrong, code) in [
        (vec!["agent", "update", "bot"], 2),
        (vec!["agent", "update", "bot", "--attr", "a=b", "--remove-attr", "a"], 2),
        (vec!["agent", "update", "none", "--attr", "a=b"], 3),
        (vec!["operator", "update", "none", "--role", "owner"], 3),
    ] {
        assert_eq!(failure(&sandbox.cli().run(&wrong, "")).0, code, "{wrong:?}");
    }
    let me = sandbox.cli().json(&["operator", "whoami"])["name"].as_str().unwrap().to_owned();
    let (code, text) = failure(&sandbox.cli().run(&["operator", "update", &me, "--role", "viewer"], ""));
    assert!(code == 5 && text.contains("last owner"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("ann.toml").to_str().unwrap().to_owned();
    sandbox.cli().json(&["operator", "create", "ann", "--role", "viewer", "--out", &out]);
    let ann = Cli::new(folder.path(), Path::new(&out));
    let create = || ann.run(&["agent", "create", "made"], "");
    assert_eq!(failure(&create()).0, 4);
    let updated = sandbox.cli().json(&["operator", "update", "ann", "--role", "editor:default"]);
    assert_eq!(updated["roles"], serde_json::json!([{"tenant": "default", "role": "editor"}]), "{updated}");
    succeed(create());
}

#[test]
fn policies_are_checked_applied_simulated_and_deleted() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    sandbox.token("bot", &["openai"]);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good =
        file("good.cedar", "@id(\"no-deletes\")\nforbid (principal, action == Seks::Action::\"DELETE\", resource);\n");
    let bad =
        file("bad.cedar", "@id(\"typo\")\npermit (principal, action, resource) when { context.pth == \"/x\" };\n");
    let broken = file("broken.cedar", "@id(\"x\") permit (");
    assert_eq!(sandbox.cli().json(&["policy", "check", "-f", &good])["valid"], true);
    for file in [&bad, &broken] {
        let checked = sandbox.cli().run(&["policy", "check", "-f", file, "-o", "json"], "");
        assert_eq!(failure(&checked).0, 2);
        let view: Value = serde_json::from_str(&checked.stdout).unwrap();
        assert_eq!(view["valid"], false, "{view}");
        assert_eq!(failure(&sandbox.cli().run(&["policy", "apply", "-f", file], "")).0, 2);
    }
    let applied = sandbox.cli().json(&["policy", "apply", "-f", &good]);
    assert_eq!(
        (&applied["policies"], &applied["enforced"]),
        (&serde_json::json!(["no-deletes"]), &true.into()),
        "{applied}"
    );
    let ask = |method: &str| {
        let line = [
            "policy",
            "simulate",
            "--agent",
            "bot",
            "--service",
            "openai",
            "--method",
            method,
            "--path",
            "/v1/files/1?x=1",
        ];
        sandbox.cli().json(&line)
    };
    let denied = ask("DELETE");
    assert_eq!((&denied["decision"], &denied["reason"]), (&"deny".into(), &"policy_denied".into()), "{denied}");
    assert_eq!(denied["policies"], serde_json::json!(["no-deletes"]), "{denied}");
    let allowed = ask("GET");
    assert_eq!(
        (&allowed["decision"], &allowed["policies"]),
        (&"allow".into(), &serde_json::json!(["granted-services"])),
        "{allowed}"
    );
    assert_eq!(allowed["path"], "/v1/files/1", "{allowed}");
    let shown = succeed(sandbox.cli().run(&["policy", "show", "no-deletes"], "")).stdout;
    assert!(shown.contains("forbid (principal"), "{shown}");
    sandbox.cli().json(&["policy", "delete", "no-deletes", "--yes"]);
    assert_eq!(ask("DELETE")["decision"], "allow");
}

#[test]
fn tenants_are_islands() {
    let sandbox = Sandbox::start();
    sandbox.cli().json(&["tenant", "create", "acme"]);
    sandbox.cli().json(&["tenant", "create", "closed", "--strict"]);
    assert_eq!(sandbox.cli().json(&["tenant", "show", "closed"])["strict"], true);
    assert_eq!(sandbox.cli().json(&["policy", "list", "--tenant", "closed"]), serde_json::json!([]));
    assert_eq!(sandbox.cli().json(&["policy", "list", "--tenant", "acme"])[0]["id"], "granted-services");
    sandbox.cli().json(&["agent", "create", "bot", "--tenant", "acme"]);
    assert_eq!(failure(&sandbox.cli().run(&["agent", "show", "bot"], "")).0, 3, "another tenant's");
    assert_eq!(failure(&sandbox.cli().run(&["agent", "create", "x", "--tenant", "nowhere"], "")).0, 3);
    assert_eq!(failure(&sandbox.cli().run(&["tenant", "create", "acme"], "")).0, 5);
}

#[test]
fn an_operator_can_do_what_its_role_says_until_it_is_deleted() {
    let sandbox = Sandbox::start();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("viewer.toml");
    let path = out.to_str().unwrap();
    sandbox.cli().json(&["operator", "create", "ann", "--role", "viewer:default", "--out", path]);
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    let again = ["operator", "create", "bob", "--role", "viewer", "--out", path];
    assert_eq!(failure(&sandbox.cli().run(&again, "")).0, 2, "a context file is not overwritten");
    let ann = Cli::new(folder.path(), &out);
    let as_ann = |line: &[&str]| ann.run(line, "");
    let who = succeed(as_ann(&["operator", "whoami", "-o", "json"]));
    assert_eq!(serde_json::from_str::<Value>(&who.stdout).unwrap()["name"], "ann");
    succeed(as_ann(&["agent", "list"]));
    assert_eq!(failure(&as_ann(&["agent", "create", "x"])).0, 4);
    assert_eq!(failure(&as_ann(&["tenant", "create", "x"])).0, 4);
    let renewed = folder.path().join("renewed.toml");
    sandbox.cli().json(&["operator", "create", "ann", "--out", renewed.to_str().unwrap()]);
    succeed(Cli::new(folder.path(), &renewed).run(&["agent", "list"], ""));
    assert_eq!(failure(&Cli::new(folder.path(), &renewed).run(&["agent", "create", "x"], "")).0, 4, "the same roles");
    sandbox.cli().json(&["operator", "delete", "ann", "--yes"]);
    assert_eq!(failure(&as_ann(&["agent", "list"])).0, 4);
}

#[test]
fn a_stranger_is_told_in_one_line_that_it_is_one() {
    let (sandbox, other) = (Sandbox::start(), Sandbox::start());
    let mine = fs::read_to_string(sandbox.data_dir().join("context.toml")).unwrap();
    let theirs = fs::read_to_string(other.data_dir().join("context.toml")).unwrap();
    let (mine, theirs): (toml::Table, toml::Table) = (mine.parse().unwrap(), theirs.parse().unwrap());
    let field = |file: &toml::Table, key: &str| file["contexts"]["dev"][key].as_str().unwrap().to_owned();
    let mixed = |ca: &toml::Table, identity: &toml::Table| {
        let (ca, certificate, key) = (field(ca, "ca"), field(identity, "certificate"), field(identity, "key"));
        let endpoint = field(&mine, "endpoint");
        let text = format!(
            "current='a'\n[contexts.a]\nendpoint='{endpoint}'\nca='''{ca}'''\ncertificate='''{certificate}'''\nkey='''{key}'''\n"
        );
        let path = sandbox.data_dir().join("../mixed.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        failure(&Cli::new(&sandbox.data_dir(), &path).run(&["status"], ""))
    };
    let wrong_ca = mixed(&theirs, &mine);
    assert!(wrong_ca.0 == 6 && wrong_ca.1.contains("not issued by the context's authority"), "{wrong_ca:?}");
    let wrong_identity = mixed(&mine, &theirs);
    assert_eq!(wrong_identity.0, 4, "{wrong_identity:?}");
}

#[test]
fn a_join_token_is_printed_alone() {
    let sandbox = Sandbox::start();
    let printed = succeed(sandbox.cli().run(&["node", "enroll", "--region", "eu-1"], ""));
    assert!(printed.stdout.starts_with("seks_join_") && printed.stdout.lines().count() == 1, "{printed:?}");
    let json = sandbox.cli().json(&["node", "enroll", "--region", "eu-1", "--ttl", "5m", "--pool", "eu"]);
    assert!(json["join_token"].is_string() && json["expires_at"].is_string() && json["pools"][0] == "eu", "{json}");
    let node = sandbox.cli().json(&["node", "list"])[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(sandbox.cli().json(&["node", "show", &node])["region"], "local");
}

#[test]
#[cfg_attr(not(has = "script"), ignore = "needs script")]
fn a_secret_can_be_typed_without_being_shown_and_a_question_answered() {
    let script = program("script");
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.cli().enable("openai", "openai", &upstream);
    let context = sandbox.data_dir().join("context.toml");
    // `script` gives the command a terminal of its own, types what it is given, and shows what the
    // terminal shows.
    let typed = |line: &str, input: &str| {
        let command = format!("{} --context-file {} {line}", binary("seks").display(), context.display());
        run(Command::new(&script).args(["-qec", &command, "/dev/null"]), input.as_bytes())
    };
    let put = typed("credential put key --service openai", &format!("{KEY}\n"));
    assert_eq!(put.code, Some(0), "{put:?}");
    assert!(put.stdout.contains("not shown"), "{put:?}");
    // What is typed ahead of the prompt is echoed by the terminal itself; after the prompt nothing
    // is.
    let after = put.stdout.split("(not shown):").nth(1).unwrap();
    assert!(!after.contains("CANARY"), "{put:?}");
    assert_eq!(sandbox.cli().json(&["credential", "show", "key"])["version"], 1);
    let no = typed("credential delete key", "n\n");
    assert!(no.code == Some(1) && no.stdout.contains("[y/N]"), "{no:?}");
    assert_eq!(sandbox.cli().json(&["credential", "show", "key"])["version"], 1);
    let yes = typed("credential delete key", "y\n");
    assert_eq!(yes.code, Some(0), "{yes:?}");
    assert_eq!(failure(&sandbox.cli().run(&["credential", "show", "key"], "")).0, 3);
}
