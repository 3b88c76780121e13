//! Policies against the trail: what a file would change of what agents have done, and a file that
//! permits just that.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::fs;

use seks_tests::{Sandbox, Upstream, process::wait_for, upstream::Answer};
use serde_json::Value;

const SECRET: &str = "sk-real-0123456789abcdef";

#[test]
fn a_new_policy_is_run_against_the_trail_and_a_suggestion_permits_what_the_agent_did_and_no_more() {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let sandbox = Sandbox::start();
    let cli = sandbox.cli();
    sandbox.service("openai", &upstream, SECRET);
    let (bot, other) = (sandbox.token("ci-bot", &["openai"]).secret, sandbox.token("other", &["openai"]).secret);
    let gets = [
        "/v1/models",
        "/v1/models?limit=3",
        "/v1/files/file-0aBcD12345",
        "/v1/files/file-9zYxW98765/content",
        "/v1/odd%2Fpath",
    ];
    let ask = |sandbox: &Sandbox, token: &str| -> Vec<u16> {
        let mut all: Vec<u16> =
            gets.iter().map(|path| sandbox.get(&format!("/api/openai{path}"), token).status).collect();
        all.push(sandbox.post("/api/openai/v1/chat/completions", token, "{}").status);
        all
    };
    let first = ask(&sandbox, &bot);
    let allowed = first.iter().filter(|status| **status == 200).count();
    assert!(allowed >= 5, "{first:?}");
    ask(&sandbox, &other);
    wait_for("the records", || (cli.json(&["audit", "search"]).as_array().unwrap().len() == 12).then_some(()));

    // Nobody may write: what would that change?
    let directory = sandbox.data_dir().parent().unwrap().to_path_buf();
    fs::write(
        directory.join("new.cedar"),
        "@id(\"no-writes\") forbid (principal == Seks::Agent::\"ci-bot\", action in Seks::Action::\"write\", resource);",
    )
    .unwrap();
    let simulated = cli.json(&["policy", "simulate", "--since", "1h", "-f", "new.cedar"]);
    let differences = simulated["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 1, "{simulated}");
    let expected =
        [("agent", "ci-bot"), ("change", "newly_denied"), ("method", "POST"), ("path", "/v1/chat/completions")];
    expected.iter().for_each(|(key, value)| assert_eq!(differences[0][key], *value, "{simulated}"));
    assert_eq!(differences[0]["policies"][0], "no-writes");
    assert_eq!(sandbox.post("/api/openai/v1/chat/completions", &bot, "{}").status, 200, "nothing was stored");
    let printed = cli.run(&["policy", "simulate", "-f", "new.cedar", "--agent", "other"], "").stdout;
    assert!(printed.starts_with("no change: "), "{printed}");
    let alone = cli.json(&["policy", "simulate", "-f", "new.cedar", "--alone", "--agent", "other"]);
    assert_eq!(alone["unchanged"], alone["requests"].as_u64().unwrap() - allowed as u64, "nothing permits: {alone}");

    // The suggestion: accepted, and it permits all that was permitted, alone.
    let suggested = cli.run(&["policy", "suggest", "--agent", "ci-bot", "--since", "1h"], "");
    assert_eq!(suggested.code, Some(0), "{suggested:?}");
    let text = suggested.stdout;
    assert!(text.contains("like \"/v1/files/*\"") && text.contains("context.path == \"/v1/models\""), "{text}");
    fs::write(directory.join("suggested.cedar"), &text).unwrap();
    let check = cli.json(&["policy", "simulate", "-f", "suggested.cedar", "--alone", "--agent", "ci-bot"]);
    assert_eq!((&check["differences"], &check["unknown"]), (&Value::Array(Vec::new()), &0.into()), "{check}");
    cli.json(&["policy", "apply", "-f", "suggested.cedar"]);
    cli.json(&["policy", "delete", "granted-services", "--yes"]);
    assert_eq!(ask(&sandbox, &bot), first, "{text}");
    assert_eq!(sandbox.get("/api/openai/v1/files/file-of-another1234", &bot).status, 200, "an id is any id");
    for path in ["/v1/files", "/v1/files/a/b/c", "/v1/models/x", "/v1/assistants"] {
        assert_eq!(sandbox.get(&format!("/api/openai{path}"), &bot).status, 403, "{path}");
    }
    assert_eq!(sandbox.post("/api/openai/v1/models", &bot, "{}").status, 403);
    assert!(ask(&sandbox, &other).iter().all(|status| *status != 200), "another agent");
    // Who was permitted nothing has no suggestion.
    cli.create_agent("idle");
    assert_eq!(cli.run(&["policy", "suggest", "--agent", "idle"], "").code, Some(5));
    assert_eq!(cli.run(&["policy", "suggest", "--agent", "nobody"], "").code, Some(3));
}
