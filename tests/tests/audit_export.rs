//! Exports: written by `seks audit export`, and verified away from the broker; and the trail as it
//! is followed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use seks_tests::{
    Sandbox, Upstream,
    process::{Finished, binary, wait_for},
    sandbox::{Cli, cli::clean_environment},
    upstream::Answer,
};
use serde_json::Value;

const SECRET: &str = "sk-real-0123456789abcdef";

/// A broker with as many requests of `ci-bot`, all of them in the trail.
fn with_requests(count: usize) -> (Sandbox, String) {
    let upstream = Upstream::start(|_| Answer::json(200, "{}"));
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, SECRET);
    let token = sandbox.token("ci-bot", &["openai"]).secret;
    for n in 0..count {
        assert_eq!(sandbox.get(&format!("/api/openai/v1/{n}"), &token).status, 200);
    }
    wait_for("the records", || {
        let found = sandbox.cli().json(&["audit", "search"]);
        (found.as_array().unwrap().len() == count).then_some(())
    });
    (sandbox, token)
}

fn lines(path: &Path) -> Vec<Value> {
    let text = zstd::stream::decode_all(fs::File::open(path).unwrap()).unwrap();
    String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `seks audit verify DIR --key FILE` where there is no broker and no context.
fn verify(directory: &Path, export: &str) -> (Finished, Value) {
    let nowhere = Cli::new(directory, &PathBuf::from("no-context.toml"));
    let finished = nowhere.run(&["audit", "verify", export, "--key", "audit.pem", "-o", "json"], "");
    let verified = serde_json::from_str(&finished.stdout).unwrap_or(Value::Null);
    (finished, verified)
}

fn kinds(verified: &Value) -> Vec<&str> {
    verified["findings"].as_array().unwrap().iter().map(|found| found["kind"].as_str().unwrap()).collect()
}

#[test]
fn an_export_is_verified_away_from_the_broker_and_each_change_of_it_is_found() {
    let (mut sandbox, token) = with_requests(12);
    let directory = sandbox.data_dir().parent().unwrap().to_path_buf();
    let key = sandbox.cli().run(&["audit", "key"], "");
    assert!(key.stdout.starts_with("-----BEGIN PUBLIC KEY-----"), "{key:?}");
    fs::write(directory.join("audit.pem"), &key.stdout).unwrap();
    let exported = sandbox.cli().json(&["audit", "export", "--since", "1h", "--out", "out"]);
    assert_eq!((&exported["records"], &exported["chains"]), (&12.into(), &1.into()), "{exported}");
    assert_eq!(sandbox.cli().run(&["audit", "export", "--out", "out"], "").code, Some(2), "it is not empty");
    let asked = sandbox.cli().json(&["audit", "verify", "out"]);
    assert_eq!((&asked["ok"], &asked["records"]), (&true.into(), &12.into()), "the key comes from the broker");

    let out = directory.join("out");
    let records = lines(&out.join("records-000001.jsonl.zst"));
    assert_eq!(
        (records.len(), &records[0]["agent"], &records[0]["path"]),
        (12, &"ci-bot".into(), &"/api/openai/v1/0".into())
    );
    let changes = lines(&out.join("admin.jsonl.zst"));
    assert!(changes.iter().any(|change| change["verb"] == "IssueToken"), "{changes:?}");
    for file in fs::read_dir(&out).unwrap() {
        let path = file.unwrap().path();
        let bytes = if path.extension().is_some_and(|e| e == "zst") {
            zstd::stream::decode_all(fs::File::open(&path).unwrap()).unwrap()
        } else {
            fs::read(&path).unwrap()
        };
        for secret in [SECRET, &token[11..33]] {
            assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{}", path.display());
        }
    }

    sandbox.process().terminate();
    let (finished, verified) = verify(&directory, "out");
    assert_eq!((finished.code, &verified["ok"]), (Some(0), &true.into()), "{finished:?}");
    assert_eq!(verified["admin_changes"].as_u64().unwrap() as usize, changes.len());

    // A record's line is changed; then a file is removed; then the manifest itself is changed.
    let path = out.join("records-000001.jsonl.zst");
    let mut changed = records.clone();
    changed.remove(5);
    let text: String = changed.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&path, zstd::stream::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
    let (finished, verified) = verify(&directory, "out");
    assert_eq!((finished.code, kinds(&verified)), (Some(1), vec!["file_changed", "gap"]), "{finished:?}");
    assert_eq!((&verified["findings"][1]["from"], &verified["findings"][1]["node"]), (&6.into(), &"dev".into()));
    fs::remove_file(out.join("admin.jsonl.zst")).unwrap();
    let (_, verified) = verify(&directory, "out");
    assert!(kinds(&verified).contains(&"file_missing") && kinds(&verified).contains(&"cut_tail"), "{verified}");
    let manifest = out.join("manifest.json");
    fs::write(&manifest, fs::read_to_string(&manifest).unwrap().replace("\"records\": 12", "\"records\": 11")).unwrap();
    let (finished, _) = verify(&directory, "out");
    assert!(
        finished.code == Some(1) && finished.stderr.contains("it was changed, or signed with another key"),
        "{finished:?}"
    );
    let (finished, _) = verify(&directory, "nothing-here");
    assert_eq!(finished.code, Some(3), "{finished:?}");
}

#[test]
fn a_tenant_exports_its_own_records_alone() {
    let (sandbox, token) = with_requests(2);
    let cli = sandbox.cli();
    assert_eq!(sandbox.get("/api/openai/v1/models", "nobody").status, 401, "a record of no tenant");
    wait_for("it", || (cli.json(&["audit", "search"]).as_array().unwrap().len() == 3).then_some(()));
    cli.json(&["tenant", "create", "acme"]);
    for (name, tenant) in [("eve", "acme"), ("dora", "default")] {
        cli.json(&[
            "operator",
            "create",
            name,
            "--role",
            &format!("viewer:{tenant}"),
            "--out",
            &format!("{name}.toml"),
        ]);
    }
    let directory = sandbox.data_dir().parent().unwrap().to_path_buf();
    let exported = |name: &str, tenant: &str| {
        let viewer = Cli::new(&directory, &directory.join(format!("{name}.toml")));
        viewer.run(&["audit", "export", "--tenant", tenant, "--out", &format!("of-{name}-{tenant}"), "-o", "json"], "")
    };
    let of = |finished: &Finished| serde_json::from_str::<Value>(&finished.stdout).unwrap();
    let (own, other) = (exported("dora", "default"), exported("eve", "acme"));
    assert_eq!((&of(&own)["records"], &of(&own)["chains"]), (&2.into(), &0.into()), "{own:?}");
    assert_eq!(
        (&of(&other)["records"], &of(&other)["admin_changes"]),
        (&0.into(), &1.into()),
        "its creation: {other:?}"
    );
    assert_eq!(exported("eve", "default").code, Some(3));
    let verified = cli.json(&["audit", "verify", "of-dora-default"]);
    assert_eq!((&verified["ok"], &verified["tenant"]), (&true.into(), &"default".into()));
    drop(token);
}

#[test]
fn tail_follows_as_records_arrive() {
    let (sandbox, token) = with_requests(1);
    let directory = sandbox.data_dir().parent().unwrap().to_path_buf();
    let mut command = Command::new(binary("seks"));
    command.current_dir(&directory).arg("--context-file").arg(sandbox.context_file());
    command.args(["audit", "tail", "--follow", "--agent", "ci-bot", "-n", "1", "-o", "json"]);
    clean_environment(&mut command);
    let output = directory.join("tail.out");
    command.stdout(fs::File::create(&output).unwrap()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let printed = |count: usize| {
        wait_for(&format!("{count} lines of tail"), || {
            let text = fs::read_to_string(&output).unwrap();
            (text.lines().count() == count).then_some(text)
        })
    };
    printed(1);
    for n in 100..103 {
        assert_eq!(sandbox.get(&format!("/api/openai/v1/{n}"), &token).status, 200);
        assert_eq!(sandbox.get("/api/openai/v1/other", "nobody").status, 401, "filtered out");
    }
    let text = printed(4);
    let paths: Vec<Value> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["path"].clone()).collect();
    assert_eq!(paths, ["/api/openai/v1/0", "/api/openai/v1/100", "/api/openai/v1/101", "/api/openai/v1/102"]);
    child.kill().unwrap();
    child.wait().unwrap();
}
