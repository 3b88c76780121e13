//! Somebody's machine: a configuration, a key, and the control plane as a process.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use seks_control_plane::{
    seal::{SealConfig, Sealer},
    store::StoreConfig,
};
use seks_proto::wire::{self, admin_client::AdminClient};
use seks_tests::{
    control::{Pair, connect},
    process::{Finished, Process, binary, run},
    runtime,
};
use tempfile::TempDir;
use tonic::transport::Channel;

pub struct Machine {
    dir: TempDir,
    store: String,
    pub config: StoreConfig,
}

pub struct Running {
    pub process: Process,
    admin: String,
}

impl Machine {
    /// With an embedded store.
    pub fn embedded() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data/store");
        Self::with(dir, format!("path = {path:?}"), StoreConfig::embedded(path))
    }

    /// With a store of this `prefix` in the etcd at `url`.
    pub fn etcd(url: &str, prefix: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("state/mark");
        let text = format!(
            "kind = \"etcd\"\nendpoints = [{url:?}]\nprefix = {prefix:?}\nallow_plaintext = true\nmark_file = {mark:?}"
        );
        let config = StoreConfig {
            kind: seks_control_plane::store::StoreKind::Etcd,
            endpoints: vec![url.into()],
            prefix: prefix.into(),
            allow_plaintext: true,
            mark_file: mark,
            ..StoreConfig::default()
        };
        Self::with(dir, text, config)
    }

    fn with(dir: TempDir, store: String, config: StoreConfig) -> Self {
        let machine = Self { dir, store, config };
        machine.write("kek", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff");
        machine.configure("kek");
        machine
    }

    /// The key-encryption key is in this file.
    pub fn configure(&self, kek: &str) {
        let kek = self.path(kek);
        self.write("control-plane.toml", &format!("[store]\n{}\n[seal]\npath = {kek:?}\n", self.store));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("seks-control-plane"));
        command.env_clear().arg("--config").arg(self.path("control-plane.toml"));
        for listen in ["--admin-listen", "--distribution-listen", "--metrics-listen"] {
            command.args([listen, "127.0.0.1:0"]);
        }
        command.args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Finished {
        run(&mut self.command(arguments), b"")
    }

    /// Runs, and has to succeed.
    #[track_caller]
    pub fn done(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.code, Some(0), "{arguments:?}: {}", done.stderr);
        done.stdout
    }

    /// Runs, and is refused in one line with this code, that has all of `wanted` in it.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str], code: i32, wanted: &[&str]) {
        let done = self.run(arguments);
        assert_eq!(done.code, Some(code), "{arguments:?}: {done:?}");
        let errors: Vec<_> = done.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{done:?}");
        for word in wanted {
            assert!(errors[0].contains(word), "`{word}` is missing: {done:?}");
        }
    }

    pub fn start(&self) -> Running {
        let name = format!("control-plane-{}", fs::read_dir(self.dir.path()).unwrap().count());
        let mut process = Process::spawn(&name, self.dir.path(), &mut self.command(&[]));
        let log = self.path(&format!("{name}.err"));
        let admin = process.wait_for("the control plane to serve", || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let line = text.lines().find(|l| l.contains("\"serving\""))?.to_owned();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            Some(line["admin"].as_str().unwrap().to_owned())
        });
        Running { process, admin }
    }

    /// Makes the first operator, while nothing runs.
    pub fn bootstrap(&self) {
        self.done(&["bootstrap-operator", "--name", "root", "--out", self.path("root").to_str().unwrap()]);
    }

    /// A client of that operator, whose files are in the directory `root` of `home`.
    pub fn client(home: &Path, running: &Running) -> AdminClient<Channel> {
        let read = |name: &str| fs::read_to_string(home.join(name)).unwrap();
        let pair = Pair { certificate: read("operator.pem"), key: read("operator.key") };
        let _runtime = runtime().enter();
        AdminClient::new(connect(&running.admin, &read("ca.pem"), &pair))
    }

    pub fn sealer(&self) -> Sealer {
        Sealer::load(&SealConfig::file(self.path("kek"))).unwrap()
    }
}

/// Makes an agent.
pub fn make_agent(client: &mut AdminClient<Channel>, name: &str) {
    let agent =
        wire::CreateAgentRequest { tenant: "default".into(), name: name.into(), attributes: Default::default() };
    runtime().block_on(client.create_agent(agent)).unwrap();
}

/// The agents' names.
pub fn agents(client: &mut AdminClient<Channel>) -> Vec<String> {
    let list = wire::ListRequest { tenant: "default".into(), ..Default::default() };
    let listed = runtime().block_on(client.list_agents(list)).unwrap().into_inner();
    listed.agents.into_iter().map(|agent| agent.name).collect()
}
