//! `deploy/region/`: three regions with the delays of continents, and one of them cut off.

use std::{path::PathBuf, process::Command};

use seks_tests::{
    process::{Finished, binary, run, wait_for},
    sandbox::clean_environment,
};
use serde_json::Value;

use crate::deploy_dir;

/// Three regions. They end when this is dropped.
struct Regions {
    directory: tempfile::TempDir,
    name: String,
}

impl Regions {
    fn up() -> Self {
        let regions = Self { directory: tempfile::tempdir().unwrap(), name: format!("st{}", std::process::id()) };
        regions.done(&["up"]);
        regions
    }

    fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(deploy_dir().join("region/region"));
        clean_environment(&mut command);
        command.env("REGION_DIR", self.files()).env("REGION_NAME", &self.name);
        command.env("REGION_BIN", binary("seks").parent().unwrap());
        run(command.args(arguments), b"")
    }

    #[track_caller]
    fn done(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.code, Some(0), "{arguments:?}: {done:?}");
        done.stdout
    }

    /// What the agents of these regions saw.
    #[track_caller]
    fn load(&self, regions: &[&str]) -> Vec<Value> {
        let printed = self.done(&[&["load", "2"], regions].concat());
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Regions {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

#[test]
#[cfg_attr(not(has = "root"), ignore = "needs root")]
#[cfg_attr(not(has = "mount"), ignore = "needs mount")]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_region_that_is_cut_off_costs_the_others_nothing_and_comes_back() {
    let regions = Regions::up();
    for seen in regions.load(&[]) {
        // The upstream is on the backbone: a request waits for the delay twice, and not for a
        // control plane.
        assert!(seen["ok"].as_u64() > Some(10), "{seen}");
        let slowest = if seen["region"] == "ap" { 146.0 } else { 16.0 };
        assert!(seen["p50_ms"].as_f64() >= Some(slowest), "{seen}");
    }
    regions.done(&["cut", "us"]);
    regions.load(&["eu", "ap"]);
    // A revocation waits for the lease of the node that nobody reaches, and no longer.
    let issued = regions.done(&["seks", "token", "issue", "--agent", "load", "--service", "openai", "-o", "json"]);
    let issued: Value = serde_json::from_str(&issued).unwrap();
    let revoked = regions.done(&["seks", "token", "revoke", issued["id"].as_str().unwrap(), "--yes", "-o", "json"]);
    let revoked: Value = serde_json::from_str(&revoked).unwrap();
    assert_eq!(revoked["enforced"], true, "{revoked}");
    assert!(revoked["waited_ms"].as_u64() < Some(20_000), "{revoked}");
    regions.done(&["heal", "us"]);
    wait_for("the region that was cut off", || (regions.run(&["load", "1", "us"]).code == Some(0)).then_some(()));
}
