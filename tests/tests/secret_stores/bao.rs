//! A real OpenBao server in its development mode: unsealed, in memory, with a known root token.

use std::{net::TcpListener, path::Path, process::Command};

use seks_tests::{
    process::{Process, installed, wait_for},
    raw,
    sandbox::clean_environment,
};
use serde_json::Value;
use tempfile::TempDir;

/// The root token. It opens everything in this server and nothing elsewhere.
pub(crate) const ROOT: &str = "root-token-of-a-test-0000000001";

/// The server. It ends when it is dropped.
pub(crate) struct Bao {
    address: String,
    process: Process,
    _directory: TempDir,
}

impl Bao {
    pub(crate) fn start() -> Self {
        // The port is free now. Another process can take it before the server does.
        let mut output = String::new();
        for _ in 0..10 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
            let directory = tempfile::tempdir().unwrap();
            let mut process = spawn(&address, directory.path());
            if serves(&mut process) {
                return Self { address, process, _directory: directory };
            }
            output = process.output();
        }
        panic!("OpenBao does not start:\n{output}");
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends the server: no address answers any more.
    pub(crate) fn stop(&mut self) {
        self.process.kill();
    }

    /// A call of the API with the root token; its answer.
    pub(crate) fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} /v1/{path} HTTP/1.1\r\nHost: {}\r\nX-Vault-Token: {ROOT}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        );
        let reply = raw::exchange(self.address.parse().unwrap(), &request);
        assert!((200..300).contains(&reply.status), "{method} {path}: {} {}", reply.status, reply.text());
        serde_json::from_str(&reply.text()).unwrap_or_default()
    }
}

fn spawn(address: &str, directory: &Path) -> Process {
    let mut command = Command::new(installed("openbao/bao"));
    clean_environment(&mut command);
    command.args(["server", "-dev", "-dev-no-store-token", &format!("-dev-listen-address={address}")]);
    command.env("BAO_DEV_ROOT_TOKEN_ID", ROOT).env("HOME", directory);
    Process::spawn("bao", directory, &mut command)
}

/// Waits until it serves or has ended. The mount of secrets serves when its keys are upgraded.
fn serves(process: &mut Process) -> bool {
    wait_for("OpenBao to serve", || {
        let ended = !process.is_alive();
        let serves = process.stderr().contains("upgrading keys finished");
        (serves || ended).then_some(serves)
    })
}
