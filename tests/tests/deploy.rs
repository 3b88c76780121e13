//! What `deploy/` and `tools/` hold fits what the binaries and their builds need.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

#[path = "deploy/compose.rs"]
mod compose;
#[path = "deploy/helm.rs"]
mod helm;
#[path = "deploy/processes.rs"]
mod processes;
#[path = "deploy/region.rs"]
mod region;
#[path = "deploy/release.rs"]
mod release;
#[path = "deploy/systemd.rs"]
mod systemd;

use std::{fs, path::PathBuf, process::Command};

use seks_tests::metrics::NAMES;

fn deploy_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn file(name: &str) -> String {
    let path = deploy_dir().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_example_configurations_are_accepted() {
    for name in ["examples/control-plane.toml", "docker/control-1.toml", "docker/control-2.toml"] {
        let config: seks_control_plane::Config = toml::from_str(&file(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        config.seal.check().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(
            config.store.mark_file.is_absolute(),
            "{name}: without a mark file, a store that went back is not noticed"
        );
    }
    for name in ["examples/data-plane.toml", "docker/node.toml"] {
        let config: seks_data_plane::Config = toml::from_str(&file(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!config.control.endpoints.is_empty(), "{name}");
    }
}

/// Every metric's name in a text, histogram suffixes taken off.
fn names(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let metrics = words.filter(|w| w.starts_with("seks_") || w.starts_with("process_"));
    metrics.map(|w| w.trim_end_matches("_bucket").trim_end_matches("_count").to_owned()).collect()
}

fn dashboards() -> String {
    let names = ["fleet", "service", "agent", "revocation", "audit", "control-plane", "store"];
    names.map(|name| file(&format!("grafana/{name}.json"))).concat()
}

#[test]
fn dashboards_and_alerts_use_metrics_that_exist() {
    for (name, text) in [("grafana", dashboards()), ("prometheus/alerts.yml", file("prometheus/alerts.yml"))] {
        let used = names(&text);
        assert!(used.len() > 5, "{name}");
        for metric in used {
            assert!(NAMES.contains(&metric.as_str()), "{name} asks for {metric}");
        }
    }
    let shown = names(&dashboards());
    for metric in NAMES {
        assert!(shown.iter().any(|s| s == metric), "the dashboard doesn't show {metric}");
    }
}

#[test]
fn a_fixed_etcd_is_shipped() {
    let compose = file("compose.yaml");
    let version = compose.split("etcd:v").nth(1).and_then(|v| v.split_whitespace().next()).unwrap();
    let parts: Vec<u32> = version.split('.').map(|p| p.parse().unwrap()).collect();
    // The floors of SECURITY.md.
    assert!(parts >= vec![3, 5, 33] && (parts[1] != 6 || parts[2] >= 14), "{version}");
}

/// With `SEKS_WRITE_DESCRIPTORS=1` they are written anew.
#[test]
fn a_build_is_given_the_descriptors_of_the_etcd_client_that_is_locked() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    // Other platforms' crates needn't have been downloaded.
    let version = Command::new(env!("CARGO")).arg("-vV").output().unwrap().stdout;
    let version = String::from_utf8(version).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host]);
    cargo.current_dir(&root);
    let metadata: serde_json::Value = serde_json::from_slice(&cargo.output().unwrap().stdout).unwrap();
    let package = metadata["packages"].as_array().unwrap().iter().find(|p| p["name"] == "etcd-client").unwrap();
    let protos = PathBuf::from(package["manifest_path"].as_str().unwrap()).with_file_name("proto");
    // What its build script compiles.
    let files = [
        "etcd/api/authpb/auth.proto",
        "etcd/api/etcdserverpb/rpc.proto",
        "etcd/api/mvccpb/kv.proto",
        "etcd/server/etcdserver/api/v3election/v3electionpb/v3election.proto",
        "etcd/server/etcdserver/api/v3lock/v3lockpb/v3lock.proto",
    ];
    let script = fs::read_to_string(protos.with_file_name("build.rs")).unwrap();
    assert_eq!(script.matches(".proto\"").count(), files.len(), "another list of files: {script}");
    assert!(files.iter().all(|file| script.contains(file)), "{script}");
    let mut compiler = protox::Compiler::new([&protos]).unwrap();
    compiler.include_imports(true).open_files(files).unwrap();
    let made = compiler.encode_file_descriptor_set();
    let name = format!("tools/descriptors/etcd-client-{}.bin", package["version"].as_str().unwrap());
    if std::env::var_os("SEKS_WRITE_DESCRIPTORS").is_some() {
        fs::write(root.join(&name), &made).unwrap();
    }
    let kept = fs::read(root.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(kept == made, "{name} is not what the files say");
}
