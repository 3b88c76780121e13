//! Lists are filtered, sorted and cut, and tokens are rotated and shortened.

use seks_tests::{Sandbox, Upstream};
use serde_json::Value;

use super::{KEY, failure, succeed};

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|object| object[key].as_str().unwrap().to_owned()).collect()
}

#[test]
fn lists_are_filtered_sorted_and_cut() {
    let sandbox = Sandbox::start();
    for (name, team) in [("b-bot", "infra"), ("c-bot", "core"), ("a-bot", "infra")] {
        sandbox.cli().json(&["agent", "create", name, "--attr", &format!("team={team}")]);
    }
    let list = |arguments: &[&str]| names(&sandbox.cli().json(&[&["agent", "list"], arguments].concat()), "name");
    assert_eq!(list(&["--filter", "attributes.team=infra", "--sort", "-name"]), ["b-bot", "a-bot"]);
    assert_eq!(list(&["--filter", "name~bot", "--filter", "attributes.team!=infra"]), ["c-bot"]);
    assert_eq!(list(&["--limit", "2"]), ["a-bot", "b-bot"]);
    assert_eq!(list(&["--sort", "name", "--limit", "1", "--filter", "name~-bot"]), ["a-bot"]);
    let cut = succeed(sandbox.cli().run(&["agent", "list", "--limit", "1"], ""));
    assert!(cut.stderr.contains("the first 1 are shown"), "{cut:?}");
    for noun in ["tenant", "service", "credential", "token", "policy", "node", "operator"] {
        succeed(sandbox.cli().run(&[noun, "list", "--limit", "1"], ""));
    }
    let unknown = sandbox.cli().run(&["agent", "list", "--sort", "nmae"], "");
    assert_eq!(failure(&unknown).0, 2);
    assert!(unknown.stderr.contains("hint: did you mean `name`?"), "{unknown:?}");
    assert_eq!(failure(&sandbox.cli().run(&["agent", "list", "--filter", "name"], "")).0, 2);
}

#[test]
fn a_rotated_token_works_beside_the_new_one_for_the_grace_period() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let old = sandbox.token("bot", &["openai"]);
    let rotated = sandbox.cli().json(&["token", "rotate", &old.id, "--grace", "10m"]);
    let new = rotated["token"].as_str().unwrap();
    for token in [old.secret.as_str(), new] {
        assert_eq!(sandbox.get("/api/openai/v1/models", token).status, 200);
    }
    // By the change itself, and not by a snapshot that has repaired the node's table.
    let page = sandbox.metrics_page();
    let diverged = page.lines().filter(|line| line.starts_with("seks_table_divergence_total")).collect::<Vec<_>>();
    assert!(diverged.iter().all(|line| line.ends_with(" 0")), "{diverged:?}");
    let list = sandbox.cli().json(&["token", "list", "--filter", &format!("replaced_by={}", old.id)]);
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    let kept = list[0]["id"].as_str().unwrap();
    let table = succeed(sandbox.cli().run(&["token", "list"], "")).stdout;
    assert!(
        (table.contains("in 9m") || table.contains("in 10m")) && table.contains("(rotated)") && table.starts_with("ID"),
        "{table}"
    );
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    sandbox.cli().revoke(kept);
    assert_eq!(sandbox.get("/api/openai/v1/models", &old.secret).status, 401);
    assert_eq!(sandbox.get("/api/openai/v1/models", new).status, 200);
    assert_eq!(failure(&sandbox.cli().run(&["token", "rotate", &old.id, "--grace", "8d"], "")).0, 2);
}

#[test]
fn of_several_tokens_all_that_exist_are_revoked_and_the_others_are_named() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let tokens = [sandbox.token("a", &["openai"]), sandbox.token("b", &["openai"])];
    let missing = "tok-0000000000000000";
    let revoked = sandbox.cli().run(&["token", "revoke", &tokens[0].id, missing, &tokens[1].id, "--yes"], "");
    let (exit, stderr) = failure(&revoked);
    assert_eq!(exit, 3, "{stderr}");
    assert!(stderr.contains(missing) && !stderr.contains(&tokens[0].id), "{stderr}");
    for token in &tokens {
        assert_eq!(sandbox.get("/api/openai/v1/models", &token.secret).status, 401);
    }
}

#[test]
fn the_expiry_of_a_token_can_be_brought_forward_and_not_put_off() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("bot", &["openai"]);
    let before = sandbox.cli().json(&["token", "show", &token.id])["expires_at"].as_str().unwrap().to_owned();
    let shorter = sandbox.cli().json(&["token", "update", &token.id, "--ttl", "1h"]);
    assert_eq!(shorter["enforced"], true, "{shorter}");
    assert!(shorter["expires_at"].as_str().unwrap() < before.as_str(), "{shorter}");
    let longer = sandbox.cli().run(&["token", "update", &token.id, "--expires-at", &before], "");
    let (code, line) = failure(&longer);
    assert!(code == 2 && line.contains("can only be shortened"), "{longer:?}");
    assert!(longer.stderr.contains("hint: `seks token rotate"), "{longer:?}");
    assert_eq!(failure(&sandbox.cli().run(&["token", "update", &token.id], "")).0, 2);
    assert_eq!(failure(&sandbox.cli().run(&["token", "update", "tok-0000000000000000", "--ttl", "1h"], "")).0, 3);
}
