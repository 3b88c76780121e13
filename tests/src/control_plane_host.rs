//! A machine that runs `seks-control-plane` as a process: its configuration, its key, its store.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use seks_control_plane::{
    seal::{SealConfig, Sealer},
    store::{StoreConfig, StoreKind},
};
use seks_proto::wire::admin_client::AdminClient;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{
    control::{Pair, connect},
    plane::Serving,
    process::{self, Finished, Process, binary},
    runtime,
};

/// A key-encryption key that is as good as any.
pub const KEK: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// The machine. Its files are gone when it is dropped.
#[derive(Debug)]
pub struct ControlPlaneHost {
    dir: TempDir,
    /// TOML of `[store]`.
    store: String,
    /// The store, for tests that open it themselves while no control plane does.
    pub config: StoreConfig,
}

/// A control plane that serves.
#[derive(Debug)]
pub struct RunningControlPlane {
    /// The process.
    pub process: Process,
    /// `host:port` of its admin API.
    pub admin: String,
}

impl ControlPlaneHost {
    /// With an embedded store.
    ///
    /// # Panics
    /// When there is no place for its files.
    pub fn embedded() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data/store");
        Self::with(dir, format!("path = {path:?}"), StoreConfig::embedded(path))
    }

    /// With a store below `prefix` in the etcd at `url`.
    ///
    /// # Panics
    /// When there is no place for its files.
    pub fn etcd(url: &str, prefix: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("state/mark");
        let text = format!(
            "kind = \"etcd\"\nendpoints = [{url:?}]\nprefix = {prefix:?}\nallow_plaintext = true\nmark_file = {mark:?}"
        );
        let config = StoreConfig {
            kind: StoreKind::Etcd,
            endpoints: vec![url.into()],
            prefix: prefix.into(),
            allow_plaintext: true,
            mark_file: mark,
            ..StoreConfig::default()
        };
        Self::with(dir, text, config)
    }

    fn with(dir: TempDir, store: String, config: StoreConfig) -> Self {
        let host = Self { dir, store, config };
        host.write("kek", KEK, 0o600);
        host.configure("");
        host
    }

    /// A configuration that works, and `more` behind it.
    pub fn configure(&self, more: &str) {
        self.configure_kek("kek", more);
    }

    /// The same with the key-encryption key of another file.
    pub fn configure_kek(&self, file: &str, more: &str) {
        let kek = self.path(file);
        self.configure_with(&format!("[store]\n{}\n[seal]\npath = {kek:?}\n{more}", self.store));
    }

    /// This configuration.
    pub fn configure_with(&self, text: &str) {
        self.write("control-plane.toml", text, 0o600);
    }

    /// A file's path.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file with this mode.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn write(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// `seks-control-plane` on free ports.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("seks-control-plane"));
        command.env_clear().arg("--config").arg(self.path("control-plane.toml"));
        // Memory that is free goes back at once, so that what a test measures is what is used.
        command.env("MIMALLOC_PURGE_DELAY", "0");
        for listen in ["--admin-listen", "--distribution-listen", "--metrics-listen"] {
            command.args([listen, "127.0.0.1:0"]);
        }
        command.args(arguments);
        command
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        process::run(&mut self.command(arguments), b"")
    }

    /// Runs it to its end, which must be a success; what it printed.
    #[track_caller]
    pub fn done(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.code, Some(0), "{arguments:?}: {}", done.stderr);
        done.stdout
    }

    /// Runs it to its end, which must be this code, and one line that begins with `error: ` and has
    /// all of `wanted` in it.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str], code: i32, wanted: &[&str]) {
        let done = self.run(arguments);
        assert_eq!(done.code, Some(code), "{arguments:?}: {done:?}");
        let errors: Vec<_> = done.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        let [error] = errors.as_slice() else { panic!("{done:?}") };
        for word in wanted {
            assert!(error.contains(word), "`{word}` is missing: {done:?}");
        }
    }

    /// Starts it; returns when it serves.
    ///
    /// # Panics
    /// When it doesn't.
    pub fn start(&self) -> RunningControlPlane {
        let name = format!("control-plane-{}", fs::read_dir(self.dir.path()).unwrap().count());
        let mut process = Process::spawn(&name, self.dir.path(), &mut self.command(&[]));
        let admin = Serving::wait(&mut process).at("admin");
        RunningControlPlane { process, admin }
    }

    /// Makes the first operator, while nothing runs.
    pub fn bootstrap(&self) {
        self.done(&["bootstrap-operator", "--name", "root", "--out", self.path("root").to_str().unwrap()]);
    }

    /// A connection of the first operator.
    pub fn channel(&self, running: &RunningControlPlane) -> Channel {
        running.channel(&self.path("root"))
    }

    /// A client of the first operator.
    pub fn client(&self, running: &RunningControlPlane) -> AdminClient<Channel> {
        running.client(&self.path("root"))
    }

    /// What opens the store's secrets.
    ///
    /// # Panics
    /// When the key is not there any more.
    pub fn sealer(&self) -> Sealer {
        Sealer::load(&SealConfig::file(self.path("kek"))).unwrap()
    }
}

impl RunningControlPlane {
    /// A connection of the operator whose files are in this directory.
    ///
    /// # Panics
    /// When they aren't.
    pub fn channel(&self, operator: &Path) -> Channel {
        let read = |name: &str| fs::read_to_string(operator.join(name)).unwrap();
        let pair = Pair { certificate: read("operator.pem"), key: read("operator.key") };
        let _runtime = runtime().enter();
        connect(&self.admin, &read("ca.pem"), &pair)
    }

    /// A client of the operator whose files are in this directory.
    pub fn client(&self, operator: &Path) -> AdminClient<Channel> {
        AdminClient::new(self.channel(operator))
    }
}
