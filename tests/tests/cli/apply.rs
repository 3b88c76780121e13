//! A tenant as files: what is exported can be applied and changes nothing, and what is old does not
//! overwrite.

use std::fs;

use seks_tests::{Sandbox, Upstream};
use serde_json::{Value, json};

use super::{KEY, failure, succeed};

/// Writes into the folder of the sandbox.
fn write(sandbox: &Sandbox, name: &str, text: &str) -> String {
    let path = sandbox.data_dir().join("..").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn furnished() -> (Sandbox, Upstream) {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    sandbox.cli().json(&["agent", "create", "ci-bot", "--attr", "team=infra"]);
    (sandbox, upstream)
}

fn changes(answer: &Value) -> Vec<String> {
    let line = |c: &Value| format!("{} {} {}", c["action"], c["kind"], c["name"]).replace('"', "");
    answer["changes"].as_array().unwrap().iter().map(line).collect()
}

#[test]
fn what_is_exported_and_applied_changes_nothing() {
    let (sandbox, _upstream) = furnished();
    sandbox.cli().apply_policies(
        "@id(\"multi\")\n// why\npermit (principal, action, resource)\nwhen { context.path like \"/v1/\\\"x\\\"*\" };\n",
    );
    for form in ["yaml", "json", "toml"] {
        let exported = succeed(sandbox.cli().run(&["export", "-o", form], "")).stdout;
        assert!(
            exported.contains("openai") && exported.contains("ci-bot") && !exported.contains("CANARY"),
            "{exported}"
        );
        let path = write(&sandbox, &format!("tenant.{form}"), &exported);
        for arguments in [&["apply", "-f", &path][..], &["apply", "-f", &path, "--prune"]] {
            let applied = sandbox.cli().json(arguments);
            assert_eq!((&applied["changes"], &applied["reach"]), (&json!([]), &json!([])), "{form}: {applied}");
            assert_eq!(applied["enforced"], true, "{applied}");
        }
        let piped = sandbox.cli().json_with(&["apply", "-f", "-", "--prune"], &exported);
        assert_eq!(piped["changes"], json!([]), "{form}: {piped}");
    }
    let plain = succeed(sandbox.cli().run(&["export"], "")).stdout;
    assert!(plain.starts_with("revision: "), "YAML for people too: {plain}");
}

#[test]
fn a_file_is_applied_with_its_difference_and_the_reach_that_it_adds() {
    let (sandbox, _upstream) = furnished();
    sandbox.cli().json(&["policy", "delete", "granted-services", "--yes"]);
    let path = write(
        &sandbox,
        "tenant/agents.yaml",
        "agents:\n  - name: ci-bot\n    attributes: {team: core, group: writers}\n  - name: new-bot\n",
    );
    write(
        &sandbox,
        "tenant/policies.cedar",
        "@id(\"write\") permit (principal in Seks::Group::\"writers\", action == Seks::Action::\"POST\", resource);\n",
    );
    write(&sandbox, "tenant/later.toml", "[[credentials]]\nname = 'second-key'\nservice = 'openai'\n");
    let folder = path.replace("/agents.yaml", "");
    let planned = sandbox.cli().json(&["apply", "-f", &folder, "--dry-run"]);
    let want = ["update agent ci-bot", "create agent new-bot", "create policy write"];
    assert_eq!(changes(&planned), want, "{planned}");
    assert_eq!((&planned["dry_run"], &planned["enforced"]), (&json!(true), &json!(false)), "{planned}");
    let details = &planned["changes"][0]["details"];
    assert_eq!(*details, json!(["attributes.group: \"writers\"", "attributes.team: \"infra\" -> \"core\""]));
    let reach = json!([{"agent": "ci-bot", "service": "openai", "methods": ["POST"], "conditional": false}]);
    assert_eq!(planned["reach"], reach, "{planned}");
    assert!(planned["warnings"][0].as_str().unwrap().contains("credential `second-key` is not stored"), "{planned}");
    assert_eq!(failure(&sandbox.cli().run(&["agent", "show", "new-bot"], "")).0, 3, "a dry run writes nothing");
    let table = succeed(sandbox.cli().run(&["apply", "-f", &folder, "--dry-run"], "")).stdout;
    for line in
        ["~ agent ci-bot", "+ agent new-bot", "+ policy write", "ci-bot -> openai: POST", "3 changes, not applied"]
    {
        assert!(table.contains(line), "{table}");
    }
    let applied = sandbox.cli().json(&["apply", "-f", &folder]);
    assert_eq!(
        (changes(&applied), &applied["enforced"]),
        (want.map(str::to_owned).to_vec(), &json!(true)),
        "{applied}"
    );
    let again = sandbox.cli().json(&["apply", "-f", &folder]);
    assert_eq!(again["changes"], json!([]), "{again}");
}

#[test]
fn an_old_file_is_a_conflict_on_a_newer_tenant() {
    let (sandbox, _upstream) = furnished();
    let old = succeed(sandbox.cli().run(&["export"], "")).stdout;
    let path = write(&sandbox, "old.yaml", &old);
    sandbox.cli().json(&["agent", "update", "ci-bot", "--attr", "team=core"]);
    let refused = sandbox.cli().run(&["apply", "-f", &path], "");
    let (code, line) = failure(&refused);
    assert!(code == 5 && line.contains("agent ci-bot (revision "), "{line}");
    assert!(refused.stderr.contains("hint: run `seks export`"), "{refused:?}");
    assert_eq!(sandbox.cli().json(&["agent", "show", "ci-bot"])["attributes"]["team"], "core");
    let overwriting = old.lines().filter(|line| !line.starts_with("revision:")).collect::<Vec<_>>().join("\n");
    let forced = sandbox.cli().json(&["apply", "-f", &write(&sandbox, "forced.yaml", &overwriting)]);
    assert_eq!(changes(&forced), ["update agent ci-bot"]);
}

#[test]
fn pruning_deletes_only_the_kinds_that_a_file_lists() {
    let (sandbox, _upstream) = furnished();
    sandbox.cli().create_agent("old-bot");
    let path = write(&sandbox, "agents.yaml", "agents:\n  - name: ci-bot\n    attributes: {team: infra}\n");
    assert_eq!(sandbox.cli().json(&["apply", "-f", &path])["changes"], json!([]), "without --prune");
    let pruned = sandbox.cli().json(&["apply", "-f", &path, "--prune"]);
    assert_eq!(changes(&pruned), ["delete agent old-bot"]);
    assert_eq!(failure(&sandbox.cli().run(&["agent", "show", "old-bot"], "")).0, 3);
    sandbox.cli().json(&["service", "show", "openai"]);
}

#[test]
fn what_is_wrong_with_a_file_is_one_line_with_file_line_and_key() {
    let (sandbox, _upstream) = furnished();
    for (name, text, expect) in [
        ("a.yaml", "agents:\n  - name: ci-bot\n    nope: 1\n", "nope"),
        ("b.toml", "nope = 1\n", "line 1: unknown field `nope`"),
        ("c.cedar", "@id(\"a\") permit (principal, action, resource) when { context.nope == 1 };", "c.cedar: line 1"),
        ("d.yaml", "policies:\n  - 'permit'\n", "d.yaml: policies[0]: line 1"),
        ("e.yaml", "agents:\n  - name: Not A Name\n", "Not A Name"),
        ("f.yaml", "credentials:\n  - {name: k, service: nowhere}\n", "service `nowhere`"),
    ] {
        let path = write(&sandbox, name, text);
        let (code, line) = failure(&sandbox.cli().run(&["apply", "-f", &path], ""));
        assert!(code == 2 && line.contains(name) && line.contains(expect), "{line}");
    }
    assert_eq!(failure(&sandbox.cli().run(&["apply", "-f", "/nonexistent"], "")).0, 2);
    assert_eq!(failure(&sandbox.cli().run(&["apply"], "")).0, 2);
}

#[test]
fn an_agent_that_was_disabled_stays_so_unless_the_file_enables_it() {
    let (sandbox, _upstream) = furnished();
    let cli = sandbox.cli();
    let disabled = || cli.json(&["agent", "show", "ci-bot"])["disabled"] == true;
    cli.json(&["agent", "disable", "ci-bot"]);
    let path = write(&sandbox, "f/tenant.yaml", "agents:\n  - name: ci-bot\n    attributes: {team: infra}\n");
    let applied = cli.json(&["apply", "-f", &path]);
    assert!(applied["changes"] == json!([]) && disabled(), "{applied}");
    write(&sandbox, "f/tenant.yaml", "agents:\n  - {name: ci-bot, attributes: {team: data}}\n");
    cli.json(&["apply", "-f", &path]);
    assert!(disabled(), "another change enables it neither");
    write(&sandbox, "f/tenant.yaml", "agents:\n  - {name: ci-bot, attributes: {team: data}, disabled: false}\n");
    let applied = cli.json(&["apply", "-f", &path]);
    assert_eq!(applied["changes"][0]["details"], json!(["disabled: true -> (none)"]), "{applied}");
    assert!(!disabled() && applied["reach"][0]["agent"] == "ci-bot", "{applied}");
}

#[test]
fn what_a_folder_lists_twice_or_does_not_show_is_named() {
    let (sandbox, _upstream) = furnished();
    let cli = sandbox.cli();
    write(&sandbox, "d/a.yaml", "agents:\n  - {name: ci-bot, attributes: {team: infra}}\n");
    let second = write(&sandbox, "d/b.yaml", "agents:\n  - {name: ci-bot, disabled: true}\n");
    let folder = sandbox.data_dir().join("../d").display().to_string();
    let twice = cli.run(&["apply", "-f", &folder], "");
    assert!(twice.code == Some(2) && twice.stderr.contains("a.yaml") && twice.stderr.contains("b.yaml"), "{twice:?}");
    fs::remove_file(second).unwrap();
    write(&sandbox, "d/more/c.yaml", "agents:\n  - name: other\n");
    let hidden = cli.run(&["apply", "-f", &folder], "");
    assert!(
        hidden.code == Some(0) && hidden.stderr.contains("warning: ") && hidden.stderr.contains("more"),
        "{hidden:?}"
    );
    let pruned = cli.run(&["apply", "-f", &folder, "--prune", "--yes"], "");
    assert!(pruned.code == Some(2) && pruned.stderr.contains("more"), "{pruned:?}");
    let later = write(&sandbox, "later.yaml", "revision: 999999999\nagents:\n  - {name: ci-bot}\n");
    assert_eq!(failure(&cli.run(&["apply", "-f", &later], "")).0, 5);
}
