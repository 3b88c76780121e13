//! moto: AWS's Secrets Manager and KMS, which verify signatures.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use seks_tests::process::{Process, installed, run};
use serde_json::Value;
use tempfile::TempDir;

/// The emulator, with one user.
pub(crate) struct Moto {
    pub(crate) url: String,
    /// The user's key pair.
    pub(crate) key: Value,
    _process: Process,
    _directory: TempDir,
}

impl Moto {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut server = command(&installed("aws/bin").join("moto_server"));
        server.args(["-H", "127.0.0.1", "-p", "0"]).env("INITIAL_NO_AUTH_ACTION_COUNT", "3"); // those of aws_user.py
        let mut process = Process::spawn("moto", directory.path(), &mut server);
        let url = process.wait_for_output("moto's port", |log| {
            let (_, rest) = log.split_once("Running on ")?;
            Some(rest.split_whitespace().next()?.to_owned())
        });
        let key = python("aws_user.py", &[&url], &Value::Null);
        Self { url, key, _process: process, _directory: directory }
    }

    /// Makes a secret, or a new version of it.
    pub(crate) fn put_secret(&self, name: &str, value: &str) {
        python("aws_secrets.py", &[&self.url, "put-secret", name, value], &self.key);
    }

    /// Makes a key of KMS; its id.
    pub(crate) fn create_key(&self, description: &str) -> String {
        let made = python("aws_secrets.py", &[&self.url, "create-key", description], &self.key);
        made["id"].as_str().unwrap().to_owned()
    }
}

fn python(script: &str, arguments: &[&str], key: &Value) -> Value {
    let script: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk").join(script);
    let mut python = command(&installed("aws/bin").join("python"));
    python.arg(script).args(arguments).env("AWS_DEFAULT_REGION", "us-east-1");
    for (variable, field) in [("AWS_ACCESS_KEY_ID", "access_key_id"), ("AWS_SECRET_ACCESS_KEY", "secret_access_key")] {
        if let Some(value) = key[field].as_str() {
            python.env(variable, value);
        }
    }
    let done = run(&mut python, b"");
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {}", done.stdout))
}

/// A command without the environment of a developer's machine.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.to_ascii_lowercase().ends_with("_proxy") || name.starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command
}
