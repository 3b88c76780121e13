//! The audit key is rotated while the fleet serves: earlier records stay, later ones are sealed to
//! the new key.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{fs, path::Path, process::Command};

use seks_audit::frame::SegmentHeader;
use seks_tests::{
    Sandbox, Upstream,
    etcd::Etcd,
    process::{binary, wait_for},
    sandbox::{Options, cli::clean_environment},
    upstream::Answer,
};

const SECRET: &str = "sk-real-0123456789abcdef";

fn rotate(directory: &Path) -> String {
    let mut command = Command::new(binary("seks-control-plane"));
    command.current_dir(directory).args(["--config", "control-plane.toml", "rotate-audit-key"]);
    clean_environment(&mut command);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the keys that the node's newest segment and its key file are of.
fn node_keys(spool: &Path) -> (String, String) {
    let mut segments: Vec<_> = fs::read_dir(spool).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|end| end == "seg"));
    segments.sort();
    let newest = segments.pop().map(|path| fs::read(path).unwrap_or_default()).unwrap_or_default();
    let sealed_to = SegmentHeader::decode(&newest).map(|header| header.key_id.to_string()).unwrap_or_default();
    let key = seks_audit::seal::AuditPublicKey::from_bytes(&fs::read(spool.join("audit-key")).unwrap()).unwrap();
    (sealed_to, key.id().to_string())
}

#[test]
fn a_rotated_audit_key_seals_what_is_recorded_next_and_all_records_stay() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let etcd = runtime.block_on(Etcd::start());
    let store = format!(
        "kind = \"etcd\"\nallow_plaintext = true\nendpoints = [\"{}\"]\n[audit]\ndir = \"trail\"\n",
        etcd.url()
    );
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let config = "[audit]\nmode = \"required\"\n".to_owned();
    let mut sandbox = Sandbox::with(Options { config, ..Options::planes(store) });
    let directory = sandbox.context_file().parent().unwrap().to_path_buf();
    let spool = directory.join("node/audit");
    sandbox.service("openai", &upstream, SECRET);
    let token = sandbox.token("ci-bot", &["openai"]).secret;
    let request = |sandbox: &Sandbox, n: usize| sandbox.get(&format!("/api/openai/v1/{n}"), &token).status;
    for n in 0..5 {
        assert_eq!(request(&sandbox, n), 200);
    }
    let before = node_keys(&spool).1;
    let said = rotate(&directory);
    assert!(said.contains(&format!("key {before} is kept")), "{said}");
    // No request is refused while the fleet changes its key.
    let mut n = 5;
    wait_for("the node to seal to the new key", || {
        assert_eq!(request(&sandbox, n), 200);
        n += 1;
        let (sealed_to, key) = node_keys(&spool);
        (key != before && sealed_to == key && said.contains(&format!("to key {key} now"))).then_some(())
    });
    let found = |sandbox: &Sandbox, count: usize| {
        wait_for("the records of both keys", || {
            let found = sandbox.cli().json(&["audit", "search", "--limit", "100000"]);
            (found.as_array().unwrap().len() == count).then_some(())
        });
        let verified = sandbox.cli().json(&["audit", "verify"]);
        assert!(verified["ok"] == true && verified["records"].as_u64().unwrap() >= count as u64, "{verified}");
    };
    found(&sandbox, n);
    sandbox.crash();
    assert_eq!(request(&sandbox, n), 200);
    found(&sandbox, n + 1);
}
