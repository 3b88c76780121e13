//! `seks dev --demo`, the newcomer's first command: no key, no network, and everything that it
//! claims is so.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{fs, path::Path, process::Command};

use seks_tests::process::{Process, binary, run};
use serde_json::Value;

fn start(folder: &Path) -> (Process, String) {
    let mut command = Command::new(binary("seks"));
    command.current_dir(folder).env_clear().env("HOME", folder).args(["dev", "--demo"]);
    for listener in ["--proxy-listen", "--admin-listen", "--metrics-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    drop(fs::remove_file(folder.join("demo.out")));
    let mut process = Process::spawn("demo", folder, &mut command);
    let told = process.wait_for("the story to be told", || {
        let text = fs::read_to_string(folder.join("demo.out")).ok()?;
        text.contains("models.list()").then_some(text)
    });
    (process, told)
}

fn block<'a>(told: &'a str, number: &str) -> &'a str {
    let start = told.find(&format!("── {number}. ")).unwrap_or_else(|| panic!("no block {number}: {told}"));
    let rest = &told[start..];
    rest.find("\n── ").map_or(rest, |end| &rest[..end])
}

fn word<'a>(text: &'a str, prefix: &str) -> &'a str {
    let start = text.find(prefix).unwrap_or_else(|| panic!("no {prefix} in {text}"));
    text[start..].split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').next().unwrap()
}

#[test]
fn the_three_sides_of_one_request_are_shown_and_the_key_is_on_one_only() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, told) = start(folder.path());
    let (sent, received, got) = (block(&told, "1"), block(&told, "2"), block(&told, "3"));
    let (token, key) = (word(sent, "seks_token_"), word(received, "sk-demo-"));
    assert_eq!(token.len(), 60);
    assert!(key.len() > 40, "{key}");
    assert!(!sent.contains(key) && !received.contains(token), "{told}");
    let answer = got.split("The agent never had the key").next().unwrap();
    assert!(!answer.contains(key) && answer.contains("status 200") && answer.contains("[DONE]"), "{answer}");
    assert!(received.contains("POST /v1/chat/completions"), "{received}");
    for command in ["service enable openai", "credential put openai-key", "agent create", "token issue"] {
        assert!(told.contains(command), "{command}: {told}");
    }
    assert!(!fs::read_to_string(folder.path().join("demo.err")).unwrap().contains(key), "a log holds the key");
    assert!(process.terminate().success());
}

#[test]
fn a_second_demonstration_uses_what_is_there_and_goes_on_serving() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, first) = start(folder.path());
    assert!(process.terminate().success());
    let (mut process, second) = start(folder.path());
    assert_eq!(word(&first, "sk-demo-"), word(&second, "sk-demo-"), "the stored key is the same");
    assert_ne!(word(&first, "seks_token_"), word(&second, "seks_token_"), "a token is never shown again");
    let list = |noun: &str| -> Vec<Value> {
        let mut command = Command::new(binary("seks"));
        command.current_dir(&folder).env_clear().env("HOME", folder.path()).args([noun, "list", "-o", "json"]);
        serde_json::from_str(&run(&mut command, b"").stdout).unwrap()
    };
    for noun in ["service", "credential", "agent", "token"] {
        assert_eq!(list(noun).len(), 1, "{noun}");
    }
    assert!(process.is_alive());
    assert!(process.terminate().success());
}
