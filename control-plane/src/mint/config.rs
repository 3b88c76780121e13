//! `[sources]`: what references to secrets may read on this machine. Everything is off by default,
//! because a tenant's editor writes references and must not reach the control plane's own files.

use std::{path::PathBuf, time::Duration};

use seks_types::id::TenantName;
use serde::Deserialize;

use super::MintError;

/// The place in a command's arguments that a reference fills.
pub(super) const ARGUMENT: &str = "{argument}";
/// Bounds of a command's duration: well within a claim.
const TIMEOUT_BOUNDS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(20);

/// `[sources]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourcesConfig {
    /// The folder of the source `file`. A tenant reads only below `FOLDER/TENANT`. Default: no
    /// tenant reads files.
    pub file_dir: PathBuf,
    /// Commands that references may name. Default: none.
    pub command: Vec<CommandConfig>,
    /// Logins of this control plane at a Vault or OpenBao server. Default: none.
    pub vault_login: Vec<VaultLoginConfig>,
}

/// `[[sources.command]]`: a command whose output is a secret. It runs without a shell, with an
/// environment of its own, and as the user of the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// What references call it.
    pub name: String,
    /// The program's absolute path, then its arguments. An argument `{argument}` is replaced by
    /// the reference's.
    pub argv: Vec<String>,
    /// The tenants whose references may name it.
    pub tenants: Vec<String>,
    /// The command's environment, `NAME=VALUE`. `PATH` is `/usr/bin:/bin` unless it is set here.
    /// The environment of the control plane is not passed on. Default: nothing else.
    #[serde(default)]
    pub env: Vec<String>,
    /// The command and its children are killed after this. Default: 10 s; 1 s to 20 s.
    #[serde(default = "default_timeout", with = "humantime_serde")]
    pub timeout: Duration,
}

fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

/// `[[sources.vault_login]]`: the control plane's identity in Kubernetes as one tenant's login. It
/// is sent to this address alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultLoginConfig {
    /// The tenant whose references may use it.
    pub tenant: String,
    /// The server, as references write it: `https://vault.example:8200`.
    pub address: String,
    /// The role of the Kubernetes auth method.
    pub role: String,
    /// Where the method is mounted. Default: `kubernetes`.
    #[serde(default = "default_mount")]
    pub auth_mount: String,
    /// The service account's token, read at each login. Default:
    /// `/var/run/secrets/kubernetes.io/serviceaccount/token`.
    #[serde(default = "default_token_file")]
    pub token_file: PathBuf,
}

fn default_mount() -> String {
    "kubernetes".into()
}

fn default_token_file() -> PathBuf {
    "/var/run/secrets/kubernetes.io/serviceaccount/token".into()
}

impl SourcesConfig {
    /// Whether every entry can work.
    ///
    /// # Errors
    /// [`MintError::Invalid`] names the key.
    pub fn check(&self) -> Result<(), MintError> {
        let wrong = |key: String, why: &str| Err(MintError::Invalid(format!("sources.{key}: {why}")));
        if !self.file_dir.as_os_str().is_empty() && !self.file_dir.is_absolute() {
            return wrong("file_dir".into(), "is not an absolute path");
        }
        for (at, command) in self.command.iter().enumerate() {
            let key = |name: &str| format!("command[{at}].{name}");
            if !is_name(&command.name) {
                return wrong(key("name"), "is 1 to 63 of a-z, 0-9 and `-`");
            }
            if self.command.iter().take(at).any(|other| other.name == command.name) {
                return wrong(key("name"), "is the name of another command");
            }
            if !command.argv.first().is_some_and(|program| program.starts_with('/')) {
                return wrong(key("argv"), "begins with the absolute path of a program");
            }
            if command.env.iter().any(|pair| pair.split_once('=').is_none_or(|(name, _)| name.is_empty())) {
                return wrong(key("env"), "each is NAME=VALUE");
            }
            if !command.tenants.iter().all(|tenant| TenantName::try_from(tenant.as_str()).is_ok()) {
                return wrong(key("tenants"), "has what is no tenant's name");
            }
            if !TIMEOUT_BOUNDS.contains(&command.timeout) {
                return wrong(key("timeout"), "is 1s to 20s");
            }
        }
        for (at, login) in self.vault_login.iter().enumerate() {
            if TenantName::try_from(login.tenant.as_str()).is_err() {
                return wrong(format!("vault_login[{at}].tenant"), "is no tenant's name");
            }
        }
        Ok(())
    }
}

/// The name of a command: `op-read`.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(plain)
}
