//! Coding agents and frameworks as people start them: `seks run -- PROGRAM`, and nothing else is
//! configured. They find the node, the vendor gets the real key, and their answer is printed.

use std::process::Command;

use seks_tests::{
    Sandbox,
    process::{Finished, binary, installed, run},
    upstream::vendors::{GREETING, Vendor},
};

use crate::{only_the_key_arrived, root};

const KEY: &str = "sk-real-coding-agent-key-00000000000001";

/// Runs `seks run -- COMMAND` for the service, in a home directory with nothing in it, and checks
/// what came of it.
fn answers(service: &str, command: &[&str]) {
    let (sandbox, upstream) = (Sandbox::start(), Vendor::of(service).unwrap().start(KEY));
    sandbox.service(service, &upstream, KEY);
    sandbox.cli().create_agent("agent");
    let finished = seks_run(&sandbox, command);
    let text = finished.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(finished.code == Some(0) && text.contains(&GREETING.concat()), "{command:?}: {finished:?}");
    let warned = |line: &str| line.starts_with("warning: ") && (line.contains("SEKS") || line.contains("directly"));
    assert!(!finished.stderr.lines().any(warned), "{}", finished.stderr);
    only_the_key_arrived(&upstream, &sandbox, KEY, 1);
}

fn seks_run(sandbox: &Sandbox, command: &[&str]) -> Finished {
    let home = tempfile::tempdir().unwrap();
    let mut seks = Command::new(binary("seks"));
    seks.env_clear().env("HOME", home.path()).env("PATH", std::env::var_os("PATH").unwrap()).current_dir(home.path());
    // What the clients would send elsewhere by themselves.
    for name in
        ["DISABLE_TELEMETRY", "DISABLE_AUTOUPDATER", "OPENCODE_DISABLE_AUTOUPDATE", "LITELLM_LOCAL_MODEL_COST_MAP"]
    {
        seks.env(name, "True");
    }
    seks.arg("--context-file").arg(sandbox.context_file()).args(["run", "--agent", "agent", "--"]).args(command);
    run(&mut seks, b"")
}

/// A coding agent's program below `.test-env`.
fn agent(name: &str) -> String {
    installed("agents/node_modules/.bin").join(name).display().to_string()
}

#[test]
#[cfg_attr(not(has = "coding-agents"), ignore = "needs coding-agents")]
fn claude_code() {
    answers("anthropic", &[&agent("claude"), "-p", "Say hello."]);
}

#[test]
#[cfg_attr(not(has = "coding-agents"), ignore = "needs coding-agents")]
fn codex() {
    answers("openai", &[&agent("codex"), "exec", "--skip-git-repo-check", "Say hello."]);
}

#[test]
#[cfg_attr(not(has = "coding-agents"), ignore = "needs coding-agents")]
fn gemini_cli() {
    answers("gemini", &[&agent("gemini"), "--skip-trust", "-m", "gemini-2.5-flash", "-p", "Say hello."]);
}

#[test]
#[cfg_attr(not(has = "coding-agents"), ignore = "needs coding-agents")]
fn qwen_code() {
    answers("openai", &[&agent("qwen"), "-p", "Say hello."]);
}

#[test]
#[cfg_attr(not(has = "coding-agents"), ignore = "needs coding-agents")]
fn opencode() {
    answers("openai", &[&agent("opencode"), "run", "-m", "openai/gpt-4o-mini", "Say hello."]);
    answers("anthropic", &[&agent("opencode"), "run", "-m", "anthropic/claude-sonnet-4-5", "Say hello."]);
}

#[test]
#[cfg_attr(not(has = "python-agents"), ignore = "needs python-agents")]
fn frameworks() {
    let python = installed("python-agents/bin/python").display().to_string();
    let script = root().join("tests/sdk/agents/framework.py").display().to_string();
    for (framework, service, model) in [
        ("litellm", "openai", "openai/gpt-4o-mini"),
        ("litellm", "anthropic", "anthropic/claude-sonnet-4-5"),
        ("litellm", "gemini", "gemini/gemini-2.5-flash"),
        ("langchain-openai", "openai", "gpt-4o-mini"),
        ("langchain-anthropic", "anthropic", "claude-sonnet-4-5"),
        ("langchain-google", "gemini", "gemini-2.5-flash"),
    ] {
        answers(service, &[&python, &script, framework, model]);
    }
}

#[test]
#[cfg_attr(not(has = "coding-agents"), ignore = "needs coding-agents")]
fn a_client_that_would_call_its_vendor_is_named() {
    let upstream = Vendor::Anthropic.start(KEY);
    let sandbox = Sandbox::start();
    sandbox.service("anthropic", &upstream, KEY);
    sandbox.cli().create_agent("agent");
    let finished = seks_run(&sandbox, &[&agent("codex"), "--version"]);
    assert!(finished.stderr.contains("warning: codex calls its vendor directly"), "{finished:?}");
}
