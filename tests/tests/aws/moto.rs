//! A broker: moto, a broker in front of it, an agent with a token.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use seks_tests::{
    Sandbox,
    process::{Finished, Process, installed, program, run},
    sandbox::Token,
};
use serde_json::Value;
use tempfile::TempDir;

/// The emulator, a broker with its services, and an agent's environment.
pub(crate) struct MotoBroker {
    pub(crate) sandbox: Sandbox,
    pub(crate) token: Token,
    /// What `seks env` prints.
    pub(crate) environment: BTreeMap<String, String>,
    /// The real pair.
    pub(crate) key: Value,
    _moto: Process,
    _directory: TempDir,
    bin: PathBuf,
}

const SERVICES: [&str; 3] = ["aws-s3", "aws-dynamodb", "aws-sts"];

/// Where boto3, the AWS CLI and moto are.
pub(crate) fn bin() -> PathBuf {
    installed("aws/bin")
}

pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk").join(name)
}

/// A command without the environment of a developer's machine.
pub(crate) fn command(program: &Path) -> Command {
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

fn emulator(bin: &Path, directory: &TempDir, verifies: bool) -> (Process, String) {
    let mut server = command(&bin.join("moto_server"));
    server.args(["-H", "127.0.0.1", "-p", "0"]);
    if verifies {
        server.env("INITIAL_NO_AUTH_ACTION_COUNT", "3"); // those of aws_user.py
    }
    let mut moto = Process::spawn("moto", directory.path(), &mut server);
    let url = moto.wait_for_output("moto's port", |log| {
        let (_, rest) = log.split_once("Running on ")?;
        Some(rest.split_whitespace().next()?.to_owned())
    });
    (moto, url)
}

fn json(finished: &Finished) -> Value {
    assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {}", finished.stdout))
}

impl MotoBroker {
    pub(crate) fn start() -> Self {
        Self::with(true)
    }

    /// With a moto that verifies signatures, or one that takes presigned URLs: it has no
    /// verification for those.
    pub(crate) fn with(verifies: bool) -> Self {
        let bin = bin();
        let directory = tempfile::tempdir().unwrap();
        let (moto, url) = emulator(&bin, &directory, verifies);
        let key = json(&run(command(&bin.join("python")).arg(script("aws_user.py")).arg(&url), b""));
        let sandbox = Sandbox::start();
        for service in SERVICES {
            sandbox.cli().json(&["service", "enable", service, "--upstream", &url, "--allow-private"]);
            sandbox.cli().put_credential(service, service, &key.to_string());
        }
        let token = sandbox.token("agent", &SERVICES);
        let variables = sandbox.cli().json(&["env", "--agent", "agent", "--token", &token.secret]);
        let environment = serde_json::from_value(variables).unwrap();
        Self { sandbox, token, environment, key, _moto: moto, _directory: directory, bin }
    }

    /// A program of the environment, with the agent's variables.
    pub(crate) fn agent(&self, program: &str) -> Command {
        let mut command = command(&self.bin.join(program));
        command.envs(&self.environment).env("AWS_DEFAULT_REGION", "us-east-1");
        command
    }

    /// Runs checks of `aws_client.py`; what came of each.
    pub(crate) fn check(&self, checks: &[&str]) -> Value {
        json(&run(self.agent("python").arg(script("aws_client.py")).args(checks), b""))
    }

    /// Runs checks of `node/aws.mjs`; what came of each.
    pub(crate) fn check_node(&self, checks: &[&str]) -> Value {
        let mut client = node(checks);
        client.envs(&self.environment).env("AWS_REGION", "us-east-1");
        json(&run(&mut client, b""))
    }

    /// Nothing of the real key came out anywhere.
    pub(crate) fn assert_nothing_leaked(&self, seen: &str) {
        let emitted = self.sandbox.everything_emitted() + seen;
        for field in ["access_key_id", "secret_access_key"] {
            assert!(!emitted.contains(self.key[field].as_str().unwrap()), "the real {field} came out");
        }
    }
}

/// AWS's SDK for Node, which does these checks of `node/aws.mjs`.
pub(crate) fn node(checks: &[&str]) -> Command {
    let mut client = command(&program("node"));
    client.arg(script("node/aws.mjs")).args(checks).env("SDK_MODULES", installed("node"));
    client
}
