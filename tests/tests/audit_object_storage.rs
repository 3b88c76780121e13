//! The trail in an S3-compatible bucket: moto's server, as a real one.
//!
//! `tests/sdk/install` puts moto into `.test-env`; without it this test fails, and says so.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::Command,
};

use seks_tests::{
    Sandbox, Upstream,
    metrics::Page,
    process::{Process, installed, wait_for},
    raw,
    sandbox::Options,
    upstream::Answer,
};
use tempfile::TempDir;

const SECRET: &str = "sk-real-0123456789abcdef";
const BUCKET: &str = "audit-trail";
const BUCKET_SECRET: &str = "bucket-secret-0123456789";

/// One request without a body; the answer.
fn http(address: &str, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn object_storage(directory: &TempDir) -> (Process, String) {
    object_storage_at(directory, "127.0.0.1:0")
}

/// Starts the server at an address, with an empty bucket.
fn object_storage_at(directory: &TempDir, address: &str) -> (Process, String) {
    let (host, port) = address.split_once(':').unwrap();
    let mut server = Command::new(installed("aws/bin").join("moto_server"));
    server.args(["-H", host, "-p", port]).env("AWS_EC2_METADATA_DISABLED", "true");
    let mut moto = Process::spawn(&format!("moto-{port}"), directory.path(), &mut server);
    let address = moto.wait_for_output("moto's port", |log| {
        let (_, rest) = log.split_once("Running on http://")?;
        Some(rest.split_whitespace().next()?.trim_end_matches('/').to_owned())
    });
    assert!(http(&address, "PUT", &format!("/{BUCKET}")).starts_with("HTTP/1.1 200"));
    (moto, address)
}

/// A control plane and a node whose trail is in the bucket at `address`.
fn sandbox(directory: &TempDir, address: &str) -> (Sandbox, Upstream, String) {
    let credentials = directory.path().join("s3.json");
    let json = format!("{{\"access_key_id\": \"AKIATEST\", \"secret_access_key\": \"{BUCKET_SECRET}\"}}");
    fs::write(&credentials, json).unwrap();
    let store = format!(
        "kind = \"embedded\"\npath = \"data/store\"\n[audit]\ndir = \"trail\"\n[audit.object_storage]\n\
         bucket = \"{BUCKET}\"\nendpoint = \"http://{address}\"\nallow_plaintext = true\ncredentials_file = {credentials:?}\n"
    );
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let sandbox = Sandbox::with(Options::planes(store));
    sandbox.service("openai", &upstream, SECRET);
    let token = sandbox.token("ci-bot", &["openai"]).secret;
    (sandbox, upstream, token)
}

fn requests(sandbox: &Sandbox, token: &str, range: std::ops::Range<u32>) {
    for n in range {
        assert_eq!(sandbox.get(&format!("/api/openai/v1/{n}"), token).status, 200);
    }
}

fn wait_for_records(sandbox: &Sandbox, count: usize) {
    wait_for(&format!("{count} records"), || {
        let found = sandbox.cli().run(&["audit", "search", "-o", "json"], "");
        let found: serde_json::Value = serde_json::from_str(&found.stdout).ok()?;
        (found.as_array()?.len() == count).then_some(())
    });
}

fn trail(sandbox: &Sandbox) -> PathBuf {
    sandbox.context_file().parent().unwrap().join("trail")
}

fn wait_for_object(address: &str, what: &str) {
    wait_for(&format!("{what} in the bucket"), || {
        http(address, "GET", &format!("/{BUCKET}?list-type=2")).contains(what).then_some(())
    });
}

#[test]
fn a_replica_that_has_lost_its_disk_reads_its_trail_from_the_bucket() {
    let directory = tempfile::tempdir().unwrap();
    let (_moto, address) = object_storage(&directory);
    let (mut sandbox, _upstream, token) = sandbox(&directory, &address);
    requests(&sandbox, &token, 0..5);
    wait_for_records(&sandbox, 5);
    sandbox.restart(); // a start makes a block of the records
    wait_for_object(&address, ".blk");
    requests(&sandbox, &token, 5..7);
    wait_for_records(&sandbox, 7);

    // A process that ends uploads the log of the newest two. Then the disk is lost.
    assert!(sandbox.control().terminate().success());
    fs::remove_dir_all(trail(&sandbox)).unwrap();
    sandbox.crash();
    wait_for_records(&sandbox, 7);
    let verified = sandbox.cli().json(&["audit", "verify"]);
    assert!(verified["ok"] == true && verified["records"].as_u64().unwrap() >= 7, "{verified}");
    requests(&sandbox, &token, 7..8);
    wait_for_records(&sandbox, 8);
    assert!(!sandbox.everything_emitted().contains(BUCKET_SECRET));
}

#[test]
fn while_the_bucket_is_away_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (mut moto, address) = object_storage(&directory);
    let (mut sandbox, _upstream, token) = sandbox(&directory, &address);
    requests(&sandbox, &token, 0..3);
    wait_for_records(&sandbox, 3);
    moto.kill();
    // It starts without the bucket, too, and goes on.
    sandbox.restart();
    requests(&sandbox, &token, 3..5);
    wait_for_records(&sandbox, 5);
    let metrics = sandbox.control_metrics().unwrap();
    let page = || {
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        Page::read(&raw::exchange(metrics, request).text())
    };
    wait_for("the failure in the metrics", || {
        let page = page();
        let failing = page.sum("seks_audit_trail_upload_failing_seconds");
        (failing > 0.0 && page.sum("seks_audit_trail_pending_bytes") > 0.0).then_some(())
    });
    // The server comes back, empty, at the same address.
    let (_moto, _) = object_storage_at(&directory, &address);
    wait_for_object(&address, ".blk");
    wait_for("the metrics to say so", || {
        let page = page();
        let failing = page.sum("seks_audit_trail_upload_failing_seconds");
        (failing == 0.0 && page.sum("seks_audit_trail_pending_bytes") == 0.0).then_some(())
    });
    let verified = sandbox.cli().json(&["audit", "verify"]);
    assert!(verified["ok"] == true && verified["records"].as_u64().unwrap() >= 5, "{verified}");
}
