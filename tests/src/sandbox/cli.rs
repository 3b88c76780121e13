//! The administrator's command line, run as a process.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use parking_lot::Mutex;
use serde_json::Value;

use crate::{
    Upstream,
    process::{self, Finished, binary},
};

/// An issued token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its id: what it is revoked by.
    pub id: String,
    /// The token itself: what an agent presents.
    pub secret: String,
}

/// `seks` with a context.
#[derive(Debug)]
pub struct Cli {
    directory: PathBuf,
    context_file: PathBuf,
    printed: Mutex<String>,
}

/// What the environment of a developer's machine must not change.
pub fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SEKS_") || name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(proxy);
    }
}

/// Neither the developer's own context nor another test's `seks dev` is found, and none of these
/// finds this one.
pub(crate) fn own_user_directories(command: &mut Command, directory: &Path) {
    command.env("XDG_STATE_HOME", directory.join("state")).env("XDG_CONFIG_HOME", directory.join("config"));
}

impl Cli {
    /// A CLI that runs in `directory` with this context.
    pub fn new(directory: &Path, context_file: &Path) -> Self {
        Self { directory: directory.into(), context_file: context_file.into(), printed: Mutex::default() }
    }

    /// Runs `seks ARGS…` with `input` on standard input, whatever comes of it.
    pub fn run(&self, arguments: &[&str], input: &str) -> Finished {
        let mut command = Command::new(binary("seks"));
        command.current_dir(&self.directory).arg("--context-file").arg(&self.context_file).args(arguments);
        clean_environment(&mut command);
        own_user_directories(&mut command, &self.directory);
        let finished = process::run(&mut command, input.as_bytes());
        let mut printed = self.printed.lock();
        if arguments.first() != Some(&"token") {
            printed.push_str(&finished.stdout); // a token's own output holds it, once, by contract
        }
        printed.push_str(&finished.stderr);
        finished
    }

    /// Runs `seks ARGS… -o json` and reads what it prints.
    ///
    /// # Panics
    /// When it fails.
    pub fn json_with(&self, arguments: &[&str], input: &str) -> Value {
        let finished = self.run(&[arguments, &["-o", "json"]].concat(), input);
        assert_eq!(finished.code, Some(0), "seks {}: {}{}", arguments.join(" "), finished.stdout, finished.stderr);
        serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("seks {}: {error}: {}", arguments.join(" "), finished.stdout))
    }

    /// As [`Self::json_with`], without input.
    pub fn json(&self, arguments: &[&str]) -> Value {
        self.json_with(arguments, "")
    }

    /// `service enable CATALOGUE --as NAME`, pointed at a stand-in.
    pub fn enable(&self, catalogue: &str, name: &str, upstream: &Upstream) {
        let origin = upstream.origin();
        let mut arguments =
            vec!["service", "enable", catalogue, "--as", name, "--upstream", &origin, "--allow-private"];
        let ca = upstream.ca_pem().map(|pem| {
            let path = self.directory.join(format!("{name}-ca.pem"));
            std::fs::write(&path, pem).unwrap();
            path.display().to_string()
        });
        if let Some(path) = &ca {
            arguments.extend(["--upstream-ca", path]);
        }
        self.json(&arguments);
    }

    /// `service apply`.
    pub fn apply_service(&self, definition: &str) {
        let path = self.write("service.toml", definition);
        self.json(&["service", "apply", "-f", &path]);
    }

    /// `credential put`, from standard input.
    pub fn put_credential(&self, name: &str, service: &str, secret: &str) -> Value {
        self.json_with(&["credential", "put", name, "--service", service, "--from-stdin"], secret)
    }

    /// `agent create`.
    pub fn create_agent(&self, name: &str) {
        self.json(&["agent", "create", name]);
    }

    /// `token issue`.
    ///
    /// # Panics
    /// When the output lacks what the contract promises.
    pub fn issue(&self, agent: &str, services: &[&str], more: &[&str]) -> Token {
        let mut arguments = vec!["token", "issue", "--agent", agent];
        for service in services {
            arguments.extend(["--service", service]);
        }
        arguments.extend(more);
        let issued = self.json(&arguments);
        let text = |key: &str| issued[key].as_str().unwrap_or_else(|| panic!("no `{key}`: {issued}")).to_owned();
        Token { id: text("id"), secret: text("token") }
    }

    /// `token revoke`; what it says about where that is enforced.
    pub fn revoke(&self, id: &str) -> Value {
        self.json(&["token", "revoke", id, "--yes"])
    }

    /// `policy apply`.
    pub fn apply_policies(&self, cedar: &str) {
        let path = self.write("policies.cedar", cedar);
        self.json(&["policy", "apply", "-f", &path]);
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// All that it has printed, tokens at their issue left out.
    pub fn everything_printed(&self) -> String {
        self.printed.lock().clone()
    }
}
