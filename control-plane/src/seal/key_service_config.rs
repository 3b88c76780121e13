//! `[seal.transit]` and `[seal.aws_kms]`: where a key service is, and how the control plane logs
//! in.

use std::{path::PathBuf, sync::Arc};

use seks_network::address::{DialGuard, DialRules, Networks};
use serde::Deserialize;

use super::SealError;
use crate::mint::aws::AwsService;

/// `[seal.transit]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransitConfig {
    /// `https://vault.example:8200`; plain `http` only to this machine. No default.
    pub address: String,
    /// Where the engine is mounted. Default: `transit`.
    pub mount: String,
    /// The key's name. No default.
    pub key: String,
    /// A file with a token that may encrypt and decrypt with the key. Read at each call.
    pub token_file: PathBuf,
    /// An AppRole, instead of a token; `secret_id_file` belongs to it.
    pub role_id: String,
    /// A file with the AppRole's secret id. Read at each call.
    pub secret_id_file: PathBuf,
    /// A role of the Kubernetes auth method, instead of a token.
    pub kubernetes_role: String,
    /// The service account's token. Default:
    /// `/var/run/secrets/kubernetes.io/serviceaccount/token`.
    pub kubernetes_token_file: PathBuf,
    /// Where the auth method is mounted. Default: `approle` or `kubernetes`.
    pub auth_mount: String,
    /// Of Vault Enterprise and OpenBao. Default: none.
    pub namespace: String,
    /// PEM roots that verify the server. Default: the system's.
    pub ca_file: PathBuf,
}

impl Default for TransitConfig {
    fn default() -> Self {
        Self {
            address: String::new(),
            mount: "transit".into(),
            key: String::new(),
            token_file: PathBuf::new(),
            role_id: String::new(),
            secret_id_file: PathBuf::new(),
            kubernetes_role: String::new(),
            kubernetes_token_file: "/var/run/secrets/kubernetes.io/serviceaccount/token".into(),
            auth_mount: String::new(),
            namespace: String::new(),
            ca_file: PathBuf::new(),
        }
    }
}

impl TransitConfig {
    pub(super) fn check(&self) -> Result<(), SealError> {
        let wrong = |key, reason| Err(SealError::Config { key, reason });
        if !is_safe(&self.address) {
            return wrong("transit.address", "is an https URL, or an http URL of this machine");
        }
        if self.key.is_empty() {
            return wrong("transit.key", "is missing");
        }
        if [&self.mount, &self.key].iter().any(|part| !crate::mint::is_path(part)) {
            return wrong("transit.key", "and `mount` are segments of letters, digits, `-`, `_` and `.`");
        }
        let has_role = !self.role_id.is_empty() && !self.secret_id_file.as_os_str().is_empty();
        let logins = [!self.token_file.as_os_str().is_empty(), has_role, !self.kubernetes_role.is_empty()];
        match logins.iter().filter(|has| **has).count() {
            1 => Ok(()),
            _ => wrong("transit.token_file", "or `role_id` with `secret_id_file`, or `kubernetes_role`: exactly one"),
        }
    }
}

/// `[seal.aws_kms]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AwsKmsConfig {
    /// `eu-central-1`. No default.
    pub region: String,
    /// The key's id, ARN or `alias/NAME`. No default.
    pub key_id: String,
    /// A private file with `{"access_key_id":…,"secret_access_key":…}`, and `session_token` for
    /// temporary credentials. Read at each call. Default: the variables `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    pub credentials_file: PathBuf,
    /// Another address than the public one, such as a VPC endpoint. Default: none.
    pub endpoint: String,
    /// PEM roots that verify the server. Default: the system's.
    pub ca_file: PathBuf,
}

impl AwsKmsConfig {
    pub(super) fn check(&self) -> Result<(), SealError> {
        let wrong = |key, reason| Err(SealError::Config { key, reason });
        if self.key_id.is_empty() {
            return wrong("aws_kms.key_id", "is missing");
        }
        if !self.endpoint.is_empty() && !is_safe(&self.endpoint) {
            return wrong("aws_kms.endpoint", "is an https URL, or an http URL of this machine");
        }
        match AwsService::new("kms", &self.region, &self.endpoint, dial_rules()) {
            Ok(_) => Ok(()),
            Err(_) => wrong("aws_kms.region", "is a name such as `eu-central-1`"),
        }
    }
}

/// A key service is where the configuration says, also in a private network. Addresses of cloud
/// metadata stay forbidden.
pub(super) fn dial_rules() -> DialRules {
    let allowed = Networks::loopback_and_lan();
    DialRules {
        guard: Arc::new(DialGuard { allowed: allowed.clone(), ..DialGuard::default() }),
        tenant_networks: allowed,
    }
}

/// Whether a URL is TLS, or plain to this machine alone.
fn is_safe(url: &str) -> bool {
    let local = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
    url.starts_with("https://")
        || local
            .iter()
            .any(|origin| url.strip_prefix(origin).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/'])))
}
