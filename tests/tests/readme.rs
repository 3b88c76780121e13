//! The README's quick start, run as it is written: the commands verbatim, the SDK snippet with the
//! issued token and this machine's port in it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{fs, path::Path, process::Command};

use seks_tests::{
    Sandbox,
    process::{binary, installed, run},
    upstream::vendors::Vendor,
};

const KEY: &str = "sk-proj-readme-key-0000000000000000001";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The fenced block behind `<!-- NAME -->`.
fn block(name: &str) -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let after = readme.split_once(&format!("<!-- {name} -->\n```")).unwrap_or_else(|| panic!("no block `{name}`")).1;
    after.split_once('\n').unwrap().1.split_once("\n```").unwrap().0.to_owned()
}

/// Runs a block of commands against a broker; gives what they printed.
fn commands(name: &str, sandbox: &Sandbox) -> String {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("key.txt"), format!("{KEY}\n")).unwrap();
    fs::write(directory.path().join("policies.cedar"), block("policy")).unwrap();
    let binaries = binary("seks").parent().unwrap().to_path_buf();
    let path = std::env::join_paths(
        std::iter::once(binaries).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", &block(name)]).current_dir(directory.path());
    command.env("PATH", path.unwrap()).env("SEKS_CONTEXT_FILE", sandbox.data_dir().join("context.toml"));
    let finished = run(&mut command, b"");
    assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
    finished.stdout
}

/// The vendor itself is out of reach for a test. Its stand-in is another destination, for which the
/// key has to be stored again.
fn points_to(sandbox: &Sandbox, vendor: &seks_tests::Upstream) {
    sandbox.cli().enable("openai", "openai", vendor);
    sandbox.cli().put_credential("openai-main", "openai", KEY);
}

fn token_in(text: &str) -> &str {
    let start = text.find("seks_token_").unwrap_or_else(|| panic!("no token in: {text}"));
    text.get(start..start + 60).unwrap()
}

#[test]
fn the_quick_start_ends_with_a_token_that_is_answered_for() {
    let (sandbox, vendor) = (Sandbox::start(), Vendor::OpenAi.start(KEY));
    let printed = commands("quick-start", &sandbox);
    points_to(&sandbox, &vendor);
    let reply = sandbox.get("/api/openai/v1/models", token_in(&printed));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(!printed.contains(KEY) && !sandbox.everything_emitted().contains(KEY));
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn the_sdk_snippet_runs_with_that_token() {
    let (sandbox, vendor) = (Sandbox::start(), Vendor::OpenAi.start(KEY));
    let printed = commands("quick-start", &sandbox);
    points_to(&sandbox, &vendor);
    let snippet = block("quick-start-sdk");
    for placeholder in ["seks_token_…", "http://127.0.0.1:8300"] {
        assert!(snippet.contains(placeholder), "the snippet has lost `{placeholder}`");
    }
    let snippet =
        snippet.replace("seks_token_…", token_in(&printed)).replace("http://127.0.0.1:8300", sandbox.proxy_url());
    let finished = run(Command::new(installed("python/bin/python")).args(["-c", &snippet]), b"");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.stdout.contains("Hello"), "{}", finished.stdout);
}

#[test]
fn the_policy_and_the_service_are_accepted_as_written() {
    let (sandbox, vendor) = (Sandbox::start(), Vendor::OpenAi.start(KEY));
    sandbox.cli().enable("openai", "openai", &vendor);
    assert!(commands("policy-commands", &sandbox).contains("deny"), "/v1/models is not what the policy permits");
    sandbox.cli().apply_service(&block("service"));
    assert_eq!(sandbox.cli().json(&["service", "show", "tickets"])["upstream"], "https://tickets.example.com");
}
